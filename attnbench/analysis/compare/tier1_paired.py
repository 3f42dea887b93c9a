"""Tier 1: a group-sequential paired test. Pairs of processes are added, one of each side, until every cell is decided.

A cell's time in a process is its fastest sample. Both sides sample the same call equally often, so that a minimum falls
with the number of samples cancels; recorded pairs vary, in variance, 0.6 as much as by lowest deciles.

Model of one pair: log(after / before) of a cell = its effect + pair + own. `pair` is the luck of the two processes and
concerns all cells alike; `own` is what is left for one cell. Both variances come from all cells and pairs; own ones are
moderated by those of the other cells (`analysis.interval.moderate`).

The looks are fixed beforehand. At each, a cell is
    slower  where its interval lies above half its threshold, or where the interval of its change relative to the median
            of its block does and the change itself is at least half the threshold: the pair's luck cancels in that;
    faster  where its interval lies below minus half the threshold;
    same    where its interval lies below the threshold;
and only cells that are none of these are measured further. The interval's lower end errs in ALPHA of suites, over all
looks (`analysis.looks`) and cells (Bonferroni; half of it each for the change and for the relative one), its upper end
in BETA of cells, over all looks. Holm's steps gain nothing: a suite has few slower cells among many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtrit

from attnbench.analysis.compare.findings import Finding, Verdict, readable
from attnbench.analysis.distributions import Floats
from attnbench.analysis.looks import confidence_at
from attnbench.analysis.moderation import moderate
from attnbench.units import count

LOOKS = (5, 8, 12, 18, 27, 40, 60, 90, 135, 200, 300)
"""Pairs of processes after which is decided, half as many more each time. With fewer than five the variances of unlike
cells are not known well enough to be moderated. The last are for a cell that varies by 20 % from pair to pair."""

ALPHA = 0.01
"""Suites in which a cell is called slower that is not, by half its threshold."""

BETA = 0.05
"""Cells slower by their threshold that are called the same."""

UNGATED = 0.05
"""The slow-down that is looked for in a cell without a threshold."""

LEAST_THRESHOLD = 0.001

WIDEST = 5.0
"""Half of an interval, in logs; a wider one is none."""

COMPANY = 3
"""Other cells of a pair whose median stands for its luck, at least."""


def looks_until(most: int | None) -> tuple[int, ...]:
    """The looks of a gate. most: pairs, at least 2; None: as many as LOOKS has."""
    return LOOKS if most is None else (*(n for n in LOOKS if n < most), most)


@dataclass(frozen=True)
class Change:
    """What the pairs say of one cell, in logs of after / before.

    Args:
        level: the change.
        low, high: its interval; see the module. All three are nan or infinite where there are too few pairs.
        relative, relative_low: the same against the median of its block; nan where that has too few cells.
    """

    level: float
    low: float
    high: float
    relative: float
    relative_low: float

    def verdict(self, threshold: float) -> Verdict:
        """What is concluded. threshold: the slow-down that is to be found, a fraction."""
        limit = math.log1p(max(threshold, LEAST_THRESHOLD))
        if self.low > limit / 2 or (self.level >= limit / 2 and self.relative_low > limit / 2):
            return "slower"
        if not self.high < limit:
            return "undecided"
        return "faster" if 2 * self.level - self.low < -limit / 2 else "same"

    def detectable(self, threshold: float) -> float:
        """The slow-down, a fraction, that the same pairs call slower in 1 - BETA of cases. threshold: see `verdict`."""
        by_itself, beside = self.level - self.low, self.relative - self.relative_low
        above = self.high - self.level
        half, share = (beside, beside / by_itself) if beside < by_itself else (by_itself, 1.0)
        shift = max(half + share * above, above)
        return math.expm1(min(math.log1p(max(threshold, LEAST_THRESHOLD)) / 2 + shift, WIDEST))

    def __str__(self) -> str:
        interval = f"{math.expm1(self.level):+.1%} [{math.expm1(self.low):+.1%}, {math.expm1(self.high):+.1%}]"
        against = f"; {math.expm1(self.relative):+.1%} [from {math.expm1(self.relative_low):+.1%}] against its block"
        return interval + (against if self.relative_low > self.low else "")


@dataclass(frozen=True)
class Spread:
    """Variances of one pair, [cells]: own ones with their degrees of freedom; what all cells of a pair have in common,
    0 for a cell whose own variance includes it, with one number for its freedom."""

    own: Floats
    own_freedom: Floats
    shared: Floats
    shared_freedom: float


def spread(logs: Floats) -> Spread:
    """The noise of pairs. logs: [pairs, cells] of after / before; nan where a cell was not measured.

    The offset of a pair is the weighted mean of its cells' residuals; its variance, less what the residuals give it, is
    the shared one (method of moments, pairs weighted by their precision). A cell that alone has at least the freedom
    that all together give it, as when the others have stopped, is judged by its own pairs.
    """
    known = ~np.isnan(logs)
    pairs = np.maximum(known.sum(axis=0), 1)
    residuals = np.where(known, logs - np.where(known, logs, 0).sum(axis=0) / pairs, 0)
    alone = (residuals**2).sum(axis=0) / np.maximum(pairs - 1, 1)
    own, freedom = alone, np.zeros(len(pairs))
    shared = shared_freedom = 0.0
    weight = np.ones(len(pairs))
    for _ in range(2):  # again with less weight for noisy cells
        weights = known * weight
        precision = np.maximum(weights.sum(axis=1), 1e-300)
        offset = (weights * residuals).sum(axis=1) / precision
        left = np.where(known, residuals - offset[:, None], 0)
        share = (known * (1 - weights / precision[:, None])).sum(axis=0) * (1 - 1 / pairs)
        estimated = share > 0.5
        if not estimated.any():
            break
        variance = np.where(estimated, (left**2).sum(axis=0) / np.maximum(share, 0.5), 0)
        own, freedom = moderate(variance, np.where(estimated, share, 0))
        weight = 1 / np.maximum(own, 1e-12)
    else:
        several = known.sum(axis=1) > 1
        precision = (known * weight).sum(axis=1)[several]
        excess = offset[several] ** 2 - (1 - 1 / len(logs)) / precision
        shared_freedom = float(precision.sum() ** 2 / (precision**2).sum()) - 1
        if shared_freedom > 0:
            shared = max(float((precision * excess).sum() / precision.sum()) * (1 + 1 / shared_freedom), 0.0)
    by_itself = (pairs - 1 >= freedom) | (shared_freedom <= 0)
    return Spread(
        np.where(by_itself, alone, own),
        np.where(by_itself, pairs - 1, freedom),
        np.where(by_itself, 0.0, shared),
        max(shared_freedom, 1.0),
    )


def _critical(freedom: Floats | float, error: float, looks: tuple[int, ...]) -> Floats:
    """Student's t of a bound at each look, such that those of all looks together err by `error`."""
    at_each = (1 - confidence_at(looks, 1 - 2 * error)) / 2
    return np.asarray(stdtrit(np.minimum(freedom, 1e9), 1 - at_each), dtype=np.float64)


def changes(logs: Floats, blocks: Sequence[object], looks: tuple[int, ...], decisions: int) -> list[Change]:
    """What pairs say of each cell.

    Args:
        logs: [pairs, cells] of after / before; nan where a cell was not measured.
        blocks: of each cell.
        looks: all that the gate takes.
        decisions: of the gate: its cells, over all metrics.
    """
    noise, pairs = spread(logs), (~np.isnan(logs)).sum(axis=0)
    alpha = ALPHA / 2 if len(blocks) > COMPANY else ALPHA

    def half(own_error: float, shared_error: float) -> Floats:
        own = _critical(np.maximum(noise.own_freedom, 1), own_error, looks) ** 2 * noise.own
        shared = _critical(noise.shared_freedom, shared_error, looks) ** 2 * noise.shared
        width = np.sqrt((own + shared) / np.maximum(pairs, 1))
        return np.where((pairs > 1) & (width < WIDEST), width, math.inf)

    below, above = half(alpha / decisions, alpha), half(BETA, BETA)
    of_cells = []
    for cell, values in enumerate(logs.T):
        level = float(values[~np.isnan(values)].mean()) if pairs[cell] else math.nan
        apart = relative(logs, company(blocks, cell), cell)
        middle = least = math.nan
        if len(apart) > 2:
            middle = float(apart.mean())
            error = float(apart.std(ddof=1)) / math.sqrt(len(apart))
            least = middle - float(_critical(len(apart) - 1, alpha / decisions, looks)) * error
        of_cells.append(Change(level, level - float(below[cell]), level + float(above[cell]), middle, least))
    return of_cells


def company(blocks: Sequence[object], cell: int) -> list[int]:
    """The cells whose median stands for a pair's luck: the others of its block, or of all where these are too few."""
    others = [other for other in range(len(blocks)) if other != cell]
    near = [other for other in others if blocks[other] == blocks[cell]]
    return near if len(near) >= COMPANY else others


def relative(logs: Floats, others: Sequence[int], cell: int) -> Floats:
    """A cell's logs less the median of its company, in the pairs that have both."""
    near = np.sort(logs[:, others], axis=1)  # nan last
    known = (~np.isnan(near)).sum(axis=1)
    rows = np.flatnonzero((known >= COMPANY) & ~np.isnan(logs[:, cell]))
    middle = (near[rows, (known[rows] - 1) // 2] + near[rows, known[rows] // 2]) / 2
    return np.asarray(logs[rows, cell] - middle, dtype=np.float64)


@dataclass(frozen=True)
class Decided:
    """A cell's verdict, by which change, and what slow-down would have been detected."""

    verdict: Verdict
    change: Change
    detectable: float


@dataclass
class PairedTest:
    """The decision on one metric, look by look.

    Args:
        metric: its name.
        thresholds: by key; None: not gated. Such a cell is judged by UNGATED, and no pair is added for it.
        blocks: of each key, in the same order.
        looks: pairs after which is decided.
        decisions: of the gate: its cells, over all metrics.
    """

    metric: str
    thresholds: Mapping[str, float | None]
    blocks: Sequence[object]
    looks: tuple[int, ...]
    decisions: int
    decided: dict[str, Decided] = field(default_factory=dict)
    _kept: set[str] = field(default_factory=set)

    def is_open(self, key: str) -> bool:
        """Whether more pairs may decide a cell; one of which no pair gave a time is given up."""
        decided = self.decided.get(key)
        return decided is None or (decided.verdict == "undecided" and not math.isnan(decided.change.level))

    @property
    def measured(self) -> list[str]:
        """The keys that the next pairs measure; none: all that have a threshold are decided."""
        if not any(threshold is not None and self.is_open(key) for key, threshold in self.thresholds.items()):
            return []
        return [key for key in self.thresholds if self.is_open(key) or key in self._kept]

    def look(self, logs: Floats) -> None:
        """Decides what can be decided. logs: [pairs, keys] of after / before; nan where a cell was not measured."""
        measured = self.measured
        current = dict(zip(self.thresholds, changes(logs, self.blocks, self.looks, self.decisions), strict=True))
        for key in filter(self.is_open, self.thresholds):
            threshold = self.thresholds[key]
            effect = UNGATED if threshold is None else threshold
            self.decided[key] = Decided(current[key].verdict(effect), current[key], current[key].detectable(effect))
        steady = [key for key in measured if self.decided[key].verdict == "same"]
        self._keep(sorted(steady, key=lambda key: current[key].high - current[key].level))

    def _keep(self, steady: Sequence[str]) -> None:
        """Lets some of the cells that are the same go on as company, where the luck of pairs hides what is open.

        Args:
            steady: the keys to choose from, the least noisy first.
        """
        self._kept = set()
        keys = list(self.thresholds)
        for cell, key in enumerate(keys):
            change = self.decided[key].change
            if self.is_open(key) and change.relative - change.relative_low < change.level - change.low:
                near = [keys[other] for other in company(self.blocks, cell)]
                missing = COMPANY - sum(self.is_open(other) or other in self._kept for other in near)
                spare = [other for other in steady if other in near and other not in self._kept]
                self._kept.update(spare[: max(missing, 0)])

    def findings(self, before: Floats, after: Floats) -> list[Finding]:
        """One for each cell. before, after: seconds, [pairs, keys]; nan where there is no time."""
        both = np.isfinite(np.log(after / before))
        return [
            self._finding(key, before[both[:, cell], cell], after[both[:, cell], cell])
            for cell, key in enumerate(self.thresholds)
        ]

    def _finding(self, key: str, before: Floats, after: Floats) -> Finding:
        """Of one cell. before, after: seconds of the pairs that have both."""
        decided, threshold, pairs = self.decided[key], self.thresholds[key], len(before)
        low, level, high = (math.exp(x) for x in (decided.change.low, decided.change.level, decided.change.high))
        known = math.isfinite(high)
        reason = f"{decided.change} in {count(pairs, 'pair')}" if known else f"no interval from {count(pairs, 'pair')}"
        return Finding(
            subject=key,
            name=readable(key),
            metric=self.metric,
            before=float(np.exp(np.log(before).mean())) if pairs else None,
            after=float(np.exp(np.log(after).mean())) if pairs else None,
            verdict=decided.verdict,
            regression=decided.verdict == "slower" and threshold is not None,
            ratio=level if pairs else None,
            low=low if known else None,
            high=high if known else None,
            threshold=threshold,
            detectable=decided.detectable if known else None,
            reason=reason if pairs else "no pair of processes gave a time on both sides",
        )
