"""The processes below this one: a worker's process tree ends with it, including processes that left its session.

Linux only: orphans of a subreaper's descendants become its children. A process cannot join an existing session, so a
child of this process in another session descends from a worker or has called setsid itself.
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
"""Attempts, a hundredth of a second apart, after which processes that fork faster than they are killed are left."""

_PR_SET_CHILD_SUBREAPER = 36

_adopting = False
_workers: set[int] = set()


def adopt() -> None:
    """Makes this process the parent of its descendants' orphans, so that it can end them.

    Not in process 1 of a container, nor where there are children already (a shell that started jobs and then executed
    this command): there an orphan could belong to somebody else.
    """
    global _adopting
    if sys.platform == "linux" and os.getpid() != 1 and not children():
        _adopting = become_subreaper()


def become_subreaper() -> bool:
    """Asks Linux to make orphans of this process's descendants its children. Returns whether it does."""
    return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def started(pid: int) -> None:
    """Registers a worker: a child of this process that leads its own session."""
    _workers.add(pid)


def ended(pid: int) -> None:
    """Removes a worker that has been waited for, and ends the processes that it left."""
    _workers.discard(pid)
    _end_orphans()


def end_all() -> None:
    """Ends all workers and the processes that they left."""
    for pid in tuple(_workers):
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        _reap(pid)
        _workers.discard(pid)
    _end_orphans()


def children() -> list[int]:
    """The ids of this process's children, including those not yet waited for."""
    pids: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids += map(int, path.read_text().split())
    return pids


def _end_orphans() -> None:
    if not _adopting:
        return
    for _ in range(ROUNDS):
        orphans = [pid for pid in children() if pid not in _workers and _session(pid) not in (None, os.getsid(0))]
        if not orphans:
            return
        for pid in orphans:  # their own children become this process's in turn
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
