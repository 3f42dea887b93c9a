"""What an exception in an operator means: the status of its visit, and one line of text."""

from __future__ import annotations

import os
import traceback

from attnbench.errors import described, printable
from attnbench.measure.device import Device
from attnbench.store.records import Status

CPU_ALLOCATOR = "[enforce fail at alloc_cpu.cpp:"
"""How the RuntimeError of torch's CPU allocator begins; torch has no type of its own for it."""


def status_of(error: BaseException, device: Device) -> Status:
    """ "oom" where an allocation failed, "crashed" where the device answers no more in this process, else "error"."""
    if (type(error) is RuntimeError and str(error).startswith(CPU_ALLOCATOR)) or device.out_of_memory(error):
        return "oom"
    return "crashed" if device.is_lost() else "error"


def text_of(error: BaseException) -> str:
    """One line of an exception, and the operator's line it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if "/torch/" not in f.filename), None)
    where = f" ({printable(os.path.basename(place.filename))}, line {place.lineno})" if place else ""
    return described(error) + where
