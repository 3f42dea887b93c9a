"""What an exception in an operator means: the status of its visit, and one line of text."""

from __future__ import annotations

import os
import traceback

from attnbench.errors import described, printable
from attnbench.store.records import Status

CPU_ALLOCATOR = "[enforce fail at alloc_cpu.cpp:"
"""How the RuntimeError of torch's CPU allocator begins; torch has no type of its own for it."""

CUDA_OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation, the `error_code` of a torch.AcceleratorError."""


def status_of(error: BaseException, device: str) -> Status:
    """ "oom" where an allocation failed, "crashed" where the CUDA context does not answer any more, else "error"."""
    import torch

    if type(error) is RuntimeError and str(error).startswith(CPU_ALLOCATOR):
        return "oom"
    if isinstance(error, torch.AcceleratorError) and getattr(error, "error_code", None) == CUDA_OUT_OF_MEMORY:
        return "oom"
    if device == "cuda":
        try:
            torch.cuda.synchronize()
        except Exception:  # an error that stays: every later call in this process would give it
            return "crashed"
    return "error"


def text_of(error: BaseException) -> str:
    """One line of an exception, and the operator's line it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if "/torch/" not in f.filename), None)
    where = f" ({printable(os.path.basename(place.filename))}, line {place.lineno})" if place else ""
    return described(error) + where
