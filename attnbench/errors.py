"""The one exception a user may see as a message (everything else is a defect of attnbench), and what operators raise
as text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from attnbench.terminal import escaped

MOST_CHARACTERS = 300
"""Of a name, or of an exception's text."""

MOST_OF_A_REASON = 2000
"""Characters: several sentences, each of which may quote an operator."""


class BadInput(Exception):
    """Something the user gave cannot be used. Its text is shown alone and the command exits with 2.

    The text names the file, the key, the value and what is allowed, and ends with what to do.
    """


@contextmanager
def own_errors(place: str, *passed: type[BaseException]) -> Iterator[None]:
    """Around a user's own code: what it raises becomes a BadInput that names the user's own line, and so does what it
    does not end within a limit.

    place: how the code is called in the message. passed: exceptions that are left as they are.
    """
    from attnbench import interrupts
    from attnbench.time_limit import Overdue, limit_s, limited, overdue

    try:
        with limited(place):
            yield
    except Overdue as error:
        raise BadInput(overdue(place, limit_s(), own_line(error).removesuffix(": "))) from None
    except BaseException as error:
        if interrupts.meant(error) or isinstance(error, (BadInput, *passed)):
            raise
        raise BadInput(f"{place}: {own_line(error)}{said(error)}. Correct it and try again.") from None


def said(error: BaseException) -> str:
    """`Type: its text`, or the type alone: one printable line."""
    text, name = printable(error), printable(type(error).__name__)
    return f"{name}: {text}" if text else name


def printable(value: object, most: int = MOST_CHARACTERS) -> str:
    """What somebody else's code gives, as one line of at most `most` characters that every terminal can show and every
    file can hold: escaped are control characters, lone surrogates, and what changes the direction of text.

    Never raises, whatever the value does when it is asked for its text.
    """
    try:
        text = str(value)
        words = " ".join(text[: 4 * most].split())
    except Exception as error:
        words = f"a {type(value).__name__} whose text cannot be had ({type(error).__name__})"
    line = escaped(words[: most + 1])
    return line if len(line) <= most else line[: most - 1] + "…"


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
