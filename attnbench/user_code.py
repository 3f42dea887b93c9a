"""Around a user's own code that runs in the command itself (its import, its cost): its errors as messages, and a limit.

No worker's limit ends what does not end there.
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
from attnbench.errors import BadInput, printable, said

VARIABLE = "ATTNBENCH_OWN_CODE_LIMIT_S"
DEFAULT_S = 60.0
GRACE_S = 5.0
"""After the limit the code is interrupted where it is; what has not ended by then (native code, a loop that catches
everything) ends the command. Native code that never gives up the interpreter's lock is not ended."""

_inside = False


class Overdue(BaseException):
    """The limit has passed. No Exception, so that a user's `except Exception` lets it pass."""


@contextmanager
def own_errors(place: str, *passed: type[BaseException]) -> Iterator[None]:
    """Around a user's own code: what it raises becomes a BadInput that names the user's own line, and so does what it
    does not end within a limit.

    place: how the code is called in the message. passed: exceptions that are left as they are.
    """
    try:
        with limited(place):
            yield
    except Overdue as error:
        raise BadInput(overdue(place, limit_s(), own_line(error).removesuffix(": "))) from None
    except BaseException as error:
        if interrupts.meant(error) or isinstance(error, (BadInput, *passed)):
            raise
        raise BadInput(f"{place}: {own_line(error)}{said(error)}. Correct it and try again.") from None


def own_line(error: BaseException) -> str:
    """`file, line n (source): ` of the user's deepest line that the error passed, or an empty text."""
    import traceback
    from pathlib import Path

    if isinstance(error, SyntaxError) and error.filename:
        return f"{printable(error.filename)}, line {error.lineno}: "
    ours = str(Path(__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((ours, "<")) and "site-packages" not in frame.filename
    ]
    frames = [f for f in frames if "/importlib/" not in f.filename and "/contextlib" not in f.filename]
    if not frames:
        return ""
    source = f" ({printable(frames[-1].line)})" if frames[-1].line else ""
    return f"{printable(frames[-1].filename)}, line {frames[-1].lineno}{source}: "


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
