"""Grids of two axes as titled tables of text, which the terminal and Markdown print alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, pairwise
from string import ascii_uppercase

from attnbench.analysis.grid import CHEAPEST_OTHER, Border, Grid, Spot
from attnbench.groups import groups_of
from attnbench.outputs._run_tables import (
    ANOTHER_FUNCTION,
    CROSSOVER_WORDS,
    Field,
    Part,
    TextTable,
    crossover_field,
    crossover_text,
)
from attnbench.units import times

WIDTH = 80
"""Of a map; a wider one names series by letters."""

EXACT_LETTER = "S"

MOST_NAMES = 2
"""Of what cannot be told apart, so many are named in a field."""


def edges(places: Sequence[float], alone: float) -> list[float]:
    """The ends of cells: halfway, in logs, between neighbours, and as far outside the first and the last.

    Args:
        places: of the cells, ascending.
        alone: the factor to either side of a single one.
    """
    if len(places) == 1:
        return [places[0] / alone, places[0] * alone]
    inner = [math.sqrt(a * b) for a, b in pairwise(places)]
    return [places[0] ** 2 / inner[0], *inner, places[-1] ** 2 / inner[-1]]


def parts(grids: Sequence[Grid]) -> list[Part]:
    """Every grid."""
    letters = letters_of(grids)
    return [Part(grid.title, tuple(_tables(grid, letters)), tuple(_notes(grid))) for grid in grids]


def legend(grids: Sequence[Grid]) -> list[str]:
    """What the fields of a map mean."""
    lines = [
        "A: the fastest; A/B, +n: cannot be told from the fastest, exact ones first; 2.3×: faster than the fastest "
        f"exact softmax by that. Not exact: {ANOTHER_FUNCTION}. (oom): no exact softmax ran there. An empty field was "
        "not measured.",
        f"{CHEAPEST_OTHER}: at each size the fastest of all that do not compute softmax attention, without what "
        f"choosing it took off its time. {CROSSOVER_WORDS}. Each row is judged by itself.",
    ]
    return lines if grids else []


def letters_of(grids: Sequence[Grid]) -> dict[str, str]:
    """By name a letter for every series that some cell names: S, S2 … for exact softmax, A, B, C … for the others."""
    exact: dict[str, None] = {}
    others: dict[str, None] = {}
    for grid in grids:
        named = {name for row in grid.rows for spot in row.spots for name in _names(spot)}
        for series in grid.series:
            if series.name in named:
                (exact if series.name in grid.exact else others)[series.name] = None
    alphabet = ascii_uppercase.replace(EXACT_LETTER, "")
    letters = (f"{letter}{number}" for number in _numbers() for letter in alphabet)
    exact_letters = (f"{EXACT_LETTER}{number}" for number in _numbers())
    return {**dict(zip(exact, exact_letters, strict=False)), **dict(zip(others, letters, strict=False))}


def _numbers() -> Iterator[str]:
    """Nothing, then 2, 3, 4 …"""
    yield ""
    yield from map(str, count(2))


def _names(spot: Spot) -> list[str]:
    """The series that a cell names: what to use, and the fastest exact softmax."""
    if spot.use is None:
        return []
    exact = [spot.use.exact] if spot.use.exact else []
    return [choice.series.name for choice in (*spot.use.choices, *exact)]


def spot_text(spot: Spot, letters: Mapping[str, str], separator: str = " ") -> str:
    """What a cell says: `A 2.3×`, `S/A`, `A (oom)`, `oom`, nothing.

    Args:
        letters: by name of a series what it is called; itself where it has none.
        separator: between names and figure.
    """
    if spot.use is None:
        return spot.status
    names = [letters.get(choice.series.name, choice.series.name) for choice in spot.use.choices]
    text = "/".join(names[:MOST_NAMES]) + (f"+{len(names) - MOST_NAMES}" if len(names) > MOST_NAMES else "")
    figure = f"({spot.exact_status})" if spot.exact_status else ""
    if spot.use.speed_up is not None and not spot.use.choices[0].exact:
        figure = times(spot.use.speed_up)
    return f"{text}{separator}{figure}" if figure else text


def _tables(grid: Grid, letters: Mapping[str, str]) -> Iterator[TextTable]:
    yield _map(grid, letters)
    yield from _borders(grid)
    yield from _operators(grid)


def _map(grid: Grid, letters: Mapping[str, str]) -> TextTable:
    columns = (grid.over, *grid.sizes)
    texts = [(row.label, *(spot_text(spot, {}) for spot in row.spots)) for row in grid.rows]
    notes: tuple[str, ...] = ()
    if sum(max(map(len, column)) + 2 for column in zip(columns, *texts, strict=True)) > WIDTH:
        texts = [(row.label, *(spot_text(spot, letters) for spot in row.spots)) for row in grid.rows]
        notes = (key(grid, letters),)
    rows = tuple(
        (Field(label), *(Field(text, best=_pays(spot)) for text, spot in zip(fields, row.spots, strict=True)))
        for row, (label, *fields) in zip(grid.rows, texts, strict=True)
    )
    return TextTable(f"Fastest over {grid.axis}, by {metric(grid)}", columns, rows, sizes=True, notes=notes)


def key(grid: Grid, letters: Mapping[str, str]) -> str:
    """What the letters of a grid stand for."""
    named = {name for row in grid.rows for spot in row.spots for name in _names(spot)}
    shown = [
        f"{letter} {name}{' (exact)' if name in grid.exact else ''}"
        for name, letter in letters.items()
        if name in named
    ]
    return ", ".join(shown)


def metric(grid: Grid) -> str:
    """What the metric that decides is called."""
    return grid.rows[0].table.quantity.title.lower()


def _pays(spot: Spot) -> bool:
    """Whether no exact softmax is among what to use."""
    return spot.use is not None and not spot.use.choices[0].exact


def _borders(grid: Grid) -> Iterator[TextTable]:
    sides = [
        (f"cheaper than {grid.baseline}", grid.baseline, [row.against_baseline for row in grid.rows]),
        (f"cheaper than {best_exact(grid)}", "exact softmax", [row.against_exact for row in grid.rows]),
    ]
    sides = [side for side in sides if any(side[2])]
    if sides:
        columns = (grid.over, *(heading for heading, _, _ in sides))
        rows = tuple(
            (Field(row.label), *(_border(borders[i], grid, name) for _, name, borders in sides))
            for i, row in enumerate(grid.rows)
        )
        yield TextTable(f"Border of the {CHEAPEST_OTHER} along {grid.axis}", columns, rows)


def _border(border: Border | None, grid: Grid, baseline: str) -> Field:
    return crossover_field(border.crossover if border else None, grid.axis, baseline)


def best_exact(grid: Grid) -> str:
    """What the best exact softmax is called."""
    return grid.rows[0].table.quantity.metric.best_exact


def _operators(grid: Grid) -> Iterator[TextTable]:
    """The border of every operator with the best exact softmax, or with the baseline where that is the same."""
    exact = any(row.against_exact for row in grid.rows)
    name = "exact softmax" if exact else grid.baseline
    passings = [
        {line.series.name: line.against_exact if exact else line.against_baseline for line in row.table.lines}
        for row in grid.rows
    ]
    rows = tuple(
        (
            Field(series.name),
            *(Field(crossover_text(each.get(series.name), grid.axis, name, "compact")) for each in passings),
        )
        for series in grid.series
        if series.name not in grid.exact and any(each.get(series.name) for each in passings)
    )
    if rows:
        columns = (grid.over, *(row.label for row in grid.rows))
        against = best_exact(grid) if exact else grid.baseline
        title = f"Each operator along {grid.axis}: cheaper than {against}"
        yield TextTable(title, columns, rows, sizes=True)


def _notes(grid: Grid) -> Iterator[str]:
    """Why nothing ran in a cell, once for each reason."""
    reasons = groups_of(
        (f"{spot.status}: {spot.reason}", f"{grid.over} {row.label} at {spot.label}")
        for row in grid.rows
        for spot in row.spots
        if spot.use is None and spot.status
    )
    for what, places in reasons.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        yield f"{places[0]}{more}: {what}"
