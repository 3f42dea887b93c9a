"""Heads that differ: consecutive groups of heads, each computed by another form on its share of q, k, v."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Generator, Tensor

from attnbench.cost import traffic
from attnbench.operator import Cost, Form, Impl
from attnbench.problem import Mode, Params, Problem


@dataclass(frozen=True)
class Part:
    """One group of heads.

    Attributes:
        takes: the names of the tensors [heads, …] that its form takes beside q, k, v.
        drawn: (problem, params, generator, k, v) → `Inputs.state` of its form, drawn; None: it does not continue.
    """

    form: Form
    params: Params
    takes: tuple[str, ...] = ()
    drawn: Callable[..., dict[str, Tensor]] | None = None


@dataclass(frozen=True)
class Run:
    """Consecutive heads of one part: whole groups that read one head of keys and values each, or a part of one group.

    Attributes:
        problem: of these heads alone.
        kv_heads: which they read, of the whole problem's.
        first: the first of them among the part's heads.
    """

    problem: Problem
    part: Part
    kv_heads: slice
    first: int

    def extra(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Its heads of the tensors that its form takes beside q, k, v."""
        mine = slice(self.first, self.first + self.problem.heads)
        return {name: tensors[name][mine] for name in self.part.takes}


def shares(heads: int, parts: int) -> list[int]:
    """Heads of each group: as equal as possible, the first groups having one more."""
    return [heads // parts + (i < heads % parts) for i in range(parts)]


def runs(problem: Problem, parts: Sequence[Part]) -> list[Run]:
    """One of each part; with fewer heads than parts the last parts have none and are left out.

    More of a part whose heads are not whole groups of those that read one head of keys and values.
    """
    group, begin, every = problem.group, 0, []
    for size, part in zip(shares(problem.heads, len(parts)), parts, strict=True):
        end = begin + size
        aligned = -(-begin // group) * group, end // group * group  # between them groups are whole
        bounds = sorted({begin, end, *(bound for bound in aligned if begin < bound < end)})
        for low, high in pairwise(bounds):
            keys = slice(low // group, -(-high // group))
            inner = replace(
                problem,
                heads=high - low,
                channels=(high - low) * problem.head_dim,
                kv_heads=keys.stop - keys.start,
            )
            every.append(Run(inner, part, keys, low - begin))
        begin = end
    return every


def reference(problem: Problem, parts: Sequence[Part], q: Tensor, k: Tensor, v: Tensor, **extra: Tensor) -> Tensor:
    """q: [B, H, Q, D]; k, v: [B, Hk, Q, D]; extra: what parts take beside them, and `state`. Returns [B, H, Q, D]."""
    return _apply(problem, parts, {"q": q, "k": k, "v": v}, extra, lambda run: run.part.form.reference)


def accelerated(problem: Problem, parts: Sequence[Part], q: Tensor, k: Tensor, v: Tensor, **extra: Tensor) -> Tensor:
    """As `reference`, each group by the fast GPU path of its form."""
    return _apply(problem, parts, {"q": q, "k": k, "v": v}, extra, lambda run: _fast(run, q.device.type)[0].load())


def why_not(problem: Problem, parts: Sequence[Part], device: str) -> str | None:
    """The reason one of the groups has no fast GPU path, or None."""
    return next(filter(None, (_fast(run, device)[1] for run in runs(problem, parts))), None)


def _fast(run: Run, device: str) -> tuple[Impl, str | None]:
    """The form's `cuda`, or `sdpa` where that is its best GPU path, and the reason why it cannot run, or None."""
    impls = [run.part.form.impls[name] for name in ("cuda", "sdpa") if name in run.part.form.impls]
    reasons = [impl.why_not(run.problem, run.part.params, device) for impl in impls]
    return next(((i, r) for i, r in zip(impls, reasons, strict=True) if r is None), (impls[0], reasons[0]))


def _apply(
    problem: Problem,
    parts: Sequence[Part],
    qkv: Mapping[str, Tensor],
    extra: Mapping[str, Tensor],
    call: Callable[[Run], Callable[..., Tensor]],
) -> Tensor:
    outputs = []
    for i, (run, mine) in enumerate(_divided(problem, parts, qkv)):
        cache = {name.removesuffix(_of(i)): x for name, x in extra.items() if name.endswith(_of(i))}
        outputs.append(call(run)(run.problem, run.part.params, **mine, **cache, **run.extra(extra)))
    return torch.cat(outputs, dim=1)


def _divided(problem: Problem, parts: Sequence[Part], qkv: Mapping[str, Tensor]) -> list[tuple[Run, dict[str, Tensor]]]:
    """Each run with its heads of q, k and v."""
    every = runs(problem, parts)
    sizes, kv_sizes = ([getattr(run.problem, name) for run in every] for name in ("heads", "kv_heads"))

    def heads_of(name: str, x: Tensor) -> Sequence[Tensor]:
        if name == "q" or sum(kv_sizes) == problem.kv_heads:
            return x.split(sizes if name == "q" else kv_sizes, dim=1)
        return [x[:, run.kv_heads] for run in every]

    shared = zip(*(heads_of(name, x) for name, x in qkv.items()), strict=True)
    return [(run, dict(zip(qkv, mine, strict=True))) for run, mine in zip(every, shared, strict=True)]


def _of(run: int) -> str:
    """What the names of a run's part of the state end in."""
    return f"_{run}"


def state(problem: Problem, parts: Sequence[Part], q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """The state of each run, under names of its own: a head of keys that two of them read is kept by both."""
    every = {}
    for i, (run, mine) in enumerate(_divided(problem, parts, {"q": q, "k": k, "v": v})):
        assert run.part.form.state is not None
        caches = run.part.form.state(run.problem, run.part.params, **mine)
        every.update({name + _of(i): tensor for name, tensor in caches.items()})
    return every


def drawn(problem: Problem, parts: Sequence[Part], generator: Generator, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """As `state`, drawn; {} where Q = N. k, v: the new ones."""
    every = {}
    for i, (run, mine) in enumerate(_divided(problem, parts, {"k": k, "v": v}) if problem.past else ()):
        assert run.part.drawn is not None
        caches = run.part.drawn(run.problem, run.part.params, generator, **mine)
        every.update({name + _of(i): tensor for name, tensor in caches.items()})
    return every


def cost(problem: Problem, parts: Sequence[Part], mode: Mode) -> Cost:
    """The sum over the groups, which run independently; a head of keys that two of them read is read once."""
    every = runs(problem, parts)
    each = [run.part.form.cost(run.problem, run.part.params, mode) for run in every]
    again = sum(run.problem.kv_channels for run in every) - problem.kv_channels
    states = [c.state_bytes for c in each]
    return Cost(
        flops=sum(c.flops for c in each),
        reference_flops=sum(c.reference_flops for c in each),
        elementwise=sum(c.elementwise for c in each),
        bytes_required=sum(c.bytes_required for c in each)
        - traffic(problem, mode, read=2 * problem.batch * problem.query_len * again, written=0),
        bytes_again=sum(c.bytes_again for c in each),
        state_bytes=None if None in states else sum(filter(None, states)),
    )
