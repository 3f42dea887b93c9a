"""What a run says first: where softmax stops paying, and what a user would take instead.

Rows are ranked by what a user would take: first exact softmax that cannot be told from the cheapest of all, at the
largest size of every mode; then by how much a series saves against the best exact softmax where it is cheaper, as the
mean over sizes and modes of log min(1, ratio), so that both to pass early and to be cheap at the largest sizes count;
what saves nothing by its ratio at the largest size. Of an operator's series the best stands among other operators, the
rest below all of these. identity computes nothing, and is no choice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from attnbench.analysis.baseline import Baseline, computes_nothing, named
from attnbench.analysis.crossover import Crossover
from attnbench.analysis.interval import ratio
from attnbench.analysis.metric_values import Quantity
from attnbench.analysis.recommendation import not_told_apart
from attnbench.analysis.series import Panel
from attnbench.analysis.summary import USE, Figure, Line, PanelReport, Summary, Table
from attnbench.groups import groups_of
from attnbench.properties import PROPERTIES

NO_LACK = ("exact", "drop_in")
"""Properties without which an operator can do all that it can with them."""

LIKE_ATTENTION = ("all_pairs", "data_dependent")
"""What an operator has that can bring any two tokens together, for what they contain."""

Outcome = Literal["passed", "below", "pays", "unclear"]


@dataclass(frozen=True)
class Start:
    """From where on a series is cheaper than another, up to the largest size that has both.

    Args:
        at: the position where their interpolated ratio is 1; None: all that is known is that it is cheaper from `by`.
        by: the first position at which it is known to be cheaper; `at`, where there is that.
        every: whether it is cheaper at every size measured.
    """

    at: float | None
    by: float
    every: bool = False


@dataclass(frozen=True)
class Passing:
    """Where a baseline stops paying.

    Args:
        outcome: "passed": `series` is the first to be cheaper up to the largest size, from `start` on; "below": none
            is, but `series` is cheaper at smaller sizes; "pays": all are dearer at every size; "unclear": none is known
            to be cheaper at any size.
        series: its name; None without one.
        crossover: that of `series`.
        start: of "passed".
    """

    outcome: Outcome
    series: str | None = None
    crossover: Crossover | None = None
    start: Start | None = None


@dataclass(frozen=True)
class Verdict:
    """One panel in a sentence.

    Args:
        fixed: what all its cells have in common, as `Panel.facts`.
        sizes: the labels of the smallest and the largest size with a figure; None: nothing ran.
        against_baseline, against_exact: what passes the baseline and the best exact softmax, of all that compute
            something else; None without one of the two, and where nothing else ran.
        like_attention: the same two, of those that have all of LIKE_ATTENTION; None where that is not known, and where
            the first to pass are of these.
        least: the name of the series with the least at the largest size; None where nothing ran.
        reason: where nothing ran, why not.
    """

    axis: str
    fixed: Mapping[str, str]
    sizes: tuple[str, str] | None
    against_baseline: Passing | None
    against_exact: Passing | None
    like_attention: tuple[Passing | None, Passing | None] | None
    least: str | None
    reason: str


@dataclass(frozen=True)
class Standing:
    """A series in one panel.

    Args:
        against_baseline, against_exact: None where it is the one that is compared with.
        start, exact_start: from where on it is cheaper than these, up to the largest size; None: nowhere for certain.
        value: at the table's largest size; None: `status` says why.
        ratio: of that to the baseline's, in a panel without one to the best exact softmax's; None of these themselves,
            and where they have no figure.
        memory_bytes: at that size.
    """

    against_baseline: Crossover | None
    against_exact: Crossover | None
    start: Start | None
    exact_start: Start | None
    value: float | None
    ratio: float | None
    memory_bytes: float | None
    status: str


@dataclass(frozen=True)
class Row:
    """A series of a table.

    Args:
        role: of the baseline and of the exact softmax with the least at the largest size, what they are.
        exact: whether it computes softmax attention, and was not found wrong at any size.
        lacks: the names of properties that it does not have; None where they are not known.
        error: at the largest size that has one, how far it is from softmax attention, which it estimates.
        mean_error: that of the mean of v, which knows nothing of q and k.
        standings: by mode; those in which it ran, or failed.
    """

    name: str
    operator: str
    impl: str
    params: str
    role: Literal["baseline", "best exact", ""]
    exact: bool
    lacks: tuple[str, ...] | None
    error: float | None
    mean_error: float | None
    standings: Mapping[str, Standing]


@dataclass(frozen=True)
class Modes:
    """The panels of one axis that differ in nothing but their mode.

    Args:
        fixed: what all their cells have in common, as `Panel.facts`.
        unit: of the metric that decides, a metric's.
        largest: by mode, the label of the largest size at which half of the series ran.
        rows: the baseline, the best exact softmax of each mode, then the others in the order that is asked for.
        chosen: whether only some operators were asked for.
        hidden: how many series have no row: identity, and those that were not asked for.
        unmeasured: the labels of the sizes at which nothing but identity ran in any mode, ascending.
        failures: how many cells of the other sizes have no figure, by status.
    """

    axis: str
    fixed: Mapping[str, str]
    unit: str
    largest: Mapping[str, str]
    rows: tuple[Row, ...]
    chosen: bool
    hidden: int
    unmeasured: tuple[str, ...]
    failures: Mapping[str, int]


@dataclass(frozen=True)
class Answer:
    """What is said first of a run.

    Args:
        metric: what the one that decides is called; None: no metric can.
        baseline: `operator[:impl]`.
        best_exact: what the best exact softmax is called, for the metric.
        verdicts: one per panel, in the summary's order.
        tables: one for each axis and what is fixed, in that order.
    """

    metric: str | None
    baseline: str
    best_exact: str
    verdicts: tuple[Verdict, ...]
    tables: tuple[Modes, ...]


def answer(summary: Summary) -> Answer:
    """The verdicts and tables of a run, by the first metric of the summary in which to be least means anything."""
    decided = [(report, _deciding(report)) for report in summary.panels]
    quantity = next((table.quantity for _, table in decided if table), None)
    shown = ((report, table) for report, table in decided if table and table.every)
    groups = groups_of((report.panel.but_for_mode, (report, table)) for report, table in shown)
    return Answer(
        metric=_called(quantity) if quantity else None,
        baseline=summary.baseline,
        best_exact=quantity.metric.best_exact if quantity else "",
        verdicts=tuple(_verdict(summary, report, table) for report, table in decided),
        tables=tuple(_modes(summary, group) for group in groups.values()),
    )


def _called(quantity: Quantity) -> str:
    """What is compared, in a sentence; of memory with what is counted."""
    label = "" if quantity.metric.role == "memory" else quantity.metric.label
    return label or quantity.title.lower()


def preferred(summary: Summary, reports: Iterable[PanelReport]) -> list[str]:
    """The names of the series in panels that differ in their mode alone, in the order of their table."""
    group = [(report, table) for report in reports if (table := _deciding(report)) and table.every]
    return [row.name for row in _modes(summary, group).rows] if group else []


def _deciding(report: PanelReport) -> Table | None:
    return next((table for table in report.tables if table.quantity.metric.comparable), None)


def _verdict(summary: Summary, report: PanelReport, table: Table | None) -> Verdict:
    panel = report.panel
    labels = _measured(table) if table else []
    if table is None or not labels:
        reasons = [*report.skipped.values(), *(p.reason for s in panel.series for p in s.points if p.reason)]
        return Verdict(panel.axis, panel.facts, None, None, None, None, None, next(iter(reasons), ""))
    others = [line for line in table.contenders if not line.exact]
    against = _passings(others, panel, labels)
    properties = {line.series.name: summary.properties_of(panel, line.series) for line in others}
    alike = [line for line in others if all(properties[line.series.name].get(each) for each in LIKE_ATTENTION)]
    first = {passing.series for passing in against if passing and passing.series}
    apart = any(properties.values()) and not first <= {line.series.name for line in alike}
    return Verdict(
        axis=panel.axis,
        fixed=panel.facts,
        sizes=(labels[0], labels[-1]),
        against_baseline=against[0],
        against_exact=against[1],
        like_attention=_passings(alike, panel, labels) if apart else None,
        least=_least(table, labels[-1]),
        reason="",
    )


def _measured(table: Table) -> list[str]:
    """The labels of the sizes at which anything but identity has a figure, ascending."""
    ran = _ran(table)
    return [label for label in table.panel.sizes if ran[label]]


def _ran(table: Table) -> Counter[str]:
    """How many series but identity have a figure, by the label of the size."""
    return Counter(f.label for line in table.contenders for f in line.figures if f.value is not None)


def _largest(table: Table) -> str:
    """The label of the largest size at which half of the series ran, or any; empty where none did."""
    labels, ran, most = _measured(table), _ran(table), len(table.contenders)
    return next((each for each in reversed(labels) if 2 * ran[each] >= most), labels[-1] if labels else "")


def _least(table: Table, label: str) -> str | None:
    values = {
        line.series.name: figure.value
        for line in table.contenders
        for figure in line.figures
        if figure.label == label and figure.value is not None
    }
    return min(values, key=values.__getitem__, default=None)


def _passings(lines: Sequence[Line], panel: Panel, measured: Sequence[str]) -> tuple[Passing | None, Passing | None]:
    """What passes the baseline, and the best exact softmax. measured: labels of sizes, ascending."""
    return (
        _passing([(line, line.against_baseline) for line in lines], panel, measured),
        _passing([(line, line.against_exact) for line in lines], panel, measured),
    )


def _passing(
    crossovers: Iterable[tuple[Line, Crossover | None]], panel: Panel, measured: Sequence[str]
) -> Passing | None:
    known = [(line, each) for line, each in crossovers if each is not None and each.kind != "nothing"]
    if not known:
        return None
    starts = [(begun, line, each) for line, each in known if (begun := start(each, panel, measured))]
    if starts:
        begun, line, crossover = min(
            starts, key=lambda each: (not each[0].every, each[0].by, *_at_the_end(each[2], each[1], measured[-1]))
        )
        return Passing("passed", line.series.name, crossover, begun)
    below = next(((line, each) for line, each in known if _cheaper_below(each)), None)
    if below:
        return Passing("below", below[0].series.name, below[1])
    return Passing("pays" if all(each.kind == "never" for _, each in known) else "unclear")


def start(crossover: Crossover | None, panel: Panel, measured: Sequence[str]) -> Start | None:
    """From where on a series is cheaper, up to the largest size that has both; None: nowhere for certain.

    measured: labels of the sizes at which anything ran, ascending.
    """
    if crossover is None:
        return None
    beyond = crossover.baseline_beyond
    if crossover.smallest:
        smallest = crossover.smallest.size
    else:  # smaller sizes may not have been tried
        smallest = panel.sizes[beyond[0]] if beyond else min(panel.sizes.values())
    if crossover.kind == "always":
        ends = [edge.label for edge in (crossover.smallest, crossover.largest) if edge]
        every = ends[:1] == [measured[0]] and (beyond is not None or ends[1:] == [measured[-1]])
        return Start(None, smallest, every=every)
    if crossover.crossings and (last := crossover.crossings[-1]).direction == "above":
        return Start(last.at, last.at if last.at is not None else last.high or smallest)
    stretch = crossover.stretch
    if stretch and stretch.cheaper and stretch.last is None:
        return Start(None, panel.sizes[stretch.first] if stretch.first else smallest)
    return None


def _at_the_end(crossover: Crossover, line: Line, label: str) -> tuple[float, float]:
    """The ratio at the largest size that has one, and the figure at the largest of all, `label`, which is all that is
    known where what it is compared with ran nowhere.
    """
    figure = _at(line, label)
    value = figure.value if figure and figure.value is not None else math.inf
    return crossover.largest.ratio if crossover.largest else math.inf, value


def _cheaper_below(crossover: Crossover) -> bool:
    """Whether it is cheaper at some sizes, of a series that is not so at the largest."""
    return bool(crossover.crossings) or (crossover.stretch is not None and crossover.stretch.cheaper)


def _modes(summary: Summary, group: Sequence[tuple[PanelReport, Table]]) -> Modes:
    """The table of some panels that differ in their mode."""
    sides = {report.panel.fixed["mode"]: _side(report, table) for report, table in group}
    every = {line.series.name: line for _, table in group for line in table.every}
    shown = {line.series.name: line for _, table in group for line in table.lines}
    restricted = len(shown) < len(every)
    names = [name for name, line in shown.items() if restricted or not computes_nothing(line.series)]
    rows = [_row(summary, every[name], sides) for name in names]
    first = group[0][0].panel
    sizes = {label: size for report, _ in group for label, size in report.panel.sizes.items()}
    measured = {label for side in sides.values() for label in side.measured}
    return Modes(
        axis=first.axis,
        fixed={name: text for name, text in first.facts.items() if name != "mode"},
        unit=group[0][1].quantity.metric.unit,
        largest={mode: side.label for mode, side in sides.items() if side.label},
        rows=tuple(_ordered(rows, sides, summary.sort)),
        chosen=restricted,
        hidden=len(every) - len(rows),
        unmeasured=tuple(label for label in sorted(sizes, key=sizes.__getitem__) if label not in measured),
        failures=_failures([table for _, table in group], measured),
    )


def _failures(tables: Iterable[Table], labels: Collection[str]) -> Counter[str]:
    """How many cells have no figure, by status, at some sizes."""
    lines = [line for table in tables for line in table.contenders]
    lacking = (f for line in lines for f in line.figures if f.label in labels and f.value is None and f.status != "ok")
    return Counter(figure.status for figure in lacking)


@dataclass(frozen=True)
class _Side:
    """One mode of a table.

    Args:
        measured: the labels of the sizes at which anything but identity ran, ascending.
        label: of the largest size at which half of the series ran, of those at which any did; empty: none did.
        reference: what savings are against: the best exact softmax, or the baseline without one.
        level: the names of the exact series that cannot be told from the least at the largest size.
        best_exact: the name of the exact series that is least there.
    """

    report: PanelReport
    table: Table
    measured: tuple[str, ...]
    label: str
    baseline: Baseline | None
    reference: Baseline | None
    level: frozenset[str]
    best_exact: str | None


def _side(report: PanelReport, table: Table) -> _Side:
    panel, quantity = report.panel, table.quantity
    label = _largest(table)
    exact = {line.series.name for line in table.every if line.exact}
    candidates = [
        (quantity.levels[point.key], line.series.name)
        for line in table.contenders
        if (point := line.series.at(label)) and point.key in quantity.levels
    ]
    candidates.sort(key=lambda each: each[0].level)
    level = {name for _, name in not_told_apart(candidates)} if candidates else set()
    return _Side(
        report=report,
        table=table,
        measured=tuple(_measured(table)),
        label=label,
        baseline=(baseline := named(panel, report.baseline)),
        reference=table.best_exact or baseline,
        level=frozenset(level & exact),
        best_exact=next((name for _, name in candidates if name in exact), None),
    )


def _row(summary: Summary, line: Line, sides: Mapping[str, _Side]) -> Row:
    name = line.series.name
    is_baseline = any(side.baseline and name in side.baseline.members for side in sides.values())
    is_best = any(name == side.best_exact for side in sides.values())
    properties = summary.properties_of(next(iter(sides.values())).report.panel, line.series)
    found = {
        mode: (side, own)
        for mode, side in sides.items()
        if (own := next((each for each in side.table.every if each.series.name == name), None))
    }
    error, mean_error = _error(summary, [own for _, own in found.values()])
    return Row(
        name=name,
        operator=line.series.operator,
        impl=line.series.impl,
        params=line.series.params,
        role="baseline" if is_baseline else "best exact" if is_best else "",
        exact=line.exact and not any(figure.status == "wrong" for _, own in found.values() for figure in own.figures),
        lacks=tuple(each for each in PROPERTIES if each not in NO_LACK and properties.get(each) is False)
        if properties
        else None,
        error=error,
        mean_error=mean_error,
        standings={mode: _standing(summary, own, side) for mode, (side, own) in found.items()},
    )


def _error(summary: Summary, lines: Iterable[Line]) -> tuple[float | None, float | None]:
    """Of a series that estimates softmax attention its error at the largest size that has one, and that of the mean."""
    for quantity in summary.beside:
        main = quantity.metric.curve.main if quantity.metric.curve else None
        for line in lines:
            curves = [quantity.curves.get(point.key, ()) for point in reversed(line.series.points)]
            known = (p for curve in curves for p in curve if p.at == main and p.value is not None)
            for point in known:
                return point.value, point.beside
    return None, None


def _standing(summary: Summary, line: Line, side: _Side) -> Standing:
    figure = _at(line, side.label)
    memory = next((each for each in summary.beside if each.metric.role == "memory"), None)
    point = line.series.at(side.label)
    return Standing(
        against_baseline=line.against_baseline,
        against_exact=line.against_exact,
        start=start(line.against_baseline, side.table.panel, side.measured),
        exact_start=start(line.against_exact, side.table.panel, side.measured),
        value=figure.value if figure else None,
        ratio=figure.vs_baseline if figure and side.baseline else _to_best_exact(line, side),
        memory_bytes=memory.values.get(point.key) if memory and point else None,
        status=figure.status if figure else "",
    )


def _to_best_exact(line: Line, side: _Side) -> float | None:
    levels = side.table.quantity.levels
    point, other = line.series.at(side.label), side.reference.points.get(side.label) if side.reference else None
    if point is None or other is None or point.key == other.key or not {point.key, other.key} <= levels.keys():
        return None
    return ratio(levels[point.key], levels[other.key])[0]


def _at(line: Line, label: str) -> Figure | None:
    return next((figure for figure in line.figures if figure.label == label), None)


def _ordered(rows: Sequence[Row], sides: Mapping[str, _Side], sort: str) -> list[Row]:
    pinned = ["baseline", "best exact", ""]
    key = _KEYS[sort]
    ordered = sorted(rows, key=lambda row: (pinned.index(row.role), *key(row, sides)))
    if sort != USE:
        return ordered
    best: dict[str, Row] = {}
    for row in sorted((row for row in ordered if not row.role), key=_is_unknown):
        best.setdefault(row.operator, row)
    return sorted(ordered, key=lambda row: not row.role and best[row.operator] is not row)


def _is_unknown(row: Row) -> bool:
    """Whether it lacks a figure at the largest size of some mode."""
    return any(standing.value is None for standing in row.standings.values())


def _by_use(row: Row, sides: Mapping[str, _Side]) -> tuple[Any, ...]:
    is_level = bool(sides) and all(row.name in side.level for side in sides.values())
    savings = [each for side in sides.values() for each in _savings(row.name, side)]
    return (not is_level, sum(savings) / len(savings) if savings else 0.0, *_by_ratio(row, sides))


def _savings(name: str, side: _Side) -> list[float]:
    """At each size of a mode that has what it is compared with, log min(1, ratio); 0 where the series did not run."""
    levels = side.table.quantity.levels
    own = next((line.series for line in side.table.every if line.series.name == name), None)
    savings = []
    for label, other in side.reference.points.items() if side.reference else ():
        if other.key in levels:
            point = own.at(label) if own else None
            ran = point is not None and point.key in levels
            savings.append(min(0.0, levels[point.key].level - levels[other.key].level) if point and ran else 0.0)
    return savings


def _by_ratio(row: Row, sides: Mapping[str, _Side]) -> tuple[float, ...]:
    """What is dearest last; without a figure behind all that have one."""
    standings = [row.standings.get(mode) for mode in sides]
    ratios = [
        math.inf if each is None or each.value is None else each.ratio if each.ratio is not None else each.value
        for each in standings
    ]
    return tuple(ratios)


def _by_memory(row: Row, sides: Mapping[str, _Side]) -> tuple[float, ...]:
    known = [row.standings[mode].memory_bytes for mode in sides if mode in row.standings]
    return tuple(math.inf if each is None else each for each in known or [None])


def _by_start(row: Row, sides: Mapping[str, _Side]) -> tuple[float, ...]:
    standings = [row.standings[mode] for mode in sides if mode in row.standings]
    starts = [begun for each in standings for begun in (each.exact_start, each.start)]
    return (*(begun.by if begun else math.inf for begun in starts), *_by_ratio(row, sides))


_KEYS: Mapping[str, Callable[[Row, Mapping[str, _Side]], tuple[Any, ...]]] = {
    USE: _by_use,
    "from": _by_start,
    "ratio": _by_ratio,
    "memory": _by_memory,
    "name": lambda row, _: (row.name,),
}
