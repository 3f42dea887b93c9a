"""Rows of plain values as a table, JSON, CSV or Markdown: for what is listed, not measured. No pandas."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from attnbench import terminal
from attnbench.outputs._markdown import escaped

Format = Literal["table", "json", "csv", "markdown"]
Row = Mapping[str, Any]


def write(
    rows: Sequence[Row],
    form: Format,
    table: Sequence[Row] | None = None,
    numbers: Sequence[str] = (),
    sentences: Sequence[str] = (),
) -> None:
    """Prints rows that share their keys to stdout.

    table: what the table and Markdown show instead, where the rows hold more than a person reads at a glance.
    numbers: columns set to the right. sentences: columns that the table shows below their row, on lines of their own.
    Nested values are JSON in CSV; None is an empty field.
    """
    shown = rows if table is None else table
    if form == "json":
        sys.stdout.write(json.dumps(list(rows), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    elif form == "csv":
        sys.stdout.write(_csv(rows))
    elif form == "markdown":
        sys.stdout.write(markdown(shown, numbers))
    else:
        print_table(shown, numbers, sentences)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (dict, list, tuple, bool)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _csv(rows: Sequence[Row]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    if rows:
        writer.writerow(rows[0])
    writer.writerows([_text(value) for value in row.values()] for row in rows)
    return file.getvalue()


def markdown(rows: Sequence[Row], numbers: Sequence[str]) -> str:
    """Rows as a Markdown table; numbers: columns set to the right."""
    if not rows:
        return ""
    head = list(rows[0])
    lines = [head, ["---:" if name in numbers else "---" for name in head]]
    lines += [[escaped(_text(value)) for value in row.values()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_table(rows: Sequence[Row], numbers: Sequence[str], sentences: Sequence[str] = ()) -> None:
    """Prints rows as a table that fits the terminal, or 80 columns.

    numbers: columns set to the right. sentences: columns that stand below their row, on lines of their own.
    """
    from rich.text import Text

    from attnbench.outputs._columns import HEADING, lines

    if not rows:
        return
    console = terminal.console()
    head = list(rows[0])
    texts = [[_text(value).replace("\n", " ") for value in row.values()] for row in rows]
    places = [[head.index(name) for name in names if name in head] for names in (numbers, sentences)]
    printed = Text()
    for line in lines(head, texts, console.width, *places):
        for piece in line:
            style = "bold" if piece.row == HEADING else "dim" if piece.column in places[1] else ""
            printed.append(piece.text, style=style)
        printed.append("\n")
    console.print(printed, no_wrap=True, crop=False, overflow="ignore")
