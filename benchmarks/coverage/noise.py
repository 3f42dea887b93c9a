"""The noise models of all simulations: how far the measured time of a visit lies from the truth, in logs.

A visit is one cell in one round; log of its time = truth + process + block + own. `process` is common to a round,
`block` to the cells that are measured in turns in one round, `own` is a cell's luck in one process. Where nothing
else is said the standard deviations are 4 %, 3 % and 5 %.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from attnbench.analysis.undisturbed import undisturbed

Floats = npt.NDArray[np.float64]
Generator = np.random.Generator
Shape = tuple[int, int, int, int]
"""Draws (simulated runs), rounds, blocks, members of a block."""

PROCESS, BLOCK, OWN = 0.04, 0.03, 0.05
"""Standard deviations, in logs."""

STUDY = Path(__file__).resolve().parents[2] / "results" / "reference" / "gate-study"


@dataclass(frozen=True)
class Noise:
    """A noise model.

    Args:
        draw: (generator, shape) → deviations of that shape, in logs, around the undisturbed time.
        says: what is simulated, in a few words.
    """

    draw: Callable[[Generator, Shape], Floats]
    says: str


def parts(rng: Generator, shape: Shape, own: Floats, *, process: float = PROCESS, block: float = BLOCK) -> Floats:
    """Deviations with normal offsets of processes and blocks around a cell's own, all added up."""
    draws, rounds, blocks, _ = shape
    common = process * rng.standard_normal((draws, rounds, 1, 1))
    return common + block * rng.standard_normal((draws, rounds, blocks, 1)) + own


def gaussian(rng: Generator, shape: Shape) -> Floats:
    return parts(rng, shape, OWN * rng.standard_normal(shape))


def heavy(rng: Generator, shape: Shape) -> Floats:
    return parts(rng, shape, OWN * rng.standard_t(3, shape) / 3**0.5)


def skewed(rng: Generator, shape: Shape) -> Floats:
    return parts(rng, shape, OWN * (rng.exponential(1, shape) - 1))


def bimodal(rng: Generator, shape: Shape) -> Floats:
    modes = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
    return parts(rng, shape, OWN * (0.95 * modes + 0.31 * rng.standard_normal(shape)))


def unlike(rng: Generator, shape: Shape) -> Floats:
    """Cells whose standard deviations differ: a log-normal factor with a spread of 0.8."""
    draws, _, blocks, members = shape
    scale = np.exp(0.8 * rng.standard_normal((draws, 1, blocks, members)))
    return parts(rng, shape, OWN * scale * rng.standard_normal(shape))


def shared(rng: Generator, shape: Shape) -> Floats:
    return parts(rng, shape, 0.02 * rng.standard_normal(shape), process=0.08)


def drift(rng: Generator, shape: Shape) -> Floats:
    """The truth is the middle of the run."""
    rounds = shape[1]
    line = 0.15 * (np.arange(rounds) / (rounds - 1) - 0.5) if rounds > 1 else np.zeros(1)
    return parts(rng, shape, 0.02 * rng.standard_normal(shape), process=0.01) + line[:, None, None]


def slow_round(rng: Generator, shape: Shape) -> Floats:
    slow = np.arange(shape[1]) == rng.integers(0, shape[1], (shape[0], 1))
    return gaussian(rng, shape) + np.log(1.5) * slow[:, :, None, None]


TURNS, CALLS = 12, 3
SLOT_S, EPISODE_S = 0.03, 1.0
JITTER = 0.02


def episodes(rng: Generator, shape: Shape, share: float, turns: int = TURNS) -> Floats:
    """How much slower a sample is made by what else runs, in logs; [*shape, turns].

    Along a block's time slots, one per member and turn, episodes of a second on average come and go, so that `share` of
    the slots are hit; an episode slows all that falls into it by one factor, 1.35 on average.
    """
    draws, rounds, blocks, members = shape
    runs = (draws, rounds, blocks)
    ends = SLOT_S / EPISODE_S
    begins = ends * share / (1 - share)
    hit = rng.random(runs) < share
    factor = rng.exponential(0.3, runs)
    slower = np.zeros((*shape, turns))
    order = np.argsort(rng.random((*runs, turns, members)), axis=-1)
    first, second, third = np.ogrid[:draws, :rounds, :blocks]
    for turn in range(turns):
        for slot in range(members):
            slower[first, second, third, order[..., turn, slot], turn] = hit * factor
            starting = ~hit & (rng.random(runs) < begins)
            factor = np.where(starting, rng.exponential(0.3, runs), factor)
            hit = starting | (hit & (rng.random(runs) >= ends))
    return slower


def lowest(samples: Floats) -> Floats:
    """The undisturbed time of visits; samples: [..., samples of a visit], in any unit or in logs."""
    flat = samples.reshape(-1, samples.shape[-1])
    return np.array([undisturbed(visit) for visit in flat.tolist()]).reshape(samples.shape[:-1])


def interference(rng: Generator, shape: Shape, share: float) -> Floats:
    """What is left of episodes of interference in the undisturbed times of visits of TURNS × CALLS samples."""
    slower = np.repeat(episodes(rng, shape, share), CALLS, axis=-1)
    jitter = JITTER * np.abs(rng.standard_normal((*shape, TURNS * CALLS)))
    return parts(rng, shape, OWN / 2 * rng.standard_normal(shape)) + lowest(slower + jitter) - 0.13 * JITTER


@functools.cache
def study(condition: str) -> tuple[Floats, Floats]:
    """The recorded residuals of a gate study: offsets of processes, and [processes, cells] of cells around them."""
    table = pd.read_csv(STUDY / f"{condition}.csv", dtype={"samples_us": str})
    table = table[table["variant"].isin(["base", "again"])]
    visits = [undisturbed([float(s) for s in text.split()]) for text in table["samples_us"]]
    times = table.assign(us=visits).pivot_table(index=["block", "variant"], columns="cell", values="us")
    around = np.log(times.dropna().to_numpy())
    around = around - around.mean(axis=0)
    processes = around.mean(axis=1)
    cells = around.shape[1]
    return processes, (around - processes[:, None]) * (cells / (cells - 1)) ** 0.5


def recorded(rng: Generator, shape: Shape, condition: str) -> Floats:
    """Offsets and residuals of a recorded study, drawn with replacement; a cell keeps the residuals of one cell."""
    draws, rounds, blocks, members = shape
    processes, own = study(condition)
    common = processes[rng.integers(0, len(processes), (draws, rounds, 1, 1))]
    cell = rng.integers(0, own.shape[1], (draws, 1, blocks, members))
    return common + own[rng.integers(0, len(own), shape), np.broadcast_to(cell, shape)]


NOISES: Mapping[str, Noise] = {
    "Gaussian": Noise(gaussian, "process 4 %, block 3 %, own 5 %"),
    "t3": Noise(heavy, "own: Student's t with 3 degrees of freedom"),
    "skewed": Noise(skewed, "own: exponential"),
    "bimodal": Noise(bimodal, "own: a process is in one of two states 10 % apart"),
    "interference 10 %": Noise(functools.partial(interference, share=0.10), "episodes of 1 s, 35 % slower"),
    "interference 25 %": Noise(functools.partial(interference, share=0.25), "episodes of 1 s, 35 % slower"),
    "interference 50 %": Noise(functools.partial(interference, share=0.50), "episodes of 1 s, 35 % slower"),
    "unlike cells": Noise(unlike, "own: 5 % times a log-normal factor of spread 0.8"),
    "shared 8 %": Noise(shared, "process 8 %, own 2 %"),
    "drift": Noise(drift, "15 % over the run, own 2 %"),
    "one slow round": Noise(slow_round, "Gaussian, one round 50 % slower"),
    "recorded, quiet": Noise(functools.partial(recorded, condition="clean"), "residuals of the gate study"),
    "recorded, loaded": Noise(functools.partial(recorded, condition="loaded"), "the same, beside other work"),
}
"""By the name that tables show."""

ROUNDS = (2, 3, 5, 10)


def visits(deviations: Floats, level: Floats, rounds_from: int = 1) -> pd.DataFrame:
    """One simulated run as analyses read it: rows of `Run.visits` with wall_time_s.

    Args:
        deviations: [rounds, blocks, members] of one draw.
        level: true log times, [blocks, members]. Member m of block b has key "b.m".
        rounds_from: number of the first round.
    """
    rounds = len(deviations)
    r, b, m = (x.ravel() for x in np.indices(deviations.shape))
    return pd.DataFrame(
        {
            "key": [f"{i}.{j}" for i, j in zip(b, m, strict=True)],
            "operator": [f"o{j}" for j in m],
            "seq_len": 2 ** (8 + b),
            "contract": f"3 rounds={rounds}",
            "round": r + rounds_from,
            "process": r + rounds_from,
            "part": 0,
            "status": "ok",
            "wall_time_s": np.exp(level + deviations).ravel(),
        }
    )
