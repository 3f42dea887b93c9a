"""The one exception a user may see as a message (everything else is a defect of attnbench), and what operators raise
as text."""

from __future__ import annotations

from attnbench.terminal import escaped

MOST_CHARACTERS = 300
"""Of a name, or of an exception's text."""

MOST_OF_A_REASON = 2000
"""Characters: several sentences, each of which may quote an operator."""


class BadInput(Exception):
    """Something the user gave cannot be used. Its text is shown alone and the command exits with 2.

    The text names the file, the key, the value and what is allowed, and ends with what to do.
    """


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
