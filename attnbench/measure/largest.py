"""The largest size whose need is within a limit, from a few exact figures of needs that may take long to find."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import process_time

STARTS = (1024, 4096, 16384, 256, 64, 16, 4, 1)
"""Where a first size is looked for, none above a quarter of the largest allowed."""

LOOKS = 4096
"""Sizes below one that are looked at for one that is defined."""

STEPS = 512
"""The answer is within a part in so many of the size: hardware and kernels like sizes of few binary digits."""

QUICK_S = 0.02
"""A figure that is expected to take less is always found."""

SECANTS = 12
"""Sizes tried by where the power law of the nearest two meets the limit; then halves."""


@dataclass(frozen=True)
class Largest:
    """The end of a search.

    Attributes:
        size: the largest that fits; 0: the smallest that is defined does not, or none is.
        need: at that size.
        beyond: a larger one that does not fit, with nothing between that was to be tried; 0: there is none allowed.
        beyond_need: at that size.
        figured: the largest size of which an exact figure fits, where that of the answer is none.
    """

    size: int
    need: int = 0
    beyond: int = 0
    beyond_need: int = 0
    figured: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether both needs are exact figures."""
        return not self.figured


class Unknown(Exception):
    """A need cannot be found, or would take too long."""


@dataclass
class Search:
    """The search of one largest size.

    Attributes:
        figure: (size) -> its need, which grows with the size. Raises Unknown.
        is_defined: (size) -> whether there is such a size.
        limit: what needs are held against.
        most: the largest size allowed.
        seconds: of this process, what figures may take in all; beyond that the answer is extrapolated.
        starts: where a first size is looked for.
        needs: by size, those found.
        clock: of this process.
    """

    figure: Callable[[int], int]
    is_defined: Callable[[int], bool]
    limit: int
    most: int
    seconds: float
    starts: tuple[int, ...] = STARTS
    needs: dict[int, int] = field(default_factory=dict)
    clock: Callable[[], float] = process_time
    _times: dict[int, float] = field(default_factory=dict)

    def run(self, first: int) -> Largest:
        """The largest size, beginning at a small one. Raises Unknown where its need, or a smaller one's, is."""
        self._need(first)
        while self.needs[first] > self.limit and self._is_affordable(first) and (below := self.below(first // 4)):
            first = below
            self._need(first)
        low = first if self.needs[first] <= self.limit else 0
        return self._between(low, 0 if low else first)

    def first(self) -> int | None:
        """A small defined size; None where none was met."""
        starts = [start for start in self.starts if start <= self.most // 4] or [self.most]
        return next((size for start in starts if (size := self.below(start))), None)

    def below(self, size: int) -> int:
        """The largest defined size that is no larger; 0 where none is near."""
        return next((n for n in range(size, max(0, size - LOOKS), -1) if self.is_defined(n)), 0)

    def _need(self, size: int) -> int:
        if size not in self.needs:
            begun = self.clock()
            self.needs[size] = max(1, self.figure(size))
            self._times[size] = self.clock() - begun
        return self.needs[size]

    def _between(self, low: int, high: int) -> Largest:
        """low: one that fits; high: one that does not; 0: none is known."""
        for tried in range(1000):
            if high and high - low <= _step(low):
                break
            size = self._next(low, high, tried)
            if not size:
                break
            if not self._is_affordable(size):
                size = self._affordable(low, size)
                if not size:
                    return self._expected(low, high)
            try:
                self._need(size)
            except Unknown:
                return self._expected(low, high)
            if self.needs[size] <= self.limit:
                low = size
            else:
                high = size
        return Largest(low, self.needs.get(low, 0), high, self.needs.get(high, 0))

    def _next(self, low: int, high: int, tried: int) -> int:
        """The size to try between two; 0 where there is none."""
        ends = [high - 1] if high else [self.most, *(min(self.most, times * low) for times in (16, 4, 2))]
        last = next((size for end in ends if (size := self.below(end)) > low), 0)
        if not last:
            return 0
        if len(self.needs) == 1:
            target = 4 * low if low else high // 4
        elif tried >= SECANTS and high:
            target = round(math.sqrt(max(low, 1) * high))
        else:
            target = self._crossing()
        target = min(max(target, low + _step(low)), last)
        size = self.below(target // _step(target) * _step(target))
        step = _step(low)
        while size <= low:
            size = self.below(min(low + step, last))
            step *= 2
        return size

    def _crossing(self) -> int:
        """Where the power law through the two needs nearest to the limit meets it."""
        near, other = sorted(self.needs, key=lambda size: abs(math.log(self.needs[size] / self.limit)))[:2]
        return _crossing((near, self.needs[near]), (other, self.needs[other]), self.limit, self.most)

    def _expected_s(self, size: int) -> float:
        """What a figure takes, by those of the largest two sizes."""
        *others, largest = sorted(self._times)
        seconds = max(self._times[largest], 1e-3)
        growth = 1.0
        if others:
            growth = math.log(seconds / max(self._times[others[-1]], 1e-3)) / math.log(largest / others[-1])
        return seconds * (size / largest) ** min(max(growth, 0.0), 2.5) if size > largest else seconds

    def _is_affordable(self, size: int) -> bool:
        expected_s = self._expected_s(size)
        return expected_s < QUICK_S or sum(self._times.values()) + expected_s <= self.seconds

    def _affordable(self, low: int, size: int) -> int:
        """A smaller size of which the figure is worth its time, where that of a size would take too long; else 0."""
        largest = max(self._times)
        while size > 1.5 * max(largest, low):
            if self._is_affordable(size):
                return size
            size = self.below(int(size / 1.3))
        return 0

    def _expected(self, low: int, high: int) -> Largest:
        """By the power law between two known sizes, beyond one in proportion; beyond three by a parabola where that
        gives less."""
        points = [(size, self.needs[size]) for size in sorted(self.needs)[-3:]]
        if low and high:
            crossing = _crossing((low, self.needs[low]), (high, self.needs[high]), self.limit, high - 1)
        elif len(points) == 1:
            crossing = min(self.most, points[0][0] * self.limit // points[0][1])
        else:
            crossing = _crossing(points[-1], points[-2], self.limit, self.most)
            crossing = min(crossing, _parabola(points, self.limit, self.most)) if len(points) == 3 else crossing
        size = self.below(crossing // _step(crossing) * _step(crossing))
        return Largest(max(size, low), 0, high, self.needs.get(high, 0), figured=low or points[0][0])


def _step(size: int) -> int:
    return 1 << max(0, size.bit_length() - STEPS.bit_length())


def _crossing(near: tuple[int, int], other: tuple[int, int], limit: int, most: int) -> int:
    rise = math.log(near[1] / other[1]) / math.log(near[0] / other[0])
    exponent = math.log(limit / near[1]) / min(max(rise, 0.05), 4.0)
    return min(most, int(near[0] * math.exp(min(exponent, math.log(most)))))


def _parabola(points: list[tuple[int, int]], limit: int, most: int) -> int:
    """Where the parabola through three points meets the limit, beyond the last."""
    (a, fa), (b, fb), (c, fc) = points
    first, second = (fb - fa) / (b - a), (fc - fb) / (c - b)
    bend = max(0.0, (second - first) / (c - a))
    slope = second + bend * (c - b)
    left = limit - fc
    if left <= 0 or slope <= 0:
        return c
    beyond = 2 * left / (slope + math.sqrt(slope * slope + 4 * bend * left))
    return min(most, int(c + beyond))
