"""Tier 0: what repeats exactly, compared without statistics: FLOPs, memory, operations, status, and their growth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from attnbench.analysis.compare.findings import Comparison, Finding, Verdict, by_importance, names
from attnbench.analysis.compare.matching import aligned, ok_keys, unmatched
from attnbench.analysis.compare.same_machine import circumstances
from attnbench.analysis.metric_values import quantity
from attnbench.analysis.scaling import GROWTHS, UNDECIDED, Exponent, scaling
from attnbench.analysis.series import panels
from attnbench.metric import Metric
from attnbench.registry import metrics
from attnbench.thresholds import Gate

if TYPE_CHECKING:
    from attnbench.analysis.run import Run

OPERATIONS = "operations"
"""The threshold's name for dispatched operators and launched kernels, added up."""

EXPONENT_RISE = 0.25
"""By how much the tail exponent of an exact figure may rise: sums of powers bend, classes differ by half at least."""


UNTIMED = "time is not compared: tier 0 is what repeats exactly; --base REV --tier 1 measures time as well"
"""What a decision of tier 0 says of thresholds for time."""


def tier0(before: Run, after: Run, gate: Gate, notes: Sequence[str] = ()) -> Comparison:
    """The exact comparison of two runs, whatever machines they come from. notes: put before its own."""
    differ = circumstances(before, after)
    if not differ.alike:
        what = "; ".join((*differ.hardware, *differ.software))
        notes = [
            *notes,
            f"peak memory and operations are not compared: they repeat only in the same circumstances ({what}). "
            "FLOPs, status and growth are",
        ]
    before, after = aligned(before, after)
    gone, new = unmatched(before, after)
    return Comparison(
        before=str(before.folder),
        after=str(after.folder),
        findings=by_importance(exact_findings(before, after, gate, alike=differ.alike)),
        missing=gone,
        new=new,
        notes=tuple(notes),
        measured=len(ok_keys(before) & ok_keys(after)),
        gated=True,
    )


def exact_findings(before: Run, after: Run, gate: Gate | None, *, alike: bool) -> list[Finding]:
    """Findings of every cell and series that both runs have.

    gate: thresholds; where it does not name FLOPs or peak memory they may not grow at all, while operations are
    gated only where it names them; None: nothing is gated. alike: same device, threads, instruction set and torch,
    without which bytes and operations do not repeat and only FLOPs, status and growth are compared.
    """
    rows = {side: _rows(run) for side, run in (("before", before), ("after", after))}
    found: list[Finding] = []
    named = names(before.results)
    for key in rows["before"]:
        if key in rows["after"]:
            found += _cell(key, named.get(key, key), rows["before"][key], rows["after"][key], gate, alike)
    return [*found, *_scaling(before, after, gate)]


def _rows(run: Run) -> dict[str, dict[str, Any]]:
    operations = {}
    for visit in run.visits[run.visits["round"] == 0][["key", "operations"]].to_dict("records"):
        operations[str(visit["key"])] = visit["operations"] or {}
    found = {}
    for row in run.results.to_dict("records"):
        plain = {str(name): None if not isinstance(v, (dict, list)) and pd.isna(v) else v for name, v in row.items()}
        found[str(row["key"])] = {**plain, "operations": operations.get(str(row["key"]), {})}
    return found


def _cell(
    key: str, name: str, before: Mapping[str, Any], after: Mapping[str, Any], gate: Gate | None, alike: bool
) -> Iterator[Finding]:
    a, b = str(before["status"]), str(after["status"])
    if a != b:
        lost = a == "ok" and gate is not None
        reason = str(after["reason"] or "") if b != "ok" else ""
        yield Finding(key, name, "status", a, b, "changed", regression=lost, reason=reason)
    if a != "ok" or b != "ok":
        return
    for metric_name, metric in exact_metrics().items():
        if alike or metric.analytic:
            grown = _most_grown((metric.column, *metric.guarded), before, after)
            yield _amount(key, name, metric_name, grown, gate)
    if alike:
        yield from _operations(key, name, before, after, gate)


def exact_metrics() -> dict[str, Metric]:
    """The metrics that are compared to the last digit."""
    return {name: metric for name, metric in metrics().items() if metric.exact}


def _most_grown(
    columns: tuple[str, ...], before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[str, float, float]:
    """The column that grew most, of those that both have."""
    both = [(c, float(before[c]), float(after[c])) for c in columns if _known(before, c) and _known(after, c)]
    return max(both, key=lambda item: _ratio(item[1], item[2]), default=("", 0.0, 0.0))


def _known(row: Mapping[str, Any], column: str) -> bool:
    return row.get(column) is not None


def _ratio(before: float, after: float) -> float:
    return after / before if before else (1.0 if not after else float("inf"))


def _threshold(gate: Gate | None, metric: str, key: str) -> float | None:
    if gate is None:
        return None
    found = gate.threshold(metric, key)
    return 0.0 if found is None else found


def _amount(key: str, name: str, metric: str, picked: tuple[str, float, float], gate: Gate | None) -> Finding:
    column, before, after = picked
    threshold = _threshold(gate, metric, key)
    verdict: Verdict = "same" if before == after else "more" if after > before else "less"
    worse = threshold is not None and after > before * (1 + threshold)
    ratio = after / before if before else None
    return Finding(
        key, name, metric, before, after, verdict, worse, ratio, ratio, ratio, threshold, 0.0,
        f"{column} {before:.0f} → {after:.0f}, exact" if verdict != "same" else "exact",
    )  # fmt: skip


def _operations(
    key: str, name: str, before: Mapping[str, Any], after: Mapping[str, Any], gate: Gate | None
) -> Iterator[Finding]:
    a, b = before["operations"], after["operations"]
    if not a or not b:
        return
    changes = [f"{op} {a.get(op, 0)} → {b.get(op, 0)}" for op in sorted({*a, *b}) if a.get(op, 0) != b.get(op, 0)]
    threshold = gate.threshold(OPERATIONS, key) if gate is not None else None
    before_total, after_total = sum(a.values()), sum(b.values())
    more = after_total > before_total
    worse = threshold is not None and after_total > before_total * (1 + threshold)
    verdict: Verdict = (
        "same" if not changes else "more" if more else "less" if after_total < before_total else "changed"
    )
    ratio = after_total / before_total
    reason = ", ".join(changes) or "exact"
    yield Finding(
        key, name, OPERATIONS, before_total, after_total, verdict, worse, ratio, ratio, ratio, threshold, 0.0, reason
    )
    if before["kernel"] != after["kernel"]:
        fallen = "math" in str(after["kernel"]).lower() and "math" not in str(before["kernel"]).lower()
        yield Finding(
            key, name, "kernel", before["kernel"], after["kernel"], "changed", fallen and gate is not None,
            reason="a fused kernel was left" if fallen else "another kernel runs",
        )  # fmt: skip


def _scaling(before: Run, after: Run, gate: Gate | None) -> Iterator[Finding]:
    """How memory and FLOPs of a series grow, whatever the machine: over the sizes that both runs have."""
    keys = ok_keys(before) & ok_keys(after)
    for metric in exact_metrics():
        grown = [_growths(run, metric, keys) for run in (before, after)]
        for series in grown[0]:
            if series not in grown[1]:
                continue
            a, b = grown[0][series], grown[1][series]
            rise = max(b.tail.value - a.tail.value, b.last - a.last, key=abs)
            known = UNDECIDED not in (a.growth, b.growth)
            order = GROWTHS.index(b.growth) - GROWTHS.index(a.growth) if known else 0
            worse = rise >= EXPONENT_RISE or (order > 0 and rise > 0.1)
            better = rise <= -EXPONENT_RISE or (order < 0 and rise < -0.1)
            yield Finding(
                " ".join(series), " ".join(series), f"scaling of {metric}", _told(a), _told(b),
                "more" if worse else "less" if better else "same", worse and gate is not None,
                threshold=0.0 if gate is not None else None,
                reason=f"exponent {a.last:.2f} → {b.last:.2f} between the largest of {a.sizes[0]} … {a.sizes[-1]}",
            )  # fmt: skip


@dataclass(frozen=True)
class _Grown:
    """last: the slope between the two largest sizes, where a new term of higher order shows first."""

    tail: Exponent
    last: float
    growth: str
    sizes: tuple[int, ...]


def _growths(run: Run, metric: str, keys: set[str]) -> dict[tuple[str, str], _Grown]:
    measured = quantity(run, metric)
    results = run.results[run.results["key"].isin(keys)]
    found: dict[tuple[str, str], _Grown] = {}
    if results.empty:
        return found
    for panel in panels(results):
        for series in panel.series:
            points, _ = measured.growing(series)
            grown = scaling(points) if len({size for size, _ in points}) >= 3 else None
            if grown is not None:
                *_, (n, a), (m, b) = dict(points).items()  # 14×28 and 28×14 are one size
                last = (b.level - a.level) / math.log(m / n)
                identity = f"{series.operator}:{series.impl} {series.params}"
                found[identity, panel.title] = _Grown(grown.tail, last, grown.growth, grown.sizes)
    return found


def _told(grown: _Grown) -> str:
    return f"N^{grown.tail.value:.2f}" if grown.growth == UNDECIDED else f"{grown.growth} (N^{grown.tail.value:.2f})"
