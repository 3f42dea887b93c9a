"""Everything that the outputs show of a run, worked out once: outputs only print."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnbench.analysis.baseline import Baseline, best_exact, check, fate, is_exact, named, pairs
from attnbench.analysis.crossover import Crossover, crossover
from attnbench.analysis.interval import ratio
from attnbench.analysis.metric_values import CurvePoint, Origin, Quantity, metric_names, quantity
from attnbench.analysis.recommendation import Recommendation, recommendations
from attnbench.analysis.scaling import Scaling, agreement, scaling
from attnbench.analysis.series import Panel, Series, panels
from attnbench.axes import AXES
from attnbench.errors import BadInput
from attnbench.registry import placed_metrics

if TYPE_CHECKING:
    from attnbench.analysis.run import Run


@dataclass(frozen=True)
class Figure:
    """One cell of a table. value None: `status` and `reason` say why. best: of its column, identity apart.
    first_win: the smallest size at which the series is clearly cheaper than the baseline. vs_baseline: their ratio.
    curve: the figure and what it is judged by along the metric's curve, where it has one."""

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
    """A series in one metric. exact: whether it computes softmax attention. estimates: the exact map that it is an
    estimate of. origin: of FLOPs, whether `scaling` is of what was counted or of what is stated. stated: the growth
    that the operator's definition gives; None where it says nothing of this axis, metric or impl. against_baseline,
    against_exact (`Metric.best_exact`): None for the baseline's own series, without one, and where the metric is not
    comparable; then `scaling` is None too."""

    series: Series
    exact: bool
    estimates: str | None
    figures: tuple[Figure, ...]
    scaling: Scaling | None
    origin: Origin | None
    stated: str | None
    agreement: str | None
    against_baseline: Crossover | None
    against_exact: Crossover | None


@dataclass(frozen=True)
class Table:
    """One panel in one metric."""

    panel: Panel
    quantity: Quantity
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class PanelReport:
    """One panel: its tables, one per metric, and what to use. skipped: series that ran elsewhere in the run and not
    here, with the reason."""

    panel: Panel
    baseline: str
    tables: tuple[Table, ...]
    recommendations: tuple[Recommendation, ...]
    skipped: dict[str, str]


@dataclass(frozen=True)
class Summary:
    """A run. baseline: `operator[:impl]`. name: the suite's. skipped: series that never ran, with the reason."""

    name: str
    baseline: str
    panels: tuple[PanelReport, ...]
    skipped: dict[str, str]


@dataclass(frozen=True)
class _Definitions:
    """What the run's operators say of themselves: environment.json's fields of these names."""

    exact: Collection[str]
    stated: Mapping[str, Mapping[str, str]]
    estimates: Mapping[str, str]


def summarise(run: Run, metrics: Iterable[str] = (), baseline: str | None = None, axis: str | None = None) -> Summary:
    """metrics: those to show (none: all that the run has); baseline: None takes the suite's; axis: None is all.

    Raises BadInput where the run has no such metric, baseline or axis.
    """
    wanted = tuple(metrics)
    placed = placed_metrics()
    known = {name: quantity(run, name) for name in dict.fromkeys((*wanted, *placed))}
    for name in wanted:
        if not known[name].values:
            raise BadInput(f"--metric {name}: this run has no figure of it. It has {', '.join(_measured(run))}.")
    shown = [known[name] for name in wanted or placed if known[name].values]
    found = panels(run.results, axis)
    if baseline is not None:
        check(found, baseline)
    base = baseline or run.baseline
    own = _Definitions(
        frozenset(run.environment.get("exact", ())),
        run.environment.get("stated", {}),
        run.environment.get("estimates", {}),
    )
    measured = [known[name] for name in placed if known[name].values]
    time = next((q for q in measured if q.metric.role == "time"), None)
    memory = next((q for q in measured if q.metric.role == "memory"), None)
    analytic = next((q for q in measured if q.metric.analytic), None)
    never = _never_ran(found)
    reports = []
    for panel in found:
        reference = named(panel, base)
        tables = tuple(_table(panel, q, reference, own) for q in shown)
        choices = recommendations(panel, time, memory, analytic, own.exact) if time else []
        here = {name: reason for name, reason in _never_ran([panel]).items() if name not in never}
        reports.append(PanelReport(panel, base, tables, tuple(choices), here))
    return Summary(run.name, base, tuple(reports), never)


def _measured(run: Run) -> list[str]:
    return [name for name in metric_names() if quantity(run, name).values] or ["none at all"]


def _never_ran(found: Iterable[Panel]) -> dict[str, str]:
    every = [(s, p) for panel in found for s in panel.series for p in s.points]
    ran = {s.name for s, p in every if p.status != "skipped"}
    return {s.name: p.reason for s, p in every if s.name not in ran}


def _table(
    panel: Panel,
    quantity: Quantity,
    reference: Baseline | None,
    own: _Definitions,
) -> Table:
    cheapest = best_exact(panel, quantity, own.exact)
    if cheapest is not None and reference is not None and cheapest.members <= reference.members:
        cheapest = None  # the same cells: nothing more to learn
    shown = [s for s in panel.series if any(p.status != "skipped" for p in s.points)]
    if quantity.metric.of_estimates:
        shown = [s for s in shown if any(p.key in quantity.values for p in s.points)]
    contenders = [s for s in shown if s.operator != "identity"]
    best = {}
    for label in panel.sizes:
        keys = [p.key for s in contenders if (p := s.at(label)) and p.key in quantity.levels]
        if len(keys) > 1:
            best[label] = min(quantity.levels[key].level for key in keys)
    lines = tuple(_line(panel, s, quantity, reference, cheapest, own, best) for s in shown)
    return Table(panel, quantity, lines)


def _line(
    panel: Panel,
    series: Series,
    quantity: Quantity,
    reference: Baseline | None,
    cheapest: Baseline | None,
    own: _Definitions,
    best: dict[str, float],
) -> Line:
    free = series.operator == "identity"
    compared = quantity.metric.comparable and not free
    levels = quantity.levels
    own_baseline = reference is not None and series.name in reference.members
    figures, won = [], False
    statuses = fate(series.points)
    for point in series.points:
        base = reference.points.get(point.label) if reference else None
        level, other = levels.get(point.key), levels.get(base.key) if base else None
        against = ratio(level, other) if level and other and not own_baseline else None
        # One round has no interval: then the ratio itself must do.
        wins = against is not None and (against[2] < 1 or (against[2] != against[2] and against[0] < 1))
        low, high = quantity.interval(point.key) or (None, None)
        figures.append(
            Figure(
                point.label,
                point.size,
                quantity.values.get(point.key),
                low,
                high,
                statuses[point.label] if point.status == "skipped" else point.status,
                point.reason,
                compared and level is not None and level.level <= best.get(point.label, float("-inf")) + 1e-12,
                wins and not won and compared,
                against[0] if against else None,
                quantity.curves.get(point.key, ()),
            )
        )
        won = won or wins
    points, origin = quantity.growing(series)
    grown = scaling(points) if compared else None
    growth = _stated(panel, series, quantity, own.stated)
    return Line(
        series,
        is_exact(series, own.exact),
        own.estimates.get(series.identity),
        tuple(figures),
        grown,
        origin if grown else None,
        growth,
        agreement(grown, growth) if grown and growth else None,
        crossover(pairs(panel, series, reference, quantity)) if compared and reference and not own_baseline else None,
        crossover(pairs(panel, series, cheapest, quantity))
        if compared and cheapest and series.name not in cheapest.members
        else None,
    )


def _stated(panel: Panel, series: Series, quantity: Quantity, stated: Mapping[str, Mapping[str, str]]) -> str | None:
    """A definition says how time grows with N for every impl, and how memory grows for its reference."""
    if not AXES[panel.axis].domain:
        return None
    growth = quantity.metric.growth
    if growth is None or (growth == "memory" and series.impl != "reference"):
        return None
    return stated.get(series.identity, {}).get(growth)
