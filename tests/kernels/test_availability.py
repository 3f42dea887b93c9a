from __future__ import annotations

import pytest
import torch

from attnbench.kernels._availability import why_not, why_not_projected
from attnbench.problem import Dtype, Problem


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


def problem(head_dim: int, dtype: Dtype, causal: bool = False) -> Problem:
    return Problem(64, head_dim, dtype=dtype, causal=causal)


def test_what_runs_has_no_reason() -> None:
    assert why_not(problem(256, "float32"), "cuda") is None
    assert why_not_projected(problem(256, "bfloat16", causal=True), "cuda") is None
    assert why_not_projected(problem(256, "float32"), "cuda") is None
    assert why_not_projected(problem(64, "float32", causal=True), "cuda") is None


def test_more_than_shared_memory_holds_is_refused() -> None:
    assert "not 65" in str(why_not_projected(problem(65, "float32", causal=True), "cuda"))
    assert why_not_projected(problem(65, "float16", causal=True), "cuda") is None


def test_other_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    assert why_not(problem(32, "float32"), "cpu") == "needs a CUDA device"
    assert "float64" in str(why_not(problem(32, "float64"), "cuda"))
    assert "257" in str(why_not(problem(257, "bfloat16"), "cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "8.0" in str(why_not(problem(32, "bfloat16"), "cuda"))
