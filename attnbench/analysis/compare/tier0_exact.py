"""Tier 0: what repeats exactly, compared without statistics: FLOPs, memory, operations, status, and their growth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from attnbench.analysis.compare.findings import Comparison, Finding, Verdict, by_importance, names
from attnbench.analysis.compare.matching import aligned, ok_keys, unmatched
from attnbench.analysis.compare.same_machine import differences
from attnbench.analysis.metric_values import quantity
from attnbench.analysis.scaling import GROWTHS, UNDECIDED, ExactGrowth, exact_growth
from attnbench.analysis.series import Panel, panels
from attnbench.metric import Metric
from attnbench.registry import metrics
from attnbench.thresholds import OPERATIONS, Gate

if TYPE_CHECKING:
    from attnbench.analysis.run import Run

EXPONENT_RISE = 0.25
"""By how much the tail exponent of an exact figure may rise: sums of powers bend, classes differ by half at least."""

UNTIMED = "time is not compared: tier 0 is what repeats exactly; --base REV --tier 1 measures time as well"
"""What a decision of tier 0 says of thresholds for time."""

Row = Mapping[str, Any]
"""A cell's row of results.csv with its operations; missing: None."""


def tier0(before: Run, after: Run, gate: Gate, notes: Sequence[str] = ()) -> Comparison:
    """The exact comparison of two runs, whatever machines they come from.

    Args:
        gate: thresholds, as `exact_findings` takes them.
        notes: put before its own.
    """
    circumstances = differences(before, after)
    if not circumstances.alike:
        what = "; ".join((*circumstances.hardware, *circumstances.software))
        notes = [*notes, f"{not_repeating()} ({what}). {_labels(analytic=True)}, status and growth are"]
    before, after = aligned(before, after)
    missing, new = unmatched(before, after)
    return Comparison(
        before=str(before.folder),
        after=str(after.folder),
        findings=by_importance(exact_findings(before, after, gate, alike=circumstances.alike)),
        missing=missing,
        new=new,
        notes=tuple(notes),
        measured=len(ok_keys(before) & ok_keys(after)),
        gated=True,
    )


def exact_metrics() -> dict[str, Metric]:
    """The metrics that are compared to the last digit."""
    return {name: metric for name, metric in metrics().items() if metric.exact}


def not_repeating() -> str:
    """The sentence about what is not compared between runs made in different circumstances."""
    labels = _labels(analytic=False)
    return f"{labels} and operations are not compared: they repeat only in the same circumstances"


def _labels(*, analytic: bool) -> str:
    """What the exact metrics that are analytic, or are not, are called."""
    return ", ".join(m.label or name for name, m in exact_metrics().items() if m.analytic == analytic)


def exact_findings(before: Run, after: Run, gate: Gate | None, *, alike: bool) -> list[Finding]:
    """Findings of every cell and series that both runs have.

    Args:
        before, after: runs with the same keys for the same cells (`matching.aligned`).
        gate: thresholds; an exact metric that it does not name may not grow at all, while operations are gated only
            where it names them. None: nothing is gated.
        alike: whether both have the same device, threads, instruction set and torch; without, bytes and operations do
            not repeat, and only status, growth and analytic metrics are compared.
    """
    cells = names(before.results)
    rows_before, rows_after = _rows(before), _rows(after)
    findings = [
        finding
        for key, row in rows_before.items()
        if key in rows_after
        for finding in _of_cell(key, cells.get(key, key), row, rows_after[key], gate, alike)
    ]
    return [*findings, *_scaling(before, after, gate)]


def _rows(run: Run) -> dict[str, Row]:
    checks = run.visits[run.visits["round"] == 0][["key", "operations"]].to_dict("records")
    operations = {str(visit["key"]): visit["operations"] or {} for visit in checks}
    rows: dict[str, Row] = {}
    for row in run.results.to_dict("records"):
        plain = {str(name): None if not isinstance(v, (dict, list)) and pd.isna(v) else v for name, v in row.items()}
        rows[str(row["key"])] = {**plain, OPERATIONS: operations.get(str(row["key"]), {})}
    return rows


def _of_cell(key: str, name: str, before: Row, after: Row, gate: Gate | None, alike: bool) -> Iterator[Finding]:
    a, b = str(before["status"]), str(after["status"])
    if a != b:
        yield Finding(
            subject=key,
            name=name,
            metric="status",
            before=a,
            after=b,
            verdict="changed",
            regression=a == "ok" and gate is not None,
            reason=str(after["reason"] or "") if b != "ok" else "",
        )
    if a != "ok" or b != "ok":
        return
    for metric_name, metric in exact_metrics().items():
        grown = _most_grown((metric.column, *metric.guarded), before, after)
        if grown is not None and (alike or metric.analytic):
            yield _amount(key, name, metric_name, grown, gate)
    if alike and before[OPERATIONS] and after[OPERATIONS]:
        yield _operations(key, name, before[OPERATIONS], after[OPERATIONS], gate)
        if before["kernel"] != after["kernel"]:
            yield _kernel(key, name, before["kernel"], after["kernel"], gate)


def _most_grown(columns: Sequence[str], before: Row, after: Row) -> tuple[str, float, float] | None:
    """The column that grew most with its figures, of those that both rows have; None where there is none."""
    stored = (name for name in columns if before.get(name) is not None and after.get(name) is not None)
    figures = [(name, float(before[name]), float(after[name])) for name in stored]
    return max(figures, key=lambda item: _ratio(item[1], item[2]), default=None)


def _ratio(before: float, after: float) -> float:
    return after / before if before else (1.0 if not after else math.inf)


def _amount(key: str, name: str, metric: str, figures: tuple[str, float, float], gate: Gate | None) -> Finding:
    column, before, after = figures
    threshold = None if gate is None else gate.threshold(metric, key) or 0.0
    verdict: Verdict = "same" if before == after else "more" if after > before else "less"
    ratio = after / before if before else None
    return Finding(
        subject=key,
        name=name,
        metric=metric,
        before=before,
        after=after,
        verdict=verdict,
        regression=threshold is not None and after > before * (1 + threshold),
        ratio=ratio,
        low=ratio,
        high=ratio,
        threshold=threshold,
        detectable=0.0,
        reason=f"{column} {before:.0f} → {after:.0f}, exact" if verdict != "same" else "exact",
    )


def _operations(key: str, name: str, before: Mapping[str, int], after: Mapping[str, int], gate: Gate | None) -> Finding:
    counts = [(op, before.get(op, 0), after.get(op, 0)) for op in sorted({*before, *after})]
    changes = [f"{op} {a} → {b}" for op, a, b in counts if a != b]
    a, b = sum(before.values()), sum(after.values())
    threshold = gate.threshold(OPERATIONS, key) if gate is not None else None
    verdict: Verdict = "same" if not changes else "more" if b > a else "less" if b < a else "changed"
    return Finding(
        subject=key,
        name=name,
        metric=OPERATIONS,
        before=a,
        after=b,
        verdict=verdict,
        regression=threshold is not None and b > a * (1 + threshold),
        ratio=b / a,
        low=b / a,
        high=b / a,
        threshold=threshold,
        detectable=0.0,
        reason=", ".join(changes) or "exact",
    )


def _kernel(key: str, name: str, before: str, after: str, gate: Gate | None) -> Finding:
    """The unfused kernel in place of a fused one is a regression; any other change is noted."""
    unfused = "math" in str(after).lower() and "math" not in str(before).lower()
    return Finding(
        subject=key,
        name=name,
        metric="kernel",
        before=before,
        after=after,
        verdict="changed",
        regression=unfused and gate is not None,
        reason="a fused kernel was left" if unfused else "another kernel runs",
    )


def _scaling(before: Run, after: Run, gate: Gate | None) -> Iterator[Finding]:
    """How the exact figures of a series grow, whatever the machine: over the sizes that both runs have."""
    keys = ok_keys(before) & ok_keys(after)
    sides = [(run, _panels(run, keys)) for run in (before, after)]
    for metric in exact_metrics():
        growths_before, growths_after = (_growths(run, metric, every) for run, every in sides)
        for series, a in growths_before.items():
            b = growths_after.get(series)
            if b is None:
                continue
            rise = b.exponent - a.exponent  # between the largest sizes, where a new term of higher order shows first
            decided = UNDECIDED not in (a.growth, b.growth)
            order = GROWTHS.index(b.growth) - GROWTHS.index(a.growth) if decided else 0
            worse = rise >= EXPONENT_RISE or (order > 0 and rise > 0.1)
            better = rise <= -EXPONENT_RISE or (order < 0 and rise < -0.1)
            yield Finding(
                subject=" ".join(series),
                name=" ".join(series),
                metric=f"scaling of {metric}",
                before=str(a),
                after=str(b),
                verdict="more" if worse else "less" if better else "same",
                regression=worse and gate is not None,
                threshold=0.0 if gate is not None else None,
                reason=f"exponent {a.exponent:.2f} → {b.exponent:.2f} between {a.sizes[0]} and {a.sizes[1]}",
            )


def _panels(run: Run, keys: set[str]) -> list[Panel]:
    """Those of the cells that count. keys: theirs."""
    results = run.results[run.results["key"].isin(keys)]
    return [] if results.empty else panels(results, swept=run.swept)


def _growths(run: Run, metric: str, every: Iterable[Panel]) -> dict[tuple[str, str], ExactGrowth]:
    """By series and panel, the growth of a metric over three sizes at least. every: panel that counts."""
    values = quantity(run, metric)
    growths: dict[tuple[str, str], ExactGrowth] = {}
    for panel in every:
        for series in panel.series:
            points, _ = values.growing(series)
            growth = exact_growth(points) if len({size for size, _ in points}) >= 3 else None
            if growth is not None:
                identity = f"{series.operator}:{series.impl} {series.params}"
                growths[identity, panel.title] = growth
    return growths
