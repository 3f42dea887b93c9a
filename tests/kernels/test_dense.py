"""The exact kernels of torch: its SDPA with one backend forced."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from attnbench.kernels.library import sdpa_backends
from attnbench.measure.worker.operations import Dispatched
from attnbench.problem import Problem
from attnbench.registry import operators
from tests.operators.small import close, small

PROBLEM = Problem(11, 16, 2, batch=2)
VARIANTS = ("cuda:flash", "cuda:cudnn", "cuda:efficient")


def test_softmax_lists_every_variant() -> None:
    for scope in ("core", "layer"):
        assert set(VARIANTS) < set(operators()["softmax"].load().forms[scope].impls)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("value_map", [False, True])
def test_a_forced_backend_is_the_same_map(causal: bool, value_map: bool) -> None:
    case = small("softmax", Problem(11, 16, 2, batch=2, causal=causal), value_map=value_map)
    assert close(case.impl("cuda:flash"), case.output())
    assert not close(case.impl("cuda:flash"), small("softmax", PROBLEM, seed=1).output())


def test_a_forced_backend_is_what_runs() -> None:
    case = small("softmax", PROBLEM)
    with torch.inference_mode(), Dispatched() as seen:
        case.impl("cuda:flash")
    assert [name for name in seen.counts if "scaled_dot_product" in name] == [
        "aten._scaled_dot_product_flash_attention_for_cpu"
    ]


def test_a_backend_that_cannot_run_raises_and_says_why() -> None:
    assert sdpa_backends.why_not_forced("flash", PROBLEM, "cpu") is None
    for backend in ("cudnn", "efficient"):
        assert f"torch's {backend} kernel" in str(sdpa_backends.why_not_forced(backend, PROBLEM, "cpu"))
        with pytest.raises(RuntimeError):
            small("softmax", PROBLEM).impl(f"cuda:{backend}")


def test_the_reason_is_what_torch_says_of_that_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> Tensor:
        warnings.warn("Flash attention kernel not used because: (Triggered internally at a.cpp:1.)", stacklevel=1)
        warnings.warn("Expected dtype Half or BFloat16. Got Float. (Triggered internally at a.cpp:2.)", stacklevel=1)
        warnings.warn("CuDNN attention has been runtime disabled. (Triggered internally at a.cpp:3.)", stacklevel=1)
        raise RuntimeError("No available kernel. Aborting execution.")

    monkeypatch.setattr(sdpa_backends, "scaled_dot_product_attention", refuse)
    sdpa_backends._refusal.cache_clear()
    reason = sdpa_backends.why_not_forced("flash", PROBLEM, "cpu")
    sdpa_backends._refusal.cache_clear()
    assert reason == "torch's flash kernel does not run here: Expected dtype Half or BFloat16. Got Float."
