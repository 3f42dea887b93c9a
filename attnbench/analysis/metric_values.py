"""The values of one metric over a run: what tables show of it, and the levels that ratios and fits use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from attnbench.analysis.crossover import BEYOND
from attnbench.analysis.interval import Estimate, estimates
from attnbench.analysis.series import Series
from attnbench.errors import BadInput
from attnbench.metric import Curve, Executed, Metric
from attnbench.naming import option
from attnbench.registry import metrics, placed_metrics
from attnbench.units import suggestion

if TYPE_CHECKING:
    from attnbench.analysis.run import Run

UNCOUNTED_SHARE = 0.05
"""Of the FLOPs that a reference executes: where torch cannot count more than this, they are stated, not counted."""

Origin = Literal["counted", "stated"]


@dataclass(frozen=True)
class CurvePoint:
    """A metric's figure at one value of what its curve is over.

    Args:
        at: that value, as shown.
        value: the figure; None: not measured.
        beside: what it is judged by; None: not measured.
    """

    at: str
    value: float | None
    beside: float | None


@dataclass(frozen=True)
class Quantity:
    """One metric over a run.

    Args:
        values: by key, what a table shows (0 is a value).
        levels: by key, the same in logs with how well it is known; a value of 0 has no level and stands outside every
            fit and ratio.
        executed: of a metric that has it, by key the level of what the reference executes, on which growth is judged.
        counted: the keys at which that is a count, not a statement.
        curves: by key, of a metric that has one.
    """

    name: str
    metric: Metric
    values: Mapping[str, float]
    levels: Mapping[str, Estimate]
    executed: Mapping[str, Estimate] = field(default_factory=dict)
    counted: frozenset[str] = frozenset()
    curves: Mapping[str, tuple[CurvePoint, ...]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the metric is called in a heading."""
        return self.metric.title or self.name

    @property
    def label(self) -> str:
        """What the metric is called beside another."""
        return self.metric.label or self.name

    def growing(self, series: Series) -> tuple[list[tuple[int, Estimate]], Origin | None]:
        """The sizes of a series with the levels on which growth is judged; of `executed`, whether they are counts."""
        levels = self.executed or self.levels
        points = [point for point in series.points if point.key in levels]
        sizes = [(point.size, levels[point.key]) for point in points]
        if not self.executed:
            return sizes, None
        return sizes, "counted" if all(point.key in self.counted for point in points) else "stated"

    def interval(self, key: str) -> tuple[float, float] | None:
        """The 95 % interval of a value; None from one round, and where no rounds measured it."""
        level = self.levels.get(key)
        if level is None or not level.has_interval or not self.metric.timed:
            return None
        return math.exp(level.level - level.half_width), math.exp(level.level + level.half_width)


def metric_names() -> list[str]:
    """The metrics there are: those with a place first, the others by name."""
    return list({**placed_metrics(), **metrics()})


def check_metric(name: str) -> None:
    """Raises BadInput where there is no such metric."""
    if name not in metrics():
        near = suggestion(name, metrics())
        raise BadInput(f"{option('metric')} {name}: no such metric{near}. Allowed: {', '.join(metric_names())}.")


def quantity(run: Run, name: str) -> Quantity:
    """A metric of a run.

    Raises: BadInput where there is no such metric.
    """
    check_metric(name)
    metric = metrics()[name]
    if metric.column not in run.results:
        return Quantity(name, metric, {}, {})
    statuses = ("ok", *BEYOND) if metric.analytic else ("ok",)
    columns = [name for name in _columns(metric) if name in run.results]
    results = run.results.loc[run.results["status"].isin(statuses), ["key", *columns]].set_index("key")
    column = results[metric.column]
    for added in metric.added:
        if added in results:
            column = column + results[added].fillna(0)
    values = _known(column)
    if metric.timed:
        levels = estimates(run.visits, metric.column, stops=run.looks)
        return Quantity(name, metric, values, {key: levels[key] for key in values if key in levels})
    curves = _curves(results, metric.curve) if metric.curve else {}
    executed, counted = _executed(results, metric.column, metric.executed) if metric.executed else ({}, frozenset())
    return Quantity(name, metric, values, exact_levels(values), exact_levels(executed), counted, curves)


def _columns(metric: Metric) -> list[str]:
    """All columns that its figures are made of, each once."""
    columns = [metric.column, *metric.added]
    if metric.curve:
        columns += [*metric.curve.columns.values(), *metric.curve.beside.values()]
    if metric.executed:
        columns += [metric.executed.stated, metric.executed.counted, metric.executed.uncounted]
    return list(dict.fromkeys(columns))


def _curves(results: pd.DataFrame, curve: Curve) -> dict[str, tuple[CurvePoint, ...]]:
    def at(row: Mapping[Any, Any], column: str) -> float | None:
        return None if pd.isna(row.get(column)) else float(row[column])

    columns = [column for column in curve.columns.values() if column in results]
    return {
        str(key): tuple(
            CurvePoint(name, at(row, curve.columns[name]), at(row, curve.beside[name])) for name in curve.columns
        )
        for key, row in results.dropna(how="all", subset=columns).to_dict("index").items()
        if columns
    }


def _known(column: pd.Series[Any]) -> dict[str, float]:
    return {str(key): float(value) for key, value in column.dropna().items()}


def exact_levels(values: Mapping[str, float]) -> dict[str, Estimate]:
    """The levels of figures that repeat; of 0 there is none."""
    return {key: Estimate(math.log(v), 0.0, math.inf, 0.0, math.inf, 0) for key, v in values.items() if v > 0}


def _executed(results: pd.DataFrame, column: str, executed: Executed) -> tuple[dict[str, float], frozenset[str]]:
    """By key, what the reference executes: what torch counted and what it cannot count; and the keys at which all but
    UNCOUNTED_SHARE of it was counted.

    What cannot be counted is as stored. Where a run has not stored it, or nothing was counted, it is what the cost
    states beyond the count.

    Args:
        results: one row per key, the key as its index.
        column: of what the definition takes, which stands where the reference's own is not stored.
    """
    defined, stated, counted, uncounted = (
        results[name].astype("Float64") if name in results else pd.Series(pd.NA, results.index, dtype="Float64")
        for name in (column, executed.stated, executed.counted, executed.uncounted)
    )
    counted = counted.where(counted > 0)
    beyond = (stated.fillna(defined) - counted.fillna(0)).clip(lower=0)
    uncounted = uncounted.where(counted.notna()).fillna(beyond)
    total = counted.fillna(0) + uncounted
    return _known(total), frozenset(_known(total[(uncounted <= UNCOUNTED_SHARE * total).fillna(False)]))
