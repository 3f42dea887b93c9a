"""A run as log-log pictures: an overview of every panel, and one small multiple per family; maps of two axes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attnbench.analysis.distributions import CONFIDENCE
from attnbench.analysis.summary import Line, PanelReport, Summary, Table
from attnbench.errors import BadInput
from attnbench.files import replace
from attnbench.outputs._run_tables import crossing_mark
from attnbench.problem import operator_and_impl
from attnbench.units import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

    from attnbench.analysis.grid import Grid

PictureFormat = Literal["png", "svg"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#6B6B6B")
"""Okabe and Ito 2008, "Color Universal Design", https://jfly.uni-koeln.de/color/, less its yellow, which is lost on
white, with two that stay apart from the rest; shapes repeat what colours say."""

SHAPES = "os^Dv<>P"
DASHES: tuple[Any, ...] = ("-", "--", (0, (1, 1)), "-.", (0, (5, 1, 1, 1, 1, 1)))
TEXT_PT = 7.0


@dataclass(frozen=True)
class _Style:
    colour: str
    shape: str
    dash: Any
    wide: bool = False


def draw(
    summary: Summary, families: Mapping[str, str], folder: Path, forms: Iterable[PictureFormat] = ("png", "svg")
) -> list[Path]:
    """Writes the pictures of every panel.

    Args:
        summary: of a run.
        families: by operator; an operator without one is drawn as "other".
        folder: to write into.
        forms: the file formats.

    Returns: the paths of the pictures.
    Raises: BadInput where matplotlib is missing.
    """
    return _written(_pictures(summary, families), folder, forms)


def draw_maps(grids: Sequence[Grid], folder: Path, forms: Iterable[PictureFormat] = ("png", "svg")) -> list[Path]:
    """Writes a picture of every grid.

    Args:
        grids: of a run.
        folder, forms: as of `draw`.

    Returns: the paths of the pictures.
    Raises: BadInput where matplotlib is missing.
    """
    return _written(_maps(grids), folder, forms)


def _pictures(summary: Summary, families: Mapping[str, str]) -> Iterator[tuple[str, Picture]]:
    stems = _stems([(report.panel.axis, report.panel.fixed) for report in summary.panels])
    for stem, report in zip(stems, summary.panels, strict=True):
        yield f"{stem}-overview", _overview(report, families)
        for table in report.tables:
            yield f"{stem}-{table.quantity.name}-families", _families(report, table, families)


def _maps(grids: Sequence[Grid]) -> Iterator[tuple[str, Picture]]:
    from attnbench.outputs._grid_picture import picture_of
    from attnbench.outputs._grid_tables import letters_of

    letters = letters_of(grids)
    stems = _stems([(f"{grid.axis}-over-{grid.over}", grid.fixed) for grid in grids])
    for stem, grid in zip(stems, grids, strict=True):
        yield f"{stem}-{grid.rows[0].table.quantity.name}-map", picture_of(grid, letters)


def pictures(summary: Summary, families: Mapping[str, str]) -> dict[str, Picture]:
    """The pictures of every panel, by the stems of their files' names; see `draw`."""
    with _drawing():
        return dict(_pictures(summary, families))


@contextmanager
def _drawing() -> Iterator[None]:
    """Matplotlib's settings for every picture. Raises BadInput where it is missing."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise BadInput(
            "attnbench plot: matplotlib is not installed. Install the extra: pip install 'attnbench[plot]'."
        ) from None
    settings: dict[Any, Any] = {
        "font.size": TEXT_PT,
        "axes.linewidth": 0.6,
        "svg.hashsalt": "attnbench",
        "svg.fonttype": "none",
        "hatch.linewidth": 0.5,
        "text.parse_math": False,
    }
    with matplotlib.rc_context(settings):
        yield


def _written(pictures: Iterator[tuple[str, Picture]], folder: Path, forms: Iterable[PictureFormat]) -> list[Path]:
    """Draws pictures, by the stems of their names, and writes each in every form."""
    written = []
    with _drawing():
        for stem, picture in pictures:
            for form in forms:
                path = folder / f"{stem}.{form}"
                folder.mkdir(parents=True, exist_ok=True)
                drawn = io.BytesIO()
                picture.savefig(drawn, format=form, dpi=160, metadata={"Date": None} if form == "svg" else None)
                replace(path, drawn.getvalue())
                written.append(path)
    return written


def _stems(pictured: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """File names: the axis and the mode, and whatever else tells two panels apart.

    Args:
        pictured: the axis and what is fixed, of each.
    """
    stems: list[str] = []
    every = [fixed for _, fixed in pictured]
    varied = {name for fixed in every for name in fixed if len({repr(other.get(name)) for other in every}) > 1}
    for axis, fixed in pictured:
        parts = [axis, str(fixed["mode"]), *(f"{k}{v}" for k, v in fixed.items() if k in varied and k != "mode")]
        stem = "-".join(parts).replace(" ", "")
        stems.append(stem if stem not in stems else f"{stem}-{len(stems)}")
    return stems


def _overview(report: PanelReport, families: Mapping[str, str]) -> Picture:
    """Every metric side by side, each operator by its cheapest impl at the largest size."""
    from matplotlib.figure import Figure as Picture

    count = max(1, len(report.tables))
    chosen = [_cheapest(table, report.baseline) for table in report.tables]
    height = max(3.2, 0.135 * max((len(lines) for lines in chosen), default=0) + 1.2)
    picture = Picture(figsize=(4.9 * count, height))
    picture.subplots_adjust(
        left=0.24 / count, right=1 - 0.34 / count, wspace=0.72, bottom=0.42 / height, top=1 - 0.62 / height
    )
    picture.suptitle(_heading(report, report.tables), x=0.01, ha="left", fontsize=TEXT_PT + 1)
    groups = sorted({families.get(line.series.operator, "other") for lines in chosen for line in lines})
    for i, (table, lines) in enumerate(zip(report.tables, chosen, strict=True)):
        axes = picture.add_subplot(1, count, i + 1)
        turns: dict[str, int] = {}
        styles = {}
        for line in lines:
            group = groups.index(families.get(line.series.operator, "other"))
            turn = turns[str(group)] = turns.get(str(group), -1) + 1
            styles[line.series.name] = _Style(
                COLOURS[group % len(COLOURS)], SHAPES[group % len(SHAPES)], DASHES[turn % len(DASHES)]
            )
        _panel(axes, table, lines, styles, report.baseline)
        axes.set_title(table.quantity.title, loc="left", fontsize=TEXT_PT + 1)
    return picture


def _cheapest(table: Table, baseline: str) -> list[Line]:
    """One line per operator and params, the baseline always among them."""
    best: dict[str, Line] = {}
    baselines = []
    for line in filter(_drawn, table.lines):
        if _is(line, baseline):
            baselines.append(line)
            continue
        cheapest = best.get(line.series.identity)
        if cheapest is None or _last(line) < _last(cheapest):
            best[line.series.identity] = line
    return [*baselines, *best.values()]


def _drawn(line: Line) -> bool:
    """Whether there is a curve; identity, which costs nothing, would only press the others together."""
    return line.series.operator != "identity" and any(f.value for f in line.figures)


def _is(line: Line, baseline: str) -> bool:
    return (line.series.operator, line.series.impl) == operator_and_impl(baseline)


def _last(line: Line) -> tuple[int, float]:
    """Farther is better, then cheaper."""
    size, value = max((f.size, f.value) for f in line.figures if f.value)
    return -size, value


def _families(report: PanelReport, table: Table, families: Mapping[str, str]) -> Picture:
    from matplotlib.figure import Figure as Picture

    lines = [line for line in table.lines if _drawn(line)]
    yardsticks = [line for line in lines if _is(line, report.baseline) or line.exact]
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(families.get(line.series.operator, "other"), []).append(line)
    columns = min(3, max(1, len(groups)))
    rows = -(-len(groups) // columns) or 1
    height = 2.75 * rows + 0.6
    picture = Picture(figsize=(4.6 * columns, height))
    picture.subplots_adjust(
        left=0.22 / columns,
        right=1 - 0.36 / columns,
        wspace=0.92,
        hspace=0.42,
        bottom=0.42 / height,
        top=1 - 0.7 / height,
    )
    picture.suptitle(
        f"{table.quantity.title}, by family. {_heading(report, [table])}",
        x=0.01,
        ha="left",
        fontsize=TEXT_PT + 1,
    )
    for i, (family, members) in enumerate(sorted(groups.items())):
        axes = picture.add_subplot(rows, columns, i + 1)
        styles = {
            line.series.name: _Style(COLOURS[j % len(COLOURS)], SHAPES[j % len(SHAPES)], DASHES[0])
            for j, line in enumerate(members)
        }
        for j, line in enumerate(yardsticks):
            styles[line.series.name] = _Style("black", "", DASHES[j % len(DASHES)])
        others = [line for line in yardsticks if line not in members]
        _panel(axes, table, [*others, *members], styles, report.baseline)
        axes.set_title(family, loc="left", fontsize=TEXT_PT + 1)
    return picture


def _heading(report: PanelReport, tables: Sequence[Table]) -> str:
    notes = [f"bands: {CONFIDENCE:.0%} intervals"] if any(t.quantity.metric.timed for t in tables) else []
    if any(t.quantity.metric.comparable for t in tables):
        notes.append(f"rings: crossovers with {report.baseline}, >N: cheaper above N, <N: below N, a…b: between")
    return f"{report.panel.title}\n{'; '.join([*notes, '×: out of memory or time beyond'])}"


def _panel(axes: Axes, table: Table, lines: Sequence[Line], styles: Mapping[str, _Style], baseline: str) -> None:
    """One set of axes: curves, bands, crossings, end marks and labels."""
    from matplotlib.ticker import LogLocator

    unit, axis = table.quantity.metric.unit, table.panel.axis
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2 if unit == "bytes" else 10)
    ends: list[tuple[float, float, str, str]] = []
    for line in lines:
        style = styles[line.series.name]
        points = [(f.size, f.value, f.low, f.high) for f in line.figures if f.value]
        if not points:
            continue
        x, y = [p[0] for p in points], [p[1] for p in points]
        wide = _is(line, baseline)
        axes.plot(
            x, y, color="black" if wide else style.colour, marker="" if wide else style.shape, markersize=2.5,
            linestyle=style.dash if not wide else "-", linewidth=1.6 if wide else 0.9, zorder=3 if wide else 2,
        )  # fmt: skip
        band = [(p[0], p[2], p[3]) for p in points if p[2] is not None and p[3] is not None]
        if band:
            at, low, high = (list(values) for values in zip(*band, strict=True))
            axes.fill_between(at, low, high, color="black" if wide else style.colour, alpha=0.18, linewidth=0)
        failed = (
            None
            if table.quantity.metric.analytic
            else next((f for f in line.figures if f.status in ("oom", "timeout") and f.size > x[-1]), None)
        )
        if failed is not None:
            axes.plot(
                [x[-1]], [y[-1]], marker="x", color="black" if wide else style.colour, markersize=6, mew=1.4, zorder=4
            )
        crossings = line.against_baseline.crossings if line.against_baseline else ()
        for each in crossings:
            if each.at is not None and len(x) > 1:
                axes.plot(
                    [each.at], [_on(x, y, each.at)], marker="o", markersize=5.5, mfc="none", mec=style.colour, zorder=4
                )
        places = ", ".join(crossing_mark(each, axis) for each in crossings)
        label = line.series.name + (f" {failed.status}" if failed else "") + (f"  {places}" if places else "")
        ends.append((x[-1], y[-1], label, "black" if wide else style.colour))
    sizes = table.panel.sizes
    step = -(-len(sizes) // 7)
    ticks = list(sizes.items())[::-1][::step][::-1]
    axes.set_xticks([size for _, size in ticks], [label for label, _ in ticks])
    bottom, top = axes.get_ylim()
    if unit != "bytes" and top < 100 * bottom:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: shown(value, unit).replace(".00", "").replace(".0", ""))
    axes.set_xlabel(axis, labelpad=1)
    axes.grid(True, linewidth=0.3, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    _label(axes, ends)


def _on(x: Sequence[float], y: Sequence[float], at: float) -> float:
    """The height of a curve at a size, interpolated in log-log."""
    import numpy as np

    return float(np.exp(np.interp(np.log(at), np.log(x), np.log(y))))


def _label(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Labels beside the ends of the lines, without overlaps, tied to them. ends: x, y, text, colour."""
    if not ends:
        return
    height = axes.get_position().height * axes.figure.bbox.height / axes.figure.dpi * 72  # pt
    to_share = axes.transAxes.inverted()
    axes.autoscale_view()
    order = sorted(ends, key=lambda end: end[1])
    heights = [float(to_share.transform(axes.transData.transform((x, y)))[1]) for x, y, _, _ in order]
    placed = spread(heights, TEXT_PT * 1.12 / height, 0.0, 1.0)
    for (x, y, label, colour), at in zip(order, placed, strict=True):
        axes.annotate(
            label, xy=(x, y), xycoords="data", xytext=(1.07, at), textcoords="axes fraction", color=colour,
            fontsize=TEXT_PT - 0.5, va="center", annotation_clip=False,
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
