"""Two stored runs, cell by cell: what got faster, what slower, and what cannot be told apart.

Stored runs were measured one after the other, and a shared machine's state moves in between, for one cell more than for
another. The rounds of either run say nothing of that. So a change of a time is the code's only where it stands out of
  - what its block changed by, the median over the other operators that were measured in turns with it (contract 3), in
    which what the machine did to the block cancels;
  - and how the changes of all cells scatter around that.
Else it is undecided. `attnbench gate` measures both sides in turns and needs neither.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from attnbench.analysis.compare.crossover_shift import shifts
from attnbench.analysis.compare.findings import Comparison, Finding, Verdict, by_importance, names, readable
from attnbench.analysis.compare.matching import aligned, ok_keys, unmatched
from attnbench.analysis.compare.same_machine import differences
from attnbench.analysis.compare.tier0_exact import exact_findings, not_repeating
from attnbench.analysis.distributions import Floats, t_quantile
from attnbench.analysis.interval import WIDEST, Estimate, estimates, half_width, in_turns, ratio_half_width
from attnbench.analysis.metric_values import metric_names
from attnbench.errors import BadInput
from attnbench.problem import block_of, key_parts
from attnbench.registry import metrics
from attnbench.store.records import SUITE
from attnbench.thresholds import Gate
from attnbench.units import percent

if TYPE_CHECKING:
    from attnbench.analysis.run import Run

DEFAULT_EFFECT = 0.05
"""The change that a comparison without thresholds looks for."""

FALSE_ALARMS = 0.01
"""The share of comparisons of equal runs in which any cell may be called slower, or faster."""

FEWEST_OTHERS = 3
"""Operators beside its own in a cell's block, without which what the machine did cannot be told: of two, the one that
changed would move the median."""

SCATTER_FREEDOM = 0.82
"""Degrees of freedom per cell of the standard deviation from `_scatter`: its efficiency."""

MUCH = math.log(1.1)
"""A change of a whole block that is worth a line even where the rounds of both runs differ as much."""

ALL_CELLS = "all cells"

Sides = Mapping[str, tuple[Estimate, Estimate]]
"""By key, the levels before and after."""


def compare(before: Run, after: Run, gate: Gate | None = None, *, across_machines: bool = False) -> Comparison:
    """The comparison of two runs by cell.

    Args:
        gate: the thresholds that decide a build; None: nothing is decided.
        across_machines: compare what is exact, and times beside the others of their blocks.

    Raises: BadInput where the two were made in different circumstances.
    """
    circumstances = differences(before, after)
    texts = (*circumstances.hardware, *circumstances.software, *circumstances.contract)
    if texts and not across_machines:
        raise BadInput(
            f"{before.folder} and {after.folder} were measured in different circumstances: {'; '.join(texts)}. "
            "Times and bytes of the two say nothing of the code. Measure both in the same, or give --across-machines "
            "to compare what is exact, and times beside the others of their blocks."
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
            timed, more = _timed(before, after, metric, gate)
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
        suite=str(after.folder / SUITE),
        devices=None if circumstances.hardware else _unlike(before, after, findings),
    )


def _unlike(before: Run, after: Run, findings: Sequence[Finding]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The ids of the devices that timed either run, where any times are compared and these are not the same."""
    sides = []
    for run in (before, after):
        timed = run.visits[(run.visits["round"] > 0) & (run.visits["status"] == "ok")]
        sides.append(tuple(sorted({str(each) for each in timed.get("device_id", ()) if isinstance(each, str)} - {""})))
    compared = any(finding.metric in metrics() and metrics()[finding.metric].timed for finding in findings)
    return (sides[0], sides[1]) if compared and all(sides) and sides[0] != sides[1] else None


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
        ALL_CELLS, ALL_CELLS, metric, None, None, "undecided", ratio=ratio, threshold=threshold, reason=reason
    )


def levels_of_both(before: pd.DataFrame, after: pd.DataFrame, column: str) -> Sides:
    """Estimates of both sides by key, from one fit, as sure as all keys together need.

    Args:
        before, after: visits.
        column: a positive quantity.
    """
    keys = sorted({*before["key"]} & {*after["key"]})
    parts = []
    for side, visits in (("before ", before), ("after ", after)):
        part = visits[visits["key"].isin(keys)]
        parts.append(part.assign(key=side + part["key"], process=side + part["process"].astype(str)))
    confidence = 1 - FALSE_ALARMS / max(len(keys), 1)
    levels = estimates(pd.concat(parts, ignore_index=True), column, confidence, sides=True)
    pairs = {key: (levels.get("before " + key), levels.get("after " + key)) for key in keys}
    return {key: (a, b) for key, (a, b) in pairs.items() if a is not None and b is not None}


def standing_out(sides: Sides, *, turns: bool) -> dict[str, tuple[float | None, float]]:
    """By key, in logs, what of its change is the machine's (None: that cannot be told), and half an interval around it.

    Args:
        turns: whether the cells of a block were measured in turns.
    """
    references = _references(sides) if turns else {}
    apart = np.array([_change(sides[key]) - reference for key, (reference, _) in references.items()])
    freedom, confidence = SCATTER_FREEDOM * len(apart), 1 - FALSE_ALARMS / len(sides)
    scatter = t_quantile(freedom, confidence) * _scatter(apart) if len(apart) else 0.0
    known = {key: references.get(key, (None, 0.0)) for key in sides}
    return {
        key: (reference, max(math.hypot(ratio_half_width(*sides[key]), noise), scatter))
        for key, (reference, noise) in known.items()
    }


def _scatter(values: Floats) -> float:
    """The standard deviation of most of some values, which less than half of them, however far away, do not move.

    Q_n of Rousseeuw and Croux 1993, "Alternatives to the Median Absolute Deviation", with their factors for few values.
    """
    count, half = len(values), len(values) // 2 + 1
    apart = np.abs(values[:, None] - values)[np.triu_indices(count, 1)]
    order = half * (half - 1) // 2
    return 2.2219 * float(np.partition(apart, order - 1)[order - 1]) * count / (count + (1.4 if count % 2 else 3.8))


def _references(sides: Sides) -> dict[str, tuple[float, float]]:
    """By key, what its block changed by and half the interval of that: the median over the other operators.

    Missing where the block has too few of them.
    """
    blocks: dict[str, dict[str, list[str]]] = {}
    for key in sides:
        blocks.setdefault(block_of(key), {}).setdefault(key_parts(key).operator, []).append(key)
    references = {}
    for block in blocks.values():
        changes = {name: median(_change(sides[key]) for key in keys) for name, keys in block.items()}
        for name, keys in block.items():
            others = [other for other in block if other != name]
            if len(others) >= FEWEST_OTHERS:
                halves = [ratio_half_width(*sides[block[other][0]]) for other in others]
                half = math.sqrt(math.pi / 2) * math.hypot(*halves) / len(others)  # of a median
                references.update(dict.fromkeys(keys, (median(changes[other] for other in others), half)))
    return references


def _change(pair: tuple[Estimate, Estimate]) -> float:
    return pair[1].level - pair[0].level


def _timed(before: Run, after: Run, metric: str, gate: Gate | None) -> tuple[list[Finding], list[str]]:
    """Findings of one metric, and a note on what the two runs can show."""
    column, shared = metrics()[metric].column, ok_keys(before) & ok_keys(after)
    if column not in before.visits or column not in after.visits:
        return [], []
    a, b = (
        run.visits[run.visits["key"].isin(shared) & (run.visits["round"] > 0) & run.visits[column].notna()]
        for run in (before, after)
    )
    sides = levels_of_both(a, b, column)
    if not sides:
        return [], []
    measured = standing_out(sides, turns=in_turns(after.visits))
    figures, others = (visits.groupby("key")[column].apply(sorted) for visits in (a, b))
    measured |= {key: (0.0, 0.0) for key in sides if figures[key] == others[key]}
    findings = [
        _finding(key, metric, pair, *measured[key], gate.threshold(metric, key) if gate else None)
        for key, pair in sides.items()
    ]
    references = {key: reference for key, (reference, _) in measured.items() if reference is not None}
    shift = _shift(sides, references, metric, [f.threshold for f in findings if f.threshold is not None])
    return [*findings, *shift], [_shown(findings, metric)]


def _shift(sides: Sides, references: Mapping[str, float], metric: str, thresholds: Collection[float]) -> list[Finding]:
    """One finding where all cells of a block share more than half of the least threshold, and than rounds explain."""
    least = math.log1p(min(thresholds, default=DEFAULT_EFFECT)) / 2
    clear = []
    for key, reference in references.items():
        rounds = half_width(sides[key][0].confidence, *((e.shared, e.shared_freedom) for e in sides[key]))
        if abs(reference) >= least and not abs(reference) <= min(rounds, MUCH):
            clear.append(reference)
    if not clear:
        return []
    most = max(clear, key=abs)
    reason = (
        f"all cells of a block take {'more' if most > 0 else 'less'} {metric} by about the same factor: another state "
        "of the machine, rather than one operator, and left out of the verdicts; `attnbench gate` measures in turns"
    )
    return [_of_all_cells(metric, max(thresholds, default=None), reason, math.exp(most))]


def _shown(findings: Collection[Finding], metric: str) -> str:
    """The sentence on what two runs can show."""
    visible = sorted(f.detectable for f in findings if f.detectable is not None)
    if all(f.verdict == "same" for f in findings) and not visible:
        return f"{metric}: both runs are the same measurements"
    if not visible:
        return (
            f"{metric}: made one after the other, these runs do not tell a change from what the machine did meanwhile; "
            "`attnbench gate` does"
        )
    span = " to ".join(dict.fromkeys(percent(visible[i]) for i in (0, -1)))
    return (
        f"{metric}: made one after the other, these runs show what one cell changed beside the others of its block, of "
        f"{span} or more; what all share only `attnbench gate` shows"
    )


def _finding(
    key: str,
    metric: str,
    pair: tuple[Estimate, Estimate],
    reference: float | None,
    half: float,
    threshold: float | None,
) -> Finding:
    """The finding of one cell.

    Args:
        pair: before and after.
        reference, half: as in `standing_out`; nan half: from one round; 0: both are the same measurements.
        threshold: the gate's, a fraction; None: not gated.
    """
    change = _change(pair)
    effect = math.log1p(DEFAULT_EFFECT if threshold is None else threshold)
    verdict, reason = judge(change - (reference or 0.0), half, effect)
    if half == 0:
        reason = "the same measurements"
    elif math.isnan(half):
        reason = "one round: no interval; measure with more rounds"
    elif reference is None:
        verdict, reason = "undecided", "not told from what the machine did between the two runs"
    elif abs(reference) > 0.005:
        reason += f"; beyond the {math.expm1(reference):+.1%} that its block shares"
    known = reference is not None and not math.isnan(half)
    return Finding(
        subject=key,
        name=readable(key),
        metric=metric,
        before=math.exp(pair[0].level),
        after=math.exp(pair[1].level),
        verdict=verdict,
        regression=verdict == "slower" and threshold is not None,
        ratio=math.exp(change),
        low=math.exp(change - half) if known else None,
        high=math.exp(min(change + half, WIDEST)) if known else None,
        threshold=threshold,
        detectable=math.expm1(min(max(half, effect / 2), WIDEST)) if known and half > 0 else None,
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
    width, room = percent(math.expm1(min(half, WIDEST))), f"{math.expm1(effect):.1%}"
    if abs(level) > half and abs(level) >= least:
        beyond = f"{math.expm1(abs(level)):.1%} is outside ±{width} and above {math.expm1(least):.1%}"
        return "slower" if level > 0 else "faster", beyond
    if abs(level) + half < effect or (half <= least and abs(level) < least):
        return "same", f"±{width} leaves no room for {room}"
    return "undecided", f"±{width} leaves room for {room}"
