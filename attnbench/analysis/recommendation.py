"""What to use at each size: every series of a panel that cannot be told from the fastest.

A series stays where for no other one the interval of their ratio lies above 1, one-sided and at once for all that stay:
multiple comparisons with the best (Hsu 1996, "Multiple Comparisons: Theory and Methods", section 4.2), with the
quantile of Bonferroni in place of Dunnett, as variances and freedoms differ, and again among those that are left until
none goes (Hansen, Lunde and Nason 2011, "The Model Confidence Set"). So 95 % of the sets hold the truly fastest.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from attnbench.analysis.baseline import computes_nothing, is_exact
from attnbench.analysis.interval import Estimate
from attnbench.analysis.metric_values import Quantity
from attnbench.analysis.series import Panel, Series


@dataclass(frozen=True)
class Choice:
    """A series at one size. time_s: seconds; memory_bytes: None where not measured; exact: softmax attention itself."""

    series: Series
    time_s: float
    memory_bytes: float | None
    exact: bool


@dataclass(frozen=True)
class Recommendation:
    """The choice at one size.

    Attributes:
        size, label: the size, as a number and as shown.
        choices: all that cannot be told from the fastest, exact ones first, then by memory; from one round that alone.
        fastest: the one of them with the least time.
        exact: the fastest exact softmax; None where none ran.
        speed_up: of `fastest` over the fastest exact softmax, without what choosing the fastest added to it; None
            without `exact`, and where that is the fastest.
        low, high: its interval, at once for all of `choices` and all that might be the fastest exact softmax; None
            without `speed_up`; nan from one round.
    """

    size: int
    label: str
    choices: tuple[Choice, ...]
    fastest: Choice
    exact: Choice | None
    speed_up: float | None = None
    low: float | None = None
    high: float | None = None


def recommendations(panel: Panel, measured: Sequence[Quantity], exact: Collection[str]) -> list[Recommendation]:
    """One per size at which any series ran; identity is a bound, not a choice.

    Args:
        panel: the comparable series.
        measured: the metrics with figures; the first time decides, and the first memory stands beside it.
        exact: operators that compute softmax attention itself.
    """
    time, memory = (next((q for q in measured if q.metric.role == role), None) for role in ("time", "memory"))
    rows: list[Recommendation] = []
    if time is None:
        return rows
    for label, size in panel.sizes.items():
        candidates = []
        for series in panel.series:
            point = series.at(label)
            if point and point.key in time.levels and not computes_nothing(series):
                memory_bytes = memory.values.get(point.key) if memory else None
                choice = Choice(series, time.values[point.key], memory_bytes, is_exact(series, exact))
                candidates.append((time.levels[point.key], choice))
        if candidates:
            rows.append(choose(size, label, sorted(candidates, key=lambda c: c[0].level)))
    return rows


_Candidate = tuple[Estimate, Choice]


def choose(size: int, label: str, candidates: Sequence[_Candidate]) -> Recommendation:
    """candidates: the fastest first."""
    chosen = not_told_apart(candidates)
    ordered = sorted((c for _, c in chosen), key=lambda c: (not c.exact, c.memory_bytes or math.inf, c.time_s))
    (level, fastest), exact = candidates[0], [candidate for candidate in candidates if candidate[1].exact]
    result = Recommendation(size, label, tuple(ordered), fastest, exact[0][1] if exact else None)
    if not exact or fastest.exact:
        return result
    rivals = [other for other, _ in not_told_apart(exact)]
    own, *halves = (_half(each, 1 / (len(chosen) * len(rivals))) for each in (level, *rivals))
    gains = [other.level - level.level for other in rivals]
    low, high = (min(g + side * math.hypot(own, h) for g, h in zip(gains, halves, strict=True)) for side in (-1, 1))
    gain = gains[0] - _luck([level for level, _ in chosen])
    gain = gain if math.isnan(low) else min(max(gain, low), high)
    return replace(result, speed_up=math.exp(gain), low=math.exp(low), high=math.exp(high))


def least_level(levels: Sequence[Estimate]) -> Estimate:
    """The least of the levels of a block as a level of its own: without what choosing it took off, and of a confidence
    that all which cannot be told from it have together."""
    chosen = [level for level, _ in not_told_apart([(each, each) for each in sorted(levels, key=lambda e: e.level)])]
    confidence = 1 - (1 - chosen[0].confidence) / len(chosen)
    return replace(chosen[0], level=chosen[0].level + _luck(chosen), confidence=confidence)


_Any = TypeVar("_Any")


def not_told_apart(candidates: Sequence[tuple[Estimate, _Any]]) -> Sequence[tuple[Estimate, _Any]]:
    """Those that are slower than no other beyond the interval of their ratio; from one round the first."""
    if any(not level.has_interval for level, _ in candidates):
        return candidates[:1]
    share = 2 / max(2, len(candidates) - 1)  # of the two-sided α: the intervals are one-sided
    ends = [(level.level, _half(level, share)) for level, _ in candidates]
    rest = [
        candidate
        for candidate, (level, half) in zip(candidates, ends, strict=True)
        if all(level - other <= math.hypot(half, its) for other, its in ends)
    ]
    return rest if len(rest) == len(candidates) else not_told_apart(rest)


def _half(level: Estimate, share: float) -> float:
    """Half the interval of a level within its block that takes a share of the α of an interval alone."""
    return replace(level, confidence=1 - share * (1 - level.confidence)).own_half_width


def _luck(levels: Sequence[Estimate]) -> float:
    """By how much the least level lies below its truth because it was chosen for being the least.

    Levels that cannot be told apart are drawn to their mean as far as noise explains how they differ: the positive-part
    estimator of Efron and Morris 1973, "Stein's Estimation Rule and Its Competitors", section 2, toward the mean.

    Args:
        levels: of the set, the least first.
    """
    mean = sum(e.level for e in levels) / len(levels)
    spread = sum((e.level - mean) ** 2 for e in levels)
    noise = sum(e.own for e in levels) * (len(levels) - 1) / len(levels)
    return (mean - levels[0].level) * min(1.0, noise / spread) if spread > 0 else 0.0
