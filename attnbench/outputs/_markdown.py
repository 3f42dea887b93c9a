"""How text of any origin stands in Markdown: as it is, and never as markup or HTML."""

from __future__ import annotations

_MARKS = str.maketrans({mark: "\\" + mark for mark in "\\|*<>_"} | {"\n": " "})


def escaped(text: str) -> str:
    """The text on one line, with a backslash before each character that Markdown or HTML would read as markup."""
    return text.translate(_MARKS)
