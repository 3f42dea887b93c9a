"""The part of docs/statistics.md on labels: the choice at a size, growth per doubling, and two stored runs compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from attnbench.analysis.compare.stored_runs import DEFAULT_EFFECT, judge, levels_of_both, standing_out
from attnbench.analysis.interval import Estimate, estimates, ratio, ratio_half_width
from attnbench.analysis.recommendation import Choice, Recommendation, choose
from attnbench.analysis.scaling import doubling
from attnbench.analysis.series import Series
from attnbench.problem import Cell, Problem
from benchmarks.coverage.noise import NOISES, ROUNDS, Generator, gaussian, visits

Floats = npt.NDArray[np.float64]

SIZES = (256, 512, 1024, 2048, 4096)

SERIES = (0.0, 0.03, 0.05, 0.08, 0.4, 1.0, 1.02, 1.5)
"""Log times over the fastest's: four series that are near it."""

EXACT = (5, 6)
"""Those of them that are exact softmax."""

LAWS: Mapping[str, tuple[Callable[[float], float], str]] = {
    "n": (lambda n: 1e-6 * n, "n"),
    "n log n": (lambda n: 1e-7 * n * math.log(n), "n log n"),
    "n^2": (lambda n: 1e-9 * n * n, "n^2"),
    "launches": (lambda n: 2e-3 + 1e-6 * n, "n"),
    "kink": (lambda n: 1e-6 * n * max(1.0, n / 2048), "n^2"),
}
"""Times with the declared growth; of the last two the largest doubling is not that of the law."""

SETTLED = ("n", "n log n", "n^2")

LOADS: Mapping[str, Callable[[Generator, tuple[int, int]], Floats]] = {
    "none": lambda rng, shape: np.zeros(shape),
    "each cell by 5 to 20 %": lambda rng, shape: np.log(rng.uniform(1.05, 1.2, shape)),
    "half of the cells by 5 to 20 %": lambda rng, shape: (
        np.log(rng.uniform(1.05, 1.2, shape)) * (rng.random(shape) < 0.5)
    ),
    "one size by 20 %": lambda rng, shape: 0.18 * (np.arange(shape[0])[:, None] == rng.integers(shape[0])),
    "one cell in ten by 5 to 20 %": lambda rng, shape: (
        np.log(rng.uniform(1.05, 1.2, shape)) * (rng.random(shape) < 0.1)
    ),
}
"""What another load adds to the log time of each cell [sizes, operators] for all of a run, beside 0 to 30 % of all."""


def runs(noise: str, rounds: int, draws: int, level: Floats) -> Iterator[dict[str, Estimate]]:
    """The estimates of simulated runs. level: true log times, [sizes, members]."""
    for deviations in NOISES[noise].draw(np.random.default_rng(rounds), (draws, rounds, *level.shape)):
        yield estimates(visits(deviations, level), "wall_time_s")


def choice(levels: Mapping[str, Estimate], block: int) -> Recommendation:
    """The choice among the series of one block; their names are their places in SERIES."""
    candidates = [
        (levels[f"{block}.{i}"], Choice(Series(str(i), str(i), "reference", "{}", ()), 1.0, None, i in EXACT))
        for i in range(len(SERIES))
    ]
    return choose(SIZES[block], str(SIZES[block]), sorted(candidates, key=lambda each: each[0].level))


def choices(noise: str, rounds: int, draws: int) -> tuple[float, float, float, float]:
    """Shares and a mean: the set holds the fastest; the fastest alone is right; the speed-up's interval holds; by how
    much, in logs, the speed-up is overstated."""
    held, single, covered, over = [], [], [], []
    for levels in runs(noise, rounds, draws, np.tile(SERIES, (2, 1))):
        for block in range(2):
            found = choice(levels, block)
            chosen = int(found.fastest.series.name)
            held.append("0" in {each.series.name for each in found.choices})
            single.append(chosen == 0)
            if found.speed_up is not None and found.low is not None and found.high is not None:
                truth = SERIES[EXACT[0]] - SERIES[chosen]
                covered.append(found.low <= math.exp(truth) <= found.high)
                over.append(math.log(found.speed_up) - truth)
    return float(np.mean(held)), float(np.mean(single)), float(np.mean(covered)), float(np.mean(over))


def growths(noise: str, rounds: int, draws: int) -> tuple[float, float, float, float]:
    """Shares: the factor's interval holds; "not asymptotic yet" of settled laws, of launches, of a kink."""
    level = np.log([[law(n) for law, _ in LAWS.values()] for n in SIZES])
    held, unsettled = [], {name: [] for name in LAWS}
    for levels in runs(noise, rounds, draws, level):
        for i, (name, (law, stated)) in enumerate(LAWS.items()):
            found = doubling([(size, levels[f"{block}.{i}"]) for block, size in enumerate(SIZES)], stated)
            assert found is not None
            held.append(found.low <= law(SIZES[-1]) / law(SIZES[-2]) <= found.high)
            unsettled[name].append(found.settled is False)
    false = np.mean([unsettled[name] for name in SETTLED])
    return float(np.mean(held)), float(false), float(np.mean(unsettled["launches"])), float(np.mean(unsettled["kink"]))


def tied(noise: str, rounds: int, draws: int, exact: int) -> float:
    """The share of intervals of a ratio to the fastest of several equal exact series that hold the truth."""
    held = []
    for levels in runs(noise, rounds, draws, np.zeros((2, 8))):
        for block in range(2):
            best = min((levels[f"{block}.{i}"] for i in range(exact)), key=lambda level: level.level)
            _, low, high = ratio(levels[f"{block}.7"], best)
            held.append(low <= 1 <= high)
    return float(np.mean(held))


def loaded(rng: Generator, load: str, rounds: int, slower: float, operators: int = 6) -> pd.DataFrame:
    """The visits of a run of a small suite under a load; slower: by how much the first operator's time is longer."""
    shape = (4, operators)
    level = np.log(1e-3) + rng.uniform(0, 0.26) + LOADS[load](rng, shape)
    level[:, 0] += math.log(slower)
    table = visits(gaussian(rng, (1, rounds, *shape))[0], level)
    cells = {
        f"{i}.{j}": Cell(f"o{j}", "reference", "core", "fwd", Problem(SIZES[i], 64, 4), {}).key
        for i in range(shape[0])
        for j in range(operators)
    }
    return table.assign(key=table["key"].map(cells))


def verdicts(load: str, rounds: int, draws: int, slower: float = 1.0) -> tuple[float, float]:
    """The share of comparisons that call a cell of the first operator slower, or of equal runs any; and the same by the
    rounds of both runs alone.

    Args:
        slower: of the second run.
    """
    rng, effect = np.random.default_rng(rounds), math.log1p(DEFAULT_EFFECT)
    called, alone = [], []
    for _ in range(draws):
        sides = levels_of_both(loaded(rng, load, rounds, 1.0), loaded(rng, load, rounds, slower), "wall_time_s")
        judged = sides if slower == 1 else {key: pair for key, pair in sides.items() if key.startswith("o0.")}
        measured = standing_out(sides, turns=True)
        changes = {key: b.level - a.level for key, (a, b) in judged.items()}
        called.append(
            any(
                judge(changes[key] - (measured[key][0] or 0.0), measured[key][1], effect)[0] == "slower"
                for key in judged
            )
        )
        alone.append(
            any(judge(changes[key], ratio_half_width(*pair), effect)[0] == "slower" for key, pair in judged.items())
        )
    return float(np.mean(called)), float(np.mean(alone))


def _rows(head: list[str], rows: Mapping[str, list[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _each_round(first: str, others: tuple[str, ...]) -> list[str]:
    return [f"{what}, R = {r}" if r == ROUNDS[0] else str(r) for what in (first, *others) for r in ROUNDS]


def table(draws: int) -> str:
    """The choice, the growth, the best exact softmax, and two stored runs."""
    chosen, grown, best = {}, {}, {}
    for noise in NOISES:
        held, single, covered, over = zip(*(choices(noise, r, draws) for r in ROUNDS), strict=True)
        chosen[noise] = [f"{x:.0%}" for x in (*held, *single, *covered)] + [f"{x:+.1%}" for x in over]
        grown[noise] = [
            f"{x:.0%}" for each in zip(*(growths(noise, r, draws) for r in ROUNDS), strict=True) for x in each
        ]
        best[noise] = [f"{tied(noise, r, draws, exact):.0%}" for exact in (1, 2, 3) for r in ROUNDS]
    alarms = {
        load: [f"{x:.1%}" for each in zip(*(verdicts(load, r, draws) for r in ROUNDS), strict=True) for x in each]
        + [f"{verdicts(load, 3, draws, slower)[0]:.0%}" for slower in (1.1, 1.3, 2.0)]
        for load in LOADS
    }
    return "\n\n".join(
        [
            "The choice among eight series, of which four are near the fastest:",
            _rows(["noise", *_each_round("set holds it", ("alone right", "interval", "overstated"))], chosen),
            "Growth per doubling from 2048 to 4096:",
            _rows(["noise", *_each_round("interval", ("settled laws called unsettled", "launches", "kink"))], grown),
            "The interval of a ratio to the fastest of so many equal exact series:",
            _rows(["noise", *_each_round("one", ("two", "three"))], best),
            "Two stored runs of 6 operators at 4 sizes, equal, or with one operator slower (R = 3):",
            _rows(
                ["load", *_each_round("called slower", ("by rounds alone",)), "10 % slower", "30 %", "100 %"], alarms
            ),
        ]
    )
