"""The processes under this one: a worker's whole tree ends with it, also what left its session (setsid, a daemon).

Linux alone: orphans of a subreaper's descendants become its children. A process never joins a session that is there,
so a child of this process that is in another session than it descends from a worker, or called setsid itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

ROUNDS = 100
"""Looks for orphans, a hundredth of a second apart; what forks faster than it is ended is given up."""

_PR_SET_CHILD_SUBREAPER = 36

_adopting = False
_workers: set[int] = set()


def adopt() -> None:
    """Makes this process the one that orphans fall to, so that it can end them.

    Not where they could be somebody else's: in process 1 of a container, and where there are children already (a
    shell that started jobs and was then replaced by this command).
    """
    global _adopting
    if sys.platform == "linux" and os.getpid() != 1 and not children():
        _adopting = become_subreaper()


def become_subreaper() -> bool:
    """Orphans of this process's descendants become its children. Returns whether they do. Linux."""
    return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def started(pid: int) -> None:
    """This worker is a child of this process and leads a session of its own."""
    _workers.add(pid)


def ended(pid: int) -> None:
    """This worker has been waited for; what it has left is ended."""
    _workers.discard(pid)
    _end_orphans()


def end_all() -> None:
    """Ends all workers and all that they have left."""
    for pid in tuple(_workers):
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        _reap(pid)
        _workers.discard(pid)
    _end_orphans()


def children() -> list[int]:
    """The ids of this process's children, those not yet waited for included."""
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def _end_orphans() -> None:
    if not _adopting:
        return
    for _ in range(ROUNDS):
        orphans = [pid for pid in children() if pid not in _workers and _session(pid) not in (None, os.getsid(0))]
        if not orphans:
            return
        for pid in orphans:  # what these have started falls to this process in turn
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            _reap(pid)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _reap(pid: int) -> None:
    for _ in range(ROUNDS):
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
        except OSError:
            return
        time.sleep(0.01)
