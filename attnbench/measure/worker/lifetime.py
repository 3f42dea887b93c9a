"""When the measured process ends by itself, and how much memory it may allocate."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

from attnbench import descendants

CLEAN_EXIT = 0

_first_bytes: int | None = None
"""What this process had allocated when it was first limited."""


def limit_host_memory(limit: int | None) -> None:
    """Lets this process allocate `limit` bytes more than it first had, so that running out is clean. None: no limit."""
    if limit is None or sys.platform != "linux":
        return
    import resource

    global _first_bytes
    if _first_bytes is None:
        with open("/proc/self/status", encoding="ascii") as status:
            _first_bytes = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_first_bytes + limit, hard))


def die_with(parent: int) -> None:
    """Linux kills this process when the thread that started it ends, even in the middle of native code."""
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    descendants.become_subreaper()  # what operators leave stays below their own worker, as long as it lives
    if os.getppid() != parent:  # it was gone before the call
        os._exit(CLEAN_EXIT)


def exit_when_closed(write: int) -> None:
    """Ends the process when nobody holds the other end of its answers any more."""
    poll = select.poll()
    poll.register(write, 0)  # errors and hang-ups are always reported
    poll.poll()
    os._exit(CLEAN_EXIT)
