"""Interrupts of a command: SIGINT, SIGTERM and SIGHUP are handled alike.

The first raises KeyboardInterrupt: the command stores its results, ends its workers and exits with 130. Signals within
a second of it count as the same interrupt. A later one ends the command immediately.
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
"""Signals within so many seconds of the first count as one interrupt: a repeated key, or Ctrl-C and then SIGHUP."""

_first: float | None = None
_holding = False


class Interrupted(KeyboardInterrupt):
    """A signal asks this command to end. Any other KeyboardInterrupt was raised by an operator."""


def heed() -> None:
    """Installs the handlers; a signal that the caller ignores (nohup, a background job) stays ignored."""
    _handle(_heed)


def meant(error: BaseException) -> bool:
    """Whether an exception comes from a signal to this process, not from an operator that raised KeyboardInterrupt."""
    heeded = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    return isinstance(error, Interrupted if heeded else KeyboardInterrupt)


def end_at_once() -> None:
    """From now on each of the signals ends the process immediately."""
    _handle(_end)


@contextmanager
def held() -> Iterator[None]:
    """Defers a first interrupt to the end of the block, for short work that must complete."""
    global _holding
    before, _holding = _first, True
    try:
        yield
    finally:
        _holding = False
        if _first is not before:
            raise Interrupted


def check() -> None:
    """Raises Interrupted if an interrupt has arrived: one raised inside a library's callback was swallowed there."""
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
