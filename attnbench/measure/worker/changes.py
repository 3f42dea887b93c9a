"""Calls whose outputs are looked at, so that an answer of an earlier call, or one that is not there yet, shows.

A set's values are changed where no cache looks: one random element of each data tensor, written behind the version
counter, at the same address, in the same object. Parameters stay as they are: packing them once is legitimate.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.measure.worker.prepared_cell import Outputs, Subject, Wrong, grad_mode
from attnbench.measure.worker.returned import misfit_of_output
from attnbench.operator import Inputs
from attnbench.problem import Problem

CANDIDATES = 16
"""Elements that are looked at for the value that is farthest from the one to be changed."""


@dataclass(frozen=True)
class Change:
    """By tensor of data or state: the number of an element in its storage, the element's value, and the other one."""

    elements: Mapping[str, tuple[int, float, float]]


def change_of(inputs: Inputs, seed: int) -> Change:
    """A change of one random element (never the first) of each tensor of data or state to a value that the tensor has
    elsewhere."""
    drawn = random.Random(seed)
    elements: dict[str, tuple[int, float, float]] = {}
    for name, tensor in {**inputs.data, **inputs.state}.items():
        places = [drawn.randrange(1, tensor.numel()) if tensor.numel() > 1 else 0 for _ in range(CANDIDATES)]
        values = tensor.detach().view(-1)[torch.tensor(places, device=tensor.device)].tolist()
        other = max(values, key=lambda value: abs(value - values[0]))
        elements[name] = (places[0], values[0], other if other != values[0] else 2 * other + 1)
    return Change(elements)


@contextlib.contextmanager
def changed(inputs: Inputs, change: Change) -> Iterator[None]:
    """The inputs with the change in place, and as they were afterwards; no version counter moves."""
    _write(inputs, {name: (place, other) for name, (place, _, other) in change.elements.items()})
    try:
        yield
    finally:
        _write(inputs, {name: (place, value) for name, (place, value, _) in change.elements.items()})


def _write(inputs: Inputs, elements: Mapping[str, tuple[int, float]]) -> None:
    tensors = {**inputs.data, **inputs.state}
    for name, (place, value) in elements.items():
        tensors[name].data.view(-1)[place] = value  # .data has a version counter of its own


class Observer:
    """Makes calls of a subject on inputs of a problem, and looks at what each returns: at once, and again when the
    next one has been made.
    """

    def __init__(self, subject: Subject, problem: Problem) -> None:
        self.subject = subject
        self.problem = problem
        self._last: tuple[Outputs, Outputs] | None = None

    def returned(self, call: Callable[[], Outputs]) -> Outputs:
        """What a call returns, detached and uncopied. Raises Wrong where it is no plain tensor of the problem's."""
        subject = self.subject
        with subject.spent.inside(), grad_mode(subject.cell.mode):
            outputs = call()
            subject.device.synchronise_stream()  # other streams may be at work
        require_plain(subject, outputs, self.problem)
        return tuple(tensor.detach() for tensor in outputs)

    def outputs(self, call: Callable[[], Outputs]) -> Outputs:
        """Copies of what a call returns, taken before anything else happens. Raises Wrong where it is no plain tensor,
        or where what the call before returned has changed meanwhile.
        """
        returned = self.returned(call)
        copies = tuple(tensor.clone() for tensor in returned)
        self.subject.synchronise()
        self.settle()
        self._last = (returned, copies)
        return copies

    def settle(self) -> None:
        """Looks at what the last call returned again, and lets go of it. Raises Wrong."""
        last, self._last = self._last, None
        if last is not None:
            require_same(*last)


def require_plain(subject: Subject, outputs: tuple[object, ...], problem: Problem) -> None:
    """Raises Wrong where a call has returned what no output of a problem, or no new state, can be."""
    differentiable = subject.cell.mode == "fwd_bwd"
    returned = {"output": outputs[0]}
    if not differentiable:
        returned |= {f"new state {number}": state for number, state in enumerate(outputs[1:], 1)}
    for name, tensor in returned.items():
        misfit = misfit_of_output(tensor, problem, subject.device.type, differentiable=differentiable, name=name)
        if misfit is not None:
            raise Wrong(misfit)


def require_same(returned: Outputs, copies: Outputs) -> None:
    """Raises Wrong where what a call has returned is no longer what it was when it was copied."""
    if not all(map(_same_values, returned, copies)):
        raise Wrong(
            "its output changes after the call has returned: work is left to a thread or a stream, or another call "
            "writes to the same memory"
        )


def _same_values(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())
