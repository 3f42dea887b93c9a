"""The part of docs/statistics.md on rules for code: panels with planted cost curves, whose cheapest arms are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_args

import numpy as np

from attnbench.analysis.contest import Arm, Contest, Inside, Range
from attnbench.analysis.interval import Estimate, estimates
from attnbench.analysis.metric_values import Quantity
from attnbench.analysis.series import Panel, Point, Series
from attnbench.problem import Problem
from attnbench.registry import metrics
from benchmarks.coverage.noise import visits

Generator = np.random.Generator
Law = Callable[[float], float]
"""The time of an arm at a size."""

DOUBLING = tuple(128 * 2**i for i in range(8))
CLOSE = tuple(round(256 * 2 ** (i / 2)) for i in range(11))
"""A factor of √2 apart."""

BASELINE = "softmax"
PROCESS, BLOCK = 0.04, 0.03
"""Standard deviations of what all arms have in common, in logs, which cancels in their ratio."""


@dataclass(frozen=True)
class Planted:
    """Laws of arms.

    Args:
        laws: the baseline's first.
        at: where the first crossing lies, of the baseline; None: it has none.
        second: where one of the others passes the one that passed it.
    """

    laws: Mapping[str, Law]
    at: float | None = None
    second: float = math.inf

    def fastest(self, size: float) -> str:
        return min(self.laws, key=lambda name: self.laws[name](size))

    def is_wrong(self, ranges: Sequence[Range]) -> bool:
        """Whether anywhere a rule is certain of an arm that is not the cheapest."""
        sizes = [(n, each) for each in ranges if not each.undecided for n in spread(each.low, each.high)]
        return any(self.laws[each.take](n) > self.laws[self.fastest(n)](n) * (1 + 1e-9) for n, each in sizes)


def spread(low: int, high: int) -> Sequence[int]:
    return [int(n) for n in np.unique(np.geomspace(low, high, 9).round())]


def powers(rng: Generator, at: float) -> Planted:
    power = rng.uniform(0.9, 1.2)
    return Planted({BASELINE: lambda n: (n / at) ** 2, "local": lambda n: (n / at) ** power}, at)


def overheads(rng: Generator, at: float) -> Planted:
    a, b = rng.uniform(0.05, 0.4), rng.uniform(0.4, 0.8)
    laws = {BASELINE: lambda n: a + (1 - a) * (n / at) ** 2, "local": lambda n: b + (1 - b) * n / at}
    return Planted(laws, at)


def jumps(rng: Generator, at: float) -> Planted:
    """The baseline becomes dearer by 35 to 100 % from one size to the next."""
    jump = rng.uniform(0.3, 0.7)
    laws = {BASELINE: lambda n: (n / at) ** 2 * math.exp(jump * (n > at) - jump / 2), "local": lambda n: n / at}
    return Planted(laws, at)


def never(rng: Generator, at: float) -> Planted:
    return Planted({BASELINE: lambda n: 0.1 + (n / at) ** 2, "local": lambda n: 0.3 + 1.6 * (n / at) ** 2})


def always(rng: Generator, at: float) -> Planted:
    return Planted({BASELINE: lambda n: 0.3 + 1.6 * (n / at) ** 2, "local": lambda n: 0.1 + (n / at) ** 2})


def two_alternatives(rng: Generator, at: float) -> Planted:
    """The one passes the baseline, and the other, some doublings above, the one."""
    above = rng.uniform(3, 6)
    laws = {
        BASELINE: lambda n: (n / at) ** 2,
        "local": lambda n: (n / at) ** 1.3,
        "performer": lambda n: above**0.9 * (n / at) ** 0.4,
    }
    return Planted(laws, at, above * at)


Plant = Callable[[Generator, float], Planted]


PLANTS: Mapping[str, Plant] = {
    "powers": powers,
    "launch overheads": overheads,
    "a jump at the crossing": jumps,
    "never": never,
    "always": always,
    "two alternatives": two_alternatives,
}
OWN_NOISE = (0.03, 0.1)


def anywhere(rng: Generator, sizes: Sequence[int]) -> float:
    """A size between the third and the last but two."""
    return math.exp(rng.uniform(math.log(sizes[2]), math.log(sizes[-3])))


@cache
def deviations(noise: float, sizes: tuple[int, ...], seed: int, rounds: int = 3) -> Mapping[str, Estimate]:
    """The estimates of three arms whose true times are all 1: true levels only shift them.

    Args:
        noise: standard deviation of one arm in one round, in logs.
    """
    rng = np.random.default_rng([seed, round(1000 * noise), len(sizes)])
    shape = (rounds, len(sizes), 3)
    shared = rng.normal(0, PROCESS, (rounds, 1, 1)) + rng.normal(0, BLOCK, (rounds, len(sizes), 1))
    return estimates(visits(rng.normal(0, noise, shape) + shared, np.zeros(shape[1:])), "wall_time_s")


def contest(
    planted: Planted,
    sizes: tuple[int, ...],
    noise: float,
    seed: int,
    inside: Inside = "baseline",
    known: Callable[[Estimate], Estimate] = replace,
) -> Contest:
    """A measured panel. known: what is done to every estimate; nothing."""
    levels = {}
    for key, deviation in deviations(noise, sizes, seed).items():
        block, member = map(int, key.split("."))
        law = [*planted.laws.values(), lambda n: 1.0][min(member, len(planted.laws))]
        levels[key] = known(replace(deviation, level=deviation.level + math.log(law(sizes[block]))))
    every = tuple(
        Series(name, name, "reference", "{}", tuple(_point(n, f"{block}.{member}") for block, n in enumerate(sizes)))
        for member, name in enumerate(planted.laws)
    )
    arms = [Arm(series, exact=series.name == BASELINE, baseline=series.name == BASELINE) for series in every]
    quantity = Quantity("wall_time", metrics()["wall_time"], {}, levels)
    return Contest(Panel("seq_len", {}, every), arms, quantity, inside)


def _point(size: int, key: str) -> Point:
    return Point(size, str(size), key, Problem(size, 64, 4), "ok", "")


def panels(planting: Plant, noise: float, draws: int, **how: Any) -> Iterator[tuple[Planted, Contest]]:
    """Panels of both grids in turn, each with a law and a crossing of its own."""
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        sizes = (CLOSE, DOUBLING)[seed % 2]
        planted = planting(rng, anywhere(rng, sizes))
        yield planted, contest(planted, sizes, noise, seed, **how)


ABOUT = """\
{draws} panels a row, half with 11 sizes a factor of √2 apart, half with 8 a factor of 2 apart, three rounds, the
crossing anywhere between the third size and the last but two. *noise*: of an arm in one round; *mean loss*: the regret
of a panel: its mean, median, 95 % quantile and largest over the panels; *2 % or less*: the share of panels with such a
mean loss; *near*: the share of left-out sizes at which the arm that is taken is within 5 % of the fastest; *held*: the
share of thresholds that hold the planted one; *wrong*: the share of panels whose rule is anywhere certain of an arm
that is not the cheapest.
"""


def table(draws: int) -> str:
    """The table of rules, as Markdown."""
    heads = (
        "curves",
        "noise",
        "inside",
        "mean loss: mean / median / 95 % / largest",
        "2 % or less",
        "near",
        "held",
        "wrong",
    )
    lines = [ABOUT.format(draws=draws), f"| {' | '.join(heads)} |", "|---|--:|---|--:|--:|--:|--:|--:|"]
    for name, planting in PLANTS.items():
        for noise in OWN_NOISE:
            for inside in get_args(Inside):
                fields = (name, f"{noise:.0%}", inside, *_row(list(panels(planting, noise, draws, inside=inside))))
                lines.append(f"| {' | '.join(fields)} |")
    return "\n".join(lines)


def _row(measured: Sequence[tuple[Planted, Contest]]) -> Iterator[str]:
    rules = [(planted, each, each.ranges()) for planted, each in measured]
    regrets = [each.regret() for _, each, _ in rules]
    means = np.array([regret.mean for regret in regrets])
    figures = (means.mean(), np.median(means), np.quantile(means, 0.95), means.max())
    yield " / ".join(f"{100 * figure:.2f}" for figure in figures) + " %"
    yield f"{(means <= 0.02).mean():.1%}"
    yield f"{sum(regret.near for regret in regrets) / sum(len(regret.losses) for regret in regrets):.1%}"
    held = [
        t.low <= planted.at <= t.high
        for planted, each, ranges in rules
        for t in each.thresholds(ranges)
        if planted.at is not None and math.isinf(planted.second)
    ]
    yield f"{np.mean(held):.1%} of {len(held)}" if held else ""
    yield f"{np.mean([planted.is_wrong(ranges) for planted, _, ranges in rules]):.1%}"
