"""Everything that the outputs show of a run, worked out once: outputs only print."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attnbench.analysis.baseline import (
    Baseline,
    best_beside,
    check,
    computes_nothing,
    crossover_with,
    fate,
    is_exact,
    least,
    named,
)
from attnbench.analysis.crossover import Crossover
from attnbench.analysis.interval import ratio
from attnbench.analysis.metric_values import CurvePoint, Origin, Quantity, check_metric, metric_names, quantity
from attnbench.analysis.recommendation import Recommendation, recommendations
from attnbench.analysis.scaling import OF_A_STEP, Doubling, ExactGrowth, agreement, doubling, exact_growth
from attnbench.analysis.series import Panel, Series, check_axis, panels
from attnbench.axes import AXES
from attnbench.errors import BadInput
from attnbench.groups import groups_of
from attnbench.naming import option
from attnbench.problem import operator_with_impl
from attnbench.properties import FORMS
from attnbench.registry import metrics as every_metric
from attnbench.registry import placed_metrics
from attnbench.store.records import WARNED, distinct, without_numbers
from attnbench.store.shards import StoredShard
from attnbench.units import not_among, quoted, separated, suggestion

if TYPE_CHECKING:
    from attnbench.analysis.run import Run


USE = "use"
"""Of SORTS, what a user would take first."""

SORTS = (USE, "from", "ratio", "memory", "name")
"""What the rows of an answer may be ordered by (`analysis.answer`)."""


@dataclass(frozen=True)
class Figure:
    """One size of a series in a table.

    Args:
        label, size: on the panel's axis.
        value: None: `status` and `reason` say why.
        low, high: the ends of its interval; None: it has none.
        best: whether it is the least of its column, identity apart.
        first_win: whether this is the smallest size at which the series is clearly cheaper than the baseline.
        vs_baseline: its ratio to the baseline's.
        curve: the figure and what it is judged by along the metric's curve, where it has one.
    """

    label: str
    size: int
    value: float | None
    low: float | None
    high: float | None
    status: str
    reason: str
    best: bool
    first_win: bool
    vs_baseline: float | None
    curve: tuple[CurvePoint, ...] = ()


@dataclass(frozen=True)
class Line:
    """A series in one metric.

    Args:
        exact: whether it computes softmax attention.
        estimates: the exact map that it is an estimate of.
        figures: by ascending size.
        doubling: how it grows, of a metric that is taken in timed rounds; growth: of an exact one. None where the
            metric is not comparable, or sizes are too few.
        origin: of an analytic metric, whether `growth` is of what was counted or of what is stated.
        stated: the growth that the operator's definition gives; None where it says nothing of this axis, metric or
            impl.
        agreement: of `growth` with `stated`.
        against_baseline, against_exact (`Metric.best_exact`): None for the baseline's own series, without one, and
            where the metric is not comparable.
    """

    series: Series
    exact: bool
    estimates: str | None
    figures: tuple[Figure, ...]
    doubling: Doubling | None
    growth: ExactGrowth | None
    origin: Origin | None
    stated: str | None
    agreement: str | None
    against_baseline: Crossover | None
    against_exact: Crossover | None


@dataclass(frozen=True)
class Table:
    """One panel in one metric.

    Args:
        every: all lines, in the suite's order.
        lines: those to show.
    """

    panel: Panel
    quantity: Quantity
    every: tuple[Line, ...]
    lines: tuple[Line, ...]

    @property
    def contenders(self) -> list[Line]:
        """All lines but those of what computes nothing."""
        return [line for line in self.every if not computes_nothing(line.series)]

    @property
    def best_exact(self) -> Baseline | None:
        """At each size the least exact softmax, of all lines; None where the panel has none."""
        exact = [line.series for line in self.every if line.exact]
        return least(self.panel, self.quantity, exact, self.quantity.metric.best_exact)


@dataclass(frozen=True)
class PanelReport:
    """What is shown of one panel.

    Args:
        baseline: `operator[:impl]`.
        tables: one per metric.
        recommendations: one per size.
        skipped: by series that ran elsewhere in the run and not here, the reason.
    """

    panel: Panel
    baseline: str
    tables: tuple[Table, ...]
    recommendations: tuple[Recommendation, ...]
    skipped: dict[str, str]


@dataclass(frozen=True)
class Summary:
    """What is shown of a run.

    Args:
        name: the suite's.
        baseline: `operator[:impl]`.
        skipped: by series that never ran, the reason.
        untried_exact: by series of exact softmax that is known to be fast on the run's GPU and was right nowhere, the
            reason; empty where the suite does not ask for it.
        properties: by a series' identity and by form, as `Run.properties`.
        environment: environment.json without what it says of operators and of the plan: machine, software, start.
        warnings: by what a visit warned of, in how many visits; the most frequent first.
        beside: what an answer names beside the metric that decides: memory, and errors against softmax attention.
        sort: what orders the rows of the answer, of `answer.SORTS`.
        contract: what the times mean (`plan.settings`); empty where nothing was measured.
        devices: the anonymous ids of those that measured, of one model; none: not stored.
        shard: which part of its suite the run is; None: the whole.
    """

    name: str
    baseline: str
    panels: tuple[PanelReport, ...]
    skipped: dict[str, str]
    untried_exact: dict[str, str]
    properties: Mapping[str, Mapping[str, Mapping[str, bool]]] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    warnings: Mapping[str, int] = field(default_factory=dict)
    beside: tuple[Quantity, ...] = ()
    sort: str = USE
    contract: str = ""
    devices: tuple[str, ...] = ()
    shard: StoredShard | None = None

    def properties_of(self, panel: Panel, series: Series) -> Mapping[str, bool]:
        """By name, which of `attnbench.properties.PROPERTIES` a series has in the panel's form; what the run's version
        did not know is absent."""
        return self.properties.get(series.identity, {}).get(FORMS[bool(panel.fixed["causal"])], {})


@dataclass(frozen=True)
class _Definitions:
    """What the run's operators say of themselves: environment.json's fields of these names."""

    exact: Collection[str]
    stated: Mapping[str, Mapping[str, str]]
    estimates: Mapping[str, str]


@dataclass(frozen=True)
class _Column:
    """What the lines of one table share.

    Args:
        reference: the baseline; None: the panel has none.
        cheapest: the best exact softmax; None: there is none, or it is the baseline.
        best: by label, the least level of the contenders.
    """

    panel: Panel
    quantity: Quantity
    reference: Baseline | None
    cheapest: Baseline | None
    definitions: _Definitions
    best: Mapping[str, float]


def check_sort(sort: str) -> None:
    """Raises BadInput where it is none of SORTS."""
    if sort not in SORTS:
        raise BadInput(f"{option('sort')} {not_among(sort, SORTS)}.")


def check_shown(metrics: Iterable[str], axis: str | None, sort: str | None) -> None:
    """Nothing where a run may be shown so.

    Raises: BadInput where there is no such metric, axis or order, whatever a run has.
    """
    for metric in separated(metrics):
        check_metric(metric)
    if axis is not None:
        check_axis(axis)
    check_sort(sort or USE)


def summarise(
    run: Run,
    metrics: Iterable[str] = (),
    baseline: str | None = None,
    axis: str | None = None,
    operators: Iterable[str] = (),
    sort: str = USE,
) -> Summary:
    """Everything that is shown of a run.

    Args:
        metrics: those to show; none: all with a place that the run has.
        baseline: None: the suite's.
        axis: None: all.
        operators: whose lines are shown, each `operator` or `operator:impl`; none: all. What is least, what is best and
            what to use is judged among all series of the run.
        sort: one of SORTS.

    Raises: BadInput where the run has no such metric, baseline, axis or operator, and of another sort.
    """
    check_sort(sort)
    wanted, placed = tuple(separated(metrics)), placed_metrics()
    quantities = {name: quantity(run, name) for name in dict.fromkeys((*wanted, *placed))}
    for name in wanted:
        if not quantities[name].values:
            raise BadInput(
                f"{option('metric')} {name}: this run has no figure of it. It has {', '.join(_measured(run))}."
            )
    shown = [quantities[name] for name in wanted or placed if quantities[name].values]
    shown = shown or [quantities[next(iter(placed))]]  # its cells say why there is nothing
    every = panels(run.results, axis, run.swept)
    if baseline is not None:
        check(every, baseline)
    chosen = chosen_series(every, tuple(operators))
    definitions = _Definitions(
        exact=frozenset(run.environment.get("exact", ())),
        stated=run.environment.get("stated", {}),
        estimates=run.environment.get("estimates", {}),
    )
    measured = [each for each in quantities.values() if each.values]
    never = _never_ran(every, chosen)
    reports = []
    for panel in every:
        reference = named(panel, baseline or run.baseline)
        reports.append(
            PanelReport(
                panel=panel,
                baseline=baseline or run.baseline,
                tables=tuple(_table(panel, each, reference, definitions, chosen) for each in shown),
                recommendations=tuple(recommendations(panel, measured, definitions.exact)),
                skipped={name: reason for name, reason in _never_ran([panel], chosen).items() if name not in never},
            )
        )
    fast = run.environment.get("fast_exact", {})
    return Summary(
        name=run.name,
        baseline=baseline or run.baseline,
        panels=tuple(reports),
        skipped=never,
        untried_exact=_untried(every, fast, definitions.exact),
        environment={name: value for name, value in run.environment.items() if name not in _NOT_OF_THE_MACHINE},
        properties=run.properties,
        warnings=_warnings(run),
        beside=tuple(_beside(run, measured)),
        sort=sort,
        contract=next(iter(run.visits["contract"]), ""),
        devices=tuple(each for each in dict.fromkeys(run.visits.get("device_id", ())) if each),
        shard=StoredShard.of_run(run.environment),
    )


_NOT_OF_THE_MACHINE = {
    *("exact", "fast_exact", "stated", "estimates", "families", "defaults", "properties"),
    *("code", "seed", "looks", "sweep", "shard", "parts"),
}
"""The fields of environment.json about operators, and about what was to be measured."""


def _warnings(run: Run) -> dict[str, int]:
    visited = zip(zip(*(run.visits[name] for name in WARNED), strict=True), run.visits["warnings"], strict=True)
    of_series = groups_of((series, text) for series, texts in visited for text in texts)
    visits = Counter(without_numbers(text) for texts in of_series.values() for text in texts)
    shown = distinct((text for texts in of_series.values() for text in distinct(texts)), None)
    return dict(Counter({text: visits[without_numbers(text)] for text in shown}).most_common())


def _beside(run: Run, measured: Iterable[Quantity]) -> Iterator[Quantity]:
    yield from (each for each in measured if each.metric.role == "memory")
    yield from (quantity(run, name) for name, metric in every_metric().items() if metric.of_estimates and metric.curve)


def _untried(every: Iterable[Panel], fast: Mapping[str, str], exact: Collection[str]) -> dict[str, str]:
    """Of a run that has any exact softmax, `Summary.untried_exact`.

    fast: by impl of softmax that is known to be fast on the run's GPU, why it is not there; empty where it is.
    """
    exact_series = [series for panel in every for series in panel.series if is_exact(series, exact)]
    points = {
        impl: [p for s in exact_series if s.operator == "softmax" and s.impl == impl for p in s.points] for impl in fast
    }
    return {
        operator_with_impl("softmax", impl): fast[impl] or next((p.reason for p in points[impl]), "")
        for impl in (fast if exact_series else ())
        if all(point.status != "ok" for point in points[impl])
    }


def _measured(run: Run) -> list[str]:
    return [name for name in metric_names() if quantity(run, name).values] or ["none at all"]


def chosen_series(every: Iterable[Panel], operators: Sequence[str], whose: str = "this run has no") -> frozenset[str]:
    """The names of the series that are shown.

    Args:
        operators: each `operator` or `operator:impl`; none: all.
        whose: how the message begins.

    Raises: BadInput where no series is of one of them.
    """
    series = [series for panel in every for series in panel.series]
    names: dict[str, set[str]] = {}
    for each in series:
        for name in (each.operator, f"{each.operator}:{each.impl}"):
            names.setdefault(name, set()).add(each.name)
    for operator in operators:
        if operator not in names:
            allowed = list(dict.fromkeys(each.operator for each in series))
            raise BadInput(
                f"{option('operators')} {quoted(operator)}: {whose} series of it{suggestion(operator, names)}. There "
                f"are {', '.join(allowed) or 'none at all'}. Give some of them, or of their impls as operator:impl."
            )
    return frozenset().union(*(names[operator] for operator in operators or names))


def _never_ran(panels: Iterable[Panel], chosen: Collection[str]) -> dict[str, str]:
    """By series, of those chosen, without any cell that ran, the reason."""
    points = [(series, point) for panel in panels for series in panel.series for point in series.points]
    ran = {series.name for series, point in points if point.status != "skipped"}
    return {s.name: point.reason for s, point in points if s.name in chosen and s.name not in ran}


def _table(
    panel: Panel,
    quantity: Quantity,
    reference: Baseline | None,
    definitions: _Definitions,
    chosen: Collection[str],
) -> Table:
    """chosen: names of the series that are shown."""
    cheapest = best_beside(reference, panel, quantity, definitions.exact)
    shown = [s for s in panel.series if any(p.status != "skipped" for p in s.points)]
    if quantity.metric.of_estimates:
        shown = [s for s in shown if any(p.key in quantity.values for p in s.points)]
    contenders = [s for s in shown if not computes_nothing(s)]
    best = {}
    for label in panel.sizes:
        keys = [p.key for s in contenders if (p := s.at(label)) and p.key in quantity.levels]
        if len(keys) > 1:
            best[label] = min(quantity.levels[key].level for key in keys)
    column = _Column(panel, quantity, reference, cheapest, definitions, best)
    every = tuple(_line(series, column) for series in shown)
    return Table(panel, quantity, every, tuple(line for line in every if line.series.name in chosen))


def _line(series: Series, column: _Column) -> Line:
    quantity, definitions = column.quantity, column.definitions
    compared = _compared(series, quantity)
    points, origin = quantity.growing(series)
    stated = _stated(column.panel, series, quantity, definitions.stated)
    growth = exact_growth(points) if compared and quantity.metric.exact else None
    return Line(
        series=series,
        exact=is_exact(series, definitions.exact),
        estimates=definitions.estimates.get(series.identity),
        figures=tuple(_figures(series, column)),
        doubling=doubling(points, stated) if compared and quantity.metric.timed else None,
        growth=growth,
        origin=origin if growth else None,
        stated=stated,
        agreement=agreement(growth, stated) if growth and stated else None,
        against_baseline=crossover_with(column.panel, series, column.reference, quantity) if compared else None,
        against_exact=crossover_with(column.panel, series, column.cheapest, quantity) if compared else None,
    )


def _compared(series: Series, quantity: Quantity) -> bool:
    """Whether to be least, to pass the baseline and to grow mean anything; identity costs nothing."""
    return quantity.metric.comparable and not computes_nothing(series)


def _figures(series: Series, column: _Column) -> Iterator[Figure]:
    quantity, levels = column.quantity, column.quantity.levels
    reference = None if column.reference and series.name in column.reference.members else column.reference
    compared, won = _compared(series, quantity), False
    statuses = fate(series.points)
    for point in series.points:
        baseline = reference.points.get(point.label) if reference else None
        level, other = levels.get(point.key), levels.get(baseline.key) if baseline else None
        against = ratio(level, other) if level and other else None
        wins = against is not None and _is_win(against[0], against[2])
        low, high = quantity.interval(point.key) or (None, None)
        yield Figure(
            label=point.label,
            size=point.size,
            value=quantity.values.get(point.key),
            low=low,
            high=high,
            status=statuses[point.label] if point.status == "skipped" else point.status,
            reason=point.reason,
            best=compared and level is not None and level.level <= column.best.get(point.label, -math.inf) + 1e-12,
            first_win=wins and not won and compared,
            vs_baseline=against[0] if against else None,
            curve=quantity.curves.get(point.key, ()),
        )
        won = won or wins


def _is_win(value: float, high: float) -> bool:
    """Whether a ratio is below 1, by the upper end of its interval; from one round, which has none, by itself."""
    return value < 1 if math.isnan(high) else high < 1


def _stated(panel: Panel, series: Series, quantity: Quantity, stated: Mapping[str, Mapping[str, str]]) -> str | None:
    """The growth that a definition gives: of time with N for every impl, of memory for its reference; where only the
    last Q of N tokens are new, that of these."""
    if not AXES[panel.axis].domain or panel.together:
        return None
    growth = quantity.metric.growth
    if growth is None or (growth == "memory" and series.impl != "reference"):
        return None
    of_all = stated.get(series.identity, {}).get(growth)
    return of_all if panel.fixed.get("query_len") is None else OF_A_STEP.get(of_all or "", of_all and "1")
