"""The part of docs/statistics.md on runs that stop as soon as their intervals are narrow enough."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from attnbench.analysis.interval import Estimate, estimates, ratio_half_width
from attnbench.analysis.looks import confidence_at, looks
from benchmarks.coverage.noise import NOISES, Generator, Noise, visits

STOPS = looks(3, 9)
MEMBERS = 8
Path = list[tuple[Estimate, Estimate]]
"""A series and its baseline at each look."""

PRECISIONS = (0.9, 0.6)
"""Half widths at which a run stops, over that of the median run at the first look."""


def paths(rng: Generator, noise: Noise, draws: int) -> list[Path]:
    """Of every ratio within a block to its first member, what is found at each look."""
    found = []
    for deviations in noise.draw(rng, (draws, STOPS[-1], 1, MEMBERS)):
        run = visits(deviations, np.zeros((1, MEMBERS)))
        levels = [estimates(run[run["round"] <= stop], "wall_time_s") for stop in STOPS]
        found += [[(at[f"0.{member}"], at["0.0"]) for at in levels] for member in range(1, MEMBERS)]
    return found


def judged(path: Path, confidence: float) -> list[tuple[float, bool]]:
    """At each look the half width, and whether the interval holds the truth."""
    found = []
    for pair in path:
        series, baseline = (replace(level, confidence=confidence) for level in pair)
        half = ratio_half_width(series, baseline)
        found.append((half, abs(series.level - baseline.level) <= half))
    return found


def row(noise: Noise, draws: int) -> list[str]:
    cells, found = [], paths(np.random.default_rng(0), noise, draws)
    for confidence in (0.95, confidence_at(STOPS)):
        runs = [judged(path, confidence) for path in found]
        cells.append(f"{np.mean([all(held for _, held in run) for run in runs]):.1%}")
        first = float(np.median([run[0][0] for run in runs]))
        for share in PRECISIONS:
            ends = [next((i for i, (half, _) in enumerate(run) if half <= share * first), -1) for run in runs]
            held = np.mean([run[end][1] for run, end in zip(runs, ends, strict=True)])
            cells.append(f"{held:.1%} ({np.mean([STOPS[end] for end in ends]):.1f})")
    return cells


def table(draws: int) -> str:
    """Coverage where a run stops by the width of its interval, and of all looks together."""
    wide, narrow = (f"stopped at {share:.0%} (rounds)" for share in PRECISIONS)
    level = f"{confidence_at(STOPS):.1%}"
    heads = [f"{name}: {what}" for name in ("95 % each", f"{level} each") for what in ("all looks", wide, narrow)]
    rows = [f"| {name} | {' | '.join(row(noise, draws))} |" for name, noise in NOISES.items()]
    return "\n".join([f"| noise | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads), *rows])
