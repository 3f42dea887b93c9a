"""Tables on a terminal or in a file, readable at 80 columns and without colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from attnbench import terminal
from attnbench.outputs._columns import HEADING, Piece, lines
from attnbench.outputs._rows import Listing, text_of

if TYPE_CHECKING:
    from rich.console import Console

    from attnbench.analysis.compare.findings import Comparison
    from attnbench.analysis.summary import Summary
    from attnbench.outputs._run_tables import Block

_GAP = 2


def run(summary: Summary) -> None:
    """Prints the tables of a run."""
    write(summary, terminal.console())


def rows(listing: Listing) -> None:
    """Prints a table that fits the terminal, or 80 columns, and its notes."""
    from rich.text import Text

    console = terminal.console()
    if listing.shown:
        head = list(listing.shown[0])
        texts = [[text_of(value).replace("\n", " ") for value in row.values()] for row in listing.shown]
        numbers, sentences = (
            [head.index(name) for name in names if name in head] for names in (listing.numbers, listing.sentences)
        )
        printed = Text()
        for line in lines(head, texts, console.width, numbers, sentences):
            for piece in line:
                style = "bold" if piece.row == HEADING else "dim" if piece.column in sentences else ""
                printed.append(piece.text, style=style)
            printed.append("\n")
        console.print(printed, no_wrap=True, crop=False, overflow="ignore")
    for note in listing.notes:
        console.print(note)


def comparisons(compared: Sequence[Comparison]) -> None:
    """Prints each with what stands around its table."""
    from attnbench.outputs import _comparison as view

    for comparison in compared:
        print(f"{comparison.before} → {comparison.after}")
        for note in comparison.notes:
            print(f"note: {note}")
        findings = view.chosen(comparison)
        rows(view.listing(findings))
        for line in view.around(comparison, findings):
            print(line)


def write(summary: Summary, console: Console) -> None:
    """Prints a summary."""
    from rich.text import Text

    from attnbench.outputs._run_tables import legend, parts

    panels = parts(summary)
    if not panels:
        console.print(Text("Nothing was measured."))
        return
    for part in panels:
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
        notes = block.notes if start == 1 else ()
        yield replace(block, title=title, columns=tuple(block.columns[i] for i in chosen), rows=rows, notes=notes)
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
