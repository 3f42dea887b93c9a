"""The part of docs/statistics.md on runs whose later rounds measure some cells only."""

from __future__ import annotations

import numpy as np

from attnbench.analysis.interval import estimates, ratio_half_width
from benchmarks.coverage.intervals import BLOCKS, MEMBERS, judged
from benchmarks.coverage.noise import NOISES, Generator, Noise, visits

ROUNDS, FIRST = 20, 3
ADDED = {"1.0", "1.1", "1.2", "2.0", "2.1"}
"""The cells that are measured after the first rounds: in two blocks the baseline, with two members and with one."""

CLASSES = (f"{FIRST} rounds", f"{FIRST}, in a block with {ROUNDS}", f"{ROUNDS} rounds")


def class_of(key: str) -> str:
    block, _ = key.split(".")
    return CLASSES[2] if key in ADDED else CLASSES[1 if f"{block}.0" in ADDED else 0]


def errors(rng: Generator, noise: Noise, draws: int) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Error and half width of times, and of ratios to the block's first member, by ("ratio" or "time", class)."""
    by_class: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for deviations in noise.draw(rng, (draws, ROUNDS, BLOCKS, MEMBERS)):
        run = visits(deviations, np.zeros((BLOCKS, MEMBERS)))
        levels = estimates(run[(run["round"] <= FIRST) | run["key"].isin(ADDED)], "wall_time_s")
        for key, level in levels.items():
            baseline = levels[f"{key[0]}.0"]
            by_class.setdefault(("time", class_of(key)), []).append((level.level, level.half_width))
            if level is not baseline:
                pair = (level.level - baseline.level, ratio_half_width(level, baseline))
                by_class.setdefault(("ratio", class_of(key)), []).append(pair)
    return by_class


def table(draws: int) -> str:
    """Coverage and width of the 95 % intervals by noise and by how often a cell was measured."""
    columns = [(kind, each) for kind in ("ratio", "time") for each in CLASSES]
    rows = [f"| noise | {' | '.join(f'{kind}: {each}' for kind, each in columns)} |", "|---|" + "--:|" * len(columns)]
    for name, noise in NOISES.items():
        by_class = errors(np.random.default_rng(0), noise, draws)
        rows.append(f"| {name} | {' | '.join(judged(np.array(by_class[column]).T) for column in columns)} |")
    return "\n".join(rows)
