"""A limit for a user's own code that runs in the command itself (its import, its cost): no worker's limit ends it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from attnbench import descendants

VARIABLE = "ATTNBENCH_OWN_CODE_LIMIT_S"
DEFAULT_S = 60.0
GRACE_S = 5.0
"""After the limit the code is interrupted where it is; what has not ended by then (native code, a loop that catches
everything) ends the command. Native code that never gives up the interpreter's lock is not ended."""

_inside = False


class Overdue(BaseException):
    """The limit has passed. No Exception, so that a user's `except Exception` lets it pass."""


@contextmanager
def limited(place: str) -> Iterator[None]:
    """Raises Overdue in its block once the limit has passed. place: what the message names."""
    global _inside
    main = threading.current_thread() is threading.main_thread()
    if _inside or not main or not hasattr(signal, "setitimer"):
        yield
        return
    seconds = limit_s()
    last = threading.Timer(seconds + GRACE_S, _give_up, [place, seconds])
    last.daemon = True
    begun, before = time.monotonic(), signal.signal(signal.SIGALRM, _interrupt)
    _inside = True
    left, interval = 0.0, 0.0
    try:
        # again every second, for code that catches everything
        left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
        last.start()
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        if left:  # somebody else's timer
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - begun), 1e-3), interval)
        last.cancel()
        if last.is_alive():
            last.join()  # at once: what ends after this block would be taken for a thread that the code left
        _inside = False


def limit_s() -> float:
    """Seconds that a user's own code may take. Raises BadInput where the variable is no such number."""
    from attnbench.errors import BadInput, printable

    given = os.environ.get(VARIABLE)
    try:
        seconds = DEFAULT_S if given is None else float(given)
        if not 0 < seconds <= 86400:
            raise ValueError
    except ValueError:
        raise BadInput(f"{VARIABLE}={printable(given, 60)}; allowed: seconds, more than 0 and up to 86400.") from None
    return seconds


def overdue(place: str, seconds: float, line: str = "") -> str:
    """The paragraph that says so. line: where the code was."""
    where = f" (it was at {line})" if line else ""
    return (
        f"{place}: no end within {seconds:g} s{where}. An operator's file is imported, and asked for its cost, before "
        f"anything is measured: let it do nothing slow there, or give it more time with {VARIABLE} (seconds)."
    )


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Overdue


def _give_up(place: str, seconds: float) -> None:
    print(f"attnbench: {overdue(place, seconds)}", file=sys.stderr, flush=True)
    descendants.end_all()
    os._exit(2)
