from __future__ import annotations

import pytest
import torch

from attnbench.kernels.support import why_not
from attnbench.problem import Dtype, Problem


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


def problem(head_dim: int, dtype: Dtype) -> Problem:
    return Problem(64, head_dim, dtype=dtype)


def test_what_runs_has_no_reason() -> None:
    assert why_not(problem(256, "float32")) is None
    assert why_not(problem(256, "bfloat16")) is None


def test_what_registers_do_not_hold_is_refused() -> None:
    assert "128" in str(why_not(problem(129, "float32"), max_exact_dim=128))
    assert why_not(problem(129, "float16"), max_exact_dim=128) is None


def test_other_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "float64" in str(why_not(problem(32, "float64")))
    assert "257" in str(why_not(problem(257, "bfloat16")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "8.0" in str(why_not(problem(32, "bfloat16")))
