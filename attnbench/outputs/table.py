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
    from attnbench.analysis.dispatch import Dispatch
    from attnbench.analysis.grid import Grid
    from attnbench.analysis.history import History
    from attnbench.analysis.reproduction import Reproduction
    from attnbench.analysis.summary import Summary
    from attnbench.outputs._run_tables import Part, TextTable

_GAP = 2


def run(summary: Summary) -> None:
    """Prints the answer of a run; where there is none, its tables."""
    write_answer(summary, terminal.console())


def tables(summary: Summary) -> None:
    """Prints all tables of a run."""
    write(summary, terminal.console())


def grids(grids: Sequence[Grid]) -> None:
    """Prints maps and the borders in them."""
    from attnbench.outputs._grid_tables import legend, parts

    _write(parts(grids), legend(grids), terminal.console())


def rows(listing: Listing) -> None:
    """Prints a table that fits the terminal, or 80 columns, and what stands around it."""
    from rich.text import Text

    console = terminal.console()
    for sentence in listing.lead:
        console.print(sentence)
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
        for note in view.notes(comparison):
            print(f"note: {note}")
        findings = view.chosen(comparison)
        rows(view.listing(findings))
        for line in view.around(comparison, findings):
            print(line)


def rules(dispatch: Dispatch) -> None:
    """Prints a table for each panel, and what all have in common."""
    from attnbench.outputs import _rules as view

    for part in view.parts(dispatch):
        terminal.console().print(f"{part.heading}\n")
        rows(part.listing)
        print()
    for line in view.legend(dispatch):
        terminal.console().print(line)


def claims(reproduction: Reproduction) -> None:
    """Prints a row per number below its claim and paper; of a brief table one per paper."""
    from attnbench.outputs._paper_listing import listing

    rows(listing(reproduction))


def history(history: History) -> None:
    """Prints what changed, and the panels of all runs."""
    from attnbench.outputs._history import legend, parts

    _write(parts(history), legend(history), terminal.console())


def write_answer(summary: Summary, console: Console) -> None:
    """Prints the answer of a summary; where there is none, the summary."""
    from rich.text import Text

    from attnbench.outputs._screen import screen

    lines = screen(summary, console.width)
    if lines is None:
        write(summary, console)
    for line in lines or ():
        style = "bold" if line.heading else "dim" if line.note else ""
        console.print(Text(line.text, style=style), no_wrap=True, crop=False, overflow="ignore")


def write(summary: Summary, console: Console) -> None:
    """Prints a summary."""
    from rich.text import Text

    from attnbench.outputs._run_tables import legend, parts

    panels = parts(summary)
    if not panels:
        console.print(Text("Nothing was measured."))
        return
    _write(panels, legend(summary), console)


def _write(parts: Sequence[Part], legend: Sequence[str], console: Console) -> None:
    from rich.text import Text

    for part in parts:
        console.print(Text(f"\n{part.heading}\n", style="bold"))
        for text_table in part.text_tables:
            for piece in _pieces(text_table, console.width):
                _print(piece, console)
        for note in part.notes:
            console.print(Text(note, style="dim"))
    console.print()
    for line in legend:
        console.print(Text(line, style="dim"))


def _pieces(text_table: TextTable, width: int) -> Iterator[TextTable]:
    """A table broken between sizes so that each piece fits; other tables wrap inside their fields."""
    if not text_table.sizes:
        yield text_table if _natural_width(text_table) <= width else _shortened(text_table)
        return
    widths = [width + _GAP for width in _widths(text_table)]
    start = 1
    while start < len(text_table.columns):
        stop, used = start, widths[0]
        while stop < len(text_table.columns) and (stop == start or used + widths[stop] <= width):
            used += widths[stop]
            stop += 1
        chosen = [0, *range(start, stop)]
        title = text_table.title if start == 1 else f"{text_table.title}, continued"
        rows = tuple(tuple(row[i] for i in chosen) for row in text_table.rows)
        notes = text_table.notes if start == 1 else ()
        yield replace(
            text_table, title=title, columns=tuple(text_table.columns[i] for i in chosen), rows=rows, notes=notes
        )
        start = stop


def _widths(text_table: TextTable) -> list[int]:
    """Of each column, by its longest field."""
    fields = [[name, *(row[i].text for row in text_table.rows)] for i, name in enumerate(text_table.columns)]
    return [max(map(len, texts)) for texts in fields]


def _natural_width(text_table: TextTable) -> int:
    """With no field broken."""
    widths = _widths(text_table)
    return sum(widths) + _GAP * (len(widths) - 1)


def _shortened(text_table: TextTable) -> TextTable:
    """The table with the short texts of those fields that have one."""
    rows = tuple(tuple(replace(cell, text=cell.short or cell.text) for cell in row) for row in text_table.rows)
    return replace(text_table, rows=rows)


def _print(text_table: TextTable, console: Console) -> None:
    from rich.text import Text

    text = Text(text_table.title + "\n", style="")
    text.stylize("italic")
    numbers = range(1, len(text_table.columns)) if text_table.sizes else ()
    rows = [[cell.text for cell in row] for row in text_table.rows]
    for line in lines(text_table.columns, rows, console.width, numbers):
        for piece in line:
            text.append(piece.text, style=_style(text_table, piece))
        text.append("\n")
    console.print(text, no_wrap=True, crop=False, overflow="ignore", end="")
    for note in text_table.notes:
        console.print(Text(note, style="dim"))
    console.print()


def _style(text_table: TextTable, piece: Piece) -> str:
    if piece.row == HEADING:
        return "bold"
    cell = text_table.rows[piece.row][piece.column] if piece.column is not None else None
    return "" if cell is None else "bold green" if cell.best else "cyan" if cell.win else ""
