"""The tables of a run on a terminal or in a file, readable at 80 columns and without colour."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from attnbench.analysis.summary import Summary, summarise
from attnbench.outputs._columns import HEADING, Piece, lines
from attnbench.outputs._run_tables import Block, legend, parts

if TYPE_CHECKING:
    from rich.console import Console

    from attnbench.analysis.run import Run

_GAP = 2


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

    text = Text(block.title + "\n", style="")
    text.stylize("italic")
    numbers = range(1, len(block.columns)) if block.sizes else ()
    rows = [[cell.text for cell in row] for row in block.rows]
    for line in lines(block.columns, rows, console.width, numbers):
        for piece in line:
            text.append(piece.text, style=_style(block, piece))
        text.append("\n")
    console.print(text, no_wrap=True, crop=False, overflow="ignore", end="")
    for note in block.notes:
        console.print(Text(note, style="dim"))
    console.print()


def _style(block: Block, piece: Piece) -> str:
    if piece.row == HEADING:
        return "bold"
    cell = block.rows[piece.row][piece.column] if piece.column is not None else None
    return "" if cell is None else "bold green" if cell.best else "cyan" if cell.win else ""
