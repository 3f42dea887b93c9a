"""Where a series' metric passes the baseline's on an axis, and where it is cheaper for certain.

Whether the ratio is below 1 is told by a band over all sizes: k intervals of confidence c^(1/k), which hold together
with c or more (Šidák 1967, "Rectangular confidence regions for the means of multivariate normal distributions"). A
crossing is where that says cheaper at one size and dearer at another. Its interval is every size in between at which
the interpolated log ratio is not significantly different from 0 (an inverted test, as Fieller 1954 for ratios). Where
the ratio may jump between two sizes, it may do so anywhere between them; where that leaves nothing else, the answer is
those two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal

import numpy as np

from attnbench.analysis.distributions import Floats
from attnbench.analysis.interval import Estimate, ratio, ratio_half_width
from attnbench.analysis.moderation import EQUAL

Kind = Literal["crossing", "always", "never", "stretch", "same", "undecided", "nothing"]
Direction = Literal["above", "below"]

BEYOND = ("oom", "timeout")

STEPS = 64
"""Into which the interval between two neighbouring sizes is divided."""

BEND_SHARE = 0.25
"""By how much the curvature between two sizes may differ from those at both. In simulations with launch overheads and
sizes a factor of 4 apart, intervals need it to reach 93 % coverage; at a factor of 2 it hardly matters."""

SUSPICION = 0.85
"""The confidence at which a slope counts as unlike its neighbours'. A jump that is overlooked makes an interval wrong,
a suspected one only makes it wide."""


@dataclass(frozen=True)
class Pair:
    """One size of a series and of its baseline.

    Attributes:
        size, label: the size, as a number and as shown.
        series, baseline: their levels; None where there is none.
        series_status, baseline_status: why, where there is none; out of memory or time, the other is the cheaper one.
    """

    size: int
    label: str
    series: Estimate | None
    baseline: Estimate | None
    series_status: str = "ok"
    baseline_status: str = "ok"

    @property
    def levels(self) -> tuple[Estimate, Estimate]:
        """Both levels, where there are both."""
        assert self.series is not None
        assert self.baseline is not None
        return self.series, self.baseline

    @property
    def gap(self) -> float:
        """The log ratio; nan where one has no level."""
        return self.series.level - self.baseline.level if self.series and self.baseline else math.nan

    @property
    def beyond_series(self) -> bool:
        """Whether the baseline has a value and the series ran out of memory or time."""
        return self.baseline is not None and self.series is None and self.series_status in BEYOND

    @property
    def beyond_baseline(self) -> bool:
        """Whether the series has a value and the baseline ran out of memory or time."""
        return self.series is not None and self.baseline is None and self.baseline_status in BEYOND


@dataclass(frozen=True)
class Crossing:
    """One crossing, in sizes.

    Attributes:
        at: where the interpolated ratio is 1; None of a bracket.
        low, high: the 95 % interval; None from one round.
        direction: the series is cheaper `above` or `below` it.
        bracket: whether all that is known are two measured sizes, `low` and `high`, with the crossing between them.
    """

    at: float | None
    low: float | None
    high: float | None
    direction: Direction
    bracket: bool = False


@dataclass(frozen=True)
class Edge:
    """The ratio series / baseline at a measured size, with its interval (nan from one round)."""

    label: str
    size: int
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Stretch:
    """The longest run of measured sizes at which the band is on the same side of 1.

    Attributes:
        cheaper: whether the series is.
        first, last: labels of its ends; None where that is the smallest or the largest size that was compared.
    """

    cheaper: bool
    first: str | None
    last: str | None


@dataclass(frozen=True)
class Crossover:
    """The verdict on a series against a baseline.

    Attributes:
        kind: "crossing": see `crossings`; "always": cheaper at every size; "never": dearer at every size; "stretch":
            told apart at some sizes, and always on the same side; "same": equal exact figures; "undecided": told apart
            at no size; "nothing": no size has both.
        crossings: in ascending order.
        stretch: of "stretch".
        smallest, largest: the ratio at the smallest and largest size that has both.
        baseline_beyond, series_beyond: the first size at which the one ran out of memory or time and the other did not,
            with the status; the former counts as cheaper.
    """

    kind: Kind
    crossings: tuple[Crossing, ...] = ()
    stretch: Stretch | None = None
    smallest: Edge | None = None
    largest: Edge | None = None
    baseline_beyond: tuple[str, str] | None = None
    series_beyond: tuple[str, str] | None = None


@dataclass(frozen=True)
class Section:
    """A range of sizes.

    Attributes:
        low, high: its ends, which belong to it where the two are told apart.
        side: −1 where the series is cheaper, 1 where it is dearer, 0 where they are not told apart.
        at: of a crossing, where the interpolated ratio is 1; None of a bracket.
    """

    low: float
    high: float
    side: int
    at: float | None = None


def crossover(pairs: Sequence[Pair]) -> Crossover:
    """The crossover of pairs by ascending size."""
    lost = next(((p.label, p.series_status) for p in pairs if p.beyond_series), None)
    beyond = next(((p.label, p.baseline_status) for p in pairs if p.beyond_baseline), None)
    compared = _compared(pairs)
    if not compared:
        kind: Kind = "always" if beyond and not lost else "never" if lost and not beyond else "nothing"
        return Crossover(kind, baseline_beyond=beyond, series_beyond=lost)
    smallest, largest = (Edge(p.label, p.size, *ratio(*p.levels)) for p in (compared[0], compared[-1]))
    places = [*compared, *(p for p in pairs if p.beyond_baseline and p.size > compared[-1].size)]
    sides = [*_sides(compared), *[-1] * (len(places) - len(compared))]
    apart = [i for i, side in enumerate(sides) if side]
    curve = _Curve(compared)
    crossings = tuple(
        curve.crossing(a, b, sides[a])
        if b < len(compared)
        else Crossing(None, places[a].size, places[b].size, "above", bracket=True)
        for a, b in pairwise(apart)
        if sides[a] != sides[b]
    )
    if all(abs(gap) < EQUAL for gap in curve.gap) and not beyond:
        kind = "same"
    elif crossings:
        kind = "crossing"
    elif len(apart) < len(sides):
        kind = "stretch" if apart else "undecided"
    else:
        kind = "always" if sides[0] < 0 else "never"
    stretch = _stretch(places, sides) if kind == "stretch" else None
    return Crossover(kind, crossings, stretch, smallest, largest, beyond, lost)


def sections(pairs: Sequence[Pair]) -> list[Section]:
    """Every size from the smallest to the largest at which both have values, by which of the two is cheaper there.

    Between sizes that the band tells apart on different sides lies the interval of a crossing, as of `crossover`.
    Around a size that it does not tell apart lie those at which the band, between the sizes, contains 1.

    Args:
        pairs: by ascending size.
    """
    compared = _compared(pairs)
    if not compared:
        return []
    sides, first, last = _sides(compared), compared[0].size, compared[-1].size
    apart = [i for i, side in enumerate(sides) if side]
    if not apart:
        return [Section(first, last, 0)]
    curve, band = _Curve(compared), _Curve(compared, together=len(compared))
    result, start = [], float(first)
    if apart[0] > 0:
        start = band.reach(apart[0], sides[apart[0]], -1)
        result.append(Section(first, start, 0))
    for a, b in pairwise(apart):
        if sides[a] != sides[b]:
            c = curve.crossing(a, b, sides[a])
            between = Section(c.low or c.at or 0.0, c.high or c.at or 0.0, 0, c.at)
        elif b > a + 1:
            between = Section(band.reach(a, sides[a], 1), band.reach(b, sides[b], -1), 0)
        else:
            continue
        result += [Section(start, between.low, sides[a]), between]
        start = between.high
    end = band.reach(apart[-1], sides[apart[-1]], 1) if apart[-1] < len(sides) - 1 else float(last)
    result.append(Section(start, end, sides[apart[-1]]))
    return [*result, Section(end, last, 0)] if end < last else result


def estimated_sides(pairs: Sequence[Pair]) -> list[tuple[float, int]]:
    """From which sizes on the series is cheaper (−1) or dearer (1) by the interpolated ratio, whatever its interval.

    Between sizes that the band tells apart on different sides that changes once, at the crossing of `crossover`; where
    this is a bracket, wherever the ratio passes 1.

    Args:
        pairs: by ascending size.
    """
    compared = _compared(pairs)
    if not compared:
        return []
    curve, sides = _Curve(compared), _sides(compared)
    x, line = curve.points.ravel(), curve.line.ravel()
    if not len(x):
        return [(compared[0].size, 1 if curve.gap[0] > 0 else -1)]
    dearer = line > 0
    steps = [(math.log(compared[0].size), 1 if dearer[0] else -1)]
    steps += [
        (_root(x, line, i), 1 if dearer[i + 1] else -1) for i in np.flatnonzero(dearer[1:] != dearer[:-1]).tolist()
    ]
    apart = [i for i, side in enumerate(sides) if side]
    for a, b in pairwise(apart):
        at = curve.crossing(a, b, sides[a]).at if sides[a] != sides[b] else None
        if at is not None:
            outside = [step for step in steps if not curve.x[a] < step[0] < curve.x[b]]
            steps = sorted([*outside, (math.log(at), sides[b])])
    return [(math.exp(place), side) for place, side in steps]


def _compared(pairs: Sequence[Pair]) -> list[Pair]:
    """The sizes at which both have values; where some have intervals, those."""
    both = [p for i, p in enumerate(pairs) if p.series and p.baseline and (i == 0 or p.size > pairs[i - 1].size)]
    return [p for p in both if _known(p)] or both


def _known(pair: Pair) -> bool:
    """Whether the ratio has an interval."""
    return all(level.has_interval for level in pair.levels)


def _half(pair: Pair, confidence: float | None = None, together: int = 1) -> float:
    """Half the interval of the log ratio; 0 of figures that repeat exactly, and from one round, where it has to do."""
    half = ratio_half_width(*pair.levels, confidence, together)
    return 0.0 if math.isnan(half) else half


def _sides(pairs: Sequence[Pair]) -> list[int]:
    """At each size −1 where the series is cheaper, 1 where it is dearer, by the band over all sizes; else 0.

    Of exact figures, and from one round, 1 is any that is not cheaper.
    """
    sides = []
    for pair in pairs:
        gap, half = pair.gap, _half(pair, together=len(pairs))
        sides.append(-1 if gap < -max(half, EQUAL) else 1 if gap > half or half <= EQUAL else 0)
    return sides


def _stretch(places: Sequence[Pair], sides: Sequence[int]) -> Stretch:
    """The longest run of sizes told apart; of two as long the one with larger sizes."""
    runs = [[*run] for side, run in groupby(range(len(sides)), sides.__getitem__) if side]
    first, last = max(((run[0], run[-1]) for run in runs), key=lambda run: (run[1] - run[0], run))
    labels = (places[first].label if first else None, places[last].label if last < len(places) - 1 else None)
    return Stretch(sides[first] < 0, *labels)


class _Curve:
    """The log ratio between the measured sizes, [intervals, points]; an interval lies between two neighbouring sizes.

    Between two sizes it is a parabola through both. Its curvature is the lesser of those that the neighbours on either
    side suggest, and none where these disagree or, at an edge, one side has none: a kink beside it does not bend a
    straight stretch, and a size whose ratio jumps bends nothing. The interval holds every curvature between the two.

    Args:
        together: intervals that hold the ratio together.

    Attributes:
        sizes, x, gap, measured: the sizes, their logs, the log ratios there, and whether these have intervals.
        points, line, low, high: log sizes between them, the log ratio there, and the ends of its interval.
        jump: of each interval, how far the ratio may jump in it; 0 where noise and bends explain it all.
    """

    def __init__(self, pairs: Sequence[Pair], together: int = 1):
        self.sizes = [p.size for p in pairs]
        self.x = np.log(self.sizes)
        self.gap = np.array([p.gap for p in pairs])
        self.measured = any(_known(p) for p in pairs)
        square = np.array([_half(p, together=together) ** 2 for p in pairs])
        width, share = np.diff(self.x)[:, None], np.linspace(0, 1, STEPS + 1)[None, :]
        self.jump = self._jump(np.array([_half(p, SUSPICION) ** 2 for p in pairs]))
        bend = np.pad(self._bends(self.gap) / (self.x[2:] - self.x[:-2]), 1)
        bends = np.sort(np.stack([bend[:-1], bend[1:]]), axis=0)
        low, high = bends + BEND_SHARE * np.abs(bends) * [[-1], [1]]
        least = np.clip(0.0, *bends)
        bulge = width**2 * share * (1 - share)
        self.points = self.x[:-1, None] + share * width
        straight = (1 - share) * self.gap[:-1, None] + share * self.gap[1:, None]
        self.line = straight - bulge * least[:, None]
        noise = np.sqrt((1 - share) ** 2 * square[:-1, None] + share**2 * square[1:, None])
        behind, ahead = self.jump[:, None] * (1 - share), -self.jump[:, None] * share
        self.low = straight - bulge * high[:, None] - noise + np.minimum(behind, ahead)
        self.high = straight - bulge * low[:, None] + noise + np.maximum(behind, ahead)

    def _bends(self, values: Floats) -> Floats:
        """How much the slope of values at the sizes changes at each inner size."""
        return np.diff(np.diff(values) / np.diff(self.x))

    def _jump(self, square: Floats) -> Floats:
        """By how much the ratio jumps within each interval, in logs; 0 where noise explains it.

        A jump makes an interval steeper, or flatter, than both its neighbours. At an edge there is one neighbour, and a
        jump looks like a bend. Two sizes alone have none: all may be a jump. square: of half intervals.
        """
        width = np.diff(self.x)
        if len(width) < 2:
            return np.diff(self.gap)
        weights = np.array([self._bends(row) for row in np.eye(len(self.x))])
        bends = self.gap @ weights
        bends = np.where(np.abs(bends) > np.sqrt(square @ weights**2), bends, 0.0)
        left, right = np.append(-bends[0], bends), np.append(-bends, bends[-1])  # slopes less the neighbours'
        nearest = np.where(np.abs(left) < np.abs(right), left, right)
        return np.where(left * right > 0, nearest, 0) * width

    def crossing(self, a: int, b: int, side: int) -> Crossing:
        """The crossing between the sizes at positions a and b, told apart on different sides; side: that of a."""
        direction: Direction = "above" if side > 0 else "below"
        x, line, *ends = (grid[a:b].ravel() for grid in (self.points, side * self.line, self.low, self.high))
        first, last = ends if side > 0 else (-ends[1], -ends[0])
        low, high = _first_root(x, first), _first_root(x[::-1], -last[::-1])
        i = int(np.searchsorted(self.x, low + EQUAL, "right")) - 1
        j = int(np.searchsorted(self.x, high - EQUAL, "left"))
        if self.measured and self.jump[i:j].any() and max(low - self.x[i], self.x[j] - high) < EQUAL:
            return Crossing(None, self.sizes[i], self.sizes[j], direction, bracket=True)
        behind = np.concatenate([[False], line[1:-1] <= 0, [True]])
        zeros = [_root(x, line, i) for i in np.flatnonzero(behind[1:] != behind[:-1]).tolist()]
        at, low, high = math.exp(zeros[len(zeros) // 2]), math.exp(low), math.exp(high)
        return Crossing(at, low, high, direction) if self.measured else Crossing(at, None, None, direction)

    def reach(self, i: int, side: int, step: int) -> float:
        """How far, up (step 1) or down (−1) from the size at position i, the interval stays on its side of 1."""
        ends = self.low if side > 0 else -self.high
        x, y = (grid[i:].ravel() if step > 0 else grid[:i].ravel()[::-1] for grid in (self.points, ends))
        return math.exp(_first_root(x, y))


def _first_root(x: Floats, y: Floats) -> float:
    """Where y, which begins above 0 and is linear between points, first reaches 0."""
    i = int(np.argmax(y <= 0))
    return _root(x, y, i - 1) if i else float(x[0])


def _root(x: Floats, y: Floats, i: int) -> float:
    """Where the line through two points, at i and i + 1, is 0."""
    return float(x[i] + (x[i + 1] - x[i]) * y[i] / (y[i] - y[i + 1]))
