"""The one exception a user may see as a message: everything else is a defect of attnbench."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class BadInput(Exception):
    """Something the user gave cannot be used. Its text is shown alone and the command exits with 2.

    The text names the file, the key, the value and what is allowed, and ends with what to do.
    """


@contextmanager
def own_errors(place: str, *passed: type[BaseException]) -> Iterator[None]:
    """Around a user's own code: what it raises becomes a BadInput that names the user's own line.

    place: how the code is called in the message. passed: exceptions that are left as they are.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, (BadInput, *passed)):
            raise
        raise BadInput(
            f"{place}: {own_line(error)}{type(error).__name__}: {error}. Correct it and try again."
        ) from None


def own_line(error: BaseException) -> str:
    """`file, line n (source): ` of the user's deepest line that the error passed, or an empty text."""
    import traceback
    from pathlib import Path

    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: "
    ours = str(Path(__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((ours, "<")) and "site-packages" not in frame.filename
    ]
    frames = [f for f in frames if "/importlib/" not in f.filename and "/contextlib" not in f.filename]
    if not frames:
        return ""
    source = f" ({frames[-1].line})" if frames[-1].line else ""
    return f"{frames[-1].filename}, line {frames[-1].lineno}{source}: "
