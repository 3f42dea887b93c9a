"""The exact kernels of torch: its SDPA with one backend forced."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.kernels.library import sdpa_backends
from attnbench.measure.worker.operations import Dispatched
from attnbench.operator import Impl
from attnbench.problem import MODES, Cell, Problem
from attnbench.registry import operators, why_not
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


def calls_of(monkeypatch: pytest.MonkeyPatch, after: Callable[[Tensor], Tensor] = lambda y: y) -> list[tuple[Any, ...]]:
    """(shape of q, shape of k, whether a gradient is recorded) of the calls of SDPA from now on, each answered anew."""
    calls: list[tuple[Any, ...]] = []

    def sdpa(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append((tuple(q.shape), tuple(k.shape), torch.is_grad_enabled() and q.requires_grad))
        return after(scaled_dot_product_attention(q, k, v, *args, **kwargs))

    monkeypatch.setattr(sdpa_backends, "scaled_dot_product_attention", sdpa)
    sdpa_backends._refusal.cache_clear()
    return calls


@pytest.mark.parametrize(
    ("problem", "q", "k"),
    [
        (Problem(100, 64, 4, batch=3, kv_heads=2, causal=True), (2, 4, 100, 16), (2, 2, 100, 16)),
        (Problem(65536, 64, 4, causal=True), (1, 4, 512, 16), (1, 4, 512, 16)),
        (Problem(65536 + 63, 64, 4, causal=True), (1, 4, 575, 16), (1, 4, 575, 16)),
        (Problem.image(64, 63, 64, 4), (1, 4, 704, 16), (1, 4, 704, 16)),
        (Problem(65536, 64, 4, kv_heads=1, causal=True, query_len=1), (1, 1, 4, 16), (1, 1, 768, 16)),
        (Problem(65536, 64, 4, causal=True, query_len=700), (1, 4, 700, 16), (1, 4, 1280, 16)),
    ],
)
def test_a_backend_is_asked_with_the_kind_of_shapes_of_the_problem(
    problem: Problem, q: tuple[int, ...], k: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of(monkeypatch)
    assert sdpa_backends.why_not_forced("flash", problem, "cpu") is None
    assert calls == [(q, k, False)]


def test_a_backend_is_asked_for_gradients_where_they_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, y: Tensor) -> Tensor:
            return y.clone()

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            raise RuntimeError("no execution plans support the graph")

    calls = calls_of(monkeypatch, Refusing.apply)
    assert sdpa_backends.why_not_forced("flash", PROBLEM, "cpu") is None
    assert "no execution plans" in str(sdpa_backends.why_not_forced("flash", PROBLEM, "cpu", backward=True))
    assert [recorded for *_, recorded in calls] == [False, True]
    sdpa_backends._refusal.cache_clear()


def test_the_gradients_of_an_impl_are_asked_for_where_the_mode_needs_them() -> None:
    softmax = operators()["softmax"].load()
    mine = Impl(
        lambda: lambda *args: None, "mine", lambda *asked: None, why_not_backward=lambda *asked: "it has no backward"
    )
    form = replace(softmax.forms["core"], impls={"mine": mine})
    reasons = {
        mode: why_not(replace(softmax, forms={"core": form}), Cell("softmax", "mine", "core", mode, PROBLEM, {}), "cpu")
        for mode in MODES
    }
    assert reasons == {"fwd": None, "fwd_bwd": "it has no backward"}
