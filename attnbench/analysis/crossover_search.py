"""The search for one crossover: which sizes to measure, and when to stop; a `Prober` measures them.

The first round goes up from the smallest size in steps of 4 until the ratio to the baseline crosses 1; then it measures
between the two, where the interpolated ratio is 1; then on both sides of that place, at the distance of the precision,
so that a step of the ratio in between (a second thread, another kernel) lies between two close sizes. Further rounds
repeat only the sizes around the crossing, and halve a bracket that is still too wide.
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

MOST_SIZES = 12
"""The most sizes that one search measures."""

LEAST_APART = 0.03
"""The least relative distance of two sizes; closer ones would differ by noise alone."""

LEAST_ROUNDS = 3


class Prober(Protocol):
    """Measures sizes (positions on the axis) for a search, always a series and its baseline together."""

    def measure(self, series: str, size: int, round: int) -> None:
        """Measures a series and its baseline at a size in a round, where those visits are missing."""

    def pairs(self, series: str) -> list[Pair]:
        """Every measured size with all its rounds, ascending."""

    def once(self, series: str, size: int) -> Pair:
        """One call of each at a size: levels without intervals, or their statuses."""


@dataclass
class Search:
    """The search of one series.

    Attributes:
        series: its name.
        prober: measures.
        low, high: the range of sizes.
        precision: half the relative width of the interval at which the search stops.
        allowed: a position → the nearest size that a problem can have.
        most_rounds: after which the search stops in any case.
        sizes: measured so far, ascending.
        around: those that further rounds repeat.
        rounds: measured so far.
        ended: why the search stopped; empty while it runs.
        beyond: a single call above: at `high` where no measured size has crossed, else one step above the crossing, to
            see whether the ratio crosses back.
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
        """One more round of the sizes around the crossing, with new sizes where it is too far from all of them."""
        self.rounds += 1
        near = self.crossing()
        if near is None:
            self._add(self.sizes[-1] * self._apart**2)
        elif self.precision < half_width(near) < math.inf:
            self._flank(centre(near), nearest=self._apart**0.5) if near.at else self._add(centre(near))
        for size in self.around:
            self.prober.measure(self.series, size, self.rounds)

    def crossover(self) -> Crossover:
        """The crossover from all sizes measured so far."""
        return crossover(self.prober.pairs(self.series))

    def is_done(self) -> bool:
        """Whether to stop; sets the reason in `ended`."""
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
        """The crossing nearest to the sizes that are repeated; None where there is none."""
        crossings = self.crossover().crossings
        if not crossings or not self.around:
            return None
        middle = self.around[len(self.around) // 2]
        return min(crossings, key=lambda c: abs(math.log(centre(c) / middle)))

    def warnings(self) -> list[str]:
        """Observations that contradict a single crossing, as sentences."""
        measured = [p for p in self.prober.pairs(self.series) if not self.beyond or p.size < self.beyond.size]
        pairs = [*measured, *([self.beyond] if self.beyond else [])]
        gaps = [(p.label, gap) for p in pairs if (gap := side(p)) is not None]
        finite = [(label, gap) for label, gap in gaps if math.isfinite(gap)]
        turns = [
            label
            for (_, a), (label, b), (_, c) in zip(finite, finite[1:], finite[2:], strict=False)
            if (b - a) * (c - b) < 0 and min(abs(b - a), abs(c - b)) > 0.1
        ]
        texts = [f"the ratio reverses at {label}: it may cross again between measured sizes" for label in turns]
        changes = sum((a < 0) != (b < 0) for (_, a), (_, b) in pairwise(gaps))
        return texts + ([f"the ratio crosses {changes} times"] if changes > 1 else [])

    def _visit(self, size: int) -> float | None:
        if size not in self.sizes:
            self.sizes = sorted([*self.sizes, size])
        self.prober.measure(self.series, size, self.rounds)
        return side(next(p for p in self.prober.pairs(self.series) if p.size == size))

    def _gallop(self) -> tuple[int, int] | None:
        """Goes up in steps. Returns neighbouring sizes with the crossing between them, or None."""
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
            self.ended = "not comparable at the smallest size"
            return None
        self.beyond = self.prober.once(self.series, self.high)
        gap = side(self.beyond)
        if gap is not None and (gap < 0) != (first < 0):
            return last, self.high
        top = "one call agrees" if gap is not None else "it cannot be called"
        self.ended = f"no crossing up to {last}; at {self.high} {top}"
        return None

    def _close_in(self, a: int, b: int) -> None:
        """Measures where the interpolated ratio is 1, twice, then on both sides of that place."""
        for _ in range(2):
            middle = self._place(a, b)
            gap = self._visit(middle) if len(self.sizes) < MOST_SIZES else None
            if gap is None:
                break
            lower_gap = side(self._pair(a))
            a, b = (middle, b) if lower_gap is not None and (gap < 0) == (lower_gap < 0) else (a, middle)
            if b / a < self._apart**2:
                break
        self._flank(self._place(a, b))

    @property
    def _apart(self) -> float:
        return 1 + max(self.precision, LEAST_APART)

    def _flank(self, place: float, nearest: float = 1.0) -> None:
        """Measures sizes close to a place on either side where there are none; further rounds repeat those around it.

        Args:
            place: a size of any kind.
            nearest: the least factor between the place and a size that counts as lying to one side.
        """
        for step in (1 / self._apart, self._apart):
            size_beside = self.allowed(place * step)
            factors = [size / place if step > 1 else place / size for size in self.sizes]
            is_flanked = any(nearest <= factor <= self._apart**1.5 for factor in factors)
            if not is_flanked and self.low <= size_beside <= self.high and len(self.sizes) < MOST_SIZES:
                self._visit(size_beside)
        self._repeat_around(place)

    def _add(self, place: float) -> None:
        """Measures at a place: inside a bracket, or further up, where the ratio is not told from 1 around its crossing.

        Further rounds repeat the sizes around it.
        """
        size = min(self.allowed(place), self.high)
        if len(self.sizes) < MOST_SIZES and size not in self.sizes:
            self._visit(size)
        self._repeat_around(size)

    def _repeat_around(self, place: float) -> None:
        ordered = sorted(self.sizes, key=lambda s: abs(math.log(s / place)))
        self.around = sorted(s for s in ordered[:4] if abs(math.log(s / place)) < math.log(STEP))

    def _pair(self, size: int) -> Pair:
        pair = next((p for p in self.prober.pairs(self.series) if p.size == size), None)
        return pair or self.prober.once(self.series, size)

    def _place(self, a: int, b: int) -> int:
        """Where a straight line in log-log crosses 1, strictly between two sizes; the middle where one has no ratio."""
        lower, upper = side(self._pair(a)), side(self._pair(b))
        share = 0.5
        if lower is not None and upper is not None and math.isfinite(lower - upper) and lower != upper:
            share = min(max(lower / (lower - upper), 0.1), 0.9)
        return self.allowed(math.exp(math.log(a) + share * math.log(b / a)))

    def _why(self, half: float) -> str:
        near = self.crossing()
        if near is None or math.isinf(half):
            return "the crossing lies at the edge of the sizes at which the ratio is told from 1, or nowhere"
        if near.bracket:
            return f"±{percent(half)}; the ratio jumps somewhere between {near.low:.0f} and {near.high:.0f}"
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
    """The log ratio to the baseline; infinite where only one of the two ran; None where it is unknown."""
    if pair.series is not None and pair.baseline is not None:
        return _gap(pair)
    if pair.beyond_baseline:
        return -math.inf
    return math.inf if pair.beyond_series else None


def _gap(pair: Pair) -> float:
    return pair.series.level - pair.baseline.level if pair.series and pair.baseline else math.nan


def centre(crossing: Crossing) -> float:
    """Where a crossing is; of a bracket the middle."""
    return crossing.at or math.sqrt((crossing.low or 1) * (crossing.high or 1))


def half_width(crossing: Crossing) -> float:
    """Half a crossing's interval, relative; infinite where it is open."""
    if crossing.low is None or crossing.high is None:
        return math.inf
    return math.sqrt(crossing.high / crossing.low) - 1


def search(searches: Sequence[Search], next_round: Callable[[int], None]) -> None:
    """Runs searches together: the processes of a round serve all of them. next_round: begins the round of a number."""
    next_round(1)
    for each in searches:
        each.navigate()
    while active := [each for each in searches if not each.is_done()]:
        next_round(active[0].rounds + 1)
        for each in active:
            each.again()
