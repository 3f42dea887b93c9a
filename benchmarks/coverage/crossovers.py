"""How often crossovers and their labels are right, and how wide their intervals are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from attnbench.analysis.crossover import Crossover, Pair, crossover
from attnbench.analysis.interval import Estimate, estimates
from benchmarks.coverage.noise import NOISES, ROUNDS, Floats, Generator, visits

SIZES = (256, 512, 1024, 2048, 4096, 8192)
MEMBERS = 6
"""Of a block: the series, its baseline, and four others."""

RATIOS = (0.98, 1.0, 1.02)
LABEL_SIZES = 5

Truth = Callable[[Floats], Floats]
"""Log ratio of the series to its baseline at sizes over the crossing's."""


def straight(n: Floats) -> Floats:
    return -np.log(n)


def shallow(n: Floats) -> Floats:
    return -0.4 * np.log(n)


def overhead_of_series(n: Floats) -> Floats:
    return np.log((1 + n) / 2) - 2 * np.log(n)


def overhead_of_both(n: Floats) -> Floats:
    return np.log(0.7 + 0.3 * n) - np.log(0.2 + 0.8 * n)


def overhead_and_square(n: Floats) -> Floats:
    return np.log(0.8 + 0.2 * n) - np.log((0.25 + n**2) / 1.25)


def kink_below(n: Floats) -> Floats:
    return -np.log(np.maximum(n, 0.4))


SMOOTH: Sequence[Truth] = (
    straight,
    shallow,
    overhead_of_series,
    overhead_of_both,
    overhead_and_square,
    kink_below,
)
STEPPED: Sequence[Truth] = (straight, shallow, overhead_of_both)
LEAST_JUMP, MOST_JUMP = 0.3, 0.7


@dataclass(frozen=True)
class Case:
    """A true log ratio at the sizes.

    Args:
        gap: at each size.
        at: the crossing; None: there is none.
        slope: of the log ratio there; nan at a step.
    """

    gap: Floats
    at: float | None = None
    slope: float = math.nan


def smooth(rng: Generator, interval: int, sizes: Sequence[int] = SIZES) -> Case:
    """A smooth crossing anywhere between two neighbouring sizes."""
    truth, at = SMOOTH[int(rng.integers(len(SMOOTH)))], _place(rng, interval, sizes)
    near = truth(np.array([1.01, 1 / 1.01]))
    return Case(truth(np.array(sizes) / at), at, abs(float(near[0] - near[1])) / (2 * math.log(1.01)))


def stepped(rng: Generator, interval: int, sizes: Sequence[int] = SIZES) -> Case:
    """A crossing at a step of a random height and place between two neighbouring sizes."""
    truth, at = STEPPED[int(rng.integers(len(STEPPED)))], _place(rng, interval, sizes)
    jump, above = rng.uniform(LEAST_JUMP, MOST_JUMP), rng.uniform(0.1, 0.9)
    x = np.array(sizes) / at
    return Case(truth(x) + jump * np.where(x < 1, above, above - 1), at)


def _place(rng: Generator, interval: int, sizes: Sequence[int]) -> float:
    return float(sizes[interval] * (sizes[interval + 1] / sizes[interval]) ** rng.uniform(0.03, 0.97))


@dataclass(frozen=True)
class Measured:
    """Simulated runs under one noise.

    Args:
        runs: of each draw, the estimates of a series and its baseline at each size; their true levels are 0.
        sd: standard deviation of the log ratio in one round.
    """

    runs: Sequence[Sequence[tuple[Estimate, Estimate]]]
    sd: float


def measure(rng: Generator, noise: str, rounds: int, draws: int) -> Measured:
    """Estimates of runs whose true times are all the same: true levels only shift them."""
    deviations = NOISES[noise].draw(rng, (draws, rounds, len(SIZES), MEMBERS))
    runs = []
    for deviation in deviations:
        levels = estimates(visits(deviation, np.zeros((len(SIZES), MEMBERS))), "wall_time_s")
        runs.append([(levels[f"{size}.0"], levels[f"{size}.1"]) for size in range(len(SIZES))])
    return Measured(runs, float((deviations[..., 0] - deviations[..., 1]).std()))


def judged(run: Sequence[tuple[Estimate, Estimate]], gap: Floats) -> Crossover:
    """The crossover of one run with a true log ratio."""
    return crossover(
        [
            Pair(size, str(size), replace(series, level=series.level + shift), baseline)
            for size, (series, baseline), shift in zip(SIZES, run, gap.tolist(), strict=False)
        ]
    )


def is_right(judgement: Crossover, case: Case) -> bool:
    """Whether an interval holds the crossing; where none is claimed, whether the label agrees with the truth."""
    if judgement.crossings:
        return case.at is not None and any((c.low or 0) <= case.at <= (c.high or math.inf) for c in judgement.crossings)
    if judgement.stretch:
        labels = [str(size) for size in SIZES[: len(case.gap)]]
        first = labels.index(judgement.stretch.first or labels[0])
        last = labels.index(judgement.stretch.last or labels[-1])
        return bool(((case.gap[first : last + 1] < 0) == judgement.stretch.cheaper).all())
    return judgement.kind == "undecided" or bool(((case.gap < 0) == (judgement.kind == "always")).all())


@dataclass(frozen=True)
class Tally:
    """What came of many cases.

    Args:
        held: share whose answer agrees with the truth.
        bracketed: share of the crossings given as two sizes.
        width: median of the intervals' log widths over that of one who knows the noise and the shape.
    """

    held: float
    bracketed: float
    width: float


def tally(measured: Measured, cases: Iterable[Case], rounds: int) -> Tally:
    """One case for each run."""
    held, bracketed, widths = [], [], []
    for run, case in zip(measured.runs, cases, strict=False):
        judgement = judged(run, case.gap)
        held.append(is_right(judgement, case))
        bracketed += [c.bracket for c in judgement.crossings]
        oracle = 2 * 1.96 * measured.sd / math.sqrt(rounds) / case.slope
        widths += [math.log(c.high / c.low) / oracle for c in judgement.crossings if c.at and c.low and c.high]
    return Tally(_mean(held), _mean(bracketed), float(np.median(widths)) if widths else math.nan)


def _mean(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if values else math.nan


def wrong_labels(measured: Measured) -> list[float]:
    """For each of RATIOS, constant over LABEL_SIZES sizes, the share of false crossings and of wrong labels.

    At a ratio of 1, "always" and "never" are wrong; the last figure is the share told apart from it at any size.
    """
    wrong, told = [], 0.0
    for ratio in RATIOS:
        judgements = [judged(run, np.full(LABEL_SIZES, math.log(ratio))) for run in measured.runs]
        if ratio == 1:
            told = _mean([each.kind != "undecided" for each in judgements])
        wrong.append(_mean([_is_wrong(each, ratio) for each in judgements]))
    return [*wrong, told]


def _is_wrong(judgement: Crossover, ratio: float) -> bool:
    if judgement.stretch is not None:
        return ratio > 1 if judgement.stretch.cheaper else ratio < 1
    return judgement.kind == "crossing" or {"always": ratio >= 1, "never": ratio <= 1}.get(judgement.kind, False)


@dataclass(frozen=True)
class Row:
    """What came out under one noise at one number of rounds.

    Args:
        inside, edge: of smooth crossings in inner intervals, and in the first and last.
        steps: in each interval.
        wrong: see `wrong_labels`.
    """

    inside: Tally
    edge: Tally
    steps: Sequence[Tally]
    wrong: Sequence[float]


def row(noise: str, rounds: int, draws: int) -> Row:
    """Seeded by the noise and the rounds."""
    rng = np.random.default_rng([15, rounds, *noise.encode()])
    measured = measure(rng, noise, rounds, draws)
    last = len(SIZES) - 2
    return Row(
        inside=tally(measured, (smooth(rng, 1 + i % (last - 1)) for i in range(draws)), rounds),
        edge=tally(measured, (smooth(rng, (0, last)[i % 2]) for i in range(draws)), rounds),
        steps=[tally(measured, (stepped(rng, interval) for _ in range(draws)), rounds) for interval in range(last + 1)],
        wrong=wrong_labels(measured),
    )


ABOUT = """\
A panel has {sizes} sizes a factor of 2 apart and {members} members a block; the estimates are those of a run
(`analysis.interval.estimates`), shifted to the true levels. Four figures in a field are of {rounds} rounds, each
from {draws} panels. *held*: the share of panels whose interval holds the true crossing, or whose label, where it claims
no crossing, is true; *width*: the median over that of one who knows the noise and the shape; *as two sizes*: the share
of crossings that are given as the two sizes beside them. Smooth ratios are straight, bent by launch overheads of either
side or of both, or have a kink below the crossing, which lies anywhere between two sizes.
"""

STEPS_ABOUT = """\
The same of a jump by {least:.0%} to {most:.0%} (in logs) across 1, at a random place of each interval: the share held.
"""

LABELS_ABOUT = """\
Panels of {sizes} sizes at which the true ratio is one and the same: the share with a crossing, or with a label that is
not so. At a ratio of 1, where always and never are wrong, the last column is the share of panels that are told apart at
any size: the band is meant to do that in 5 %.
"""


def table(draws: int) -> str:
    """The tables of crossovers, as Markdown."""
    rows = {noise: [row(noise, rounds, draws) for rounds in ROUNDS] for noise in NOISES}
    shown = ", ".join(map(str, ROUNDS[:-1])) + f" and {ROUNDS[-1]}"

    def grid(heads: Sequence[str], fields: Sequence[Callable[[Row], float]], form: str) -> str:
        lines = ["| noise | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
        for noise, of_rounds in rows.items():
            cells = [" / ".join(format(field(each), form) for each in of_rounds) for field in fields]
            lines.append(f"| {noise} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    held: list[Callable[[Row], float]] = [lambda r: 100 * r.inside.held, lambda r: 100 * r.edge.held]
    bracketed: list[Callable[[Row], float]] = [lambda r: 100 * r.inside.bracketed, lambda r: 100 * r.edge.bracketed]
    smooths = grid(
        [
            "inside: held, %",
            "in the first or last interval: held, %",
            "inside: as two sizes, %",
            "first or last: the same",
        ],
        [*held, *bracketed],
        ".0f",
    )
    widths = grid(["inside: width", "first or last: width"], [lambda r: r.inside.width, lambda r: r.edge.width], ".2f")
    steps = grid(
        [f"{low} to {high}" for low, high in pairwise(SIZES)],
        [lambda r, i=i: 100 * r.steps[i].held for i in range(len(SIZES) - 1)],  # type: ignore[misc]
        ".0f",
    )
    labels = grid(
        [*(f"{ratio:.2f}: wrong, %" for ratio in RATIOS), "1.00: told apart at a size, %"],
        [lambda r, i=i: 100 * r.wrong[i] for i in range(len(RATIOS) + 1)],  # type: ignore[misc]
        ".1f",
    )
    return "\n".join(
        [
            ABOUT.format(sizes=len(SIZES), members=MEMBERS, rounds=shown, draws=draws),
            smooths + "\n",
            widths + "\n",
            STEPS_ABOUT.format(least=LEAST_JUMP, most=MOST_JUMP),
            steps + "\n",
            LABELS_ABOUT.format(sizes=LABEL_SIZES),
            labels,
        ]
    )
