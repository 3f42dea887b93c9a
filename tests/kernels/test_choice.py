"""Impls that choose among others: which computes what, and what is said where none can."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attnbench.kernels.library.choice import first_of
from attnbench.operator import Impl
from attnbench.problem import Params, Problem

FULL, CAUSAL = Problem(8, 16, 2), Problem(8, 16, 2, causal=True)


def times(factor: int, reason: str | None = None, backward: str | None = None, **flags: bool) -> Impl:
    """An impl of causal problems; reason, backward: why it cannot compute them, or their gradients."""

    def call(problem: Problem, params: Params, x: Tensor) -> Tensor:
        return factor * x

    def why_not(problem: Problem, params: Params, device: str) -> str | None:
        return reason if problem.causal else None

    return Impl(lambda: call, f"times {factor}", why_not, why_not_backward=lambda *asked: backward, **flags)


def value(impl: Impl, problem: Problem, differentiated: bool = False) -> float:
    call: Callable[..., Tensor] = impl.load()
    return call(problem, {}, x=torch.ones(1, requires_grad=differentiated)).item()


def test_the_first_that_can_computes() -> None:
    made = first_of({"a": times(2, "not causal"), "b": times(3)})
    assert (value(made, FULL), value(made, CAUSAL)) == (2, 3)
    assert made.kernel == "times 2 or times 3"
    assert made.why_not(CAUSAL, {}, "cpu") is None


def test_the_last_says_why_none_can() -> None:
    made = first_of({"a": times(2, "not installed"), "b": times(3, "too many channels")})
    assert made.why_not(CAUSAL, {}, "cpu") == "too many channels"
    assert made.why_not(FULL, {}, "cpu") is None


def test_gradients_are_computed_by_what_gives_them() -> None:
    made = first_of({"a": times(2, backward="forward only"), "b": times(3)})
    assert (value(made, FULL), value(made, FULL, differentiated=True)) == (2, 3)
    assert made.why_not_backward(FULL, {}, "cpu") is None
    alone = first_of({"a": times(2, backward="forward only")})
    assert alone.why_not_backward(FULL, {}, "cpu") == "forward only"


def test_groups_and_states_go_to_what_takes_them() -> None:
    made = first_of({"a": times(2), "b": times(3, grouped=True), "c": times(4, continues=True)})
    assert (made.grouped, made.continues) == (True, True)
    assert value(made, Problem(8, 16, 2, kv_heads=1)) == 3
    assert value(made, Problem(8, 16, 2, causal=True, query_len=1)) == 4
    both = Problem(8, 16, 2, kv_heads=1, causal=True, query_len=1)
    assert "as many heads" in str(made.why_not(both, {}, "cpu"))
