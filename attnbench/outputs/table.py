"""The tables of a run on a terminal or in a file, readable at 80 columns and without colour."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from attnbench.analysis.summary import Summary, summarise
from attnbench.outputs.blocks import Block, Cell, legend, parts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from attnbench.record import Run

_GAP = 2
_GLUE = "\u00a0"


def render(
    run: Run, console: Console, metrics: Iterable[str] = (), baseline: str | None = None, axis: str | None = None
) -> None:
    """Prints every table of a run. Arguments as `analysis.summary.summarise`; raises what it raises."""
    write(summarise(run, metrics, baseline, axis), console)


def write(summary: Summary, console: Console) -> None:
    """Prints a summary."""
    from rich.text import Text

    found = parts(summary)
    if not found:
        console.print(Text("Nothing was measured."))
        return
    for part in found:
        console.print(Text(f"\n{part.heading}\n", style="bold"))
        for block in part.blocks:
            for piece in _pieces(block, console.width):
                _print(piece, console)
        for note in part.notes:
            console.print(Text(note, style="dim"))
    console.print()
    for line in legend(summary):
        console.print(Text(line, style="dim"))


def _pieces(block: Block, width: int) -> Iterator[Block]:
    """A block broken between sizes so that each piece fits; other blocks wrap inside their fields."""
    if not block.sizes:
        yield block
        return
    widths = [max((len(row[i].text) for row in block.rows), default=0) for i in range(len(block.columns))]
    widths = [max(w, len(name)) + _GAP for w, name in zip(widths, block.columns, strict=True)]
    start = 1
    while start < len(block.columns):
        stop, used = start, widths[0]
        while stop < len(block.columns) and (stop == start or used + widths[stop] <= width):
            used += widths[stop]
            stop += 1
        chosen = [0, *range(start, stop)]
        title = block.title if start == 1 else f"{block.title}, continued"
        rows = tuple(tuple(row[i] for i in chosen) for row in block.rows)
        yield Block(title, tuple(block.columns[i] for i in chosen), rows, True, block.notes if start == 1 else ())
        start = stop


def _print(block: Block, console: Console) -> None:
    from rich.text import Text

    widths = _widths(block, console.width)
    text = Text(block.title + "\n", style="")
    text.stylize("italic")
    for i, row in enumerate([tuple(map(Cell, block.columns)), *block.rows]):
        _append(text, row, widths, block.sizes, "bold" if i == 0 else "")
        if i == 0:
            text.append("─" * (sum(widths) + _GAP * (len(widths) - 1)) + "\n")
    for note in block.notes:
        text.append(note + "\n", style="dim")
    console.print(text, no_wrap=True, crop=False, overflow="ignore")


def _widths(block: Block, width: int) -> list[int]:
    """As wide as each column's texts; where that is too wide, the widest give way down to their longest word."""
    rows = [block.columns, *(tuple(cell.text for cell in row) for row in block.rows)]
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    least = [max((len(word) for text in column for word in _glued(text).split(" ")), default=0) for column in columns]
    least[0] = widths[0]
    while sum(widths) + _GAP * (len(widths) - 1) > width:
        slack = [w - low for w, low in zip(widths, least, strict=True)]
        if not any(slack):
            break
        widest = max((i for i in range(len(widths)) if slack[i]), key=lambda i: widths[i])
        widths[widest] -= 1
    return widths


def _glued(text: str) -> str:
    """A text whose intervals are not broken: `[480, 551]` is one word."""
    return re.sub(r"\[[^]]*\]", lambda found: found[0].replace(" ", _GLUE), text)


def _append(text: Text, row: Sequence[Cell], widths: Sequence[int], numbers: bool, style: str) -> None:
    """One row, over as many lines as its longest field needs."""
    from textwrap import wrap

    fields = [
        [cell.text] if len(cell.text) <= width else wrap(_glued(cell.text), width, break_on_hyphens=False) or [""]
        for cell, width in zip(row, widths, strict=True)
    ]
    fields = [[part.replace(_GLUE, " ") for part in field] for field in fields]
    for i in range(max(map(len, fields))):
        for j, (cell, field, width) in enumerate(zip(row, fields, widths, strict=True)):
            part = field[i] if i < len(field) else ""
            space = " " * (width - len(part))
            colour = "bold green" if cell.best else "cyan" if cell.win else style
            if numbers and j > 0:
                text.append(space)
            text.append(part, style=colour)
            if j < len(widths) - 1:
                text.append(" " * _GAP if numbers and j > 0 else space + " " * _GAP)
        text.append("\n")
