"""User code that runs in the command itself (import, cost): its errors become messages, and its time is limited.

The limits of workers do not apply there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from attnbench import descendants, interrupts
from attnbench.errors import BadInput, described, printable

VARIABLE = "ATTNBENCH_OWN_CODE_LIMIT_S"
DEFAULT_S = 60.0
GRACE_S = 5.0
"""Seconds after the limit at which code that could not be interrupted (native code, a loop that catches everything)
ends the command. Native code that never releases the interpreter's lock is not ended."""

_inside = False


class Overdue(BaseException):
    """The limit has passed. Not an Exception, so that a user's `except Exception` does not catch it."""


@contextmanager
def user_errors(place: str, *passed: type[BaseException]) -> Iterator[None]:
    """Runs user code in its block: an exception, or no end within the limit, becomes BadInput with the user's line.

    Args:
        place: the code's name in the message.
        passed: exceptions that are raised unchanged.
    """
    try:
        with limited(place):
            yield
    except Overdue as error:
        raise BadInput(overdue(place, limit_s(), user_line(error).removesuffix(": "))) from None
    except BaseException as error:
        if interrupts.meant(error) or isinstance(error, (BadInput, *passed)):
            raise
        line = user_line(error)
        where = line if line.startswith(f"{place}, ") else f"{place}: {line}"
        raise BadInput(f"{where}{described(error)}. Correct it and try again.") from None


def user_line(error: BaseException) -> str:
    """`file, line n (source): ` of the innermost user line in the traceback, or an empty text."""
    import traceback
    from pathlib import Path

    if isinstance(error, SyntaxError) and error.filename:
        return f"{printable(error.filename)}, line {error.lineno}: "
    ours, standard_library = str(Path(__file__).parent), os.path.dirname(os.__file__) + os.sep
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((ours, standard_library, "<")) and "site-packages" not in frame.filename
    ]
    if not frames:
        return ""
    source = f" ({printable(frames[-1].line)})" if frames[-1].line else ""
    return f"{printable(frames[-1].filename)}, line {frames[-1].lineno}{source}: "


@contextmanager
def limited(place: str) -> Iterator[None]:
    """Raises Overdue in its block once the limit has passed. place: the code's name in the message."""
    global _inside
    main = threading.current_thread() is threading.main_thread()
    if _inside or not main or not hasattr(signal, "setitimer"):
        yield
        return
    seconds = limit_s()
    last_resort = threading.Timer(seconds + GRACE_S, _give_up, [place, seconds])
    last_resort.daemon = True
    begun, before = time.monotonic(), signal.signal(signal.SIGALRM, _interrupt)
    _inside = True
    outer_s, outer_interval_s = 0.0, 0.0  # a timer that was running before
    try:
        # again every second, for code that catches everything
        outer_s, outer_interval_s = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
        last_resort.start()
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        if outer_s:
            signal.setitimer(signal.ITIMER_REAL, max(outer_s - (time.monotonic() - begun), 1e-3), outer_interval_s)
        last_resort.cancel()
        if last_resort.is_alive():
            last_resort.join()  # a thread that ends after this block would count as one that the user's code left
        _inside = False


def limit_s() -> float:
    """Seconds that user code may take. Raises BadInput where the environment variable is not a valid number."""
    text = os.environ.get(VARIABLE)
    try:
        seconds = DEFAULT_S if text is None else float(text)
        if not 0 < seconds <= 86400:
            raise ValueError
    except ValueError:
        raise BadInput(f"{VARIABLE}={printable(text, 60)}; allowed: seconds, more than 0 and up to 86400.") from None
    return seconds


def overdue(place: str, seconds: float, line: str = "") -> str:
    """The message for code that did not end. line: the user's line at which it was interrupted, if known."""
    interrupted = f" (it was at {line})" if line else ""
    return (
        f"{place}: no end within {seconds:g} s{interrupted}. An operator's file is imported and its cost computed "
        f"before anything is measured: do nothing slow there, or allow more time with {VARIABLE} (seconds)."
    )


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Overdue


def _give_up(place: str, seconds: float) -> None:
    print(f"attnbench: {overdue(place, seconds)}", file=sys.stderr, flush=True)
    descendants.end_all()
    os._exit(2)
