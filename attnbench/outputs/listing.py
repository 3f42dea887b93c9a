"""Rows of plain values as a table, JSON, CSV or Markdown: for what is listed, not measured. No pandas."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Format = Literal["table", "json", "csv", "markdown"]
Row = Mapping[str, Any]


def write(rows: Sequence[Row], form: Format, table: Sequence[Row] | None = None, numbers: Sequence[str] = ()) -> None:
    """Prints rows that share their keys to stdout.

    table: what the table and Markdown show instead, where the rows hold more than a person reads at a glance.
    numbers: columns set to the right. Nested values are JSON in CSV; None is an empty field.
    """
    shown = rows if table is None else table
    if form == "json":
        sys.stdout.write(json.dumps(list(rows), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    elif form == "csv":
        sys.stdout.write(_csv(rows))
    elif form == "markdown":
        sys.stdout.write(markdown(shown, numbers))
    else:
        print_table(shown, numbers)


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
    lines += [[_text(value).replace("|", "\\|").replace("\n", "<br>") for value in row.values()] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_table(rows: Sequence[Row], numbers: Sequence[str]) -> None:
    """Prints rows as a table that fits the terminal, or 80 columns; numbers: columns set to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    console = Console(soft_wrap=False)
    widest = {name: max(len(_text(row[name])) for row in [{name: name}, *rows]) for name in rows[0]}
    gap = 1 if sum(widest.values()) + 3 * len(widest) <= console.width else 0
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, gap), pad_edge=False)
    for index, name in enumerate(rows[0]):
        justify: Literal["right", "left"] = "right" if name in numbers else "left"
        grid.add_column(name, justify=justify, overflow="fold", no_wrap=index == 0 or name in numbers)
    for row in rows:
        grid.add_row(*(Text(_text(value)) for value in row.values()))
    console.print(grid)
