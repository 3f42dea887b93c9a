"""Panels with planted cost curves: the cheapest arm at any size is known, and what rules say of it can be checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from attnbench.analysis.contest import Arm, Contest, Inside, Range
from attnbench.analysis.interval import Estimate, estimates
from attnbench.analysis.metric_values import Quantity
from attnbench.analysis.series import Panel, Point, Series
from attnbench.problem import Problem
from attnbench.registry import metrics
from benchmarks.coverage.noise import visits
from tests.analysis.runs import Law

Generator = np.random.Generator
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
    a, b = rng.uniform(0.05, 0.4), rng.uniform(0.2, 0.8)
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
