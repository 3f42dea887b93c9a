"""Heads that differ: consecutive groups of heads, each computed by another form on its share of q, k, v."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnbench.operator import Cost, Form, Impl
from attnbench.problem import Mode, Params, Problem


@dataclass(frozen=True)
class Part:
    """One group of heads. takes: the names of the tensors that its form takes beside q, k, v."""

    form: Form
    params: Params
    takes: tuple[str, ...] = ()


def shares(heads: int, parts: int) -> list[int]:
    """Heads of each group: as equal as possible, the first groups having one more."""
    return [heads // parts + (i < heads % parts) for i in range(parts)]


def groups(problem: Problem, parts: Sequence[Part]) -> list[tuple[Problem, Part]]:
    """The problem of each group of heads; with fewer heads than parts the last parts have none and are left out."""
    sizes = shares(problem.heads, len(parts))
    return [
        (replace(problem, heads=size, channels=size * problem.head_dim), part)
        for size, part in zip(sizes, parts, strict=True)
        if size
    ]


def reference(problem: Problem, parts: Sequence[Part], q: Tensor, k: Tensor, v: Tensor, **extra: Tensor) -> Tensor:
    """q, k, v: [B, H, N, D]; extra: the tensors that parts take beside them. Returns [B, H, N, D]."""
    return _apply(problem, parts, (q, k, v), extra, lambda inner, part: part.form.reference)


def accelerated(problem: Problem, parts: Sequence[Part], q: Tensor, k: Tensor, v: Tensor, **extra: Tensor) -> Tensor:
    """As `reference`, each group by the fast GPU path of its form."""
    return _apply(problem, parts, (q, k, v), extra, lambda inner, part: _fast(inner, part, q.device.type)[0].load())


def why_not(problem: Problem, parts: Sequence[Part], device: str) -> str | None:
    """The reason one of the groups has no fast GPU path, or None."""
    return next(filter(None, (_fast(inner, part, device)[1] for inner, part in groups(problem, parts))), None)


def _fast(problem: Problem, part: Part, device: str) -> tuple[Impl, str | None]:
    """The form's `cuda`, or `sdpa` where that is its best GPU path, and the reason why it cannot run, or None."""
    impls = [part.form.impls[name] for name in ("cuda", "sdpa") if name in part.form.impls]
    reasons = [impl.why_not(problem, part.params, device) for impl in impls]
    return next(((i, r) for i, r in zip(impls, reasons, strict=True) if r is None), (impls[0], reasons[0]))


def _apply(
    problem: Problem,
    parts: Sequence[Part],
    qkv: tuple[Tensor, ...],
    extra: Mapping[str, Tensor],
    call: Callable[[Problem, Part], Callable[..., Tensor]],
) -> Tensor:
    chosen = groups(problem, parts)
    sizes = [inner.heads for inner, _ in chosen]
    shared = zip(*(x.split(sizes, dim=1) for x in qkv), strict=True)  # one (q, k, v) per group
    outputs = [
        call(inner, part)(inner, part.params, *mine, **{name: extra[name] for name in part.takes})
        for (inner, part), mine in zip(chosen, shared, strict=True)
    ]
    return torch.cat(outputs, dim=1)


def cost(problem: Problem, parts: Sequence[Part], mode: Mode) -> Cost:
    """The sum over the groups, which run independently."""
    each = [part.form.cost(inner, part.params, mode) for inner, part in groups(problem, parts)]
    return Cost(
        flops=sum(c.flops for c in each),
        reference_flops=sum(c.reference_flops for c in each),
        elementwise=sum(c.elementwise for c in each),
        bytes_required=sum(c.bytes_required for c in each),
        passes=max(c.passes for c in each),
    )
