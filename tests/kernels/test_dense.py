"""The exact library kernels: forced backends, and the package flash-attn behind a stand-in."""

from __future__ import annotations

import sys
import warnings
from types import ModuleType

import pytest
import torch
from torch import Tensor

from attnbench.kernels.library import sdpa_backends
from attnbench.measure.worker.operations import Dispatched
from attnbench.problem import DTYPES, Dtype, Problem
from attnbench.registry import operators
from tests.operators.small import close, small

PROBLEM = Problem(11, 16, 2, batch=2)
VARIANTS = ("cuda:flash", "cuda:cudnn", "cuda:efficient", "cuda:flash_attn")


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


def stand_in(calls: list[tuple[int, ...]]) -> ModuleType:
    """A package with flash-attn's call: [B, N, H, D] in and out."""

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
        calls.append(tuple(q.shape))
        heads = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=causal).transpose(1, 2)

    module = ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    module.__spec__ = __spec__
    return module


@pytest.mark.parametrize("causal", [False, True])
def test_the_package_is_called_with_tokens_before_heads(monkeypatch: pytest.MonkeyPatch, causal: bool) -> None:
    calls: list[tuple[int, ...]] = []
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in(calls))
    case = small("softmax", Problem(11, 16, 2, batch=3, causal=causal))
    assert close(case.impl("cuda:flash_attn"), case.output())
    assert calls == [(3, 11, 2, 8)]


def test_the_package_is_asked_for_and_its_limits_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setattr("importlib.util.find_spec", lambda name: None)
        assert "not installed" in str(sdpa_backends.why_not_flash_attn(PROBLEM.with_dtype("bfloat16")))
    monkeypatch.setitem(sys.modules, "flash_attn", stand_in([]))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    said: dict[Dtype, str | None] = {d: sdpa_backends.why_not_flash_attn(PROBLEM.with_dtype(d)) for d in DTYPES}
    assert [d for d, reason in said.items() if reason is None] == ["bfloat16", "float16"]
    assert "256" in str(sdpa_backends.why_not_flash_attn(Problem(8, 512, dtype="float16")))
    assert "multiples of 8" in str(sdpa_backends.why_not_flash_attn(Problem(8, 20, dtype="float16")))
