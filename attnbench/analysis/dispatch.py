"""Thresholds that code can use: which arm to call at which size of a panel, and how much time that loses.

An arm is a series that may be called: the baseline, or an alternative to it, which may be another function. At each
size those arms are left that are dearer than no other: one is the cheapest, several are not told apart. The intervals
are those of `analysis.crossover`; of k arms that may be the cheapest each has 1 / (k − 1) of the error, so that all of
the k − 1 thresholds that a rule may have hold together (Bonferroni).

The regret is estimated by cross-validation (Stone 1974, "Cross-validatory choice and assessment of statistical
predictions", Journal of the Royal Statistical Society B 36): each size but the smallest and the largest is left out, a
rule is made of the others, and the measured time of the arm that it takes there is compared with the least one. That
rule has not seen the times it is judged by, and the least of noisy times is less than the least of the true ones (E min
≤ min E): the estimate is in expectation no less than the true loss.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from attnbench.analysis.baseline import Baseline, check, is_exact, named, pairs
from attnbench.analysis.crossover import Pair, sections
from attnbench.analysis.interval import Estimate, Floats, ratio, ratio_half_width
from attnbench.analysis.metric_values import Quantity, quantity
from attnbench.analysis.series import Panel, Point, Series, panels
from attnbench.axes import tokens_axis
from attnbench.errors import BadInput
from attnbench.problem import operator_and_impl, operator_with_impl
from attnbench.registry import metrics

if TYPE_CHECKING:
    from attnbench.analysis.run import Run

Inside = Literal["baseline", "cheapest"]
"""What a rule takes inside an undecided range: the baseline where it is among the arms that are not told apart, or in
any case the one with the least interpolated time."""

PARTS = 256
"""Into which a range is divided, in logs, to find where the least interpolated time is another arm's."""

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
        at: where the interpolated times are equal; None where that is not known.
        low, high: the last position at which `below` is the cheapest for certain, and the first at which `above` is; of
            the baseline, whatever its impl.
    """

    below: str
    above: str
    at: float | None
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
        return self.loss > 0 and not self.low <= 0


@dataclass(frozen=True)
class Regret:
    """The time that a rule loses against who knows every time, each size with the same weight."""

    losses: tuple[Loss, ...]

    @property
    def mean(self) -> float | None:
        """Over the sizes; None without any."""
        return sum(each.loss for each in self.losses) / len(self.losses) if self.losses else None

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


@dataclass(frozen=True)
class Rules:
    """What to call in one panel.

    Args:
        run: its position among those of the dispatch.
        key: what the panel's problems have in common, by name, with the device's name.
        arms: the baseline first.
        ranges: ascending, one after another.
    """

    run: int
    panel: Panel
    key: Mapping[str, Any]
    arms: tuple[Arm, ...]
    ranges: tuple[Range, ...]
    thresholds: tuple[Threshold, ...]
    regret: Regret

    @property
    def decided(self) -> bool:
        """Whether anywhere it is known which alternative, or that the baseline, is the cheapest."""
        return any(certainty(self.arms, each) for each in self.ranges)


@dataclass(frozen=True)
class Dispatch:
    """Rules of one or more runs, in one metric. left_out: by the title of a panel without rules, the reason."""

    runs: tuple[Run, ...]
    metric: str
    inside: Inside
    panels: tuple[Rules, ...]
    left_out: Mapping[str, str]

    @cached_property
    def regret(self) -> Regret:
        """Of all panels."""
        return Regret(tuple(loss for rules in self.panels for loss in rules.regret.losses))


def dispatch(
    runs: Sequence[Run],
    metric: str,
    operators: Collection[str] = (),
    baseline: str | None = None,
    axis: str | None = None,
    inside: Inside = "baseline",
) -> Dispatch:
    """The rules of every panel in which arms can be compared.

    Args:
        metric: one that is taken in timed rounds.
        operators: the alternatives, as `operator` (every impl), `operator:impl` or the name of a series; none: all that
            are not exact, but for identity, which computes nothing.
        baseline: as `operator[:impl]`; None: exact softmax, of every impl.
        axis: None: all.
        inside: what is taken inside an undecided range.

    Raises: BadInput where a run has no figures of the metric, no such axis, baseline or operator, or where there is
    nothing to choose between.
    """
    if metric not in metrics() or not (metrics()[metric].timed and metrics()[metric].comparable):
        timed = sorted(name for name, each in metrics().items() if each.timed and each.comparable)
        raise BadInput(f"--metric {metric}: allowed: {', '.join(timed)}, which are taken in timed rounds.")
    every = [(number, run, panel) for number, run in enumerate(runs) for panel in panels(run.results, axis)]
    _check_arms([panel for _, _, panel in every], _exact(runs), operators, baseline)
    quantities = [quantity(run, metric) for run in runs]
    for run, each in zip(runs, quantities, strict=True):
        if not each.levels:
            raise BadInput(f"--metric {metric}: {run.folder} has no figure of it. Give a metric that it has.")
    rules: list[Rules] = []
    left_out = {}
    for number, run, panel in every:
        arms = _arms(panel, frozenset(run.environment.get("exact", ())), operators, baseline)
        contest = Contest(panel, arms, quantities[number], inside)
        reason = contest.nothing_to_compare()
        if reason:
            left_out[panel.title] = reason
        else:
            rules.append(contest.rules(number, _key(panel, run)))
    if not rules:
        reasons = "; ".join(f"{title}: {reason}" for title, reason in left_out.items())
        raise BadInput(f"nothing to choose between: {reasons}. Give a run of several operators at several sizes.")
    _check_unique(rules)
    return Dispatch(tuple(runs), metric, inside, tuple(rules), left_out)


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


def _key(panel: Panel, run: Run) -> dict[str, Any]:
    """What is fixed, in numbers; one that nobody gave and that follows the axis is left out."""
    environment, problem = run.environment, panel.series[0].points[0].problem
    name = environment.get("gpu_name") or environment.get("cpu") or environment.get("device")
    key = {name: value for name, value in panel.fixed.items() if value is not None and name != "size"}
    if "size" in panel.fixed:
        key |= {column: getattr(problem, column) for column in tokens_axis(problem).columns}
    if "heads" in key and panel.axis != "kv_heads":
        key.setdefault("kv_heads", key["heads"])
    return {**key, "device_name": name}


def _check_unique(rules: Sequence[Rules]) -> None:
    """Raises BadInput where two runs have the same panel."""
    titles: dict[tuple[Any, ...], Rules] = {}
    for each in rules:
        other = titles.setdefault((each.panel.axis, *sorted(map(str, each.key.items()))), each)
        if other is not each:
            raise BadInput(
                f"{each.panel.title}: run {other.run + 1} and run {each.run + 1} both have it, on the same device, "
                "and a rule comes from one of them. Leave one of the runs out."
            )


def _check_arms(
    every: Sequence[Panel], exact: Collection[str], operators: Collection[str], baseline: str | None
) -> None:
    """Raises BadInput where no panel has a wanted operator, or the baseline."""
    series = [each for panel in every for each in panel.series]
    if baseline is not None:
        check(every, baseline)
    elif not any(is_exact(each, exact) for each in series):
        raise BadInput(
            f"this run has no exact softmax to compare with; it has {_names(series)}. "
            "Give one of them as --baseline, or measure softmax beside them."
        )
    for name in operators:
        if not any(_is_named(each, name) for each in series):
            raise BadInput(
                f"--operator {name}: this run has no such series. It has {_names(series)}. "
                "Give one of them as operator (every impl of it) or operator:impl."
            )


def _names(series: Iterable[Series]) -> str:
    return ", ".join(sorted({operator_with_impl(each.operator, each.impl) for each in series})) or "none"


def _is_named(series: Series, name: str) -> bool:
    """Whether a series is `operator` in any impl, `operator:impl`, or what it is called in tables."""
    named_by = (series.operator, operator_with_impl(series.operator, series.impl), series.name)
    return series.operator != _FREE and (name in named_by or (series.operator, series.impl) == operator_and_impl(name))


_FREE = "identity"
"""The operator that computes nothing: a bound, not a choice."""


def _exact(runs: Iterable[Run]) -> frozenset[str]:
    return frozenset(name for run in runs for name in run.environment.get("exact", ()))


def _arms(panel: Panel, exact: Collection[str], operators: Collection[str], baseline: str | None) -> tuple[Arm, ...]:
    """The arms of a panel, the baseline first; none where it has none."""
    reference = named(panel, baseline) if baseline is not None else None
    members = (
        reference.members if reference else {s.name for s in panel.series if baseline is None and is_exact(s, exact)}
    )
    first = [s for s in panel.series if s.name in members]
    if not first:
        return ()
    wanted = [s for s in panel.series if any(_is_named(s, name) for name in operators)]
    if not operators:
        wanted = [s for s in panel.series if not is_exact(s, exact) and s.operator != _FREE]
    return tuple(
        Arm(s, is_exact(s, exact), baseline)
        for some, baseline in ((first, True), (wanted, False))
        for s in some
        if baseline or s not in first
    )


class Contest:
    """The arms of one panel in one metric.

    Args:
        arms: the baseline first.

    Attributes:
        points: by arm, the sizes that have a row.
        levels: by arm and position, of those with a figure.
        pairs: of two arms by their numbers, every size at which both have a row.
    """

    def __init__(self, panel: Panel, arms: Sequence[Arm], metric: Quantity, inside: Inside):
        self.panel, self.arms, self.inside, self.own = panel, tuple(arms), inside, metric.levels
        self.points = [arm.series.points for arm in arms]
        self.levels = [{p.size: self.own[p.key] for p in points if p.key in self.own} for points in self.points]
        self.sizes = sorted({size for each in self.levels for size in each})
        self.contenders = [i for i, levels in enumerate(self.levels) if levels]
        left: list[int] = []
        while left != self.contenders:
            share = 1 / max(1, len(self.contenders) - 1)
            every = {key: replace(each, confidence=1 - share * (1 - each.confidence)) for key, each in self.own.items()}
            self.levels = [{p.size: every[p.key] for p in points if p.key in every} for points in self.points]
            left, self.contenders = self.contenders, [i for i in self.contenders if not self._is_hopeless(i)]
        shared = replace(metric, levels=every)
        baselines = [Baseline(arm.name, {p.label: p for p in arm.series.points}, frozenset({arm.name})) for arm in arms]
        self.pairs = {
            (i, j): pairs(panel, arms[i].series, baselines[j], shared) for i, j in combinations(self.contenders, 2)
        }

    def nothing_to_compare(self) -> str:
        """Why there is no rule; empty where there is one."""
        measured = sum(bool(each) for each in self.levels)
        if not self.arms:
            return "it has no baseline"
        if measured < 2:
            return f"of its arms {measured} was measured; it takes two"
        if len(self.sizes) < 2:
            return "one size; thresholds lie between sizes"
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

    def rules(self, run: int, key: Mapping[str, Any]) -> Rules:
        """What to call at which size."""
        ranges = self.ranges()
        regret = Regret(tuple(loss for size in self.sizes[1:-1] if (loss := self.loss(size, self.ranges(size)))))
        return Rules(run, self.panel, key, self.arms, ranges, tuple(self.thresholds(ranges)), regret)

    def ranges(self, without: int | None = None) -> tuple[Range, ...]:
        """The ranges from the smallest to the largest size, as if one of the sizes had not been measured."""
        sizes = [size for size in self.sizes if size != without]
        runs = {i: _runs([p for p in self.points[i] if p.size != without], self.levels[i]) for i in self.contenders}
        sides = {pair: _sides([p for p in each if p.size != without]) for pair, each in self.pairs.items()}
        starts = sorted({start for steps in (*runs.values(), *sides.values()) for start, _ in steps})
        starts = [start for start in starts if sizes[0] <= start <= sizes[-1]]
        able = {i: _at(steps, starts) > 0 for i, steps in runs.items()}
        left = dict(able)
        for (i, j), steps in sides.items():
            side = _at(steps, starts)
            left[i] = left[i] & ~((side > 0) & able[j])
            left[j] = left[j] & ~((side < 0) & able[i])
        groups: list[tuple[int, tuple[int, ...]]] = []
        for k, start in enumerate(starts):
            # Arms in a circle, each dearer than the next, are not told apart.
            among = tuple(i for i in left if left[i][k]) or tuple(i for i in able if able[i][k])
            if not groups or groups[-1][1] != among:
                groups.append((start, among))
        ends = [*(start - 1 for start, _ in groups[1:]), sizes[-1]]
        return tuple(
            Range(first, last, self.arms[taken].name, tuple(self.arms[i].name for i in among))
            for (low, among), high in zip(groups, ends, strict=True)
            for first, last, taken in self._taken(among, low, high, without)
        )

    def _taken(self, among: Sequence[int], low: int, high: int, without: int | None) -> Iterator[tuple[int, int, int]]:
        """First position, last position and arm of each part of a range in which one of some arms is to be taken.

        Of several that is the one with the least time, interpolated in logs between the sizes.
        """
        every = range(len(self.arms))
        first = [i for i in among or every if self.arms[i].baseline] if self.inside == "baseline" or not among else []
        choices = first or among
        if len(choices) == 1:
            yield low, high, choices[0]
            return
        positions = np.unique(np.geomspace(low, high, PARTS).round().astype(np.int64))
        curves = np.array([self._interpolated(i, np.log(positions), without) for i in choices])
        best = curves.argmin(axis=0)
        changes = np.flatnonzero(np.diff(best, prepend=-1)).tolist()
        starts = [int(positions[k]) for k in changes]
        ends = [*(start - 1 for start in starts[1:]), high]
        yield from zip(starts, ends, (choices[best[k]] for k in changes), strict=True)

    def _interpolated(self, i: int, x: Floats, without: int | None) -> Floats:
        """The level of an arm at log sizes; nothing is less where it has none."""
        known = {size: level.level for size, level in sorted(self.levels[i].items()) if size != without}
        return np.interp(x, np.log([*known]), [*known.values()]) if known else np.full(len(x), math.inf)

    def thresholds(self, ranges: Sequence[Range]) -> Iterator[Threshold]:
        """Where what is certainly the cheapest changes; the impls of the baseline are one."""
        numbers = {arm.name: i for i, arm in enumerate(self.arms)}
        certain = [(side, each) for each in ranges if (side := certainty(self.arms, each))]
        for (side, before), (other, after) in pairwise(certain):
            if side != other:
                pair = sorted((numbers[before.take], numbers[after.take]))
                crossings = [s.at for s in sections(self.pairs[pair[0], pair[1]]) if s.at is not None]
                at = next((at for at in crossings if before.high <= at <= after.low), None)
                yield Threshold(before.take, after.take, at, before.high, after.low)

    def loss(self, size: int, ranges: Sequence[Range]) -> Loss | None:
        """What a rule loses at a size; None where its arm, or any other one, was not tried."""
        chosen = take(ranges, size)
        arm = next(i for i, each in enumerate(self.arms) if each.name == chosen.take)
        point = next((point for point in self.points[arm] if point.size == size), None)
        measured = {
            i: self.own[p.key]
            for i, points in enumerate(self.points)
            for p in points
            if p.size == size and p.key in self.own
        }
        if point is None or not measured.keys() - {arm}:
            return None
        fastest = min(measured, key=lambda i: measured[i].level)
        if arm not in measured:
            value, low, high = (math.inf,) * 3
        else:
            value, low, high = (
                (x - 1 for x in ratio(measured[arm], measured[fastest])) if arm != fastest else (0.0, 0.0, 0.0)
            )
        return Loss(size, point.label, chosen.take, chosen.undecided, self.arms[fastest].name, value, low, high)


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
    tried = sorted((p.size, int(p.size in levels)) for p in points if p.size in levels or p.status != "ok")
    steps: Steps = []
    for (size, ran), following in zip(tried, [*tried[1:], (0, 0)], strict=True):
        steps += [(size, ran)] if ran == following[1] else [(size, ran), (size + 1, 0)]
    return steps


def _at(steps: Steps, positions: Sequence[int]) -> npt.NDArray[np.int64]:
    """What holds at each of ascending positions."""
    places = np.searchsorted([start for start, _ in steps], positions, side="right")
    return np.array([0, *(value for _, value in steps)])[places]
