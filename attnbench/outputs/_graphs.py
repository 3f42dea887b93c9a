"""What is in the pictures of a run, without drawing them: which series, in which colour, through which points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

from attnbench.analysis.answer import preferred
from attnbench.analysis.baseline import computes_nothing, ratios
from attnbench.analysis.crossover import BEYOND, Crossing
from attnbench.analysis.series import Panel, Series, in_a_line
from attnbench.analysis.summary import Line, Summary, Table
from attnbench.groups import groups_of
from attnbench.outputs._colours import MOST_COLOURED
from attnbench.outputs._graph_styles import Order, Style, styles_of
from attnbench.problem import BASELINE

Passed = Literal["baseline", "exact"]

RATIO = "×"
"""The unit of ratios."""

FAMILY_COLUMNS = 3

MODES = {"fwd": "forward", "fwd_bwd": "forward and backward"}


@dataclass(frozen=True)
class Spot:
    """A point of a curve, with the ends of its interval; None: it has none."""

    size: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Curve:
    """A series in a panel.

    Args:
        spots: by ascending size.
        crossings: with the baseline and with the best exact softmax.
        ended: the status of a size beyond the last point, where it ran out of memory or time.
        printed: points that a paper prints of it, each with whether it was read there.
    """

    series: Series
    spots: tuple[Spot, ...]
    style: Style
    crossings: tuple[tuple[Passed, Crossing], ...] = ()
    ended: str = ""
    printed: tuple[tuple[Spot, bool], ...] = ()


@dataclass(frozen=True)
class Graph:
    """A panel of a picture. sizes: by label, ascending."""

    title: str
    sizes: Mapping[str, int]
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Drawing:
    """A picture of graphs that share their axes.

    Args:
        stem: of its file's name.
        heading: what it shows.
        axis, label: what is along x and y.
        unit: a metric's, or RATIO.
        columns: of graphs, at most.
        baseline, exact: what crossings are with.
        numbered: the crossings that are named beside a curve.
        greys_marked: whether crossings are marked on curves without a colour as well.
        limit: what y may not pass; None: nothing.
    """

    stem: str
    heading: str
    axis: str
    label: str
    unit: str
    columns: int
    baseline: str
    exact: str
    numbered: tuple[Passed, ...]
    graphs: tuple[Graph, ...]
    greys_marked: bool = False
    limit: float | None = None


_Traced = tuple[Line, tuple[Spot, ...]]


def drawings(summary: Summary, families: Mapping[str, str], operators: Sequence[str] = ()) -> list[Drawing]:
    """The pictures of a run. For each metric an overview of the ratios to the best exact softmax, where it has such,
    and the figures themselves, each with the passes side by side; and by family, where one panel cannot tell all apart.

    Args:
        families: by operator; one without stands with the "other"s.
        operators: those that were chosen, each `operator` or `operator:impl`; none: all.
    """
    groups = groups_of((report.panel.but_for_mode, report) for report in summary.panels)
    of_groups = stems([(reports[0].panel.axis, _modeless(reports[0].panel)) for reports in groups.values()])
    of_panels = stems([(report.panel.axis, report.panel.fixed) for report in summary.panels])
    names = {id(report): stem for stem, report in zip(of_panels, summary.panels, strict=True)}
    every: list[Drawing] = []
    for stem, reports in zip(of_groups, groups.values(), strict=True):
        order = Order(summary.baseline, operators, preferred(summary, reports))
        for i in range(len(reports[0].tables)):
            tables = [report.tables[i] for report in reports]
            curves = _curves(stem, tables, order)
            every += [_overview(stem, tables, order), curves]
            every += [
                _by_family(names[id(report)], report.tables[i], families, order)
                for report in reports
                if not _tells_all(curves, report.tables[i])
            ]
    return [drawing for drawing in every if drawing.graphs]


def stems(pictured: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """File names: the axis and the mode, and whatever else tells two panels apart.

    Args:
        pictured: the axis and what is fixed, of each.
    """
    names: list[str] = []
    every = [fixed for _, fixed in pictured]
    varied = {name for fixed in every for name in fixed if len({repr(other.get(name)) for other in every}) > 1}
    for axis, fixed in pictured:
        mode = [str(fixed["mode"])] if "mode" in fixed else []
        others = {k: v for k, v in fixed.items() if k in varied and k != "mode" and v is not None}
        parts = [axis, *mode, *(f"{'' if k == 'size' else k}{v}" for k, v in others.items())]
        name = "-".join(parts).replace(" ", "")
        names.append(name if name not in names else f"{name}-{len(names)}")
    return names


def is_drawn(line: Line) -> bool:
    """Whether there is a curve; identity, which costs nothing, would only press the others together."""
    return not computes_nothing(line.series) and any(figure.value for figure in line.figures)


def _overview(stem: str, tables: Sequence[Table], order: Order) -> Drawing:
    """Series over the best exact softmax, which is the line at 1, as is softmax by other impls, unless chosen."""
    exact = tables[0].quantity.metric.best_exact
    traced = []
    for table in tables:
        lines = [
            line
            for line in _cheapest(table, order)
            if line.series.operator != BASELINE or order.is_baseline(line.series) or order.chooses(line.series)
        ]
        ratios = [(line, _over_best_exact(line, table)) for line in lines]
        traced.append([(line, spots) for line, spots in ratios if any(spot.value != 1 for spot in spots)])
    passed = any(line.against_exact for table in tables for line in table.lines)
    return _side_by_side(
        f"{stem}-{tables[0].quantity.name}-overview", tables, traced, order,
        heading=f"{tables[0].quantity.title}, ratio to the {exact}",
        label=f"{tables[0].quantity.title}, ratio to exact softmax",
        unit=RATIO,
        numbered=("exact",) if passed else ("baseline",),
    )  # fmt: skip


def _curves(stem: str, tables: Sequence[Table], order: Order) -> Drawing:
    """The figures of series, each operator by its cheapest impl."""
    return _side_by_side(
        f"{stem}-{tables[0].quantity.name}-curves", tables,
        [[(line, _figures(line)) for line in _cheapest(table, order)] for table in tables], order,
        heading=tables[0].quantity.title,
        label=tables[0].quantity.title,
        unit=tables[0].quantity.metric.unit,
        numbered=("baseline", "exact"),
    )  # fmt: skip


def _side_by_side(
    stem: str, tables: Sequence[Table], traced: Sequence[Sequence[_Traced]], order: Order, *, heading: str, **own: Any
) -> Drawing:
    """A metric of panels that differ in their mode, in which a series looks alike. traced: the lines of each."""
    ranks = zip_longest(*(order.ranked(_lasts(lines)) for lines in traced))
    styles = styles_of([series for rank in ranks for series in rank if series], order)
    panel = tables[0].panel
    fixed = panel.fixed if len(tables) == 1 else {**panel.fixed, "mode": ""}
    titles = [MODES.get(table.panel.fixed["mode"], table.panel.fixed["mode"]) for table in tables]
    return Drawing(
        stem=stem,
        heading=f"{heading}. {panel.axis}: {in_a_line(fixed, panel.walked)}",
        axis=panel.axis,
        columns=len(tables),
        baseline=order.baseline,
        exact=tables[0].quantity.metric.best_exact,
        graphs=tuple(
            _graph(title if len(tables) > 1 else "", lines, table, styles)
            for title, lines, table in zip(titles, traced, tables, strict=True)
            if lines
        ),
        **own,
    )


def _by_family(stem: str, table: Table, families: Mapping[str, str], order: Order) -> Drawing:
    """A metric of one panel, a graph for each family, with the baseline and softmax in each."""
    lines = [(line, _figures(line)) for line in table.lines if is_drawn(line)]
    yardsticks = [each for each in lines if order.is_baseline(each[0].series) or each[0].series.operator == BASELINE]
    groups = groups_of((families.get(each[0].series.operator, "other"), each) for each in lines)
    graphs = []
    for family, members in sorted(groups.items()):
        shown = [*(each for each in yardsticks if each not in members), *members]
        styles = styles_of(order.ranked(_lasts(shown)), order)
        graphs.append(_graph(family, shown, table, styles))
    return Drawing(
        stem=f"{stem}-{table.quantity.name}-families",
        heading=f"{table.quantity.title} by family. {table.panel.title}",
        axis=table.panel.axis,
        label=table.quantity.title,
        unit=table.quantity.metric.unit,
        columns=FAMILY_COLUMNS,
        baseline=order.baseline,
        exact=table.quantity.metric.best_exact,
        numbered=("baseline", "exact"),
        graphs=tuple(graphs),
        greys_marked=True,
    )


def _modeless(panel: Panel) -> dict[str, Any]:
    return {name: value for name, value in panel.fixed.items() if name != "mode"}


def _tells_all(drawing: Drawing, table: Table) -> bool:
    """Whether every line of a table has a colour in a drawing."""
    curves = [curve for graph in drawing.graphs for curve in graph.curves]
    coloured = {curve.series.name for curve in curves if curve.style.coloured}
    return all(line.series.name in coloured for line in table.lines if is_drawn(line))


def _figures(line: Line) -> tuple[Spot, ...]:
    return tuple(Spot(f.size, f.value, f.low, f.high) for f in line.figures if f.value)


def _over_best_exact(line: Line, table: Table) -> tuple[Spot, ...]:
    """The ratios of a line, of a metric in which to be cheaper means something."""
    exact = table.best_exact if table.quantity.metric.comparable else None
    edges = ratios(table.panel, line.series, exact, table.quantity) if exact else []
    timed = table.quantity.metric.timed
    return tuple(Spot(e.size, e.ratio, *((e.low, e.high) if timed and not math.isnan(e.low) else ())) for e in edges)


def _cheapest(table: Table, order: Order) -> list[Line]:
    """One line per operator and params, and the baseline's, and those whose impl was chosen; all of a few chosen."""
    best: dict[str, Line] = {}
    wanted = []
    lines = [line for line in table.lines if is_drawn(line)]
    if order.operators and len(lines) <= MOST_COLOURED:
        return lines
    for line in lines:
        if order.is_baseline(line.series) or order.chooses(line.series):
            wanted.append(line)
            continue
        cheapest = best.get(line.series.identity)
        if cheapest is None or _last(line) < _last(cheapest):
            best[line.series.identity] = line
    return [*wanted, *best.values()]


def _lasts(traced: Iterable[_Traced]) -> list[tuple[Series, int, float]]:
    return [(line.series, spots[-1].size, spots[-1].value) for line, spots in traced]


def _last(line: Line) -> tuple[int, float]:
    """Farther is better, then cheaper."""
    last = _figures(line)[-1]
    return -last.size, last.value


def _graph(title: str, traced: Sequence[_Traced], table: Table, styles: Mapping[str, Style]) -> Graph:
    """A graph of lines, those without a style in grey and below the others, over the sizes that they have."""
    curves = [
        Curve(
            series=line.series,
            spots=spots,
            style=styles.get(line.series.name, Style()),
            crossings=tuple(_crossings(line)),
            ended=_ended(line, spots, table),
        )
        for line, spots in traced
    ]
    sizes = {spot.size for curve in curves for spot in curve.spots}
    return Graph(
        title,
        {label: size for label, size in table.panel.sizes.items() if size in sizes},
        tuple(sorted(curves, key=lambda curve: curve.style.coloured)),
    )


def _crossings(line: Line) -> Iterator[tuple[Passed, Crossing]]:
    for crossing in line.against_baseline.crossings if line.against_baseline else ():
        yield "baseline", crossing
    for crossing in line.against_exact.crossings if line.against_exact else ():
        yield "exact", crossing


def _ended(line: Line, spots: Sequence[Spot], table: Table) -> str:
    """A failed call loses no analytic figure."""
    if table.quantity.metric.analytic:
        return ""
    return next((f.status for f in line.figures if f.status in BEYOND and f.size > spots[-1].size), "")
