"""What the maps of a report show: cells in the colour of what is fastest there, and the borders across them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from attnbench.analysis.crossover import Crossover
from attnbench.analysis.grid import CHEAPEST_OTHER, Border, Grid, Row, Spot
from attnbench.axes import AXES
from attnbench.outputs._colours import GREY, colour
from attnbench.outputs._grid_tables import best_exact, edges, key, letters_of, metric, parts, spot_text
from attnbench.outputs._html_page import Block, part, script_data, section, tables
from attnbench.outputs._run_tables import crossover_text, interval_text
from attnbench.units import shown

_CERTAIN, _UNCERTAIN = 0.55, 0.25
"""The opacity of a cell with one fastest operator, and with several that cannot be told apart."""


def map_blocks(grids: Sequence[Grid]) -> Iterator[Block]:
    """A chart and the tables of each grid."""
    letters = letters_of(grids)
    for i, (grid, each) in enumerate(zip(grids, parts(grids), strict=True)):
        title = f"{grid.axis} × {grid.over}"
        chart = part("chart", "map", str(i), f"Map of {title}") + part("notes", [key(grid, letters)])
        yield section(f"map of {title}", f"map-{i}", f"Map: {grid.title}", chart)
        yield Block(f"map of {grid.title}", script_data("map", _map(grid, str(i), letters)), rank=2)
        yield tables(each, is_open=False, before="Tables: ")


def _map(grid: Grid, group: str, letters: Mapping[str, str]) -> dict[str, Any]:
    cells = [cell for row in grid.rows for cell in _cells(grid, row, letters)]
    ends = [end for cell in cells for end in (cell["low"], cell["high"])]
    return {
        "group": group,
        "axis": grid.axis,
        "over": grid.over,
        "sizes": [[size, label] for label, size in grid.sizes.items()],
        "domain": [min(ends), max(ends)],
        "rows": [row.label for row in grid.rows],
        "cells": cells,
        "borders": [border for row in grid.rows for border in _borders(grid, row)],
        "sides": [grid.baseline, best_exact(grid)],
        "caption": f"Fastest by {metric(grid)}. Bars: where the {CHEAPEST_OTHER} passes, with the 95 % interval.",
    }


def _cells(grid: Grid, row: Row, letters: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Those of a row that were to be measured; each reaches halfway to its neighbours."""
    tried = [spot for spot in row.spots if spot.use or spot.status]
    ends_of_cells = pairwise(edges([spot.size for spot in tried], alone=1.4)) if tried else ()
    for spot, ends in zip(tried, ends_of_cells, strict=True):
        yield _cell(grid, row, spot, ends, letters)


def _cell(grid: Grid, row: Row, spot: Spot, ends: tuple[float, float], letters: Mapping[str, str]) -> dict[str, Any]:
    use = spot.use
    hue, opacity = "", 0.0
    if use is not None:
        best = use.choices[0]
        hue = GREY if best.exact else colour(best.series.operator)
        opacity = _CERTAIN if len(use.choices) == 1 else _UNCERTAIN
    return {
        "x": spot.size,
        "low": ends[0],
        "high": ends[1],
        "row": row.label,
        "colour": hue,
        "opacity": opacity,
        "text": spot_text(spot, letters),
        "tip": "\n".join(_told(grid, row, spot)),
    }


def _told(grid: Grid, row: Row, spot: Spot) -> Iterator[str]:
    yield f"{grid.over} {row.label}, {AXES[grid.axis].amount(spot.label)}"
    if spot.use is None:
        yield f"{spot.status}: {spot.reason}" if spot.status else "not measured"
        return
    for choice in spot.use.choices:
        figures = ", ".join(filter(None, (shown(choice.time_s, "s"), shown(choice.memory_bytes, "bytes"))))
        yield f"{choice.series.name}{' (exact)' if choice.exact else ''}: {figures}"
    if spot.use.speed_up is not None:
        faster = interval_text(spot.use.speed_up, spot.use.low, spot.use.high)
        yield f"{faster} faster than the {best_exact(grid)}"
    if spot.exact_status:
        yield f"exact softmax: {spot.exact_status}"


def _borders(grid: Grid, row: Row) -> Iterator[dict[str, Any]]:
    sides: tuple[tuple[Border | None, str], ...] = (
        (row.against_baseline, grid.baseline),
        (row.against_exact, best_exact(grid)),
    )
    for side, (border, name) in enumerate(sides):
        for reach in border.reaches if border else ():
            text = _passing(border.crossover if border else None, grid, name)
            ends = [reach.low or None, reach.high if reach.high and math.isfinite(reach.high) else None]
            yield {"row": row.label, "side": side, "at": reach.at, "low": ends[0], "high": ends[1], "tip": text}


def _passing(crossover: Crossover | None, grid: Grid, name: str) -> str:
    return f"{CHEAPEST_OTHER}, cheaper than {name}:\n{crossover_text(crossover, grid.axis, name)}"
