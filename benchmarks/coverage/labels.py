"""The part of docs/statistics.md on labels: the choice at a size, growth per doubling, and two stored runs compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from attnbench.analysis.compare.stored_runs import DEFAULT_EFFECT, judge, levels_of_both, standing_out
from attnbench.analysis.interval import Estimate, estimates, ratio, ratio_half_width
from attnbench.analysis.recommendation import Choice, choose
from attnbench.analysis.scaling import doubling
from attnbench.analysis.series import Series
from attnbench.problem import Cell, Problem
from benchmarks.coverage.noise import NOISES, ROUNDS, Generator, Noise, gaussian, parts, visits

Floats = npt.NDArray[np.float64]

SIZES = (256, 512, 1024, 2048, 4096)

SERIES = (0.0, 0.01, 0.02, 0.04, 0.4, 1.0, 1.02, 1.5)
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

MODELS = {
    **NOISES,
    "Gaussian, own 16 %": Noise(lambda rng, shape: parts(rng, shape, 0.16 * rng.standard_normal(shape)), "as Gaussian"),
}

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


Levels = Mapping[str, Estimate]
"""Of a simulated run, by `size.member`: the members are LAWS at every size, then SERIES at the first two sizes, and as
many equal ones at the others."""


def runs(noise: str, rounds: int, draws: int) -> Iterator[Levels]:
    """The estimates of simulated runs."""
    level = np.zeros((len(SIZES), len(LAWS) + len(SERIES)))
    level[:, : len(LAWS)] = np.log([[law(n) for law, _ in LAWS.values()] for n in SIZES])
    level[:2, len(LAWS) :] = SERIES
    for deviations in MODELS[noise].draw(np.random.default_rng(rounds), (draws, rounds, *level.shape)):
        yield estimates(visits(deviations, level), "wall_time_s")


def of_series(levels: Levels, block: int) -> list[Estimate]:
    """The levels of SERIES at a size."""
    return [levels[f"{block}.{len(LAWS) + i}"] for i in range(len(SERIES))]


def choices(levels: Levels) -> Iterator[Mapping[str, float]]:
    """Of the choices at the first two sizes, whether the set holds the fastest, whether the fastest alone is right,
    whether the speed-up's interval holds, and by how much, in logs, the speed-up is overstated."""
    for block in range(2):
        candidates = [
            (level, Choice(Series(str(i), str(i), "reference", "{}", ()), 1.0, None, i in EXACT))
            for i, level in enumerate(of_series(levels, block))
        ]
        found = choose(SIZES[block], "", sorted(candidates, key=lambda each: each[0].level))
        chosen = int(found.fastest.series.name)
        yield {"set": "0" in {each.series.name for each in found.choices}, "alone": chosen == 0}
        if found.speed_up is not None and found.low is not None and found.high is not None:
            truth = SERIES[EXACT[0]] - SERIES[chosen]
            covered = found.low <= math.exp(truth) <= found.high
            yield {"speed-up": covered, "overstated": math.log(found.speed_up) - truth}


def growths(levels: Levels) -> Iterator[Mapping[str, float]]:
    """Of every law, whether the factor's interval holds, and whether it is called not asymptotic yet."""
    for i, (name, (law, stated)) in enumerate(LAWS.items()):
        found = doubling([(size, levels[f"{block}.{i}"]) for block, size in enumerate(SIZES)], stated)
        assert found is not None
        held = found.low <= law(SIZES[-1]) / law(SIZES[-2]) <= found.high
        yield {"factor": held, "settled" if name in SETTLED else name: found.settled is False}


def tied(levels: Levels) -> Iterator[Mapping[str, float]]:
    """Whether the interval of a ratio to the fastest of one to three equal exact series holds the truth."""
    for block in range(2, len(SIZES)):
        equal = of_series(levels, block)
        for exact in (1, 2, 3):
            _, low, high = ratio(equal[-1], min(equal[:exact], key=lambda level: level.level))
            yield {f"{exact} exact": low <= 1 <= high}


def rates(noise: str, rounds: int, draws: int) -> Mapping[str, float]:
    """The means over simulated runs of what `choices`, `growths` and `tied` tell."""
    told: dict[str, list[float]] = {}
    for levels in runs(noise, rounds, draws):
        for outcome in (*choices(levels), *growths(levels), *tied(levels)):
            for name, value in outcome.items():
                told.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in told.items()}


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


def _rows(head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _head(first: str, columns: Iterable[str]) -> list[str]:
    return [first, *(f"{what}, R = {r}" if r == ROUNDS[0] else str(r) for what in columns for r in ROUNDS)]


TABLES: Mapping[str, Mapping[str, str]] = {
    "The choice among eight series, four of them near the fastest; interval and overstatement of the speed-up:": {
        "set": "set holds it", "alone": "fastest alone", "speed-up": "interval holds", "overstated": "overstated",
    },
    "The factor per doubling from 2048 to 4096, and what is called not asymptotic yet:": {
        "factor": "interval holds", "settled": "settled laws", "launches": "launches 1/3", "kink": "kink at 2048",
    },
    "The interval of a ratio to the fastest of so many equal exact series holds:": {
        "1 exact": "one", "2 exact": "two", "3 exact": "three",
    },
}  # fmt: skip


def table(draws: int) -> str:
    """The choice, the growth, the best exact softmax, and two stored runs."""
    told = {(noise, r): rates(noise, r, draws) for noise in MODELS for r in ROUNDS}
    texts = []
    for title, columns in TABLES.items():
        rows = {
            noise: [
                f"{told[noise, r][name]:{'+.1%' if name == 'overstated' else '.0%'}}"
                for name in columns
                for r in ROUNDS
            ]
            for noise in MODELS
        }
        texts += [title, _rows(_head("noise", columns.values()), rows)]
    alarms = {}
    for load in LOADS:
        called, alone = zip(*(verdicts(load, r, draws) for r in ROUNDS), strict=True)
        seen = [verdicts(load, 3, draws, slower)[0] for slower in (1.1, 1.3, 2.0)]
        alarms[load] = [*(f"{x:.1%}" for x in (*called, *alone)), *(f"{x:.0%}" for x in seen)]
    head = [*_head("load", ("called slower", "by rounds alone")), "10 % slower is found, R = 3", "30 %", "100 %"]
    texts += ["Two stored runs of six operators at four sizes, equal, or one operator slower:", _rows(head, alarms)]
    return "\n\n".join(texts)
