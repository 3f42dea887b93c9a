"""Interrupts of a command: SIGINT, SIGTERM and SIGHUP mean the same, whenever they come and however often.

The first one is a KeyboardInterrupt: the command stores what it has, ends its workers and exits with 130. Those that
come within a second of it are the same one. A later one ends the command at once.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from attnbench import descendants

SAME_S = 1.0
"""Signals within so many seconds of the first are one interrupt: a key pressed five times, Ctrl-C and then SIGHUP."""

_first: float | None = None
_holding = False


class Interrupted(KeyboardInterrupt):
    """Somebody wants this command to end. A KeyboardInterrupt that is none of these was raised by an operator."""


def heed() -> None:
    """From now on the signals are heeded; one that the caller has set to be ignored (nohup, a job) stays ignored."""
    _handle(_heed)


def meant(error: BaseException) -> bool:
    """Whether an exception is somebody's wish to end this process, and not an operator's own KeyboardInterrupt."""
    heeded = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    return isinstance(error, Interrupted if heeded else KeyboardInterrupt)


def end_at_once() -> None:
    """From now on each of the signals ends the process: all that is left to do is to leave."""
    _handle(_end)


@contextmanager
def held() -> Iterator[None]:
    """A first interrupt that comes in this block is heeded at its end: what is short and must be done whole."""
    global _holding
    before, _holding = _first, True
    try:
        yield
    finally:
        _holding = False
        if _first is not before:
            raise Interrupted


def check() -> None:
    """Raises Interrupted where an interrupt has come: one that came inside a library's callback was swallowed there."""
    if _first is not None:
        raise Interrupted


def _handle(handler: signal._HANDLER) -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _heed(number: int, frame: FrameType | None) -> None:
    global _first
    now = time.monotonic()
    if _first is None:
        _first = now
        if not _holding:
            raise Interrupted
    elif now - _first > SAME_S:
        _end(number, frame)


def _end(number: int, frame: FrameType | None) -> None:
    descendants.end_all()
    os._exit(130)
