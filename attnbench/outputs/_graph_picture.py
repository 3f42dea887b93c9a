"""Draws graphs of curves: log-log panels with bands, crossings and labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

from attnbench.outputs._colours import INK
from attnbench.outputs._graph_layout import (
    BAND_ALPHA,
    END,
    LABEL_PT,
    LEAD_IN,
    LIMIT,
    Layout,
    gap_in,
    label_text,
    lay_out,
    line_style,
    mark_style,
    marked_crossings,
    printed_style,
)  # fmt: skip
from attnbench.outputs._graphs import RATIO, Curve, Drawing, Graph
from attnbench.outputs._picture_parts import (
    PAD_IN,
    TEXT_PT,
    TICK_IN,
    Wanted,
    draw_heading,
    draw_keys,
    shortened,
    thinned,
    tick_text,
    width_in,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

GREY_TEXT = "#6B6B6B"
"""Of the names of curves without a colour."""

ROUNDING = 1e-9
"""By which a crossing may be beyond the sizes that it lies between."""

MARGIN = 0.04
"""Between curves and axes, a share of the axes' length."""


def layout_of(drawing: Drawing, wanted: Wanted) -> Layout:
    """Where everything of a picture is.

    Raises: BadInput where the size is too small for it.
    """
    return lay_out(drawing, wanted, _ticks_in(_limits(drawing), drawing.unit))


def picture_of(drawing: Drawing, wanted: Wanted) -> Picture:
    """The picture of a drawing.

    Raises: BadInput where the size is too small for it.
    """
    from matplotlib.figure import Figure as Picture

    limits, layout = _limits(drawing), layout_of(drawing, wanted)
    picture = Picture(figsize=(layout.width, layout.height))
    draw_heading(picture, layout.heading, layout.height - PAD_IN)
    draw_keys(picture, layout.keys, PAD_IN, layout.keys_top)
    for i, graph in enumerate(drawing.graphs):
        row, column = divmod(i, layout.columns)
        left = layout.lefts[column]
        bottom = layout.height - layout.top - row * layout.step_y - layout.axes_height
        width, height = layout.axes_width / layout.width, layout.axes_height / layout.height
        axes = picture.add_axes((left / layout.width, bottom / layout.height, width, height))
        axes.set_title(shortened(graph.title, layout.rooms[column]), loc="left", fontsize=TEXT_PT, pad=3)
        _draw(axes, graph, drawing, layout, limits)
        if column:
            axes.tick_params(labelleft=False)
        else:
            middle = (left - _ticks_in(limits, drawing.unit) - 2 * TICK_IN, bottom + layout.axes_height / 2)
            picture.text(
                *middle, "\n".join(layout.label), fontsize=TEXT_PT, linespacing=1.1, rotation=90, ha="right",
                va="center", transform=picture.dpi_scale_trans,
            )  # fmt: skip
    return picture


def _limits(drawing: Drawing) -> tuple[float, float]:
    """The ends of y, which all graphs have in common."""
    spots = [spot for graph in drawing.graphs for curve in graph.curves for spot in curve.spots]
    spots += [spot for graph in drawing.graphs for curve in graph.curves for spot, _ in curve.printed]
    ends = [end for spot in spots for end in (spot.low or spot.value, spot.high or spot.value)]
    ends += [1.0] if drawing.unit == RATIO else [drawing.limit] if drawing.limit else []
    return _with_margin(min(ends), max(ends))


def _ticks_in(limits: tuple[float, float], unit: str) -> float:
    """The width of the labels along y."""
    return max(width_in(_tick(value, unit)) for value in _round_values(*limits, unit))


def _draw(axes: Axes, graph: Graph, drawing: Drawing, layout: Layout, limits: tuple[float, float]) -> None:
    """One set of axes. limits: of y."""
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=_base(drawing.unit))
    ends = _with_margin(min(graph.sizes.values()), max(graph.sizes.values()))
    axes.set_xlim(*ends)
    axes.set_ylim(*limits)
    if drawing.unit == RATIO:
        axes.axhline(1, color=INK, linewidth=0.8, zorder=1.5)
    if drawing.limit:
        axes.axhline(drawing.limit, **LIMIT, zorder=1.5)
    for curve in graph.curves:
        _curve(axes, curve, drawing, layout.scale)
    _scale_y(axes, drawing.unit, limits)
    places = [*graph.sizes.values()]
    axes.set_xticks(*thinned(graph.sizes, places, ends, layout.axes_width, gap_in=0.08))
    axes.minorticks_off()
    axes.set_xlabel(drawing.axis, labelpad=1, fontsize=TEXT_PT)
    axes.tick_params(labelsize=TEXT_PT)
    axes.grid(True, linewidth=0.3, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if layout.naming != "keys":
        _label(axes, graph, drawing, layout)


def _curve(axes: Axes, curve: Curve, drawing: Drawing, scale: float) -> None:
    """A curve with its band, where it passes others, and where it ends."""
    style, above = line_style(curve, scale), curve.style.wide + curve.style.coloured
    x, y = [spot.size for spot in curve.spots], [spot.value for spot in curve.spots]
    axes.plot(x, y, zorder=2 + above / 4, **style)
    band = [(spot.size, spot.low, spot.high) for spot in curve.spots if spot.low and spot.high]
    if band and curve.style.coloured:
        sizes, low, high = zip(*band, strict=True)
        axes.fill_between(sizes, low, high, color=curve.style.colour, alpha=BAND_ALPHA, linewidth=0)
    if curve.ended:
        axes.plot([x[-1]], [y[-1]], color=curve.style.colour, zorder=4, **END)
    for spot, is_read in curve.printed:
        axes.plot([spot.size], [spot.value], zorder=5, **printed_style(curve.style.colour, is_read, scale))
    for passed, crossing in marked_crossings(curve, drawing):
        if crossing.at is not None and x[0] * (1 - ROUNDING) <= crossing.at <= x[-1] * (1 + ROUNDING):
            mark = mark_style(passed, curve.style.colour, scale)
            axes.plot([crossing.at], [_on(x, y, crossing.at)], zorder=4, **mark)


def _on(x: Sequence[float], y: Sequence[float], at: float) -> float:
    """The height of a curve at a size, interpolated in log-log."""
    import numpy as np

    return float(np.exp(np.interp(np.log(at), np.log(x), np.log(y))))


def _with_margin(low: float, high: float) -> tuple[float, float]:
    """The ends of a logarithmic axis; around a single value an octave."""
    if high <= low:
        return low / 2**0.5, high * 2**0.5
    margin = (high / low) ** MARGIN
    return low / margin, high * margin


def _steps(span: float, unit: str) -> tuple[float, ...]:
    """The steps within a decade, or an octave of bytes, at which an axis has ticks; none: its ticks are linear.

    Args:
        span: its upper end over its lower one.
    """
    if unit == "bytes":
        return (1.0,) if span > 4 else ()
    for least, steps in ((1000, (1.0,)), (30, (1.0, 3.0)), (8, (1.0, 2.0, 5.0)), (2, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))):
        if span > least:
            return steps
    return ()


def _scale_y(axes: Axes, unit: str, limits: tuple[float, float]) -> None:
    """Ticks at round values."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    steps = _steps(limits[1] / limits[0], unit)
    axes.yaxis.set_major_locator(LogLocator(base=_base(unit), subs=steps) if steps else MaxNLocator(5))
    axes.yaxis.set_major_formatter(lambda value, _: _tick(value, unit))


def _base(unit: str) -> float:
    return 2.0 if unit == "bytes" else 10.0


def _tick(value: float, unit: str) -> str:
    return f"{value:.3g}{unit}" if unit in (RATIO, "") else tick_text(value, unit)


def _round_values(low: float, high: float, unit: str) -> list[float]:
    """Values within an axis whose labels are as wide as any that its ticks may have."""
    base, steps = _base(unit), _steps(high / low, unit)
    powers = range(math.floor(math.log(low, base)), math.ceil(math.log(high, base)) + 1)
    values = [step * base**power for power in powers for step in steps]
    return [value for value in values if low <= value <= high] or [low, high]


def _label(axes: Axes, graph: Graph, drawing: Drawing, layout: Layout) -> None:
    """Names beside the ends of the curves, without overlaps, tied to them."""
    curves = [curve for curve in graph.curves if layout.greys or curve.style.coloured]
    to_share = axes.transAxes.inverted()
    ends = [(curve.spots[-1].size, curve.spots[-1].value) for curve in curves]
    heights = [float(to_share.transform(axes.transData.transform(end))[1]) for end in ends]
    order = sorted(range(len(curves)), key=heights.__getitem__)
    placed = spread([heights[i] for i in order], gap_in() / layout.axes_height, 0.0, 1.0)
    for i, at in zip(order, placed, strict=True):
        colour = curves[i].style.colour
        axes.annotate(
            label_text(curves[i], drawing, layout.naming), xy=ends[i], xycoords="data",
            xytext=(1 + LEAD_IN / layout.axes_width, at), textcoords="axes fraction",
            color=colour if curves[i].style.coloured else GREY_TEXT, fontsize=LABEL_PT, va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": colour, "linewidth": 0.35, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5),
            },
        )  # fmt: skip


def spread(heights: Sequence[float], gap: float, low: float = -inf, high: float = inf) -> list[float]:
    """The places nearest to these heights that are far enough apart: neighbours move around their common middle.

    Args:
        heights: ascending.
        gap: between two places, at least.
        low, high: the places are between them where there is room for all.
    """
    groups: list[list[float]] = []  # [sum of the first member's heights, count]
    for i, place in enumerate(heights):
        groups.append([place - i * gap, 1.0])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, count = groups.pop()
            groups[-1][0] += total
            groups[-1][1] += count
    bases = [total / count for total, count in groups for _ in range(int(count))]
    last = max(low, high - (len(heights) - 1) * gap)
    return [min(max(base, low), last) + i * gap for i, base in enumerate(bases)]
