"""The C library's allocator in a worker: settled, so that a call's time does not depend on what was freed before.

By default glibc maps large blocks one by one, those of 32 MiB and more always, and gives the top of its heap back to
the kernel. A call then pays a page fault for every 4 KiB of its temporaries, or none, by what came before; where all
were mapped, faults were 70 % of eager softmax's time from 1024 tokens on, and differed by 40 % from process to process.
A worker maps nothing and keeps its heap, whatever the size, as a GPU's caching allocator does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Mapping

SETTLED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36)}
"""mallopt(3): no block is mapped on its own, and the heap is not trimmed."""


def chosen(environment: Mapping[str, str]) -> list[str]:
    """Variables by which a user has chosen an allocator, or tuned it; theirs is then left as it is."""
    names = [n for n, value in environment.items() if n.startswith("MALLOC_") and SETTLED.get(n) != value]
    names += ["GLIBC_TUNABLES"] if "glibc.malloc" in environment.get("GLIBC_TUNABLES", "") else []
    return sorted(names + ["LD_PRELOAD"] * bool(environment.get("LD_PRELOAD")))


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What a worker's environment needs besides; nothing where the user has chosen."""
    return {} if chosen(environment) else dict(SETTLED)


def described() -> str:
    """The allocator of a worker that this process starts, or of this one where it is a worker: for environment.json."""
    if names := chosen(os.environ):
        return f"as {', '.join(names)} asks for"
    return "glibc, settled" if platform.libc_ver()[0] == "glibc" else "the system's"


def give_back() -> None:
    """Returns to the kernel what is free; nothing where the C library has no malloc_trim."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
