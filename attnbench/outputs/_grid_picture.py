"""A grid as a picture: its cells in the colour of what is fastest there, and the border of softmax across them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from attnbench.analysis.crossover import Direction
from attnbench.analysis.distributions import CONFIDENCE
from attnbench.analysis.grid import CHEAPEST_OTHER, Border, Grid, Outside, Reach, Row, Spot
from attnbench.outputs._colours import colour
from attnbench.outputs._grid_tables import best_exact, edges, metric, spot_text
from attnbench.outputs._picture_parts import (
    AS_IT_NEEDS,
    PAD_IN,
    TEXT_PT,
    TICK_IN,
    TITLE_PT,
    Key,
    PlacedKey,
    Wanted,
    draw_heading,
    draw_keys,
    line_in,
    place_keys,
    thinned,
    too_small,
    width_in,
    wrapped,
)  # fmt: skip
from attnbench.problem import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

GREYS = ("#C9C9C9", "#A8A8A8", "#E2E2E2")
"""Of softmax: its impls, in areas of the neutral colour that it has as a line."""

STRIPES = "/////"
"""Of cells in which no operator is the fastest for certain."""

CELL_PT, CELL_PAD_PT = 6.0, 4.0
SPOT_WIDTH_IN, SPOT_HEIGHT_IN = (0.47, 1.0), (0.36, 0.75)
MAP_IN = (6.4, 4.2)
LEAST_MAP_IN = (1.4, 0.9)

BESIDE = 0.58
"""The least share of the width that is left to a map beside what its colours mean; else that stands below."""

MARGIN_IN = 0.12
"""Between a map and what stands beside it, and to the right of it for the label of its last column."""


@dataclass(frozen=True)
class _Side:
    """One of the two borders of a grid.

    Args:
        name: what the cheapest other operator is compared with.
        borders: one for each row.
        dash: of its line.
        hatch: of its intervals.
        fill, height: of its arrows; the share of a row's height.
    """

    name: str
    borders: Sequence[Border | None]
    dash: Any
    hatch: str
    fill: str
    height: float


@dataclass(frozen=True)
class _Frame:
    """Where the cells of a grid are.

    Args:
        columns, centres: where the sizes of the columns and of the rows are.
        x, y: their edges: one more than there are.
        width_pt, height_pt: of the whole.
        names: by series, what it is called in a cell.
        colours: by series.
    """

    columns: Sequence[float]
    centres: Sequence[float]
    x: Sequence[float]
    y: Sequence[float]
    width_pt: float
    height_pt: float
    names: Mapping[str, str]
    colours: Mapping[str, str]


@dataclass(frozen=True)
class _Layout:
    """Where a map is in its picture, in inches: its left and bottom, and all else."""

    width: float
    height: float
    left: float
    bottom: float
    map_width: float
    map_height: float
    heading: tuple[str, ...]
    beside: tuple[PlacedKey, ...]
    below: tuple[PlacedKey, ...]
    below_top: float


def picture_of(grid: Grid, letters: Mapping[str, str], wanted: Wanted = AS_IT_NEEDS) -> Picture:
    """The picture of a grid.

    Args:
        letters: by name, of every series that some cell names.
        wanted: its size and title.

    Raises: BadInput where the size is too small for it.
    """
    from matplotlib.figure import Figure as Picture

    colours, sides = _colours(grid, letters), _sides(grid)
    layout = _lay_out(grid, wanted, list(_keys(grid, letters, colours)), list(_marks(grid, sides, colours)))
    frame = _frame(grid, letters, colours, layout)
    picture = Picture(figsize=(layout.width, layout.height))
    width, height = layout.map_width / layout.width, layout.map_height / layout.height
    axes = picture.add_axes((layout.left / layout.width, layout.bottom / layout.height, width, height))
    for i, row in enumerate(grid.rows):
        _cells(axes, row, i, frame)
    for side in sides:
        _intervals(axes, side, frame)
    for side in sides:
        _line(axes, side, frame)
    _scales(axes, grid, frame)
    draw_heading(picture, layout.heading, layout.height - PAD_IN)
    draw_keys(picture, layout.beside, layout.left + layout.map_width + MARGIN_IN, layout.bottom + layout.map_height)
    draw_keys(picture, layout.below, PAD_IN, layout.below_top)
    return picture


def _lay_out(grid: Grid, wanted: Wanted, keys: list[Key], marks: list[Key]) -> _Layout:
    """A map with its keys beside it, or below where it would be too narrow."""
    columns, rows = max(len(_tried(row)) for row in grid.rows), len(grid.rows)
    left = PAD_IN + line_in() + max(width_in(row.label) for row in grid.rows) + 2 * TICK_IN
    right = MARGIN_IN + PAD_IN
    aside = max((key.sample_in + width_in(key.text) for key in keys), default=0.0)
    map_width = columns * _within(MAP_IN[0] / columns, SPOT_WIDTH_IN)
    is_beside = True
    if wanted.width_in is not None:
        map_width = wanted.width_in - left - right - aside
        is_beside = map_width >= BESIDE * wanted.width_in
        map_width = max(map_width if is_beside else wanted.width_in - left - right, LEAST_MAP_IN[0])
    width = wanted.width_in or left + map_width + right + aside
    inner = width - 2 * PAD_IN
    heading = wrapped(wanted.heading(f"Fastest by {metric(grid)}. {grid.title}"), inner, TITLE_PT)
    beside, beside_height = place_keys(keys, aside) if is_beside else ([], 0.0)
    below, below_height = place_keys(marks if is_beside else [*keys, *marks], inner)
    bottom = PAD_IN + below_height + 0.04 + 2 * line_in() + TICK_IN + 0.02
    around = bottom + PAD_IN + len(heading) * line_in(TITLE_PT) + 0.08
    least_height = max(rows * (line_in() + 0.02), LEAST_MAP_IN[1], beside_height)
    map_height = max(rows * _within(MAP_IN[1] / rows, SPOT_HEIGHT_IN), beside_height)
    if wanted.width_in is not None:
        map_height = max(min(map_height, 0.8 * map_width), least_height)
    if wanted.height_in is not None:
        map_height = max(wanted.height_in - around, least_height)
    height = wanted.height_in or around + map_height
    if width < left + right + LEAST_MAP_IN[0] - 1e-9 or height < around + least_height - 1e-9:
        raise too_small(
            wanted, max(width, left + right + LEAST_MAP_IN[0]), around + least_height, "the map and its keys"
        )
    return _Layout(
        width, height, left, bottom, map_width, map_height, tuple(heading), tuple(beside), tuple(below),
        PAD_IN + below_height,
    )  # fmt: skip


def _within(value: float, ends: tuple[float, float]) -> float:
    return min(max(value, ends[0]), ends[1])


def _tried(row: Row) -> list[int]:
    """The columns in which something of a row was measured, or failed."""
    return [i for i, spot in enumerate(row.spots) if spot.use or spot.status]


def _colours(grid: Grid, letters: Mapping[str, str]) -> dict[str, str]:
    """By the names of series that some cell names, their colours: those of their operators; of softmax, greys."""
    operators = {series.name: series.operator for series in grid.series}
    softmax = [name for name in letters if operators.get(name) == BASELINE]
    greys = {name: GREYS[i % len(GREYS)] for i, name in enumerate(softmax)}
    return {name: greys.get(name) or colour(operators.get(name, name)) for name in letters}


def _frame(grid: Grid, letters: Mapping[str, str], colours: Mapping[str, str], layout: _Layout) -> _Frame:
    columns, centres = _apart(grid.sizes.values()), _apart(row.position for row in grid.rows)
    size = (layout.map_width * 72, layout.map_height * 72)
    return _Frame(columns, centres, edges(columns, alone=2), edges(centres, alone=2), *size, letters, colours)


def _apart(places: Iterable[float]) -> list[float]:
    """Ascending places; what is at the same one, as images of as many tokens, side by side."""
    apart: list[float] = []
    for place in places:
        apart.append(1.1 * apart[-1] if apart and place <= apart[-1] else float(place))
    return apart


def _cells(axes: Axes, row: Row, i: int, frame: _Frame) -> None:
    """The cells of a row, as wide as the columns; of a row in which most columns were not tried, up to half way to the
    next one that was."""
    from matplotlib.patches import Rectangle

    chosen, ends, tried = [*range(len(row.spots))], list(frame.x), _tried(row)
    if 1 < len(tried) < len(row.spots) / 2:
        chosen = tried
        halves = edges([frame.columns[k] for k in tried], alone=2)
        ends = [_within(each, (frame.x[0], frame.x[-1])) for each in halves]
    bottom, top = frame.y[i], frame.y[i + 1]
    for k, (left, right) in zip(chosen, pairwise(ends), strict=True):
        spot = row.spots[k]
        fill, stripes = _fill(spot, frame.colours)
        place: tuple[Any, ...] = ((left, bottom), right - left, top - bottom)
        hatch = STRIPES if stripes else None
        axes.add_patch(Rectangle(*place, facecolor=fill, edgecolor=stripes or fill, linewidth=0, hatch=hatch))
        axes.add_patch(Rectangle(*place, facecolor="none", edgecolor="white", linewidth=0.8))
        lines = spot_text(spot, frame.names, "\n").split("\n")
        wide, high = _share(left, right, frame.x) * frame.width_pt, _share(bottom, top, frame.y) * frame.height_pt
        if (
            lines[0]
            and wide > 72 * width_in("\n".join(lines), CELL_PT) + CELL_PAD_PT
            and high > 72 * line_in(CELL_PT) * len(lines) + 2
        ):
            axes.text(
                frame.columns[k], frame.centres[i], "\n".join(lines), ha="center", va="center", linespacing=1.05,
                fontsize=CELL_PT, zorder=5,
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.82, "linewidth": 0},
            )  # fmt: skip


def _share(low: float, high: float, edges: Sequence[float]) -> float:
    """What part of all between the edges a stretch is, in logs."""
    return math.log(high / low) / math.log(edges[-1] / edges[0])


def _fill(spot: Spot, colours: Mapping[str, str]) -> tuple[str, str | None]:
    """The colour of what to use, and of stripes where that cannot be told from another: the fastest's, or the next."""
    if spot.use is None:
        return "white", "#DDDDDD" if spot.status else None
    first, *others = spot.use.choices
    if not others:
        return colours[first.series.name], None
    other = others[0] if spot.use.fastest is first else spot.use.fastest
    fill, stripes = colours[first.series.name], colours[other.series.name]
    return fill, stripes if stripes != fill else "white"


def _sides(grid: Grid) -> list[_Side]:
    sides = [
        _Side(grid.baseline, [row.against_baseline for row in grid.rows], (0, (4, 2)), "...", "white", 0.3),
        _Side(f"the {best_exact(grid)}", [row.against_exact for row in grid.rows], "-", "\\\\\\", "black", 0.7),
    ]
    return [side for side in sides if any(side.borders)]


def _intervals(axes: Axes, side: _Side, frame: _Frame) -> None:
    """A hatched band where each row's border may be, joined to that of the next row where both have a crossing."""
    from matplotlib.patches import Polygon

    for i, border in enumerate(side.borders):
        for k, reach in enumerate(border.reaches if border else ()):
            if reach.low is None:
                continue
            low, high = _shown(reach, frame)
            (low_below, high_below), (low_above, high_above) = (
                _shown(_continued(side.borders, row, k, reach), frame) for row in (i - 1, i + 1)
            )
            left = [math.sqrt(low_below * low), low, math.sqrt(low * low_above)]
            right = [math.sqrt(high_below * high), high, math.sqrt(high * high_above)]
            heights = [frame.y[i], frame.centres[i], frame.y[i + 1]]
            outline = [*zip(left, heights, strict=True), *reversed([*zip(right, heights, strict=True)])]
            axes.add_patch(Polygon(outline, zorder=3, **_band(side)))


def _shown(reach: Reach, frame: _Frame) -> tuple[float, float]:
    """The ends of an interval within the picture."""
    first, last = frame.x[0], frame.x[-1]
    return max(reach.low or first, first), min(reach.high or last, last)


def _continued(borders: Sequence[Border | None], row: int, k: int, reach: Reach) -> Reach:
    """The crossing of the next row that goes on from one; itself where there is none."""
    border = borders[row] if 0 <= row < len(borders) else None
    if border is None or k >= len(border.reaches):
        return reach
    other = border.reaches[k]
    return other if reach.direction is not None and other.direction == reach.direction else reach


def _line(axes: Axes, side: _Side, frame: _Frame) -> None:
    """Through the estimates of the rows; an arrow in a row where the border lies outside the sizes."""
    from matplotlib.patheffects import withStroke

    for direction in ("above", "below"):
        for points in _polylines([_at(border, direction, frame) for border in side.borders], frame):
            axes.plot(
                *zip(*points, strict=True), color="black", linestyle=side.dash, linewidth=1.4, zorder=4,
                path_effects=[withStroke(linewidth=2.8, foreground="white")],
            )  # fmt: skip
    for i, border in enumerate(side.borders):
        if border is not None and border.outside is not None:
            edge = frame.x[0 if border.outside == "before" else -1]
            height = frame.y[i] * (frame.y[i + 1] / frame.y[i]) ** side.height
            axes.plot([edge], [height], clip_on=False, zorder=6, **_arrow(border.outside, side.fill))


def _at(border: Border | None, direction: Direction, frame: _Frame) -> float | None:
    """Where a border is estimated, or the edge of the picture that it is outside of; None where it was not seen."""
    if border is None:
        return None
    for reach in border.reaches:
        if reach.direction == direction:
            return reach.at
    before = (border.crossover.kind == "always") == (direction == "above")
    if border.outside != ("before" if before else "beyond"):
        return None
    return frame.x[0 if before else -1]


def _polylines(places: Sequence[float | None], frame: _Frame) -> Iterator[list[tuple[float, float]]]:
    """The parts of a line through places on the rows; to the edge of the picture it runs between two rows."""
    inside = [place is not None and frame.x[0] < place < frame.x[-1] for place in places]
    for visible, group in groupby(range(len(places)), inside.__getitem__):
        rows = [*group]
        points = [(place, frame.centres[i]) for i in rows if (place := places[i]) is not None]
        if visible:
            below, above = (points[0][0], frame.y[rows[0]]), (points[-1][0], frame.y[rows[-1] + 1])
            yield [*_to_edge(places, rows[0] - 1, below), below, *points, above, *_to_edge(places, rows[-1] + 1, above)]
        else:
            for i, j in pairwise(rows):
                if places[i] is not None and places[j] is not None and places[i] != places[j]:
                    yield [(frame.x[0], frame.y[j]), (frame.x[-1], frame.y[j])]


def _to_edge(places: Sequence[float | None], row: int, end: tuple[float, float]) -> list[tuple[float, float]]:
    """Where a line goes from its end on, if the border of the next row is outside the sizes."""
    place = places[row] if 0 <= row < len(places) else None
    return [] if place is None else [(place, end[1])]


def _scales(axes: Axes, grid: Grid, frame: _Frame) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(frame.x[0], frame.x[-1])
    axes.set_ylim(frame.y[0], frame.y[-1])
    axes.minorticks_off()
    axes.set_xticks(*thinned(grid.sizes, frame.columns, (frame.x[0], frame.x[-1]), frame.width_pt / 72, 0.06))
    labels = [row.label for row in grid.rows]
    ends = (frame.y[0], frame.y[-1])
    axes.set_yticks(*thinned(labels, frame.centres, ends, frame.height_pt / 72, line_in(), upright=True))
    axes.set_xlabel(grid.axis, fontsize=TEXT_PT)
    axes.set_ylabel(grid.over, fontsize=TEXT_PT)
    axes.tick_params(labelsize=TEXT_PT)


def _keys(grid: Grid, letters: Mapping[str, str], colours: Mapping[str, str]) -> Iterator[Key]:
    """What the colours and letters of operators are."""
    for name, hue in colours.items():
        yield Key(f"{letters[name]}  {name}{' (exact)' if name in grid.exact else ''}", patch={"color": hue})


def _marks(grid: Grid, sides: Sequence[_Side], colours: Mapping[str, str]) -> Iterator[Key]:
    """What lines, hatches and figures are."""
    for side in sides:
        line = {"color": "black", "linestyle": side.dash, "linewidth": 1.4}
        yield Key(f"border: the {CHEAPEST_OTHER} passes {side.name}", line, _band(side))
    for side in sides:
        outside = next((border.outside for border in side.borders if border and border.outside), None)
        if outside:
            text = f"the border with {side.name} is before the smallest, or beyond the largest size"
            yield Key(text, line=_arrow(outside, side.fill))
    if any(reach.low is not None for side in sides for border in side.borders if border for reach in border.reaches):
        yield Key(
            f"hatched: its {CONFIDENCE:.0%} interval in each row, the sizes it lies between, or all not told apart"
        )
    spots = [spot for row in grid.rows for spot in row.spots]
    uses = [spot.use for spot in spots if spot.use]
    undecided = next((spot for spot in spots if spot.use and len(spot.use.choices) > 1), None)
    if undecided:
        fill, stripes = _fill(undecided, colours)
        patch = {"facecolor": fill, "edgecolor": stripes, "linewidth": 0, "hatch": STRIPES}
        yield Key("A/B: cannot be told from the fastest; the colour of the first, stripes of another", patch=patch)
    if any(use.speed_up and not use.choices[0].exact for use in uses):
        yield Key("2.3×: so much faster than the fastest exact softmax")
    if any(spot.exact_status for spot in spots):
        yield Key("(oom): no exact softmax ran there")
    if any(spot.use is None and not spot.status for spot in spots):
        yield Key("white: not measured", patch={"facecolor": "white", "edgecolor": "black", "linewidth": 0.4})


def _band(side: _Side) -> dict[str, Any]:
    return {"facecolor": (1, 1, 1, 0.2), "edgecolor": "black", "linewidth": 0.4, "hatch": side.hatch}


def _arrow(where: Outside, fill: str) -> dict[str, Any]:
    """As keywords of a line of matplotlib's."""
    marker = "<" if where == "before" else ">"
    return {
        "color": "black", "linestyle": "", "marker": marker, "markersize": 5, "markerfacecolor": fill,
        "markeredgewidth": 0.8,
    }  # fmt: skip
