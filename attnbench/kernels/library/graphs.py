"""CUDA graphs: the launches of a forward call, captured once for the tensors it is given, then replayed at once.

For calls so short that Python's launches are most of their time. What is timed: finding the graph by the tensors'
addresses, its launch, and a copy of what it leaves, as the next replay writes to the same place. No input is copied:
a graph reads the tensors that it was captured with, whatever their values are by then.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from attnbench.kernels.library.choice import first_of, named
from attnbench.operator import Call, Form, Impl
from attnbench.problem import Params, Problem, Scope

NAME = "cuda:graph"

MOST_BYTES = 8 << 20
"""Of the new tokens in the working dtype: a graph keeps all that its call allocates, and long calls gain nothing."""

MOST_GRAPHS = 4
"""Of one impl: those of its input sets, and of what a check gives it beside them."""

WARM_UPS = 2
"""Calls before the capture, in which kernels are compiled and chosen."""


def with_graph(forms: Mapping[Scope, Form], *names: str) -> dict[Scope, Form]:
    """The forms with the impl `cuda:graph`: the first of some impls that can compute a problem, as a graph.

    names: of impls of each form, or "reference".
    """
    return {
        scope: replace(form, impls={**form.impls, NAME: graphed(first_of(named(form, *names)))})
        for scope, form in forms.items()
    }


def graphed(impl: Impl) -> Impl:
    """An impl that replays another."""

    def why_not(problem: Problem, params: Params, device: str) -> str | None:
        size = problem.batch * problem.query_len * problem.channels * problem.item_bytes
        if size > MOST_BYTES:
            return f"a graph is for calls that launches take most of: up to {MOST_BYTES >> 20} MiB of new tokens"
        return impl.why_not(problem, params, device)

    return replace(
        impl,
        load=lambda: Replays(impl.load()),
        kernel=f"CUDA graph: {impl.kernel}",
        why_not=why_not,
        why_not_backward=lambda problem, params, device: "the graph is of the forward call",
        outermost=lambda around: graphed(around(impl)),  # it reads tensors where they were when it was captured
    )


@dataclass(frozen=True)
class _Graph:
    """A captured call. replay: launches it; returned: what it leaves; held: objects whose ids stand for them."""

    replay: Callable[[], None]
    returned: Any
    held: tuple[Any, ...]


@dataclass(eq=False)
class Replays:
    """A call as graphs, by problem, params, and addresses and strides of the tensors."""

    call: Call
    _graphs: dict[tuple[Any, ...], _Graph] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _every.add(self)

    def __call__(self, problem: Problem, params: Params, **tensors: Tensor) -> Any:
        """What the call returns, in memory of its own. Elsewhere than on a GPU it is made as it is."""
        if not capturable(next(iter(tensors.values()))):
            return self.call(problem, params, **tensors)
        key = (id(problem), id(params), *[(x.data_ptr(), x.stride()) for x in tensors.values()])
        graph = self._graphs.get(key)
        if graph is None:
            while len(self._graphs) >= MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            replay, returned = captured(lambda: self.call(problem, params, **tensors))
            graph = self._graphs[key] = _Graph(replay, returned, (problem, params))
        graph.replay()
        if isinstance(graph.returned, tuple):
            return tuple(x.clone() for x in graph.returned)
        return graph.returned.clone()

    def forget(self) -> None:
        """Frees its graphs with the memory that they keep; they are captured again when called for."""
        self._graphs.clear()


_every: WeakSet[Replays] = WeakSet()


def forget() -> None:
    """Frees every graph: so that what a call allocates can be measured."""
    for each in _every:
        each.forget()


def capturable(tensor: Tensor) -> bool:
    """Whether there are graphs where a tensor is; memory is foretold on a CPU, by tensors that hold nothing."""
    return tensor.is_cuda


def captured(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """What replays a call on the current stream, and the tensors that it then leaves. Nothing has been computed yet.

    What looks at operators as they are dispatched does not see those of the capture: a replay dispatches none.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), _disable_current_modes():
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), _disable_current_modes():
        returned = call()
    return graph.replay, returned
