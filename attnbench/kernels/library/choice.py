"""An impl that is a choice among others: each problem is computed by the first of them that can."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from attnbench.operator import Call, Form, Impl
from attnbench.problem import Mode, Params, Problem
from attnbench.registry import why_not_impl


def first_of(impls: Mapping[str, Impl]) -> Impl:
    """The impl that computes a problem by the first of some, the best first; the `kernel` column says which it was.

    impls: by their names; the reason why none can is that of the last.
    """

    if len(impls) == 1:
        return next(iter(impls.values()))

    def reason(problem: Problem, params: Params, device: str, mode: Mode) -> str | None:
        reasons = [why_not_impl(impl, name, problem, params, mode, device) for name, impl in impls.items()]
        return reasons[-1] if all(reasons) else None

    return Impl(
        load=lambda: _call(impls),
        kernel=" or ".join(dict.fromkeys(impl.kernel for impl in impls.values())),
        why_not=lambda problem, params, device: reason(problem, params, device, "fwd"),
        why_not_backward=lambda problem, params, device: reason(problem, params, device, "fwd_bwd"),
        synchronises=any(impl.synchronises for impl in impls.values()),
        grouped=any(impl.grouped for impl in impls.values()),
        continues=any(impl.continues for impl in impls.values()),
    )


def _call(impls: Mapping[str, Impl]) -> Call:
    @cache
    def loaded(name: str) -> Call:
        return impls[name].load()

    @lru_cache(maxsize=64)
    def chosen(problem: Problem, params: tuple[tuple[str, Any], ...], mode: Mode, device: str) -> Call:
        for name, impl in impls.items():
            if why_not_impl(impl, name, problem, dict(params), mode, device) is None:
                return loaded(name)
        raise RuntimeError(f"none of {', '.join(impls)} can compute {problem}")

    def call(problem: Problem, params: Params, **tensors: Tensor) -> Any:
        differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in tensors.values())
        device = next(iter(tensors.values())).device.type
        mode: Mode = "fwd_bwd" if differentiated else "fwd"
        return chosen(problem, tuple(params.items()), mode, device)(problem, params, **tensors)

    return call


def named(form: Form, *names: str) -> dict[str, Impl]:
    """Impls of a form by name, "reference" among them."""
    eager = Impl(lambda: form.reference, "eager", lambda *asked: None, grouped=True, continues=True)
    return {name: eager if name == "reference" else form.impls[name] for name in names}
