"""Small static tables for notebooks. Text of a stored run may be anybody's, so all of it is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from attnbench.terminal import escaped


def text(value: object) -> str:
    """A value as HTML text."""
    return html.escape(escaped(str(value)))


def paragraph(words: str) -> str:
    """A paragraph of text."""
    return f"<p>{text(words)}</p>"


def table(head: Sequence[object], rows: Iterable[Sequence[object]], above: Mapping[str, int] | None = None) -> str:
    """A table of texts.

    Args:
        head: the headings.
        rows: a text for each.
        above: a line above the headings, by its texts the number of columns that each stands above.
    """
    lines = [_row("td", row) for row in rows]
    if any(head):
        lines.insert(0, _row("th", head))
    if above:
        groups = (f'<th colspan="{columns}">{text(name)}</th>' for name, columns in above.items())
        lines.insert(0, f"<tr>{''.join(groups)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _row(cell: str, texts: Iterable[object]) -> str:
    return f"<tr>{''.join(f'<{cell}>{text(each)}</{cell}>' for each in texts)}</tr>"
