"""A cell made ready to be called: its operator, its callable, its inputs. Lives in a worker."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from time import perf_counter
from typing import Any

import torch
from torch import Generator, Tensor

from attnbench.inputs import torch_dtype
from attnbench.measure.device import Device
from attnbench.measure.protocol import Forecast
from attnbench.measure.worker.returned import misfit_of_inputs
from attnbench.measure.worker.shared_state import torch_as_it_was
from attnbench.operator import Form, Inputs, Operator
from attnbench.problem import Cell, Problem
from attnbench.registry import Source

Outputs = tuple[Tensor, ...]
"""What one call gives: the output, and in fwd_bwd the gradients of `Inputs.differentiated()` in its order; in fwd the
new state, where the operator gives one."""

SETS = 2
"""Input sets that calls rotate among, so that the answer of the last call is never the answer of the next."""

COMPILED = 256
"""Compiled members that may live together: torch counts them by the function they are compiled from."""


class Wrong(Exception):
    """The impl does not compute its operator. The text says what differs, by how much, and what was allowed."""


class Misfit(Exception):
    """What make_inputs returns is not for its cell: it, or what follows from it by the definition. The text names the
    tensor and what was expected."""


class Spent:
    """Adds up the seconds inside an operator's calls, reference included; the rest of a visit is harness."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Counts the time of its block, once where blocks nest."""
        if self._inside:
            yield
            return
        self._inside, start = True, perf_counter()
        try:
            yield
        finally:
            self._inside = False
            self.seconds += perf_counter() - start


@dataclass
class Precision:
    """How exactly an impl computes, as far as its checks have shown.

    Args:
        sdpa: whether an impl of another name dispatches torch's SDPA; None: nothing made a check look.
    """

    sdpa: bool | None = None


@dataclass(frozen=True)
class Subject:
    """A cell that can be called.

    Args:
        cell: what is measured.
        operator: the cell's.
        call: the callable of the cell's impl.
        device: on which its tensors are.
        memory_limit: bytes that it may need.
        forecast: what its shapes alone tell.
        share: (number of an input set, the set as drawn) -> the set as it is used.
        spent: seconds inside the operator's calls.
        precision: what its checks have shown of it.
    """

    cell: Cell
    operator: Operator
    call: Callable[..., Tensor]
    device: Device
    memory_limit: int
    forecast: Forecast
    share: Callable[[int, Inputs], Inputs] = lambda index, inputs: inputs
    spent: Spent = field(default_factory=Spent)
    precision: Precision = field(default_factory=Precision)

    @property
    def form(self) -> Form:
        """The operator in the cell's scope."""
        return self.operator.forms[self.cell.scope]

    @property
    def synchronises(self) -> bool:
        """Whether the impl waits for the device inside a call."""
        impl = self.form.impls.get(self.cell.impl)
        return impl is not None and impl.synchronises

    def inputs(self, problem: Problem, seed: int) -> Inputs:
        """Inputs of a problem, the same for a seed in every process on this device.

        Raises: Misfit where the operator draws others than the problem asks for.
        """
        generator = Generator(device=self.device.type).manual_seed(seed)
        inputs = self.form.make_inputs(problem, self.cell.params, generator)
        misfit = misfit_of_inputs(inputs, problem, self.device.type)
        if misfit is not None:
            raise Misfit(misfit)
        return inputs

    def bind(self, call: Callable[..., Tensor], problem: Problem, inputs: Inputs) -> Callable[[], Outputs]:
        """One call on these inputs in the cell's mode, without arguments; to be made under `grad_mode`.

        Args:
            call: of the operator's form, such as its impl or its reference.
            problem: that of the inputs.
            inputs: one set. In fwd_bwd the cotangent is fixed, random, of the output's shape and dtype.
        """
        params = self.cell.params
        if self.cell.mode == "fwd":
            tensors = inputs.tensors()
            return lambda: as_outputs(call(problem, params, **tensors), problem)
        leaves = {name: t.detach().requires_grad_() for name, t in inputs.differentiated().items()}
        differentiated, choices = list(leaves.values()), inputs.choices
        cotangents: list[Tensor] = []

        def forward_and_backward() -> Outputs:
            output = call(problem, params, **leaves, **choices)
            if not cotangents:
                timed = problem == self.cell.problem
                cotangents.append(self._cotangent(output) if timed else cotangent(output, self._dtype))
            return (output, *torch.autograd.grad(output, differentiated, cotangents[0]))

        return forward_and_backward

    def _cotangent(self, output: Tensor) -> Tensor:
        """That of all outputs of the timed size: one tensor of a shape and dtype, whatever the input set."""
        place = output.shape, output.dtype
        if place not in self.cotangents:
            self.cotangents[place] = cotangent(output, self._dtype)
        return self.cotangents[place]

    @property
    def _dtype(self) -> torch.dtype:
        return torch_dtype(self.cell.problem)

    @cached_property
    def cotangents(self) -> dict[object, Tensor]:
        """Those of the timed size that were drawn, by shape and dtype."""
        return {}

    def once(self, call: Callable[..., Tensor], problem: Problem, inputs: Inputs) -> Outputs:
        """The outputs of one call, detached."""
        return self.perform(self.bind(call, problem, inputs))

    def defined(self, problem: Problem, inputs: Inputs) -> Outputs:
        """The outputs of one call of the reference, by torch as it was before any operator was imported."""
        with torch_as_it_was():
            return self.once(self.form.reference, problem, inputs)

    def perform(self, bound: Callable[[], Outputs]) -> Outputs:
        """The outputs of a bound call, detached and complete, its time counted as spent."""
        with self.spent.inside(), grad_mode(self.cell.mode):
            outputs = bound()
            self.synchronise()
        return tuple(t.detach() for t in outputs)

    def synchronise(self) -> None:
        """Waits for the device."""
        self.device.synchronise()

    def release(self) -> None:
        """Lets go of the sets; they are made again when asked for."""
        for name in ("sets", "calls", "cotangents"):
            self.__dict__.pop(name, None)

    @cached_property
    def sets(self) -> tuple[Inputs, ...]:
        """The input sets of the timed size, with the parameters of the first."""
        first = self.share(0, self.inputs(self.cell.problem, seed=0))
        return (first, *(self._set(number, first) for number in range(1, SETS)))

    def _set(self, number: int, first: Inputs) -> Inputs:
        return self.share(number, replace(self.inputs(self.cell.problem, number), parameters=first.parameters))

    def held(self) -> list[Tensor]:
        """The tensors of its input sets, and its cotangents."""
        return [*(tensor for inputs in self.sets for tensor in inputs.tensors().values()), *self.cotangents.values()]

    @cached_property
    def calls(self) -> tuple[Callable[[], Outputs], ...]:
        """The impl bound to each set."""
        return tuple(self.bind(self.call, self.cell.problem, inputs) for inputs in self.sets)


def as_outputs(returned: Any, problem: Problem) -> Outputs:
    """What a call returns in fwd, as a tuple: with new states only where it continues from some."""
    return returned if type(returned) is tuple and problem.past else (returned,)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What tensors take; memory that several are in counts once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def cotangent(output: Tensor, working: torch.dtype) -> Tensor:
    """N(0, 1) of the output's shape and dtype, fixed by its shape.

    Args:
        output: what is differentiated.
        working: the dtype whose values it has, so that a float64 reference and a working-dtype one differentiate the
            same thing.
    """
    generator = Generator(device=output.device).manual_seed(1)
    drawn = torch.randn(output.shape, generator=generator, device=output.device, dtype=torch.float32)
    return drawn.to(working).to(output.dtype)


@contextlib.contextmanager
def grad_mode(mode: str) -> Iterator[None]:
    """What a mode's calls run under: inference_mode for fwd, gradients for fwd_bwd."""
    with torch.inference_mode() if mode == "fwd" else torch.enable_grad():
        yield


def as_dtype(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The same values in another dtype; integers and booleans stay."""

    def cast(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}

    return Inputs(cast(inputs.data), cast(inputs.parameters), cast(inputs.choices), cast(inputs.state))


def subject_of(
    cell: Cell,
    source: Source,
    device: Device,
    memory_limit: int,
    forecast: Forecast,
    share: Callable[[int, Inputs], Inputs] = lambda index, inputs: inputs,
) -> Subject:
    """Imports the operator and its impl."""
    operator = source.load()
    form = operator.forms[cell.scope]
    if cell.impl == "reference":
        call = form.reference
    elif cell.impl == "compiled":
        torch._dynamo.config.recompile_limit = COMPILED
        call = torch.compile(form.reference, dynamic=False)
    else:
        call = form.impls[cell.impl].load()
    return Subject(cell, operator, call, device, memory_limit, forecast, share)


def forget_compiled() -> None:
    """Frees what torch has compiled, and compiles anew what is called from now on."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
