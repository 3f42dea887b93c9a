"""The search for one crossover: which sizes to measure, and when to stop. What measures is given to it.

Upward from the cheap end in steps of 4 until the ratio to the baseline changes side; then between the two, where the
interpolated ratio is 1; then on both sides of that place, as far away as the precision, so that whatever the ratio does
in between (a step, where a second thread or another kernel sets in) is within the interval. All that takes one round;
further rounds repeat the sizes around the crossing alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from attnbench.analysis.crossover import Crossing, Crossover, Pair, crossover
from attnbench.analysis.interval import ratio_half_width
from attnbench.units import count, percent

STEP = 4
"""Factor between the sizes on the way up."""

MOST_SIZES = 8
"""Sizes that one search measures."""

LEAST_APART = 0.03
"""Sizes are not placed closer together than this (relative): noise would be all that is seen between them."""

LEAST_ROUNDS = 3


class Prober(Protocol):
    """What a search measures with. Sizes are positions on the axis; the baseline is always measured beside a series."""

    def measure(self, series: str, size: int, round: int) -> None:
        """Makes the visits of a series and of its baseline at a size in a round, where they are missing."""

    def pairs(self, series: str) -> list[Pair]:
        """Every size measured so far, with all its rounds, ascending."""

    def once(self, series: str, size: int) -> Pair:
        """One call of each at a size: levels without intervals, or what became of them."""


@dataclass
class Search:
    """One series' search. low, high: sizes. allowed: the size nearest to a position that a problem can have.

    precision: half the width of the interval over its place at which the search stops. most_rounds: after which it
    stops without it. ended: why it stopped.
    beyond: the one call that was made further up: at `high` where nothing measured had crossed, else one step above the
    crossing, to see whether it crosses back.
    """

    series: str
    prober: Prober
    low: int
    high: int
    precision: float
    allowed: Callable[[float], int]
    most_rounds: int = 9
    sizes: list[int] = field(default_factory=list)
    around: list[int] = field(default_factory=list)
    rounds: int = 0
    ended: str = ""
    beyond: Pair | None = None

    def navigate(self) -> None:
        """The first round: finds the sizes around the crossing, or that there is none up to `high`."""
        self.rounds = 1
        bracket = self._gallop()
        if bracket is None:
            return
        self._close_in(*bracket)

    def again(self) -> None:
        """One more round of the sizes around the crossing, and of its place where it lies too far from all of them."""
        self.rounds += 1
        near = self.crossing()
        if near is not None and near.at is not None and self.precision < half_width(near) < math.inf:
            self._flank(near.at, nearest=self._apart**0.5)
        for size in self.around:
            self.prober.measure(self.series, size, self.rounds)

    def found(self) -> Crossover:
        """What is known now."""
        return crossover(self.prober.pairs(self.series))

    def done(self) -> bool:
        """Whether to stop, with the reason in `ended`."""
        if self.ended:
            return True
        if self.rounds < LEAST_ROUNDS:
            return False
        near = self.crossing()
        half = half_width(near) if near else math.inf
        if half <= self.precision:
            self.ended = f"precision reached after {count(self.rounds, 'round')}: ±{percent(half)}"
        elif self.rounds >= self.most_rounds:
            self.ended = f"not precise enough after {self.most_rounds} rounds: {self._why(half)}"
        return bool(self.ended)

    def crossing(self) -> Crossing | None:
        """The crossing nearest to the sizes that are repeated."""
        found = [c for c in self.found().crossings if c.direction != "within noise"]
        if not found or not self.around:
            return None
        middle = math.log(self.around[len(self.around) // 2])
        return min(found, key=lambda c: abs(math.log(c.at or c.low or c.high or 1) - middle))

    def warnings(self) -> list[str]:
        """What speaks against a single crossing."""
        measured = [p for p in self.prober.pairs(self.series) if not self.beyond or p.size < self.beyond.size]
        known = [*measured, *([self.beyond] if self.beyond else [])]
        gaps = [(p.label, gap) for p in known if (gap := side(p)) is not None]
        finite = [(label, gap) for label, gap in gaps if math.isfinite(gap)]
        turns = [
            label
            for (_, a), (label, b), (_, c) in zip(finite, finite[1:], finite[2:], strict=False)
            if (b - a) * (c - b) < 0 and min(abs(b - a), abs(c - b)) > 0.1
        ]
        said = [f"the ratio turns round at {label}: it may cross again between measured sizes" for label in turns]
        changes = sum((a < 0) != (b < 0) for (_, a), (_, b) in pairwise(gaps))
        return said + ([f"the ratio crosses {changes} times"] if changes > 1 else [])

    def _visit(self, size: int) -> float | None:
        if size not in self.sizes:
            self.sizes = sorted([*self.sizes, size])
        self.prober.measure(self.series, size, self.rounds)
        return side(next(p for p in self.prober.pairs(self.series) if p.size == size))

    def _gallop(self) -> tuple[int, int] | None:
        """Neighbouring sizes with the crossing between them."""
        size = self.low
        first = self._visit(size)
        last = size
        while first is not None and self.allowed(size * STEP) < self.high and len(self.sizes) < MOST_SIZES - 3:
            size = self.allowed(size * STEP)
            gap = self._visit(size)
            if gap is None:
                break
            if (gap < 0) != (first < 0):
                if size < self.high:
                    self.beyond = self.prober.once(self.series, min(self.allowed(size * STEP), self.high))
                return last, size
            last = size
        if first is None:
            self.ended = "cannot be compared at the smallest size"
            return None
        self.beyond = self.prober.once(self.series, self.high)
        gap = side(self.beyond)
        if gap is not None and (gap < 0) != (first < 0):
            return last, self.high
        told = "one call there agrees" if gap is not None else "it cannot be called there"
        self.ended = f"no crossing up to {last}; at {self.high} {told}"
        return None

    def _close_in(self, a: int, b: int) -> None:
        """Measures where the ratio should be 1, twice, then on both sides of that."""
        for _ in range(2):
            middle = self._place(a, b)
            gap = self._visit(middle) if len(self.sizes) < MOST_SIZES else None
            if gap is None:
                break
            left = side(self._pair(a))
            a, b = (middle, b) if left is not None and (gap < 0) == (left < 0) else (a, middle)
            if b / a < self._apart**2:
                break
        self._flank(self._place(a, b))

    @property
    def _apart(self) -> float:
        return 1 + max(self.precision, LEAST_APART)

    def _flank(self, centre: float, nearest: float = 1.0) -> None:
        """Sees to it that there are sizes close to a place on either side, and repeats those around it from now on.

        nearest: a size that is closer than by this factor is none to one side.
        """
        for step in (1 / self._apart, self._apart):
            wanted = self.allowed(centre * step)
            factors = [size / centre if step > 1 else centre / size for size in self.sizes]
            there = any(nearest <= factor <= self._apart**1.5 for factor in factors)
            if not there and self.low <= wanted <= self.high and len(self.sizes) < MOST_SIZES:
                self._visit(wanted)
        ordered = sorted(self.sizes, key=lambda s: abs(math.log(s / centre)))
        self.around = sorted(s for s in ordered[:4] if abs(math.log(s / centre)) < math.log(STEP))

    def _pair(self, size: int) -> Pair:
        found = next((p for p in self.prober.pairs(self.series) if p.size == size), None)
        return found or self.prober.once(self.series, size)

    def _place(self, a: int, b: int) -> int:
        """Where a straight line in log-log crosses; the middle where one end has no ratio. Not one of the ends."""
        left, right = side(self._pair(a)), side(self._pair(b))
        share = 0.5
        if left is not None and right is not None and math.isfinite(left - right) and left != right:
            share = min(max(left / (left - right), 0.1), 0.9)
        return self.allowed(math.exp(math.log(a) + share * math.log(b / a)))

    def _why(self, half: float) -> str:
        if math.isinf(half):
            return "the crossing lies at the edge of what was measured, or nowhere"
        pairs = [p for p in self.prober.pairs(self.series) if p.size in self.around and side(p) is not None]
        slope = (
            abs(_gap(pairs[-1]) - _gap(pairs[0])) / math.log(pairs[-1].size / pairs[0].size) if len(pairs) > 1 else 0
        )
        scatter = max((ratio_half_width(p.series, p.baseline) for p in pairs if p.series and p.baseline), default=0.0)
        return (
            f"±{percent(half)}; here the ratio grows or falls {2**slope:.2f}-fold per doubling, "
            f"and is known to ±{percent(math.expm1(scatter))}"
        )


def side(pair: Pair) -> float | None:
    """The log ratio to the baseline, infinite where one side alone has run; None where neither tells."""
    if pair.series is not None and pair.baseline is not None:
        return _gap(pair)
    if pair.beyond_baseline:
        return -math.inf
    return math.inf if pair.beyond_series else None


def _gap(pair: Pair) -> float:
    return pair.series.level - pair.baseline.level if pair.series and pair.baseline else math.nan


def half_width(found: Crossing) -> float:
    """Half a crossing's interval, relative; infinite where it is open."""
    if found.low is None or found.high is None:
        return math.inf
    return math.sqrt(found.high / found.low) - 1


def search(searches: Sequence[Search], next_round: Callable[[int], None]) -> None:
    """Runs searches side by side: each round is one set of fresh processes, shared by all. next_round: begins one."""
    next_round(1)
    for each in searches:
        each.navigate()
    while active := [each for each in searches if not each.done()]:
        next_round(active[0].rounds + 1)
        for each in active:
            each.again()
