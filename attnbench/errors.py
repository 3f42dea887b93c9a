"""The one exception that is shown to the user as a message, and exceptions of other code as printable text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from attnbench.terminal import escaped

MOST_CHARACTERS = 300
"""The longest name or text of an exception that is stored or shown."""

MOST_OF_A_REASON = 2000
"""Characters of a stored reason: several sentences, each of which may quote an operator."""


class BadInput(Exception):
    """The user's input cannot be used. The command prints the text alone and exits with 2.

    The text names the file, the key, the value and what is allowed, and ends with what to do.
    """

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback."""
        return [f"attnbench: {self}"]


@contextmanager
def refusing(before: str, after: str = ".") -> Iterator[None]:
    """Raises BadInput in place of ValueError: its text between two others."""
    try:
        yield
    except ValueError as error:
        raise BadInput(f"{before}{error}{after}") from None


def described(error: BaseException) -> str:
    """`Type: text` of an exception, or the type alone where it has no text: one printable line."""
    text, name = printable(error), printable(type(error).__name__)
    return f"{name}: {text}" if text else name


def printable(value: object, most: int = MOST_CHARACTERS) -> str:
    """Any value as one line that every terminal can show and every file can hold.

    Control characters, lone surrogates and characters that change the direction of text are escaped. Never raises,
    whatever the value's `__str__` does.

    Args:
        value: from anybody's code.
        most: the longest line returned, in characters; a longer one ends with `…`.
    """
    try:
        text = str(value)
        words = " ".join(text[: 4 * most].split())
    except Exception as error:
        words = f"a {type(value).__name__} that cannot be printed ({type(error).__name__})"
    line = escaped(words[: most + 1])
    return line if len(line) <= most else line[: most - 1] + "…"


def last_printed(output: bytes, most: int = MOST_CHARACTERS) -> str:
    """`it last printed: …`, of what a process has printed; empty where that is nothing."""
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return f"it last printed: {printable(lines[-1], most)}" if lines else ""
