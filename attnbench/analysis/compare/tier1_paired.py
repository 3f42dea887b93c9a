"""Tier 1: the decision on interleaved pairs of processes, the power that it promises, and how many pairs that takes.

Model of one pair: log(after / before) of a cell = its effect + pair + own. `pair` is the luck of the two processes and
concerns all cells alike; `own` is what is left for one cell. Both variances are estimated over all cells and pairs by
`analysis.interval`, a cell's own moderated by the others'.

The plan is fixed before the first pair is measured. Stage 1 measures `pairs` pairs of all cells and marks what is
slower with FIRST false alarms per suite; stage 2 measures what was marked once more, in as many fresh pairs, with
CONFIRM. A false alarm needs both, so there are at most FIRST · CONFIRM of them per suite, and a slow-down is found with
the product of the two powers. Nothing is ever measured until it is significant.

Cells are corrected for by Bonferroni on their own part; the pair's part is one event for all cells, and is not. Both
parts keep their own t quantile and their squared half widths add up, as in `analysis.interval`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import chdtri, ndtr, ndtri, stdtrit

from attnbench.analysis.compare.findings import Finding, Verdict, readable
from attnbench.analysis.interval import Estimate, estimates
from attnbench.thresholds import Gate
from attnbench.units import count

TURNS = 6
"""Visits of a cell by each side in a pair of processes; the fastest is what the pair says.

What else runs on a machine only adds time, and for about a second at a time; visits that lie apart do not all meet it.
On a shared 2-core machine a cell's noise from pair to pair was 17 % with 1 visit, 6 % with 3, 3 % with 6 and with 8.
"""

FEWEST_VISITS = 24
"""Visits that each side makes in a pair at least; few cells, which are soon gone through, take more turns."""

FIRST = 0.05
"""False alarms of stage 1 per suite, one-sided."""

CONFIRM = 0.1
"""The same of stage 2. Together 0.5 %: half of what is promised, for what the model does not know."""

POWER = 0.8
"""How surely a slow-down of the threshold is found, both stages together."""

POWER_TWICE = 0.95
"""How surely one of twice the threshold is found."""

DECIDED = 0.99
"""How surely a cell that is as slow as before is called the same, and not undecided."""

FEWEST_PAIRS, MOST_PAIRS = 4, 60

UNGATED = 0.05
"""The slow-down that is looked for in a cell without a threshold."""

ASSUMED_SD = 0.04
"""Of one process's luck in log time where no calibration says better: that of a shared 2-core machine."""


@dataclass(frozen=True)
class Noise:
    """Standard deviations of one pair's log ratio.

    Args:
        own: by key.
        shared: of what all cells of a pair have in common.
        pairs: from how many it was estimated; 0: assumed.
    """

    own: Mapping[str, float]
    shared: float
    pairs: int

    @property
    def typical(self) -> float:
        """The own noise that four cells in five stay below."""
        return float(np.quantile(list(self.own.values()), 0.8)) if self.own else ASSUMED_SD * math.sqrt(2)


ASSUMED = Noise({}, ASSUMED_SD * math.sqrt(2), 0)


@dataclass(frozen=True)
class Power:
    """What a plan promises.

    Args:
        pairs: of processes, in each stage.
        cells: that are compared.
        effect: a slow-down, a fraction.
        power: how surely it is found.
    """

    pairs: int
    cells: int
    effect: float
    power: float


def pair_estimates(pairs: pd.DataFrame) -> dict[str, Estimate]:
    """By key, the log ratio after / before.

    Args:
        pairs: columns key, pair, before, after (seconds); one row per pair and cell.
    """
    usable = pairs[(pairs["before"] > 0) & (pairs["after"] > 0)]
    as_visits = pd.DataFrame(
        {
            "key": usable["key"],
            "round": usable["pair"] + 1,
            "process": usable["pair"],
            "status": "ok",
            "ratio": usable["after"] / usable["before"],
        }
    )
    return estimates(as_visits, "ratio")


def noise(pairs: pd.DataFrame) -> Noise:
    """The noise from pairs of one revision against itself."""
    known = {key: e for key, e in pair_estimates(pairs).items() if e.has_interval}
    shared = max((e.shared * e.rounds for e in known.values()), default=math.nan)
    return Noise(
        {key: math.sqrt(e.own * e.rounds) for key, e in known.items()}, math.sqrt(shared), int(pairs["pair"].nunique())
    )


def critical(e: Estimate, false_alarms: float, cells: int) -> float:
    """What a log ratio must exceed to be called slower, minimum effect apart; nan from one pair."""
    if not e.has_interval:
        return math.nan
    own = float(stdtrit(min(e.own_freedom, 1e9), 1 - false_alarms / cells)) ** 2 * e.own if e.own > 0 else 0.0
    shared = float(stdtrit(min(e.shared_freedom, 1e9), 1 - false_alarms)) ** 2 * e.shared if e.shared > 0 else 0.0
    return math.sqrt(own + shared)


def smallest_seen(e: Estimate, threshold: float, false_alarms: float, cells: int, power: float = POWER) -> float:
    """The smallest slow-down (a fraction) that this estimate finds with `power`; nan from one pair."""
    least = max(critical(e, false_alarms, cells), math.log1p(threshold) / 2)
    return math.expm1(least + float(ndtri(power)) * math.sqrt(e.own + e.shared))


def is_seen(smallest: float, threshold: float) -> bool:
    """Whether a slow-down of the threshold is at least the smallest that is seen, but for rounding."""
    return smallest <= threshold * 1.0001


def verdict(e: Estimate, threshold: float, false_alarms: float, cells: int) -> tuple[Verdict, str]:
    """The verdict of one stage on one cell, and why.

    Args:
        e: the cell's log ratio.
        threshold: the slow-down that is to be found, a fraction.
        false_alarms: of the stage, per suite.
        cells: of the stage.
    """
    limit = critical(e, false_alarms, cells)
    least = math.log1p(threshold) / 2
    if math.isnan(limit):
        return "undecided", "one pair has no interval"
    change, bound = math.expm1(e.level), f"±{math.expm1(limit):.1%}"
    if abs(e.level) > limit and abs(e.level) >= least:
        return (
            "slower" if e.level > 0 else "faster",
            f"{change:+.1%} is outside {bound} for {count(cells, 'cell')}, and at least {math.expm1(least):.1%}",
        )
    smallest = smallest_seen(e, threshold, false_alarms, cells)
    # A slow-down of the threshold would have been found, or is excluded by the interval itself.
    if is_seen(smallest, threshold) or e.level + limit < math.log1p(threshold):
        return "same", f"{change:+.1%} is within {bound}; {smallest:.1%} would have been found"
    return "undecided", f"{change:+.1%} within {bound}; only {smallest:.1%} would have been found, not {threshold:.1%}"


def decide(first: pd.DataFrame, second: pd.DataFrame | None, gate: Gate, metric: str) -> list[Finding]:
    """The findings of both stages on one metric, one per cell.

    A cell that stage 1 marks and stage 2 does not is the same: the plan says so before it is measured.

    Args:
        first: the pairs of stage 1, as `pair_estimates` takes them.
        second: those of stage 2, of the marked cells; None: there was none.
        gate: thresholds; a cell without one is judged by UNGATED, and never fails.
    """
    levels = pair_estimates(first)
    confirming = pair_estimates(second) if second is not None and len(second) else {}
    findings = []
    for key, e in levels.items():
        threshold = gate.threshold(metric, key)
        effect = UNGATED if threshold is None else threshold
        word, reason = verdict(e, effect, FIRST, len(levels))
        if word == "slower" and threshold is not None:
            word, confirmation = _confirmed(confirming.get(key), threshold, len(confirming))
            reason = f"{reason}; {confirmation}"
        limit = critical(e, FIRST, len(levels))
        low, high = (None, None) if math.isnan(limit) else (math.exp(e.level - limit), math.exp(e.level + limit))
        detectable = smallest_seen(e, effect, FIRST, len(levels))
        findings.append(
            Finding(
                subject=key,
                name=readable(key),
                metric=metric,
                before=_centre(first, key, "before"),
                after=_centre(first, key, "after"),
                verdict=word,
                regression=word == "slower" and threshold is not None,
                ratio=math.exp(e.level),
                low=low,
                high=high,
                threshold=threshold,
                detectable=None if math.isnan(detectable) else detectable,
                reason=reason,
            )
        )
    return findings


def _confirmed(again: Estimate | None, threshold: float, cells: int) -> tuple[Verdict, str]:
    """The verdict on a marked cell by stage 2, and why.

    Args:
        again: the log ratio in fresh processes; None where these gave no time.
        cells: of stage 2.
    """
    if again is None:
        return "undecided", "not confirmed: its fresh processes gave no time"
    limit = critical(again, CONFIRM, cells)
    slower = again.level > limit and again.level >= math.log1p(threshold) / 2
    change = f"{math.expm1(again.level):+.1%} in fresh processes, ±{math.expm1(limit):.1%}"
    return ("slower", f"confirmed: {change}") if slower else ("same", f"not confirmed: {change}")


def marked(first: pd.DataFrame, gate: Gate, metric: str) -> list[str]:
    """The keys that stage 2 must measure again. first: pairs as `pair_estimates` takes them."""
    levels = pair_estimates(first)
    thresholds = {key: gate.threshold(metric, key) for key in levels}
    return [
        key
        for key, threshold in thresholds.items()
        if threshold is not None and verdict(levels[key], threshold, FIRST, len(levels))[0] == "slower"
    ]


def _centre(pairs: pd.DataFrame, key: str, side: str) -> float:
    return float(np.exp(np.log(pairs.loc[pairs["key"] == key, side]).mean()))


def power(pairs: int, cells: int, effect: float, threshold: float, own: float, shared: float) -> float:
    """How surely both stages find a slow-down of `effect` in one cell. own, shared: standard deviations of one pair."""
    both = 1.0
    for false_alarms in (FIRST, CONFIRM):
        e = Estimate(
            0.0, own**2 / pairs, max((pairs - 1) * (cells - 1), pairs - 1), shared**2 / pairs, pairs - 1, pairs
        )
        least = max(critical(e, false_alarms, cells), math.log1p(threshold) / 2)
        both *= float(ndtr((math.log1p(effect) - least) / math.sqrt(e.own + e.shared))) if e.own + e.shared else 1.0
    return both


def pairs_for(
    thresholds: Mapping[str, float], cells: int, noise: Noise, pairs: int | None = None
) -> tuple[int, Power, Power]:
    """How many pairs each stage takes, and what they promise.

    Args:
        thresholds: by key, of the gated ones among `cells`. A cell that MOST_PAIRS would not decide is not waited for.
        cells: that are compared.
        pairs: of each stage; None: the fewest that find the smallest threshold in a typical cell with POWER and twice
            it with POWER_TWICE, and that leave no cell undecided, but at most MOST_PAIRS.

    Returns: the pairs, and with which power they find the smallest threshold and twice it.
    """
    own, shared, threshold = noise.typical, noise.shared, min(thresholds.values())
    pairs = pairs or _fewest_pairs(thresholds, cells, noise)
    once, twice = (
        Power(pairs, cells, effect, power(pairs, cells, effect, threshold, own, shared))
        for effect in (threshold, 2 * threshold)
    )
    return pairs, once, twice


def _fewest_pairs(thresholds: Mapping[str, float], cells: int, noise: Noise) -> int:
    own, shared, threshold = noise.typical, noise.shared, min(thresholds.values())
    pairs = FEWEST_PAIRS
    while pairs < MOST_PAIRS and not (
        power(pairs, cells, threshold, threshold, own, shared) >= POWER
        and power(pairs, cells, 2 * threshold, threshold, own, shared) >= POWER_TWICE
    ):
        pairs += 1
    for key, limit in thresholds.items():
        noisy = noise.own.get(key, own)
        if decided(MOST_PAIRS, cells, limit, noisy, shared):
            pairs = next(n for n in range(pairs, MOST_PAIRS + 1) if decided(n, cells, limit, noisy, shared))
    return pairs


def decided(pairs: int, cells: int, threshold: float, own: float, shared: float) -> bool:
    """Whether stage 1 would see a slow-down of the threshold even if the noise looked as large as it does in one of
    hundred plans: then a cell that is not marked is the same. own, shared: standard deviations of one pair."""
    looks = float(chdtri(pairs, 1 - DECIDED)) / pairs
    e = Estimate(0.0, looks * own**2 / pairs, pairs, shared**2 / pairs, pairs - 1, pairs)
    return is_seen(smallest_seen(e, threshold, FIRST, cells), threshold)


def smallest_change(pairs: int, cells: int, threshold: float, own: float, shared: float, wanted: float) -> float:
    """The smallest slow-down (a fraction) that `pairs` pairs per stage find with `wanted` power, by bisection."""
    low, high = 0.0, 10.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if power(pairs, cells, middle, threshold, own, shared) >= wanted else (middle, high)
    return high
