"""Two stored runs, cell by cell: what got faster, what slower, and what nobody can tell.

Stored runs were measured one after the other, and a shared machine's state moves in between. What moved in common is
therefore estimated over the operators (the median of their medians), said, and taken out; a cell is called slower for
what it did beyond the others. With fewer than three operators nothing can be taken out: then process offsets widen
every interval instead. `attnbench gate` interleaves the two sides and needs neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

import pandas as pd

from attnbench.analysis.baseline import named
from attnbench.analysis.compare.crossover_shift import shifts
from attnbench.analysis.compare.findings import Comparison, Finding, Verdict, by_importance, names, readable
from attnbench.analysis.compare.matching import aligned, ok_keys, unmatched
from attnbench.analysis.compare.same_machine import circumstances
from attnbench.analysis.compare.tier0_exact import exact_findings
from attnbench.analysis.interval import CONFIDENCE, Estimate, estimates, quantile
from attnbench.analysis.metric_values import metric_names
from attnbench.analysis.series import panels
from attnbench.errors import BadInput
from attnbench.problem import key_parts
from attnbench.registry import metrics
from attnbench.thresholds import Gate

if TYPE_CHECKING:
    from attnbench.analysis.run import Run

DEFAULT_EFFECT = 0.05
"""The change that a comparison without thresholds looks for."""

FEWEST_OPERATORS = 3


def compare(before: Run, after: Run, gate: Gate | None = None, *, across_machines: bool = False) -> Comparison:
    """The comparison of two runs by cell.

    gate: the thresholds that decide a build; None: nothing is decided. across_machines: compare what is exact, and
    times as ratios to the baseline. Raises BadInput where the two were made in different circumstances.
    """
    differ = circumstances(before, after)
    told = (*differ.hardware, *differ.software, *differ.contract)
    if told and not across_machines:
        raise BadInput(
            f"{before.folder} and {after.folder} were measured in different circumstances: {'; '.join(told)}. "
            "Times and bytes of the two say nothing of the code. Measure both in the same, or give --across-machines "
            "to compare what is exact, and ratios to the baseline."
        )
    before, after = aligned(before, after)
    notes = [f"different {text}" for text in told]
    if told and not differ.alike:
        notes.append("peak memory and operations are not compared: they repeat only in the same circumstances")
    findings = exact_findings(before, after, gate, alike=differ.alike)
    named_cells = names(before.results)
    for name in metric_names():
        metric = metrics()[name]
        if not metric.timed:
            continue
        timed, said = (_across if told else _timed)(before, after, name, gate)
        words: dict[Verdict, Verdict] = {} if metric.unit == "s" else {"slower": "more", "faster": "less"}
        findings += [
            replace(f, name=named_cells.get(f.subject, f.name), verdict=words.get(f.verdict, f.verdict)) for f in timed
        ]
        notes += said
    findings += _uncompared(findings, gate)
    gone, new = unmatched(before, after)
    keys = [set(run.results["key"]) for run in (before, after)]
    return Comparison(
        str(before.folder),
        str(after.folder),
        by_importance(findings),
        gone,
        new,
        tuple(notes),
        tuple(shifts(before, after)),
        len({f.subject for f in findings} & keys[0] & keys[1] & ok_keys(before) & ok_keys(after)),
        gate is not None,
    )


def _uncompared(findings: Sequence[Finding], gate: Gate | None) -> list[Finding]:
    """One finding per metric that has a threshold and was compared in no cell: it must not pass for that."""
    if gate is None:
        return []
    asked = dict(gate.thresholds)
    for override in gate.overrides:
        asked = {**override.thresholds, **asked}
    seen = {f.metric.split(" / ")[0] for f in findings}
    return [
        Finding(
            "all cells", "all cells", metric, None, None, "undecided", threshold=threshold,
            reason=f"no cell of both runs has a comparable {metric}",
        )
        for metric, threshold in asked.items()
        if metric not in seen
    ]  # fmt: skip


Sides = Mapping[str, tuple[Estimate, Estimate]]


def _both(before: Run, after: Run, column: str) -> tuple[Sides, set[str]]:
    """Estimates of both sides by key, from one fit, and the keys whose visits are the very same."""
    if column not in before.visits or column not in after.visits:
        return {}, set()
    shared = ok_keys(before) & ok_keys(after)
    parts = []
    for side, run in (("before ", before), ("after ", after)):
        part = run.visits.loc[run.visits["key"].isin(shared), ["key", "round", "process", "status", column]].copy()
        part["key"] = side + part["key"].astype(str)
        part["process"] = side + part["process"].astype(str)
        parts.append(part)
    found = estimates(pd.concat(parts, ignore_index=True), column)
    keys = [key for key in sorted(shared) if "before " + key in found and "after " + key in found]
    values = [run.visits.loc[run.visits["round"] > 0].groupby("key")[column].apply(list) for run in (before, after)]
    copies = {key for key in keys if values[0][key] == values[1][key]}
    return {key: (found["before " + key], found["after " + key]) for key in keys}, copies


def _timed(before: Run, after: Run, metric: str, gate: Gate | None) -> tuple[list[Finding], list[str]]:
    sides, copies = _both(before, after, metrics()[metric].column)
    if not sides:
        return [], []
    level = {key: b.level - a.level for key, (a, b) in sides.items()}
    by_operator: dict[str, list[float]] = {}
    for key in sides:
        by_operator.setdefault(key_parts(key).operator, []).append(level[key])
    removable = len(by_operator) >= FEWEST_OPERATORS
    common = median(median(values) for values in by_operator.values()) if removable else 0.0
    findings = []
    for key, (a, b) in sides.items():
        threshold = gate.threshold(metric, key) if gate else None
        own = _half(sides[key], len(sides))
        half = own if removable else math.hypot(own, _shared(sides[key]))
        findings.append(
            _finding(
                key, metric, math.exp(a.level), math.exp(b.level), level[key], common, half, threshold, key in copies
            )
        )
    said = []
    pair = next(iter(sides.values()))
    shared = _shared(pair)
    seen = [f.threshold for f in findings if f.threshold is not None]
    least = math.log1p(min(seen, default=DEFAULT_EFFECT)) / 2
    if (
        removable
        and abs(common) >= least
        and (math.isnan(shared) or abs(common) > shared or abs(common) > math.log(1.1))
    ):
        word = "more" if common > 0 else "less"
        text = (
            f"all cells take {word} {metric} by about the same factor ({math.exp(abs(common)):.3g} times): another "
            "machine, or another state of this one, rather than one operator. It is taken out of the verdicts; "
            "`attnbench gate` measures both sides in turns"
        )
        said.append(text)
        if common > 0:
            threshold = max(seen) if seen else None
            findings.append(
                Finding(
                    "all cells",
                    "all cells",
                    metric,
                    None,
                    None,
                    "undecided",
                    False,
                    math.exp(common),
                    threshold=threshold,
                    reason="a shift that all cells share",
                )
            )
    return findings, said


def _half(pair: tuple[Estimate, Estimate], cells: int) -> float:
    """Half the interval of log(after / before) from the cells' own variance, at 95 % for all cells together."""
    confidence = 1 - (1 - CONFIDENCE) / max(cells, 1)
    return math.sqrt(sum(quantile(e.own_freedom, confidence) ** 2 * e.own if e.own > 0 else e.own for e in pair))


def _shared(pair: tuple[Estimate, Estimate]) -> float:
    """Half the interval of what the processes of one side have in common; one event, however many cells there are."""
    return math.sqrt(sum(quantile(e.shared_freedom) ** 2 * e.shared if e.shared > 0 else e.shared for e in pair))


def _finding(
    key: str,
    metric: str,
    before: float,
    after: float,
    level: float,
    common: float,
    half: float,
    threshold: float | None,
    copied: bool,
) -> Finding:
    effect = math.log1p(DEFAULT_EFFECT if threshold is None else threshold)
    beyond = level - common
    verdict, reason = judge(beyond, half, effect)
    if copied:
        verdict, reason = "same", "the same measurements"
    elif math.isnan(half):
        reason = "one round: no interval; measure with more rounds"
    elif abs(common) > 0.005:
        reason += f"; beyond the {math.expm1(common):+.1%} that all cells share"
    low, high = (None, None) if math.isnan(half) else (math.exp(level - half), math.exp(level + half))
    detectable = None if copied or math.isnan(half) else math.expm1(max(half, effect / 2))
    worse = verdict == "slower" and threshold is not None
    return Finding(
        key,
        readable(key),
        metric,
        before,
        after,
        verdict,
        worse,
        math.exp(level),
        low,
        high,
        threshold,
        detectable,
        reason,
    )


def judge(level: float, half: float, effect: float) -> tuple[Verdict, str]:
    """The verdict on a log ratio with half its interval; effect: the log of the change that is looked for.

    Half of `effect` is the minimum: less is never called slower or faster, however sure.
    """
    least = effect / 2
    if math.isnan(half):
        return "undecided", "no interval"
    if abs(level) > half and abs(level) >= least:
        word: Verdict = "slower" if level > 0 else "faster"
        return (
            word,
            f"{math.expm1(abs(level)):.1%} is outside ±{math.expm1(half):.1%} and above {math.expm1(least):.1%}",
        )
    if abs(level) + half < effect or (half <= least and abs(level) < least):
        return "same", f"±{math.expm1(half):.1%} leaves no room for {math.expm1(effect):.1%}"
    return "undecided", f"±{math.expm1(half):.1%} leaves room for {math.expm1(effect):.1%}; measure more rounds"


def _across(before: Run, after: Run, metric: str, gate: Gate | None) -> tuple[list[Finding], list[str]]:
    """Times over the baseline's time at the same size, in which much of the machine cancels."""
    sides, _ = _both(before, after, metrics()[metric].column)
    bases = _baseline_keys(before)
    findings = []
    for key, (a, b) in sides.items():
        base = bases.get(key)
        if base is None or base == key or base not in sides:
            continue
        c, d = sides[base]
        threshold = gate.threshold(metric, key) if gate else None
        level = (b.level - d.level) - (a.level - c.level)
        half = math.hypot(_half((a, b), len(sides)), _half((c, d), len(sides)))
        found = _finding(
            key, metric, math.exp(a.level - c.level), math.exp(b.level - d.level), level, 0.0, half, threshold, False
        )
        findings.append(found)
    said = [f"{metric} is compared as a ratio to the baseline at the same size"] if findings else []
    return [replace(f, metric=f"{metric} / baseline") for f in findings], said


def _baseline_keys(run: Run) -> dict[str, str]:
    """By key, the baseline's key at the same size."""
    found: dict[str, str] = {}
    for panel in panels(run.results):
        reference = named(panel, run.baseline)
        if reference is None:
            continue
        for series in panel.series:
            for point in series.points:
                if point.label in reference.points:
                    found[point.key] = reference.points[point.label].key
    return found
