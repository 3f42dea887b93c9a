"""Rows of texts in columns within a width. No word, number or interval is broken, and no text is left out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from textwrap import TextWrapper
from typing import NamedTuple

_GAP = 2
_INDENT = "  "
_GLUE = "\u00a0"
HEADING = -1
"""The row of a piece that belongs to the heading."""


class Piece(NamedTuple):
    """A part of a line.

    Args:
        text: what is printed.
        row: that it belongs to, or HEADING.
        column: that it belongs to; None: between columns.
    """

    text: str
    row: int
    column: int | None = None


Printed = list[Piece]


def lines(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    numbers: Collection[int] = (),
    sentences: Collection[int] = (),
) -> Iterator[Printed]:
    """The lines of a table.

    Where the table is too wide, texts are broken between words, in the first column after a comma too, first where that
    is wider than half of the room; where the table still is, every row becomes a paragraph of `heading text` pairs.

    Args:
        head: the headings.
        rows: the texts of each row.
        width: in characters.
        numbers: columns that are set to the right.
        sentences: columns that stand below their row, on lines of their own.
    """
    columns = [i for i in range(len(head)) if i not in sentences]
    widths = _widths(head, rows, columns, width)
    if widths is None:
        for index, row in enumerate(rows):
            yield from _paragraph(head, row, index, columns, width)
            yield from _below(row, index, sentences, width)
        return
    yield from _in_columns(head, HEADING, widths, numbers)
    yield [Piece("─" * (sum(widths.values()) + _GAP * (len(widths) - 1)), HEADING)]
    for index, row in enumerate(rows):
        yield from _in_columns(row, index, widths, numbers)
        yield from _below(row, index, sentences, width)


def _widths(
    head: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int], width: int
) -> dict[int, int] | None:
    """By column: as wide as its texts, or as its longest word at least; None where the table is still too wide."""
    texts = {i: [head[i], *(row[i] for row in rows)] for i in columns}
    natural = {i: max(map(len, texts[i])) for i in columns}
    least = {i: max((len(word) for text in texts[i] for word in _glued(text).split(" ")), default=0) for i in columns}
    first, room = columns[0], width - _GAP * (len(columns) - 1)
    shortest = max(len(part) for text in texts[first] for part in _broken(text, 1, _INDENT, AFTER_COMMAS))
    for of_first in (max(shortest, min(natural[first], width // 2)), shortest):
        widths, least[first] = dict(natural), of_first
        while sum(widths.values()) > room and (slack := [i for i in columns if widths[i] > least[i]]):
            widths[max(slack, key=widths.__getitem__)] -= 1
        if sum(widths.values()) <= room:
            return widths
    return None


def _glued(text: str) -> str:
    """A text whose intervals are not broken: `[480, 551]` is one word."""
    return re.sub(r"\[[^]]*\]", lambda interval: interval[0].replace(" ", _GLUE), text)


WORDS, AFTER_COMMAS = re.compile("( +)"), re.compile("( +|(?<=,))")
"""Where a text may be broken: between words, and after a comma as well, as in `k=256,sharing=headwise`."""


def _broken(text: str, width: int, indent: str = "", at: re.Pattern[str] = WORDS) -> list[str]:
    """A text over lines of at most `width`; a longer word is not broken."""
    wrapper = TextWrapper(width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
    wrapper.wordsep_simple_re = at
    return [_plain(part) for part in wrapper.wrap(_glued(text))] or [""]


def _plain(text: str) -> str:
    return text.replace(_GLUE, " ")


def _in_columns(row: Sequence[str], index: int, widths: dict[int, int], numbers: Collection[int]) -> Iterator[Printed]:
    """One row, over as many lines as its longest field needs."""
    first, last = min(widths), max(widths)
    fields = {
        i: [row[i]]
        if len(row[i]) <= width
        else _broken(row[i], width, *((_INDENT, AFTER_COMMAS) if i == first else ()))
        for i, width in widths.items()
    }
    for number in range(max(map(len, fields.values()))):
        line: Printed = []
        for i, width in widths.items():
            part = fields[i][number] if number < len(fields[i]) else ""
            space = " " * (width - len(part))
            line += [Piece(space, index)] if i in numbers else []
            line.append(Piece(part, index, i))
            line += [Piece(" " * _GAP if i in numbers else space + " " * _GAP, index)] if i != last else []
        while line and not line[-1].text.strip():
            line.pop()
        yield line


def _paragraph(
    head: Sequence[str], row: Sequence[str], index: int, columns: Sequence[int], width: int
) -> Iterator[Printed]:
    """One row as `first  heading text  heading text …`, broken between fields."""
    *before, last = _broken(row[columns[0]], width, _INDENT, AFTER_COMMAS)
    yield from ([Piece(part, index, columns[0])] for part in before)
    line, used = [Piece(last, index, columns[0])], len(last)
    for i in columns[1:]:
        if not row[i]:
            continue
        label = f"{head[i]} ".replace(" ", _GLUE) if head[i] else ""
        if used + _GAP + len(label) + len(row[i]) <= width:
            line += [Piece(" " * _GAP, index), Piece(_plain(label), HEADING), Piece(row[i], index, i)]
            used += _GAP + len(label) + len(row[i])
            continue
        yield line
        first, *more = _broken(label + row[i], width - len(_INDENT), _INDENT)
        line = [Piece(_INDENT, index), Piece(_plain(label), HEADING), Piece(first[len(label) :], index, i)]
        for part in more:
            yield line
            line = [Piece(_INDENT, index), Piece(part, index, i)]
        used = len(_INDENT) + len(more[-1] if more else first)
    yield line


def _below(row: Sequence[str], index: int, sentences: Collection[int], width: int) -> Iterator[Printed]:
    for i in sentences:
        for part in _broken(row[i], width - len(_INDENT)) if row[i] else []:
            yield [Piece(_INDENT, index), Piece(part, index, i)]
