"""Where the parts of a picture of curves are, so that every text has its room, in a size that may be given."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from attnbench.analysis.crossover import Crossing
from attnbench.analysis.distributions import CONFIDENCE
from attnbench.errors import BadInput
from attnbench.outputs._colours import INK
from attnbench.outputs._graphs import FAMILY_COLUMNS, RATIO, Curve, Drawing, Graph, Passed
from attnbench.outputs._picture_parts import (
    PAD_IN,
    TICK_IN,
    TITLE_PT,
    Key,
    PlacedKey,
    Wanted,
    line_in,
    place_keys,
    too_small,
    width_in,
    wrapped,
)  # fmt: skip
from attnbench.outputs._run_tables import crossing_mark

LABEL_PT = 6.5

LEAD_IN = 0.2
"""From the end of an axis to the labels beside it."""

GAP_IN = 0.1
"""Between panels, beside what the labels of their ticks need."""

SMALL = 0.75
"""Of marks and lines, where axes are too narrow for names beside them."""

Naming = Literal["numbered", "named", "keys"]
"""Where series are named: beside their curves, with the places of their crossings or without them; in keys below."""

WIDTHS_IN: Mapping[Naming, float] = {"numbered": 1.7, "named": 1.3, "keys": 0.85}
"""The least width of axes."""

OWN_WIDTH_IN, OWN_FAMILY_WIDTH_IN = 3.0, 2.3
"""Of axes, where no size is wanted."""

LEAST_HEIGHT_IN, MOST_HEIGHT_IN = 0.6, 4.2
"""Of axes; the latter where all curves are named beside them."""

MOST_LABEL_LINES = 6
"""Along y."""

SIGNS: Mapping[Passed, str] = {"baseline": "○", "exact": "◇"}
MARKS: Mapping[Passed, tuple[str, float]] = {"baseline": ("o", 5.5), "exact": ("D", 4.6)}
"""Of crossings: the shape and size."""

BAND_ALPHA = 0.18

END: dict[str, Any] = {"marker": "x", "markersize": 6, "markeredgewidth": 1.4}
"""Where nothing more ran."""

LIMIT: dict[str, Any] = {"color": INK, "linewidth": 0.8, "linestyle": (0, (2, 2))}
"""The line of what y may not pass."""


@dataclass(frozen=True)
class Layout:
    """Where everything is, in inches.

    Args:
        naming: where series are named.
        greys: whether those without a colour are named beside their curves as well.
        columns: of axes.
        width, height: of the whole.
        axes_width, axes_height: of each axes.
        lefts, rooms: of the axes in each column, and how wide a title above each may be.
        top, step_y: of the first axes, down from the top of all, and from one row to the next.
        heading, label: the lines above all, and those along y.
        keys: below all; `keys_top`: how far their first line is above the bottom.
    """

    naming: Naming
    greys: bool
    columns: int
    width: float
    height: float
    axes_width: float
    axes_height: float
    lefts: tuple[float, ...]
    rooms: tuple[float, ...]
    step_y: float
    top: float
    heading: tuple[str, ...]
    label: tuple[str, ...]
    keys: tuple[PlacedKey, ...]
    keys_top: float

    @property
    def scale(self) -> float:
        """Of marks and lines."""
        return SMALL if self.naming == "keys" else 1.0


@dataclass(frozen=True)
class _Choice:
    """How graphs may be arranged: as in `Layout`."""

    columns: int
    naming: Naming
    greys: bool


def lay_out(drawing: Drawing, wanted: Wanted, ticks_in: float) -> Layout:
    """The first layout that has room for every text, from the one that says most beside the curves.

    Many panels by family are as high as they need, where the height that is wanted is too little for them.

    Args:
        ticks_in: the width of the labels along y.

    Raises: BadInput where the size is too small for any.
    """
    try:
        return _fitting(drawing, wanted, ticks_in)
    except BadInput:
        if drawing.columns < FAMILY_COLUMNS or wanted.height_in is None:
            raise
        return _fitting(drawing, replace(wanted, height_in=None), ticks_in)


def _fitting(drawing: Drawing, wanted: Wanted, ticks_in: float) -> Layout:
    least = []
    for choice in _choices(drawing):
        for label_lines in range(1, MOST_LABEL_LINES + 1):
            layout, width, height = _sized(drawing, wanted, ticks_in, choice, label_lines)
            if len(layout.label) <= label_lines:
                break
        fits = len(layout.label) <= MOST_LABEL_LINES
        if fits and width <= layout.width + 1e-9 and height <= layout.height + 1e-9:
            return layout
        least.append((max(width, wanted.width_in or 0.0), max(height, wanted.height_in or 0.0)))
    width, height = min(least, key=lambda size: size[0] * size[1])
    raise too_small(wanted, width, height, f"the names and axes of {drawing.stem}")


def label_text(curve: Curve, drawing: Drawing, naming: Naming) -> str:
    """What stands beside a curve: `performer  ○ >838  ◇ >1260`."""
    places = [
        f"{SIGNS[passed]} {crossing_mark(crossing, drawing.axis)}"
        for passed, crossing in curve.crossings
        if naming == "numbered" and passed in drawing.numbered
    ]
    return "  ".join([curve.series.name + (f" {curve.ended}" if curve.ended else ""), *places])


def _choices(drawing: Drawing) -> Iterator[_Choice]:
    most = min(drawing.columns, len(drawing.graphs))
    fewer = range(most, 0, -1)
    for naming in WIDTHS_IN:
        for columns in fewer if naming == "keys" or drawing.columns == FAMILY_COLUMNS else (most,):
            for greys in (False,) if naming == "keys" else (True, False):
                yield _Choice(columns, naming, greys)


def _sized(
    drawing: Drawing, wanted: Wanted, ticks_in: float, choice: _Choice, label_lines: int
) -> tuple[Layout, float, float]:
    """A layout in the size that is wanted, and the least width and height in which it would have room."""
    naming, columns, by_family = choice.naming, choice.columns, drawing.columns == FAMILY_COLUMNS
    rows = -(-len(drawing.graphs) // columns)
    texts = [_texts(graph, drawing, choice) for graph in drawing.graphs]
    beside = [
        max((_beside(texts[i], g) for i, g in enumerate(drawing.graphs) if i % columns == c)) for c in range(columns)
    ]
    left = PAD_IN + label_lines * line_in() + ticks_in + 2 * TICK_IN
    around = left + sum(beside) + (columns - 1) * GAP_IN + PAD_IN
    own_width = OWN_FAMILY_WIDTH_IN if by_family else OWN_WIDTH_IN
    axes_width = own_width if wanted.width_in is None else (wanted.width_in - around) / columns
    axes_width = max(axes_width, WIDTHS_IN[naming])
    width = around + columns * axes_width if wanted.width_in is None else wanted.width_in

    inner = width - 2 * PAD_IN
    heading = tuple(wrapped(wanted.heading(drawing.heading), inner, TITLE_PT))
    keys, keys_height = place_keys(_keys(drawing, choice), inner)
    title = line_in() + 0.03 if any(graph.title for graph in drawing.graphs) else 0.05
    top = PAD_IN + len(heading) * line_in(TITLE_PT) + (0.05 if heading else 0) + title
    foot = 2 * line_in() + TICK_IN + 0.02
    around_height = top + rows * foot + (rows - 1) * title + keys_height + (0.04 if keys else 0) + PAD_IN
    names = max(map(len, texts)) * gap_in()
    own_height = 0.76 * own_width if wanted.width_in is None else min(max(0.76 * axes_width, 1.1), 0.76 * own_width)
    axes_height = max(own_height, names)
    least_height = max(LEAST_HEIGHT_IN, names)
    if wanted.height_in is not None:
        axes_height = max((wanted.height_in - around_height) / rows, least_height)
    elif choice.greys and names > max(own_height, MOST_HEIGHT_IN if wanted.width_in is None else 0):
        least_height = math.inf
    layout = Layout(
        naming=naming,
        greys=choice.greys,
        columns=columns,
        width=width,
        height=wanted.height_in or around_height + rows * axes_height,
        axes_width=axes_width,
        axes_height=axes_height,
        lefts=tuple(left + c * (axes_width + GAP_IN) + sum(beside[:c]) for c in range(columns)),
        rooms=tuple(axes_width + each for each in beside),
        step_y=axes_height + foot + title,
        top=top,
        heading=heading,
        label=tuple(wrapped(drawing.label, axes_height)),
        keys=tuple(keys),
        keys_top=PAD_IN + keys_height,
    )
    return layout, around + columns * WIDTHS_IN[naming], around_height + rows * least_height


def _beside(texts: Sequence[str], graph: Graph) -> float:
    """The room that the labels beside a graph need, or those of its last tick and of the next graph's first."""
    first, *_, last = [*graph.sizes, *graph.sizes]
    between = (width_in(first) + width_in(last)) / 2
    return max([between, *(LEAD_IN + width_in(text, LABEL_PT) for text in texts)])


def gap_in() -> float:
    """Between two labels beside curves."""
    return 1.12 * LABEL_PT / 72


def _texts(graph: Graph, drawing: Drawing, choice: _Choice) -> list[str]:
    """The labels beside the curves of a graph."""
    if choice.naming == "keys":
        return []
    return [label_text(curve, drawing, choice.naming) for curve in graph.curves if choice.greys or curve.style.coloured]


def _keys(drawing: Drawing, choice: _Choice) -> Iterator[Key]:
    """What lines and marks mean, of those that there are."""
    curves = [curve for graph in drawing.graphs for curve in graph.curves]
    if choice.naming == "keys":
        coloured = sorted((curve for curve in curves if curve.style.coloured), key=lambda curve: -curve.spots[-1].value)
        first = {curve.series.name: curve for curve in reversed(coloured)}
        yield from (Key(name, line=line_style(curve)) for name, curve in reversed(first.items()))
    others = {curve.series.name: curve for curve in curves if not curve.style.coloured}
    if others and not choice.greys:
        yield Key(f"{len(others)} more", line=line_style(next(iter(others.values()))))
    if drawing.unit == RATIO:
        yield Key(f"the {drawing.exact}", line={"color": INK, "linewidth": 0.8})
    if any(spot.low is not None for curve in curves for spot in curve.spots):
        yield Key(f"{CONFIDENCE:.0%} interval", patch={"color": INK, "alpha": BAND_ALPHA, "linewidth": 0})
    named = [curve for curve in curves if choice.greys or curve.style.coloured]
    numbered = {side for curve in named for side, _ in curve.crossings if side in drawing.numbered}
    if choice.naming != "numbered":
        numbered = set()
    marked = {side for curve in curves for side, _ in marked_crossings(curve, drawing)}
    passed: dict[Passed, str] = {"baseline": drawing.baseline, "exact": f"the {drawing.exact}"}
    for side, name in passed.items():
        if side in marked | numbered:
            yield Key(f"passes {name}", line=mark_style(side, INK))
    if numbered:
        yield Key(">N: cheaper above N, <N: below N, a…b: between")
    marks = {is_read for curve in curves for _, is_read in curve.printed}
    for is_read in sorted(marks, reverse=True):
        text = "the paper's, read" if is_read else "the paper's, recalled or derived"
        yield Key(text, line=printed_style(INK, is_read))
    if drawing.limit:
        yield Key("limit", line=LIMIT)
    if any(curve.ended for curve in curves):
        yield Key("out of memory or time beyond", line={"color": INK, "linestyle": "", **END})


def marked_crossings(curve: Curve, drawing: Drawing) -> tuple[tuple[Passed, Crossing], ...]:
    """The crossings that are marked on a curve: those whose place is known."""
    if not (drawing.greys_marked or curve.style.coloured):
        return ()
    return tuple((passed, crossing) for passed, crossing in curve.crossings if crossing.at is not None)


def line_style(curve: Curve, scale: float = 1.0) -> dict[str, Any]:
    """How the line of a curve is drawn, as keywords of matplotlib's."""
    style, alone = curve.style, len(curve.spots) == 1
    return {
        "color": style.colour,
        "linestyle": style.dash,
        "linewidth": scale * (1.6 if style.wide else 1.1 if curve.style.coloured else 0.7),
        "marker": style.shape or ("o" if alone else ""),
        "markersize": scale * 3,
        "markeredgewidth": 0,
    }


def mark_style(passed: Passed, colour: str, scale: float = 1.0) -> dict[str, Any]:
    """How a crossing is marked, as keywords of a line of matplotlib's."""
    marker, size = MARKS[passed]
    return {
        "linestyle": "",
        "marker": marker,
        "markersize": scale * size,
        "markerfacecolor": "none",
        "markeredgecolor": colour,
        "markeredgewidth": scale,
    }


def printed_style(colour: str, is_read: bool, scale: float = 1.0) -> dict[str, Any]:
    """How a printed number is marked, as keywords of a line of matplotlib's. is_read: it was read, not recalled."""
    return {
        "linestyle": "",
        "marker": "d",
        "markersize": scale * 6,
        "markerfacecolor": colour if is_read else "none",
        "markeredgecolor": colour,
        "markeredgewidth": scale,
    }
