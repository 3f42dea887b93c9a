"""What an exception in an operator means: the status of its visit, and one line of text."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from attnbench.axes import tokens_axis
from attnbench.errors import BadInput, described, printable
from attnbench.measure.device import Device
from attnbench.measure.protocol import CellAnswer
from attnbench.measure.worker.prepared_cell import Misfit, Wrong
from attnbench.problem import Problem
from attnbench.store.records import CAUSE_OF, Status

CPU_ALLOCATOR = "[enforce fail at alloc_cpu.cpp:"
"""How the RuntimeError of torch's CPU allocator begins; torch has no type of its own for it."""

SIZE = "_attnbench_size"
"""The attribute of an exception that names the size of the call which raised it, where that is not the cell's."""

A = TypeVar("A", bound=CellAnswer)


@contextlib.contextmanager
def at_size(problem: Problem) -> Iterator[None]:
    """Names, in the reason of what is raised, the size of the calls in its block, which is not that of the cell."""
    axis = tokens_axis(problem)
    where = f"; at {axis.amount(axis.label(problem))}, where impls are checked first"
    try:
        yield
    except Exception as error:
        with contextlib.suppress(AttributeError):
            setattr(error, SIZE, where)
        raise


def guarded(kind: type[A], device: Device, ask: Callable[[], A]) -> A:
    """What an operator is asked for, or what it did wrong as an answer of the same kind: status, reason, cause."""
    try:
        return ask()
    except Wrong as error:
        return kind("wrong", text_of(error), "wrong")
    except Misfit as error:
        return kind("error", text_of(error), "bad_inputs")
    except MemoryError as error:
        return kind("oom", f"out of memory: {text_of(error)}", "oom")
    except torch.OutOfMemoryError as error:
        return kind("oom", f"out of GPU memory: {text_of(error)}", "oom")
    except BaseException as error:  # an operator's own failure, whatever it is, is that cell's reason
        status = status_of(error, device)
        return kind(status, ("out of memory: " if status == "oom" else "") + text_of(error), CAUSE_OF[status])


def status_of(error: BaseException, device: Device) -> Status:
    """ "oom" where an allocation failed, "crashed" where the device answers no more in this process, else "error"."""
    if (type(error) is RuntimeError and str(error).startswith(CPU_ALLOCATOR)) or device.out_of_memory(error):
        return "oom"
    return "crashed" if device.is_lost() else "error"


def text_of(error: BaseException) -> str:
    """One line of an exception, and the operator's line it came from; of what attnbench says itself, its sentence."""
    if isinstance(error, (Wrong, Misfit, BadInput)):
        return str(error) + size_of(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if "/torch/" not in f.filename), None)
    where = f" ({printable(os.path.basename(place.filename))}, line {place.lineno})" if place else ""
    return described(error) + where + size_of(error)


def size_of(error: BaseException) -> str:
    """The end of a reason: the size of the call, where that is not the cell's."""
    return str(getattr(error, SIZE, ""))
