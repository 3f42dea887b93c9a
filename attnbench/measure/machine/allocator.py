"""The C library's allocator in a worker: settled, so that a call's time does not depend on what was freed before.

glibc maps large blocks one by one, from a threshold that moves up with the sizes freed (to 32 MiB at most), and gives
the top of its heap back to the kernel. By what came before, a call then pays a page fault for every 4 KiB of its
temporaries, or none: the same visit of eager softmax took 1.8 ms or 5 ms. Workers start where the threshold ends and
keep their heap. Blocks of 32 MiB and more are still mapped at every call, with page faults, as in any program with this
allocator.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Mapping

SETTLED = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**36)}
"""mallopt(3): M_MMAP_THRESHOLD at the highest that glibc itself goes to, and no trimming."""


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
