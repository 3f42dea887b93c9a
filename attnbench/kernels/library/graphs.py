"""CUDA graphs: the launches of a forward call, captured once for the tensors it is given, then replayed at once.

For calls so short that Python's launches are most of their time. What is timed: finding the graph by the tensors'
addresses, its launch, and a copy of what it leaves, as the next replay writes to the same place. No input is copied:
a graph reads the tensors that it was captured with, whatever their values are by then.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from attnbench.operator import Call, Form, Impl
from attnbench.problem import Params, Problem
from attnbench.registry import why_not_impl

NAME = "cuda:graph"

MOST_BYTES = 16 << 20
"""Of the new tokens in the working dtype: a graph keeps all that its call allocates, and long calls gain nothing."""

MOST_GRAPHS = 6
"""Of one impl: those of its input sets, and of what a check gives it beside them."""

WARM_UPS = 2
"""Calls before the capture, in which kernels are compiled and chosen."""


def with_graph(form: Form, *names: str) -> Form:
    """The form with the impl `cuda:graph`: the first of some impls that can compute a problem, as a graph.

    names: of impls of the form, or "reference".
    """
    eager = Impl(lambda: form.reference, "eager", lambda *asked: None, grouped=True, continues=True)
    impls = {"reference": eager, **form.impls}
    return replace(form, impls={**form.impls, NAME: graphed({name: impls[name] for name in names})})


def graphed(impls: dict[str, Impl]) -> Impl:
    """An impl that replays the first of some that can compute a problem."""

    def why_not(problem: Problem, params: Params, device: str) -> str | None:
        size = problem.batch * problem.query_len * problem.channels * problem.item_bytes
        if size > MOST_BYTES:
            return f"a graph is for calls that launches take most of: up to {MOST_BYTES >> 20} MiB of new tokens"
        reasons = [_reason(name, impl, problem, params, device) for name, impl in impls.items()]
        return reasons[-1] if all(reasons) else None

    return Impl(
        load=lambda: Replays(impls),
        kernel=f"CUDA graph of {' or '.join(impls)}",
        why_not=why_not,
        why_not_backward=lambda problem, params, device: "the graph is of the forward call",
        grouped=any(impl.grouped for impl in impls.values()),
        continues=any(impl.continues for impl in impls.values()),
    )


def _reason(name: str, impl: Impl, problem: Problem, params: Params, device: str) -> str | None:
    return why_not_impl(impl, name, problem, params, "fwd", device)


@dataclass(frozen=True)
class _Graph:
    """A captured call. replay: launches it; returned: what it leaves; kept: objects whose ids stand for them."""

    replay: Callable[[], None]
    returned: Any
    kept: tuple[Any, ...]


@dataclass(eq=False)
class Replays:
    """The call of an impl as graphs, by problem, params, and addresses and strides of the tensors."""

    impls: dict[str, Impl]
    _graphs: dict[tuple[Any, ...], _Graph] = field(default_factory=dict)
    _calls: dict[str, Call] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _every.add(self)

    def __call__(self, problem: Problem, params: Params, **tensors: Tensor) -> Any:
        """What the call returns, in memory of its own."""
        key = (id(problem), id(params), *[(x.data_ptr(), x.stride()) for x in tensors.values()])
        graph = self._graphs.get(key)
        if graph is None:
            while len(self._graphs) >= MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            call = self._chosen(problem, params, next(iter(tensors.values())).device.type)
            replay, returned = captured(lambda: call(problem, params, **tensors))
            graph = self._graphs[key] = _Graph(replay, returned, (problem, params))
        graph.replay()
        if isinstance(graph.returned, tuple):
            return tuple(x.clone() for x in graph.returned)
        return graph.returned.clone()

    def _chosen(self, problem: Problem, params: Params, device: str) -> Call:
        name = next(name for name, impl in self.impls.items() if not _reason(name, impl, problem, params, device))
        if name not in self._calls:
            self._calls[name] = self.impls[name].load()
        return self._calls[name]

    def forget(self) -> None:
        """Frees its graphs with the memory that they keep; they are captured again when called for."""
        self._graphs.clear()


_every: WeakSet[Replays] = WeakSet()


def forget() -> None:
    """Frees every graph: so that what a call allocates can be measured."""
    for each in _every:
        each.forget()


def captured(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """What replays a call on the current stream, and the tensors that it then leaves. Nothing has been computed yet."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        returned = call()
    return graph.replay, returned
