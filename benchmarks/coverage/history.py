"""The part of docs/statistics.md on changes from run to run: how often one is marked wrongly, what is found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from attnbench.analysis.change_points import ChangePoint, beside_others, change_points
from attnbench.analysis.compare.stored_runs import FEWEST_OTHERS
from attnbench.analysis.distributions import normal
from benchmarks.coverage.noise import NOISES, Floats, Generator, Noise, Shape

BLOCKS, MEMBERS, ROUNDS = 6, 8, 3
"""Of a run; its operators differ in each block."""

RUNS = 30
CLOSE = 1
"""A mark so many runs from the change has found it."""


def runs_of(rng: Generator, noise: Noise, draws: int, runs: int) -> Floats:
    """[draws, runs, blocks, members]: log times, the mean of ROUNDS processes in each run."""
    shape = (draws, runs * ROUNDS, BLOCKS, MEMBERS)
    return noise.draw(rng, shape).reshape(draws, runs, ROUNDS, BLOCKS, MEMBERS).mean(axis=2)


def marks(history: Floats) -> list[list[ChangePoint]]:
    """The changes of each cell, block by block. history: [runs, blocks, members]."""
    names = [str(member) for member in range(MEMBERS)]
    blocks = [beside_others(history[:, block].T, names, FEWEST_OTHERS) for block in range(BLOCKS)]
    return change_points([track for block in blocks for track in block])


def false_alarms(histories: Floats) -> float:
    """The share in which any cell has a mark. histories: [draws, runs, blocks, members], without a change."""
    return float(np.mean([any(marks(history)) for history in histories]))


def found(histories: Floats, change: float, last: int | None = None) -> float:
    """The share in which a change of one cell, in the middle of the runs, is marked where it is.

    Args:
        histories: without a change.
        change: a fraction.
        last: after so many runs it is taken back; None: it stays.
    """
    at, hits = histories.shape[1] // 2, 0
    end = None if last is None else at + last
    for history in histories:
        planted = history.copy()
        planted[at:end, 0, 0] += math.log1p(change)
        hits += any(abs(mark.at - at) <= CLOSE and mark.change * change > 0 for mark in marks(planted)[0])
    return hits / len(histories)


def following(rng: Generator, shape: Shape, lag: float) -> Floats:
    """Cells whose luck follows itself from run to run, with the correlation `lag`; a run's rounds share it."""
    draws, rounds, blocks, members = shape
    own = rng.standard_normal((rounds // ROUNDS, draws, blocks, members))
    for run in range(1, len(own)):
        own[run] = lag * own[run - 1] + math.sqrt(1 - lag**2) * own[run]
    return 0.05 / math.sqrt(ROUNDS) * np.repeat(own.swapaxes(0, 1), ROUNDS, axis=1)


def wandering(rng: Generator, shape: Shape) -> Floats:
    """Every cell by itself becomes slower or faster by up to 10 % over the history."""
    draws, rounds, blocks, members = shape
    line = np.linspace(-0.5, 0.5, rounds)[:, None, None]
    slopes = rng.uniform(-0.1, 0.1, (draws, 1, blocks, members))
    return slopes * line + 0.05 * rng.standard_normal(shape)


DEPENDENT: Mapping[str, Callable[[Generator, Shape], Floats]] = {
    "a cell's luck follows itself, lag 1: 0.3": lambda rng, shape: following(rng, shape, 0.3),
    "the same, 0.6": lambda rng, shape: following(rng, shape, 0.6),
    "each cell wanders by up to 10 %": wandering,
}
"""Noise that is not independent from run to run, which the model does not know."""


def at_most(share: float, draws: int) -> float:
    """The upper end of a 95 % interval of a share (Wilson 1927)."""
    z = normal(0.975)
    centre, spread = share + z * z / (2 * draws), z * math.sqrt(share * (1 - share) / draws + (z / (2 * draws)) ** 2)
    return (centre + spread) / (1 + z * z / draws)


def _alarms(rng: Generator, noise: Noise, draws: int, runs: int) -> str:
    share = false_alarms(runs_of(rng, noise, draws, runs))
    return f"{share:.1%} (≤ {at_most(share, draws):.1%})"


def table(draws: int) -> str:
    """False alarms by noise and length; what is found of changes."""
    rng = np.random.default_rng(0)
    head = (
        f"Histories of {BLOCKS} blocks of {MEMBERS} operators, {ROUNDS} rounds a run; {5 * draws} of {RUNS} runs "
        f"without a change, and {draws} with one in one cell in their middle, found within a run of its place."
    )
    rows = [
        "| noise | false alarms | +5 % found | +10 % found | +20 % found | +20 % for 5 runs found |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, noise in NOISES.items():
        histories = runs_of(rng, noise, draws, RUNS)
        powers = [found(histories, change, last) for change, last in ((0.05, None), (0.1, None), (0.2, None), (0.2, 5))]
        shown = " | ".join(f"{power:.0%}" for power in powers)
        rows.append(f"| {name} | {_alarms(rng, noise, 5 * draws, RUNS)} | {shown} |")
    for name, draw in DEPENDENT.items():
        rows.append(f"| {name} | {_alarms(rng, Noise(draw, name), draws, RUNS)} | | | | |")
    by_length = ["| runs | false alarms, Gaussian | t3 | +10 % found, Gaussian |", "|--:|--:|--:|--:|"]
    for runs in (4, 8, 15, 60, 120):
        alarms = [_alarms(rng, NOISES[name], draws, runs) for name in ("Gaussian", "t3")]
        power = found(runs_of(rng, NOISES["Gaussian"], draws, runs), 0.1)
        by_length.append(f"| {runs} | {' | '.join(alarms)} | {power:.0%} |")
    return "\n".join([head, "", *rows, "", *by_length])
