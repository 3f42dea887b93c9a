"""A grid as a picture: its cells in the colour of what is fastest there, and the border of softmax across them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from attnbench.analysis.crossover import Direction
from attnbench.analysis.distributions import CONFIDENCE
from attnbench.analysis.grid import CHEAPEST_OTHER, Border, Grid, Outside, Reach, Row, Spot
from attnbench.outputs._grid_tables import best_exact, metric, spot_text

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture
    from matplotlib.lines import Line2D

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7A5195")
"""As of the curves of a run, without grey."""

GREYS = ("#C9C9C9", "#A8A8A8", "#E2E2E2")
"""Of exact softmax."""

STRIPES = "/////"
"""Of cells in which no operator is the fastest for certain."""

TEXT_PT, PAD_PT = 7.0, 4.0
SPOT_WIDTH_IN, SPOT_HEIGHT_IN = (0.47, 1.0), (0.36, 0.75)
MAP_IN = (6.4, 4.2)
CHARACTER = 0.56
"""The width of a character over the size of its font."""


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


def picture_of(grid: Grid, letters: Mapping[str, str]) -> Picture:
    """The picture of a grid. letters: by name, of every series that some cell names."""
    from matplotlib.figure import Figure as Picture

    columns, rows = max(len(_tried(row)) for row in grid.rows), len(grid.rows)
    width = columns * _within(MAP_IN[0] / columns, SPOT_WIDTH_IN)
    height = rows * _within(MAP_IN[1] / rows, SPOT_HEIGHT_IN)
    frame = _frame(grid, letters, width * 72, height * 72)
    sides = _sides(grid)
    keys, marks = _keys(grid, frame), _marks(grid, sides)
    labels = _wide(max((row.label for row in grid.rows), key=len)) + 0.4
    beside = _wide(max(keys, key=len, default="")) + 0.5
    title = textwrap.wrap(f"Fastest by {metric(grid)}. {grid.title}", int((labels + width) / _wide("x", TEXT_PT + 1)))
    below = ["\n".join(textwrap.wrap(mark, int((labels + width + beside - 0.5) / _wide("x")))) for mark in marks]
    lines = len(title) + 4 + sum(text.count("\n") + 1.4 for text in below)
    picture = Picture(
        figsize=(labels + width + beside, max(height, len(keys) * 0.16) + lines * 0.115 + 0.2), layout="constrained"
    )
    axes = picture.add_subplot()
    for i, row in enumerate(grid.rows):
        _cells(axes, row, i, frame)
    for side in sides:
        _intervals(axes, side, frame)
    for side in sides:
        _line(axes, side, frame)
    _scales(axes, grid, frame)
    picture.suptitle("\n".join(title), x=0.01, ha="left", fontsize=TEXT_PT + 1)
    plain: dict[str, Any] = {"frameon": False, "fontsize": TEXT_PT, "borderaxespad": 0.2}
    picture.legend([*keys.values()], [*keys], loc="outside right upper", handlelength=1.6, **plain)
    picture.legend([*marks.values()], below, loc="outside lower left", handlelength=3.2, **plain)
    picture.draw_without_rendering()
    picture.set_layout_engine("none")  # each drawing would move it a little
    return picture


def _wide(text: str, size: float = TEXT_PT) -> float:
    """About how wide a text is, in inches."""
    return len(text) * CHARACTER * size / 72


def _within(value: float, ends: tuple[float, float]) -> float:
    return min(max(value, ends[0]), ends[1])


def _tried(row: Row) -> list[int]:
    """The columns in which something of a row was measured, or failed."""
    return [i for i, spot in enumerate(row.spots) if spot.use or spot.status]


def _frame(grid: Grid, letters: Mapping[str, str], width_pt: float, height_pt: float) -> _Frame:
    exact = [name for name in letters if name in grid.exact]
    others = [name for name in letters if name not in grid.exact]
    colours = {name: GREYS[i % len(GREYS)] for i, name in enumerate(exact)}
    colours |= {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(others)}
    columns, centres = _apart(grid.sizes.values()), _apart(row.position for row in grid.rows)
    return _Frame(columns, centres, _edges(columns), _edges(centres), width_pt, height_pt, letters, colours)


def _apart(places: Iterable[float]) -> list[float]:
    """Ascending places; what is at the same one, as images of as many tokens, side by side."""
    apart: list[float] = []
    for place in places:
        apart.append(1.1 * apart[-1] if apart and place <= apart[-1] else float(place))
    return apart


def _edges(places: Sequence[float]) -> list[float]:
    """Half way, in logs, between neighbours; as far outside the first and the last."""
    if len(places) == 1:
        return [places[0] / 2, places[0] * 2]
    inner = [math.sqrt(a * b) for a, b in pairwise(places)]
    return [places[0] ** 2 / inner[0], *inner, places[-1] ** 2 / inner[-1]]


def _cells(axes: Axes, row: Row, i: int, frame: _Frame) -> None:
    """The cells of a row, as wide as the columns; of a row in which most columns were not tried, up to half way to the
    next one that was."""
    from matplotlib.patches import Rectangle

    chosen, edges, tried = [*range(len(row.spots))], list(frame.x), _tried(row)
    if 1 < len(tried) < len(row.spots) / 2:
        chosen = tried
        edges = [_within(edge, (frame.x[0], frame.x[-1])) for edge in _edges([frame.columns[k] for k in tried])]
    bottom, top = frame.y[i], frame.y[i + 1]
    for k, (left, right) in zip(chosen, pairwise(edges), strict=True):
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
            and wide > 72 * _wide(max(lines, key=len), TEXT_PT - 1) + PAD_PT
            and high > 1.2 * TEXT_PT * len(lines)
        ):
            axes.text(
                frame.columns[k], frame.centres[i], "\n".join(lines), ha="center", va="center", linespacing=1.05,
                fontsize=TEXT_PT - 1, zorder=5,
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
    return colours[first.series.name], colours[other.series.name]


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
            arrow = _arrow(border.outside, side.fill)
            edge = frame.x[0 if border.outside == "before" else -1]
            arrow.set_data([edge], [frame.y[i] * (frame.y[i + 1] / frame.y[i]) ** side.height])
            arrow.set(clip_on=False, zorder=6)
            axes.add_line(arrow)


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
    wide = 72 * _wide(max(grid.sizes, key=len)) / frame.width_pt
    axes.set_xticks(*_ticks(grid.sizes, frame.columns, frame.x, 1.15 * wide))
    axes.set_yticks(*_ticks((row.label for row in grid.rows), frame.centres, frame.y, 1.2 * TEXT_PT / frame.height_pt))
    axes.set_xlabel(grid.axis, fontsize=TEXT_PT)
    axes.set_ylabel(grid.over, fontsize=TEXT_PT)
    axes.tick_params(labelsize=TEXT_PT)


def _ticks(
    labels: Iterable[str], places: Sequence[float], edges: Sequence[float], gap: float
) -> tuple[list[float], list[str]]:
    """The places and labels that are as far apart as a share of the whole."""
    ticks: list[tuple[float, str]] = []
    for place, label in zip(places, labels, strict=True):
        if not ticks or _share(ticks[-1][0], place, edges) >= gap:
            ticks.append((place, label))
    return [place for place, _ in ticks], [label for _, label in ticks]


def _keys(grid: Grid, frame: _Frame) -> dict[str, Artist]:
    """What the colours and letters of operators are."""
    from matplotlib.patches import Patch

    return {
        f"{frame.names[name]}  {name}{' (exact)' if name in grid.exact else ''}": Patch(color=colour)
        for name, colour in frame.colours.items()
    }


def _marks(grid: Grid, sides: Sequence[_Side]) -> dict[str, Any]:
    """What lines, hatches and figures are."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    nothing = Patch(facecolor="none")
    marks: dict[str, Any] = {}
    for side in sides:
        line = Line2D([], [], color="black", linestyle=side.dash, linewidth=1.4)
        marks[f"border: the {CHEAPEST_OTHER} passes {side.name}"] = (Patch(**_band(side)), line)
    for side in sides:
        outside = next((border.outside for border in side.borders if border and border.outside), None)
        if outside:
            says = f"the border with {side.name} is before the smallest, or beyond the largest size"
            marks[says] = _arrow(outside, side.fill)
    if any(reach.low is not None for side in sides for border in side.borders if border for reach in border.reaches):
        marks[
            f"hatched: its {CONFIDENCE:.0%} interval in each row, the sizes it lies between, or all not told apart"
        ] = nothing
    spots = [spot for row in grid.rows for spot in row.spots]
    uses = [spot.use for spot in spots if spot.use]
    if any(len(use.choices) > 1 for use in uses):
        stripes = Patch(facecolor=COLOURS[0], edgecolor=COLOURS[1], linewidth=0, hatch=STRIPES)
        marks["A/B: cannot be told from the fastest; the colour of the first, stripes of another"] = stripes
    if any(use.speed_up and not use.choices[0].exact for use in uses):
        marks["2.3×: so much faster than the fastest exact softmax"] = nothing
    if any(spot.exact_status for spot in spots):
        marks["(oom): no exact softmax ran there"] = nothing
    if any(spot.use is None and not spot.status for spot in spots):
        marks["white: not measured"] = Patch(facecolor="white", edgecolor="black", linewidth=0.4)
    return marks


def _band(side: _Side) -> dict[str, Any]:
    return {"facecolor": (1, 1, 1, 0.2), "edgecolor": "black", "linewidth": 0.4, "hatch": side.hatch}


def _arrow(where: Outside, fill: str) -> Line2D:
    from matplotlib.lines import Line2D

    marker = "<" if where == "before" else ">"
    return Line2D([], [], color="black", linestyle="", marker=marker, markersize=5, mfc=fill, mew=0.8)
