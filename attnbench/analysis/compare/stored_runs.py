"""Two stored runs, cell by cell: what got faster, what slower, and what cannot be told apart.

Stored runs were measured one after the other, and a shared machine's state moves in between. What moved in common is
therefore estimated over the operators (the median of their medians), noted, and taken out; a cell is called slower for
what it did beyond the others. With fewer than three operators nothing can be taken out: then process offsets widen
every interval instead. `attnbench gate` interleaves the two sides and needs neither.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

import pandas as pd

from attnbench.analysis.baseline import named
from attnbench.analysis.compare.crossover_shift import shifts
from attnbench.analysis.compare.findings import Comparison, Finding, Verdict, by_importance, names, readable
from attnbench.analysis.compare.matching import aligned, ok_keys, unmatched
from attnbench.analysis.compare.same_machine import differences
from attnbench.analysis.compare.tier0_exact import exact_findings, not_repeating
from attnbench.analysis.distributions import CONFIDENCE, t_quantile
from attnbench.analysis.interval import Estimate, estimates
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
"""With fewer, what all cells share cannot be told from what one operator does."""

ALL_CELLS = "all cells"

Sides = Mapping[str, tuple[Estimate, Estimate]]
"""By key, the levels before and after."""


def compare(before: Run, after: Run, gate: Gate | None = None, *, across_machines: bool = False) -> Comparison:
    """The comparison of two runs by cell.

    Args:
        gate: the thresholds that decide a build; None: nothing is decided.
        across_machines: compare what is exact, and times as ratios to the baseline.

    Raises: BadInput where the two were made in different circumstances.
    """
    circumstances = differences(before, after)
    texts = (*circumstances.hardware, *circumstances.software, *circumstances.contract)
    if texts and not across_machines:
        raise BadInput(
            f"{before.folder} and {after.folder} were measured in different circumstances: {'; '.join(texts)}. "
            "Times and bytes of the two say nothing of the code. Measure both in the same, or give --across-machines "
            "to compare what is exact, and ratios to the baseline."
        )
    before, after = aligned(before, after)
    notes = [f"different {text}" for text in texts]
    if texts and not circumstances.alike:
        notes.append(not_repeating())
    findings = exact_findings(before, after, gate, alike=circumstances.alike)
    compared = {finding.metric for finding in findings}
    cell_names = names(before.results)
    for metric in metric_names():
        if metrics()[metric].timed:
            timed, more = (_across if texts else _timed)(before, after, metric, gate)
            findings += [_worded(finding, metric, cell_names) for finding in timed]
            compared |= {metric} if timed else set()
            notes += more
    findings += _uncompared(compared, gate)
    missing, new = unmatched(before, after)
    return Comparison(
        before=str(before.folder),
        after=str(after.folder),
        findings=by_importance(findings),
        missing=missing,
        new=new,
        notes=tuple(notes),
        shifts=tuple(shifts(before, after)),
        measured=len({finding.subject for finding in findings} & ok_keys(before) & ok_keys(after)),
        gated=gate is not None,
    )


def _worded(finding: Finding, metric: str, cell_names: Mapping[str, str]) -> Finding:
    """A finding with its cell's name, and with the words of an amount where the metric is no time."""
    amounts: dict[Verdict, Verdict] = {"slower": "more", "faster": "less"}
    verdict = finding.verdict if metrics()[metric].unit == "s" else amounts.get(finding.verdict, finding.verdict)
    return replace(finding, name=cell_names.get(finding.subject, finding.name), verdict=verdict)


def _uncompared(compared: Collection[str], gate: Gate | None) -> list[Finding]:
    """One finding per metric that has a threshold and was compared in no cell: it must not pass for that."""
    if gate is None:
        return []
    thresholds = dict(gate.thresholds)
    for override in gate.overrides:
        thresholds = {**override.thresholds, **thresholds}
    return [
        _of_all_cells(metric, threshold, f"no cell of both runs has a comparable {metric}")
        for metric, threshold in thresholds.items()
        if metric not in compared
    ]


def _of_all_cells(metric: str, threshold: float | None, reason: str, ratio: float | None = None) -> Finding:
    return Finding(
        subject=ALL_CELLS,
        name=ALL_CELLS,
        metric=metric,
        before=None,
        after=None,
        verdict="undecided",
        ratio=ratio,
        threshold=threshold,
        reason=reason,
    )


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
    levels = estimates(pd.concat(parts, ignore_index=True), column)
    sides = {
        key: (levels["before " + key], levels["after " + key])
        for key in sorted(shared)
        if "before " + key in levels and "after " + key in levels
    }
    values = [run.visits.loc[run.visits["round"] > 0].groupby("key")[column].apply(list) for run in (before, after)]
    return sides, {key for key in sides if values[0][key] == values[1][key]}


def _timed(before: Run, after: Run, metric: str, gate: Gate | None) -> tuple[list[Finding], list[str]]:
    """Findings of one metric, with what all cells share taken out of the verdicts, and a note where that is much."""
    sides, copies = _both(before, after, metrics()[metric].column)
    if not sides:
        return [], []
    by_operator: dict[str, list[float]] = {}
    for key, (a, b) in sides.items():
        by_operator.setdefault(key_parts(key).operator, []).append(b.level - a.level)
    removable = len(by_operator) >= FEWEST_OPERATORS
    common = median(median(changes) for changes in by_operator.values()) if removable else 0.0
    findings = []
    for key, (a, b) in sides.items():
        half = _half((a, b), len(sides))
        findings.append(
            _finding(
                key,
                metric,
                levels=(a.level, b.level),
                common=common,
                half=half if removable else math.hypot(half, _shared((a, b))),
                threshold=gate.threshold(metric, key) if gate else None,
                copied=key in copies,
            )
        )
    thresholds = [finding.threshold for finding in findings if finding.threshold is not None]
    least = math.log1p(min(thresholds, default=DEFAULT_EFFECT)) / 2
    shared = _shared(next(iter(sides.values())))
    clear = math.isnan(shared) or abs(common) > shared or abs(common) > math.log(1.1)
    if not (removable and abs(common) >= least and clear):
        return findings, []
    if common > 0:
        threshold = max(thresholds) if thresholds else None
        findings.append(_of_all_cells(metric, threshold, "a shift that all cells share", math.exp(common)))
    note = (
        f"all cells take {'more' if common > 0 else 'less'} {metric} by about the same factor "
        f"({math.exp(abs(common)):.3g} times): another machine, or another state of this one, rather than one "
        "operator. It is taken out of the verdicts; `attnbench gate` measures both sides in turns"
    )
    return findings, [note]


def _half(pair: tuple[Estimate, Estimate], cells: int) -> float:
    """Half the interval of log(after / before) from the cells' own variance, at 95 % for all cells together."""
    confidence = 1 - (1 - CONFIDENCE) / max(cells, 1)
    return math.sqrt(sum(t_quantile(e.own_freedom, confidence) ** 2 * e.own if e.own > 0 else e.own for e in pair))


def _shared(pair: tuple[Estimate, Estimate]) -> float:
    """Half the interval of what the processes of one side have in common; one event, however many cells there are."""
    return math.sqrt(sum(t_quantile(e.shared_freedom) ** 2 * e.shared if e.shared > 0 else e.shared for e in pair))


def _finding(
    key: str,
    metric: str,
    *,
    levels: tuple[float, float],
    common: float,
    half: float,
    threshold: float | None,
    copied: bool,
) -> Finding:
    """The finding of one cell.

    Args:
        levels: before and after, in logs.
        common: of their difference, what all cells share.
        half: half the interval of their difference; nan from one round.
        threshold: the gate's, a fraction; None: not gated.
        copied: whether both sides are the same measurements.
    """
    change = levels[1] - levels[0]
    effect = math.log1p(DEFAULT_EFFECT if threshold is None else threshold)
    verdict, reason = judge(change - common, half, effect)
    if copied:
        verdict, reason = "same", "the same measurements"
    elif math.isnan(half):
        reason = "one round: no interval; measure with more rounds"
    elif abs(common) > 0.005:
        reason += f"; beyond the {math.expm1(common):+.1%} that all cells share"
    low, high = (None, None) if math.isnan(half) else (math.exp(change - half), math.exp(change + half))
    return Finding(
        subject=key,
        name=readable(key),
        metric=metric,
        before=math.exp(levels[0]),
        after=math.exp(levels[1]),
        verdict=verdict,
        regression=verdict == "slower" and threshold is not None,
        ratio=math.exp(change),
        low=low,
        high=high,
        threshold=threshold,
        detectable=None if copied or math.isnan(half) else math.expm1(max(half, effect / 2)),
        reason=reason,
    )


def judge(level: float, half: float, effect: float) -> tuple[Verdict, str]:
    """The verdict on a log ratio, and why.

    Args:
        level: the log ratio.
        half: half its interval; nan: there is none.
        effect: the log of the change that is looked for. Half of it is the minimum: less is never called slower or
            faster, however sure.
    """
    least = effect / 2
    if math.isnan(half):
        return "undecided", "no interval"
    if abs(level) > half and abs(level) >= least:
        return (
            "slower" if level > 0 else "faster",
            f"{math.expm1(abs(level)):.1%} is outside ±{math.expm1(half):.1%} and above {math.expm1(least):.1%}",
        )
    if abs(level) + half < effect or (half <= least and abs(level) < least):
        return "same", f"±{math.expm1(half):.1%} leaves no room for {math.expm1(effect):.1%}"
    return "undecided", f"±{math.expm1(half):.1%} leaves room for {math.expm1(effect):.1%}; measure more rounds"


def _across(before: Run, after: Run, metric: str, gate: Gate | None) -> tuple[list[Finding], list[str]]:
    """Figures over the baseline's at the same size, in which much of the machine cancels, with a note that says so."""
    sides, _ = _both(before, after, metrics()[metric].column)
    baselines = _baseline_keys(before)
    findings = []
    for key, (a, b) in sides.items():
        baseline = baselines.get(key)
        if baseline is None or baseline == key or baseline not in sides:
            continue
        c, d = sides[baseline]
        finding = _finding(
            key,
            metric,
            levels=(a.level - c.level, b.level - d.level),
            common=0.0,
            half=math.hypot(_half((a, b), len(sides)), _half((c, d), len(sides))),
            threshold=gate.threshold(metric, key) if gate else None,
            copied=False,
        )
        findings.append(replace(finding, metric=f"{metric} / baseline", relative=True))
    return findings, [f"{metric} is compared as a ratio to the baseline at the same size"] if findings else []


def _baseline_keys(run: Run) -> dict[str, str]:
    """By key, the baseline's key at the same size."""
    keys: dict[str, str] = {}
    for panel in panels(run.results):
        reference = named(panel, run.baseline)
        if reference is not None:
            for point in (point for series in panel.series for point in series.points):
                if point.label in reference.points:
                    keys[point.key] = reference.points[point.label].key
    return keys
