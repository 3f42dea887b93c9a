"""The part of docs/statistics.md on maps: the border of the cheapest of several operators along one row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from attnbench.analysis.crossover import Crossover, Pair, crossover
from attnbench.analysis.interval import Estimate, estimates
from attnbench.analysis.recommendation import least_level
from benchmarks.coverage.crossovers import SIZES, Case, is_right, smooth
from benchmarks.coverage.noise import NOISES, ROUNDS, visits

MOST = 8
"""Operators beside the baseline in a block."""

SPREAD = 0.05
"""The standard deviation, in logs, of how much slower than the fastest those that are near it are."""

GROUPS: Mapping[str, tuple[int, float]] = {
    "one": (1, 0.0),
    "eight equal": (MOST, 0.0),
    "eight near": (MOST, SPREAD),
}
"""Operators whose border is judged: how many, and the spread of their times."""

Least = Callable[[Sequence[Estimate]], Estimate]


def fastest(levels: Sequence[Estimate]) -> Estimate:
    """The least as it was measured."""
    return min(levels, key=lambda each: each.level)


def judged(levels: Mapping[str, Estimate], case: Case, slower: Sequence[float], least: Least) -> Crossover:
    """The border of the cheapest of some operators of a simulated run.

    Args:
        levels: by `size.member`; member 0 is the baseline.
        case: the log ratio of the fastest at each size.
        slower: for each operator, by how much it is slower than the fastest, in logs.
        least: of the levels at a size, that of the cheapest.
    """
    pairs = []
    for i, size in enumerate(SIZES):
        own = [levels[f"{i}.{k}"] for k in range(1, len(slower) + 1)]
        moved = [replace(e, level=e.level + case.gap[i] + more) for e, more in zip(own, slower, strict=True)]
        pairs.append(Pair(size, str(size), least(moved), levels[f"{i}.0"]))
    return crossover(pairs)


def outcomes(noise: str, rounds: int, draws: int) -> Iterator[Mapping[str, float]]:
    """Of each simulated run, whether the borders of GROUPS are held, by `fastest` and by `least_level`, which are the
    same of one, and the log widths of the latter's intervals."""
    rng = np.random.default_rng([16, rounds, *noise.encode()])
    deviations = NOISES[noise].draw(rng, (draws, rounds, len(SIZES), MOST + 1))
    for i, deviation in enumerate(deviations):
        levels = estimates(visits(deviation, np.zeros((len(SIZES), MOST + 1))), "wall_time_s")
        case = smooth(rng, i % (len(SIZES) - 1))
        for name, (number, spread) in GROUPS.items():
            slower = np.abs(rng.normal(0, spread, number))
            slower -= slower.min()
            for least in (fastest, least_level)[number == 1 :]:
                found = judged(levels, case, slower.tolist(), least)
                yield {f"{name}, {least.__name__}": is_right(found, case)}
            yield {f"{name}, width": math.log(c.high / c.low) for c in found.crossings if c.at and c.low and c.high}


ABOUT = """\
In a row of a map the cheapest of several operators is compared with the baseline. As measured, the least of them is
less than it is in truth. *as measured* takes it so; *held* as a map does (`analysis.recommendation.least_level`):
without what choosing it took off, and with the confidence that all which cannot be told from it have together. Panels
as above, with {most} operators beside the baseline; smooth crossings in any interval; the share of panels whose answer
is right, of {rounds} rounds, each from {draws} panels. *eight near*: slower than the fastest by the absolute value of a
normal deviation of {spread:.0%}. *width*: the median of the intervals with eight equal ones over that with one.
"""


def table(draws: int) -> str:
    """The table of borders, as Markdown."""
    chosen = ROUNDS[1:3]
    heads = [*[f"{name}: {kind}, %" for name in GROUPS for kind in ("as measured", "held")][1:], "width"]
    lines = ["| noise | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for noise in NOISES:
        found: list[dict[str, list[float]]] = []
        for rounds in chosen:
            found.append({})
            for outcome in outcomes(noise, rounds, draws):
                for name, value in outcome.items():
                    found[-1].setdefault(name, []).append(value)
        keys = [f"{name}, {least.__name__}" for name in GROUPS for least in (fastest, least_level)][1:]
        fields = [" / ".join(f"{100 * np.mean(each[key]):.0f}" for each in found) for key in keys]
        widths = [np.median(each["eight equal, width"]) / np.median(each["one, width"]) for each in found]
        fields.append(" / ".join(f"{width:.2f}" for width in widths))
        lines.append(f"| {noise} | {' | '.join(fields)} |")
    about = ABOUT.format(most=MOST, rounds=" and ".join(map(str, chosen)), draws=draws, spread=SPREAD)
    return "\n".join([about, *lines])
