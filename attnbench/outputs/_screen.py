"""The answer of a run within the width of a terminal, on one screen where that is possible."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import wrap

from attnbench.analysis.answer import answer
from attnbench.analysis.summary import Summary
from attnbench.outputs._answer import FEWEST_ROWS, MOST_ROWS, Column, ShortTable, View, legend, view_of
from attnbench.outputs._columns import lines as in_columns

LINES = 24
"""Of one screen, less one line for the folder of a run just measured."""

INDENT = "  "
_NARROWEST_NAMES = 12


@dataclass(frozen=True)
class ScreenLine:
    """One line. heading: whether it heads what follows; note: whether it stands below the tables."""

    text: str
    heading: bool = False
    note: bool = False


def screen(summary: Summary, width: int) -> list[ScreenLine] | None:
    """The answer, with as many rows in its tables as fit one screen, where that is MOST_ROWS to FEWEST_ROWS; else with
    MOST_ROWS. None where nothing was measured by which operators can be compared."""
    found, longest = answer(summary), None
    for rows in range(MOST_ROWS, FEWEST_ROWS - 1, -1):
        shown = view_of(found, summary, rows)
        if shown is None:
            return None
        for apart in (True, False):
            lines = list(_lines(shown, width, apart))
            if len(lines) <= LINES:
                return lines
            longest = longest or lines
    return longest


def _lines(answer: View, width: int, apart: bool) -> Iterator[ScreenLine]:
    """apart: whether empty lines stand around the tables."""
    yield from (ScreenLine(text, heading=True) for text in _wrapped(answer.heading, width))
    for each in answer.sentences:
        yield from map(ScreenLine, _wrapped(each, width))
    yield from [ScreenLine("")] if apart else []
    marks: list[str] = []
    for tables in _alike(answer.tables):
        is_brief, lines = _laid_out(tables, width)
        yield from lines
        marks += legend(tables) if is_brief else []
    below = ". ".join(filter(None, [answer.left_out, ", ".join(dict.fromkeys(marks))]))
    notes = [each for each in (below, *answer.notes) if each]
    yield from [ScreenLine("")] if apart and notes else []
    for each in notes:
        yield from (ScreenLine(text, note=True) for text in _wrapped(each, width))


def _wrapped(text: str, width: int) -> list[str]:
    return wrap(text, width, subsequent_indent=INDENT, break_on_hyphens=False)


def _alike(tables: Iterable[ShortTable]) -> list[list[ShortTable]]:
    """Tables one below the other, as far as they have the same columns."""
    groups: list[list[ShortTable]] = []
    for table in tables:
        if groups and _form(groups[-1][0]) == _form(table):
            groups[-1].append(table)
        else:
            groups.append([table])
    return groups


def _form(table: ShortTable) -> list[tuple[str, list[str]]]:
    return [(mode, [column.kind for column in columns]) for mode, columns in table.groups.items()]


def _laid_out(tables: Sequence[ShortTable], width: int) -> tuple[bool, list[ScreenLine]]:
    """The lines of tables with the same columns, and whether they are in brief: with words where these fit."""
    for is_brief in (False, True):
        grid = _Grid(tables, is_brief)
        if grid.width <= width:
            return is_brief, list(grid.lines(grid.widths[0]))
    names = width - (grid.width - grid.widths[0])
    if names >= _NARROWEST_NAMES:
        return True, list(grid.lines(names))
    return True, list(_paragraphs(tables, width))


def _texts(column: Column, is_brief: bool) -> Sequence[str]:
    return column.briefs if is_brief else column.texts


class _Grid:
    """Tables with the same columns, one below the other.

    Attributes:
        widths: of the columns.
        width: of all, with the spaces between.
    """

    def __init__(self, tables: Sequence[ShortTable], is_brief: bool) -> None:
        self._tables, self._is_brief = tables, is_brief
        self._columns = [_with_lacks(table) for table in tables]
        self.widths = [
            max(len(text) for column in same for text in (column.heading, *_texts(column, is_brief)))
            for same in zip(*self._columns, strict=True)
        ]
        self._gaps = [0, *(2 if i in self._starts() else 1 for i in range(1, len(self.widths)))]
        for (first, last), heading in zip(self._spans(), self._headings(), strict=True):
            room = sum(self.widths[first:last]) + sum(self._gaps[first + 1 : last])
            self.widths[first] += max(0, len(heading) - room)
        self.width = sum(self.widths) + sum(self._gaps)

    def _spans(self) -> list[tuple[int, int]]:
        """The first column of each mode, and the one behind its last."""
        ends = [1]
        for columns in self._tables[0].groups.values():
            ends.append(ends[-1] + len(columns))
        return list(pairwise(ends))

    def _starts(self) -> set[int]:
        return {1, *(last for _, last in self._spans())}

    def _headings(self) -> list[str]:
        cheaper = ": cheaper from" if self._is_brief else ": cheaper than"
        return [
            f"{mode}{cheaper if any(column.kind == 'place' for column in columns) else ''}"
            for mode, columns in self._tables[0].groups.items()
        ]

    def lines(self, names: int) -> Iterator[ScreenLine]:
        """names: the width of the first column."""
        widths = [names, *self.widths[1:]]
        above = ""
        for (first, _), heading in zip(self._spans(), self._headings(), strict=True):
            above = above.ljust(sum(widths[:first]) + sum(self._gaps[: first + 1])) + heading
        yield ScreenLine(above, heading=True)
        for columns in self._columns:
            yield from self._row([column.heading for column in columns], columns, widths, heading=True)
            for row in zip(*(_texts(column, self._is_brief) for column in columns), strict=True):
                yield from self._row(row, columns, widths)

    def _row(
        self, texts: Sequence[str], columns: Sequence[Column], widths: Sequence[int], heading: bool = False
    ) -> Iterator[ScreenLine]:
        name, *rest = texts
        *before, last = _broken(name, widths[0])
        yield from (ScreenLine(text, heading) for text in before)
        line = last.ljust(widths[0])
        for text, column, width, gap in zip(rest, columns[1:], widths[1:], self._gaps[1:], strict=True):
            line += " " * gap + (text.ljust(width) if column.kind == "lacks" else text.rjust(width))
        yield ScreenLine(line.rstrip(), heading)


def _with_lacks(table: ShortTable) -> list[Column]:
    nothing = ("",) * len(table.names.texts)
    lacks = [] if table.lacks else [Column("", "", "lacks", nothing, nothing)]
    return [*table.columns, *lacks]


def _broken(name: str, width: int) -> list[str]:
    """A name over lines of at most `width`, broken behind spaces and commas where that is enough."""
    parts = wrap(name.replace(",", ", "), width, subsequent_indent=INDENT, break_on_hyphens=False) or [""]
    return [part.replace(", ", ",") for part in parts]


def _paragraphs(tables: Sequence[ShortTable], width: int) -> Iterator[ScreenLine]:
    """Where no row fits one line."""
    for table in tables:
        columns = table.columns
        grouped = [(mode, column) for mode, group in table.groups.items() for column in group]
        head = [table.names.heading, *(f"{mode} {column.heading}" for mode, column in grouped)]
        head += [table.lacks.heading] if table.lacks else []
        rows = list(zip(*(column.briefs for column in columns), strict=True))
        for line in in_columns(head, rows, width):
            yield ScreenLine("".join(piece.text for piece in line))
