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
        place: how a size is told: of an image both sides.
        sizes: measured so far, ascending.
        around: those that further rounds repeat.
        rounds: the last one.
        ended: why the search stopped; empty while it runs.
        is_precise: whether that is because the answer is precise.
        beyond: a single call, mostly above: at `high` where no measured size has crossed, else one step above the
            crossing, to see whether the ratio crosses back.
        end: the end of the range that is measured because no size has crossed; None where none is.
    """

    series: str
    prober: Prober
    low: int
    high: int
    precision: float
    allowed: Callable[[float], int]
    most_rounds: int = 9
    place: Callable[[float], str] = "{:.0f}".format
    sizes: list[int] = field(default_factory=list)
    around: list[int] = field(default_factory=list)
    rounds: int = 0
    ended: str = ""
    is_precise: bool = False
    beyond: Pair | None = None
    end: int | None = None

    @property
    def every_size(self) -> set[int]:
        """Those at which anything was called."""
        return {*self.sizes, *([self.beyond.size] if self.beyond else [])}

    @property
    def gaps(self) -> dict[int, float]:
        """By measured size, ascending, the log ratio as `side`, where it is known."""
        return {p.size: gap for p in self.prober.pairs(self.series) if (gap := side(p)) is not None}

    def navigate(self) -> None:
        """The first round: finds the sizes around the crossing, or that there is none up to `high`."""
        self.rounds = 1
        bracket = self._gallop()
        if bracket is None:
            return
        self._close_in(*bracket)

    def again(self, round: int) -> None:
        """One more round of the sizes around the crossing, with new sizes where it is too far from all of them."""
        self.rounds = round
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

    def is_done(self, rounds: int) -> bool:
        """Whether to stop; sets the reason in `ended`.

        A precision that was reached is looked at again: rounds of other searches change what noise is known to be.

        Args:
            rounds: so far, of all searches.
        """
        if self.ended and not self.is_precise:
            return True
        if self.rounds < LEAST_ROUNDS:
            return False
        near = self.crossing()
        half = half_width(near) if near else math.inf
        has_none = self.end is not None and self.crossover().kind in ("always", "never")
        is_narrowest = near is not None and near.bracket and self.allowed(centre(near)) in (near.low, near.high)
        self.is_precise, self.ended = has_none or is_narrowest or half <= self.precision, ""
        if has_none:
            low, high, end = map(self.place, (self.low, self.high, self.end or self.high))
            self.ended = f"no crossing from {low} to {high}: measured at {end}"
        elif half <= self.precision:
            self.ended = f"precision reached after {count(self.rounds, 'round')}: ±{percent(half)}"
        elif is_narrowest:
            self.ended = f"no size lies between the two beside the crossing: ±{percent(half)}"
        elif rounds >= self.most_rounds:
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
        calls = {self.beyond.size: self.beyond} if self.beyond else {}
        pairs = sorted({**calls, **{p.size: p for p in self.prober.pairs(self.series)}}.values(), key=lambda p: p.size)
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

    def visit(self, size: int) -> float | None:
        """Measures a size in this round. Returns the log ratio, as `side`."""
        if size not in self.sizes:
            self.sizes = sorted([*self.sizes, size])
        self.prober.measure(self.series, size, self.rounds)
        return self.gaps.get(size)

    def _gallop(self) -> tuple[int, int] | None:
        """Goes up in steps. Returns neighbouring sizes with the crossing between them, or None."""
        size = self.low
        first = self.visit(size)
        last = size
        while first is not None and self.allowed(size * STEP) < self.high and len(self.sizes) < MOST_SIZES - 3:
            size = self.allowed(size * STEP)
            gap = self.visit(size)
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
        self.ended = f"no crossing up to {self.place(last)}; at {self.place(self.high)} {top}"
        return None

    def _close_in(self, a: int, b: int) -> None:
        """Measures where the interpolated ratio is 1, twice, then on both sides of that place."""
        for _ in range(2):
            middle = self._place(a, b)
            gap = self.visit(middle) if len(self.sizes) < MOST_SIZES else None
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

    @property
    def width(self) -> float:
        """The factor between two sizes that are as close as the precision asks, if the crossing lies between them."""
        return self._apart**2

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
                self.visit(size_beside)
        self.repeat_around(place)

    def _add(self, place: float) -> None:
        """Measures at a place: inside a bracket, or further up, where the ratio is not told from 1 around its crossing.

        Further rounds repeat the sizes around it.
        """
        size = min(self.allowed(place), self.high)
        if len(self.sizes) < MOST_SIZES and size not in self.sizes:
            self.visit(size)
        self.repeat_around(size)

    def repeat_around(self, place: float) -> None:
        """Further rounds repeat the sizes nearest to a place."""
        ordered = sorted(self.sizes, key=lambda s: abs(math.log(s / place)))
        self.around = sorted(s for s in ordered[:4] if abs(math.log(s / place)) < math.log(STEP))

    def _pair(self, size: int) -> Pair:
        pair = next((p for p in self.prober.pairs(self.series) if p.size == size), None)
        return pair or self.prober.once(self.series, size)

    def _place(self, a: int, b: int) -> int:
        return self.allowed(math.exp(math.log(a) + self.share(a, b) * math.log(b / a)))

    def share(self, a: int, b: int) -> float:
        """How far from one size to another a straight line in log-log crosses 1: from 0.1 to 0.9.

        Where one has no ratio: 0.5.
        """
        lower, upper = side(self._pair(a)), side(self._pair(b))
        if lower is None or upper is None or not math.isfinite(lower - upper) or lower == upper:
            return 0.5
        return min(max(lower / (lower - upper), 0.1), 0.9)

    def _why(self, half: float) -> str:
        near = self.crossing()
        if near is None or math.isinf(half):
            return "the crossing lies at the edge of the sizes at which the ratio is told from 1, or nowhere"
        if near.bracket:
            low, high = map(self.place, (near.low or self.low, near.high or self.high))
            return f"±{percent(half)}; the ratio jumps somewhere between {low} and {high}"
        pairs = [p for p in self.prober.pairs(self.series) if p.size in self.around and side(p) is not None]
        slope = abs(pairs[-1].gap - pairs[0].gap) / math.log(pairs[-1].size / pairs[0].size) if len(pairs) > 1 else 0
        scatter = max((ratio_half_width(p.series, p.baseline) for p in pairs if p.series and p.baseline), default=0.0)
        return (
            f"±{percent(half)}; here the ratio grows or falls {2**slope:.2f}-fold per doubling, "
            f"and is known to ±{percent(math.expm1(scatter))}"
        )


def side(pair: Pair) -> float | None:
    """The log ratio to the baseline; infinite where only one of the two ran; None where it is unknown."""
    if pair.series is not None and pair.baseline is not None:
        return pair.gap
    if pair.beyond_baseline:
        return -math.inf
    return math.inf if pair.beyond_series else None


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

    def again(active: Sequence[Search], round: int) -> None:
        for each in active:
            each.again(round)

    repeat(searches, next_round, again)


def repeat(
    searches: Sequence[Search],
    next_round: Callable[[int], None],
    again: Callable[[Sequence[Search], int], None],
) -> None:
    """Further rounds, as long as a search wants them. again: the round of a number, of those that want it."""
    number = 1
    while active := [each for each in searches if not each.is_done(number)]:
        number += 1
        next_round(number)
        again(active, number)
