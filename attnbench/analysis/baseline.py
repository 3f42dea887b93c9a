"""What a series is compared with: one series of its panel, or the best exact softmax at each size."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from attnbench.analysis.crossover import BEYOND, Crossover, Edge, Pair, crossover
from attnbench.analysis.interval import ratio
from attnbench.analysis.metric_values import Quantity
from attnbench.analysis.series import Panel, Point, Series
from attnbench.errors import BadInput
from attnbench.naming import option
from attnbench.problem import Cell, operator_and_impl, operator_with_impl
from attnbench.store.records import ENDED_AS
from attnbench.units import suggestion


@dataclass(frozen=True)
class Baseline:
    """What series are compared with.

    Args:
        points: by label, the cell to compare with at that size.
        members: names of the series that these come from.
    """

    name: str
    points: Mapping[str, Point]
    members: frozenset[str]


def named(panel: Panel, baseline: str) -> Baseline | None:
    """The series `operator[:impl]` of a panel (impl: `reference` where none is given); None where it has none.

    With several params, the first of the suite's order.
    """
    for series in panel.series:
        if (series.operator, series.impl) == operator_and_impl(baseline):
            return replace(alone(series), name=baseline)
    return None


def alone(series: Series) -> Baseline:
    """A series by itself."""
    return Baseline(series.name, {p.label: p for p in series.points}, frozenset({series.name}))


def check(panels: Sequence[Panel], baseline: str) -> None:
    """Nothing where a panel has the baseline.

    Raises: BadInput where none has it.
    """
    if not any(named(panel, baseline) for panel in panels):
        names = sorted({operator_with_impl(s.operator, s.impl) for panel in panels for s in panel.series})
        near = suggestion(operator_with_impl(*operator_and_impl(baseline)), names)
        raise BadInput(
            f"{option('baseline')} {baseline}: this run has no such series{near}. It has {', '.join(names)}. "
            "Give one of them as operator or operator:impl."
        )


def is_exact(series: Series, exact: Collection[str]) -> bool:
    """Whether a series computes softmax attention itself; exact: names of such operators with their params."""
    return series.operator == "softmax" or series.identity in exact


def computes_nothing(series: Series | Cell) -> bool:
    """Whether a series or a cell is a bound that no choice can beat."""
    return series.operator == "identity"


def best_exact(panel: Panel, quantity: Quantity, exact: Collection[str]) -> Baseline | None:
    """The least exact softmax at each size, of any impl; None where the panel has no exact softmax.

    Of several equal ones the least looks a little faster than it is and varies less than one: intervals of ratios to it
    hold as often, or with three nearly so (docs/statistics.md).
    """
    return least(panel, quantity, [s for s in panel.series if is_exact(s, exact)], quantity.metric.best_exact)


def best_beside(
    reference: Baseline | None, panel: Panel, quantity: Quantity, exact: Collection[str]
) -> Baseline | None:
    """`best_exact`; None also where the reference has all its members: there is nothing more to learn."""
    best = best_exact(panel, quantity, exact)
    return None if best and reference and best.members <= reference.members else best


def least(panel: Panel, quantity: Quantity, candidates: Sequence[Series], name: str) -> Baseline | None:
    """At each size the candidate with the least of a quantity; where none ran, one that could not. None of none."""
    points: dict[str, Point] = {}
    for label in panel.sizes:
        tried = [p for series in candidates if (p := series.at(label)) is not None]
        measured = [p for p in tried if p.key in quantity.levels]
        if measured:
            points[label] = min(measured, key=lambda p: quantity.levels[p.key].level)
        elif tried:
            points[label] = next((p for p in tried if p.status == "ok"), tried[0])
    members = frozenset(series.name for series in candidates)
    return Baseline(name, points, members) if points else None


def pairs(panel: Panel, series: Series, baseline: Baseline, quantity: Quantity) -> list[Pair]:
    """The sizes that a series and its baseline have, ascending. A failed call loses no analytic figure, and one that
    ran out of time says nothing of what is no time.
    """
    sizes = []
    levels = quantity.levels
    fates, baseline_fates = (
        {label: "" if status == "timeout" and quantity.metric.unit != "s" else status for label, status in each.items()}
        for each in (fate(series.points), fate(sorted(baseline.points.values(), key=lambda p: p.size)))
    )
    for label, size in panel.sizes.items():
        a, b = series.at(label), baseline.points.get(label)
        if a is not None and b is not None:
            statuses = ("", "") if quantity.metric.analytic else (fates[label], baseline_fates[label])
            sizes.append(Pair(size, label, levels.get(a.key), levels.get(b.key), *statuses))
    return sizes


def crossover_with(panel: Panel, series: Series, baseline: Baseline | None, quantity: Quantity) -> Crossover | None:
    """The crossover of a series with a baseline; None without one, and where the series is of it."""
    if baseline is None or series.name in baseline.members:
        return None
    return crossover(pairs(panel, series, baseline, quantity))


def ratios(panel: Panel, series: Series, baseline: Baseline, quantity: Quantity) -> list[Edge]:
    """A series over its baseline at every size where both have a level, ascending."""
    compared = [pair for pair in pairs(panel, series, baseline, quantity) if pair.series and pair.baseline]
    return [Edge(pair.label, pair.size, *ratio(*pair.levels)) for pair in compared]


def fate(points: Sequence[Point]) -> dict[str, str]:
    """Status by label, where what was skipped because it would run out of memory or time has that status."""
    statuses = {}
    frontier = ""
    for point in points:
        status = point.status
        if status in BEYOND:
            frontier = status
        elif status == "skipped":  # runs that stored no cause: beyond a failure nothing is tried
            status = ENDED_AS.get(point.cause, frontier if not point.cause and frontier else status)
        statuses[point.label] = status
    return statuses
