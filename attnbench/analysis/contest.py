"""The arms of one panel: at which size which is the cheapest, and what a rule that is made of that loses.

An arm is a series that may be called: the baseline, or an alternative to it, which may be another function. At each
size those arms are left that are dearer than no other: one is the cheapest, several are not told apart. The intervals
are those of `analysis.crossover`; of k arms that may be the cheapest each has 1 / (k − 1) of the error, so that all of
the k − 1 thresholds that a rule may have hold together (Bonferroni).

The regret is estimated by cross-validation (Stone 1974, "Cross-validatory choice and assessment of statistical
predictions", Journal of the Royal Statistical Society B 36): each size but the smallest and the largest of an arm is
left out, a rule is made of the others, and the measured time of the arm that it takes there is compared with the least
one. That rule has not seen the times it is judged by, and the least of noisy times is less than the least of the true
ones (E min ≤ min E): the estimate is in expectation no less than the true loss.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from attnbench.analysis.baseline import alone, pairs
from attnbench.analysis.crossover import Pair, estimated_sides, sections
from attnbench.analysis.interval import Estimate, ratio, ratio_half_width
from attnbench.analysis.metric_values import Quantity
from attnbench.analysis.series import Panel, Point, Series
from attnbench.axes import AXES

Inside = Literal["baseline", "cheapest"]
"""What a rule takes inside an undecided range: the baseline where it is among the arms that are not told apart, or in
any case the one that is the cheapest by the interpolated ratios."""

NEAR = 0.05
"""The loss up to which an arm counts as near the fastest."""


@dataclass(frozen=True)
class Arm:
    """What may be called.

    Args:
        exact: whether it computes softmax attention itself; else it is another function.
        baseline: whether the others are alternatives to it.
    """

    series: Series
    exact: bool
    baseline: bool

    @property
    def name(self) -> str:
        """The series'."""
        return self.series.name


@dataclass(frozen=True)
class Range:
    """Neighbouring positions on the axis with one answer.

    Args:
        low, high: the first and the last position.
        take: the arm to call.
        among: all arms that are not told apart from the cheapest; none where nothing was measured.
    """

    low: int
    high: int
    take: str
    among: tuple[str, ...]

    @property
    def undecided(self) -> bool:
        """Whether the cheapest arm is not known."""
        return len(self.among) != 1


@dataclass(frozen=True)
class Threshold:
    """From where on another arm is the cheapest.

    Args:
        below, above: the arms.
        at: where the interpolated ratio of the two is 1; None where that is not known.
        start: the first position from which on the rule takes `above`: that after `at`, unless the baseline is taken in
            undecided ranges, or another arm is taken between the two.
        low, high: the last position at which `below` is the cheapest for certain, and the first at which `above` is; of
            the baseline, whatever its impl.
    """

    below: str
    above: str
    at: float | None
    start: int
    low: int
    high: int


@dataclass(frozen=True)
class Loss:
    """One size that was left out.

    Args:
        size, label: the size, as a number and as shown.
        take: what the rule of the other sizes takes there; undecided: among several.
        fastest: what was measured to be the fastest.
        loss: time of `take` over that of `fastest`, less 1; infinite where `take` has no time there.
        low, high: the ends of its interval; nan from one round, 0 where the two are one.
    """

    size: int
    label: str
    take: str
    undecided: bool
    fastest: str
    loss: float
    low: float
    high: float

    @property
    def told_apart(self) -> bool:
        """Whether more was lost than noise explains."""
        return self.low > 0


@dataclass(frozen=True)
class Regret:
    """The time that a rule loses against who knows every time, each size with the same weight."""

    losses: tuple[Loss, ...]

    @property
    def mean(self) -> float | None:
        """Over the sizes; None without any."""
        return sum(each.loss for each in self.losses) / len(self.losses) if self.losses else None

    @property
    def half_width(self) -> float | None:
        """Half the interval of the mean, from those of the sizes at which something was lost; None where none has one.

        Their squares add up: each size has blocks of its own.
        """
        halves = [(each.high - each.low) / 2 for each in self.losses if each.loss]
        half = math.hypot(*halves) / max(1, len(self.losses))
        return half if halves and math.isfinite(half) else None

    @property
    def largest(self) -> float | None:
        """At one size; None without any."""
        return max((each.loss for each in self.losses), default=None)

    @property
    def near(self) -> int:
        """At how many sizes the arm is within NEAR of the fastest."""
        return sum(each.loss <= NEAR for each in self.losses)

    @property
    def told_apart(self) -> int:
        """At how many sizes more was lost than noise explains."""
        return sum(each.told_apart for each in self.losses)


def take(ranges: Sequence[Range], position: float) -> Range:
    """The range of a position; of one outside of all the nearest.

    Args:
        ranges: ascending, one after another.
    """
    return ranges[max(0, bisect_right([each.low for each in ranges], position) - 1)]


def certainty(arms: Iterable[Arm], of: Range) -> tuple[str, ...]:
    """What is the cheapest for certain: an alternative, or every impl of the baseline; none where that is not known."""
    baseline = tuple(arm.name for arm in arms if arm.baseline)
    if of.among and set(of.among) <= set(baseline):
        return baseline
    return of.among if len(of.among) == 1 else ()


class Contest:
    """The arms of one panel in one metric.

    Args:
        arms: the baseline first.

    Attributes:
        points: by arm, the sizes that have a row.
        own, levels: by key, and by arm and size, of those that have a figure; `levels` with the confidence that all
            intervals hold together.
        sizes: of which any arm has a figure.
        possible: the only positions that there are, where these are the divisors of a size; else none.
        contenders: the numbers of the arms that may be the cheapest anywhere.
        pairs: of two of these, every size at which both have a row.
    """

    def __init__(self, panel: Panel, arms: Sequence[Arm], metric: Quantity, inside: Inside):
        self.panel, self.arms, self.inside, self.own = panel, tuple(arms), inside, metric.levels
        self.points = [arm.series.points for arm in arms]
        self.levels = [{p.size: self.own[p.key] for p in points if p.key in self.own} for points in self.points]
        self.sizes = sorted({size for each in self.levels for size in each})
        axis = AXES[panel.axis].holding(panel.problems)
        divisors = axis.divisors(panel.series[0].points[0].problem)
        self.possible = sorted({*divisors, *self.sizes}) if divisors else []
        self.contenders = [i for i, levels in enumerate(self.levels) if levels]
        every, before = dict(metric.levels), 0
        while before != len(self.contenders):
            before, share = len(self.contenders), 1 / max(1, len(self.contenders) - 1)
            every = {key: replace(each, confidence=1 - share * (1 - each.confidence)) for key, each in self.own.items()}
            self.levels = [{p.size: every[p.key] for p in points if p.key in every} for points in self.points]
            self.contenders = [i for i in self.contenders if not self._is_hopeless(i)]
        shared = replace(metric, levels=every)
        self.pairs = {
            (i, j): pairs(panel, arms[i].series, alone(arms[j].series), shared)
            for i, j in combinations(self.contenders, 2)
        }

    def nothing_to_compare(self) -> str:
        """Why there is no rule; empty where there is one."""
        measured = sum(bool(each) for each in self.levels)
        if not self.arms:
            return "it has no baseline"
        if measured < 2:
            return f"of its arms {measured or 'none'} was measured, and it takes two"
        if len(self.sizes) < 2:
            return "it has one size, and thresholds lie between sizes"
        return ""

    def _is_hopeless(self, i: int) -> bool:
        """Whether one and the same arm is cheaper at every size at which this one has a figure.

        Then it is never the cheapest, nor is any arm dearer than it alone; with dozens of arms most go.
        """
        own = self.levels[i]
        others = [self.levels[j] for j in self.contenders if j != i]

        def dearer(size: int, other: Estimate | None) -> bool:
            mine = own[size]
            return other is not None and mine.level - other.level > ratio_half_width(mine, other, together=len(own))

        return any(all(dearer(n, its.get(n)) for n in own) for its in others)

    def regret(self) -> Regret:
        """Of the rules that the other sizes give, at those that are neither the smallest nor the largest of an arm."""
        ends = {end for levels in self.levels if levels for end in (min(levels), max(levels))}
        inner = [size for size in self.sizes if size not in ends]
        return Regret(tuple(loss for size in inner if (loss := self.loss(size, self.ranges(without=size)))))

    def ranges(self, without: int | None = None) -> tuple[Range, ...]:
        """The ranges from the smallest to the largest size, as if one of the sizes had not been measured."""
        sizes = [size for size in self.sizes if size != without]
        runs = {i: _runs([p for p in self.points[i] if p.size != without], self.levels[i]) for i in self.contenders}
        compared = {pair: [p for p in each if p.size != without] for pair, each in self.pairs.items()}
        sides = {pair: _sides(each) for pair, each in compared.items()}
        estimated = {
            pair: [(_first(size), side) for size, side in estimated_sides(each)] for pair, each in compared.items()
        }
        starts = sorted(
            {start for steps in (*runs.values(), *sides.values(), *estimated.values()) for start, _ in steps}
        )
        starts = [start for start in self.possible or starts if sizes[0] <= start <= sizes[-1]]
        able = {i: _at(steps, starts) > 0 for i, steps in runs.items()}
        left = dict(able)
        for (i, j), steps in sides.items():
            side = _at(steps, starts)
            left[i] = left[i] & ~((side > 0) & able[j])
            left[j] = left[j] & ~((side < 0) & able[i])
        cheaper = {pair: _at(steps, starts) for pair, steps in estimated.items()}
        groups: list[tuple[int, tuple[int, ...], int]] = []
        for k, start in enumerate(starts):
            # Arms in a circle, each dearer than the next, are not told apart.
            among = tuple(i for i in left if left[i][k]) or tuple(i for i in able if able[i][k])
            taken = self._taken(among, {pair: int(side[k]) for pair, side in cheaper.items()})
            if not groups or groups[-1][1:] != (among, taken):
                groups.append((start, among, taken))
        ends = [*(self._before(start) for start, *_ in groups[1:]), sizes[-1]]
        return tuple(
            Range(low, high, self.arms[taken].name, tuple(self.arms[i].name for i in among))
            for (low, among, taken), high in zip(groups, ends, strict=True)
        )

    def _before(self, position: int) -> int:
        """The position below another one."""
        return max((n for n in self.possible if n < position), default=position - 1)

    def _taken(self, among: Sequence[int], sides: Mapping[tuple[int, int], int]) -> int:
        """The arm to take of those that are not told apart: the one dearer than the fewest; of several the first.

        Args:
            among: none where no arm is known to run; the baseline is taken there.
            sides: of two arms, whether by the interpolated ratio the first is cheaper (−1) or dearer (1).
        """
        baseline = [i for i in among or self.contenders if self.arms[i].baseline]
        choices = baseline if baseline and (self.inside == "baseline" or not among) else among or [0]
        dearer = dict.fromkeys(choices, 0)
        for (i, j), side in sides.items():
            if side and i in dearer and j in dearer:
                dearer[i if side > 0 else j] += 1
        return min(choices, key=dearer.__getitem__)

    def thresholds(self, ranges: Sequence[Range]) -> Iterator[Threshold]:
        """Where what is certainly the cheapest changes; the impls of the baseline are one."""
        numbers = {arm.name: i for i, arm in enumerate(self.arms)}
        certain = [(side, number) for number, each in enumerate(ranges) if (side := certainty(self.arms, each))]
        for (side, first), (other, last) in pairwise(certain):
            if side != other:
                between = ranges[first : last + 1]
                before = max(number for number, each in enumerate(between) if each.take not in other)
                below = between[before if between[before].take in side else 0].take
                start, above = between[before + 1].low, between[before + 1].take
                low, high = between[0].high, between[-1].low
                pair = sorted((numbers[below], numbers[above]))
                crossings = [s.at for s in sections(self.pairs[pair[0], pair[1]]) if s.at is not None]
                at = next((at for at in crossings if low <= at <= high), None)
                yield Threshold(below, above, at, start, low, high)

    def loss(self, size: int, ranges: Sequence[Range]) -> Loss | None:
        """What a rule loses at a size; None where its arm, or any other one, was not tried."""
        chosen = take(ranges, size)
        tried = {a.name: p for a, points in zip(self.arms, self.points, strict=True) for p in points if p.size == size}
        levels = {name: self.own[p.key] for name, p in tried.items() if p.key in self.own}
        if chosen.take not in tried or not levels.keys() - {chosen.take}:
            return None
        fastest = min(levels, key=lambda name: levels[name].level)
        ends = (1.0, 1.0, 1.0) if chosen.take == fastest else (math.inf, math.inf, math.inf)
        if chosen.take in levels and chosen.take != fastest:
            ends = ratio(levels[chosen.take], levels[fastest])
        loss, low, high = (end - 1 for end in ends)
        return Loss(size, tried[fastest].label, chosen.take, chosen.undecided, fastest, loss, low, high)


Steps = list[tuple[int, int]]
"""Positions, ascending, each with what holds from there on; before the first of them 0 does."""


def _sides(compared: Sequence[Pair]) -> Steps:
    """Where the first of two is cheaper (−1), dearer (1), or not told apart (0)."""
    steps: Steps = []
    parts = sections(compared)
    for part in parts:
        start = _first(part.low) if part.side or part is parts[0] else _last(part.low) + 1
        while steps and steps[-1][0] >= start:  # no position lies in what came before
            steps.pop()
        steps.append((start, part.side))
    return [*steps, (_last(parts[-1].high) + 1, 0)] if parts else steps


_ROUNDING = 1e-9
"""By how much a size, relative, differs from itself as a power of e."""


def _first(size: float) -> int:
    return math.ceil(size * (1 - _ROUNDING))


def _last(size: float) -> int:
    return math.floor(size * (1 + _ROUNDING))


def _runs(points: Sequence[Point], levels: Mapping[int, Estimate]) -> Steps:
    """Where an arm is known to run (1): at sizes at which it has a figure, and between two such ones."""
    tried = sorted({p.size: int(p.size in levels) for p in points if p.size in levels or p.status != "ok"}.items())
    steps: Steps = []
    for (size, ran), following in zip(tried, [*tried[1:], (0, 0)], strict=True):
        steps += [(size, ran)] if ran == following[1] else [(size, ran), (size + 1, 0)]
    return steps


def _at(steps: Steps, positions: Sequence[int]) -> npt.NDArray[np.int64]:
    """What holds at each of ascending positions."""
    places = np.searchsorted([start for start, _ in steps], positions, side="right")
    return np.array([0, *(value for _, value in steps)])[places]
