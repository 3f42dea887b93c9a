"""The part of docs/statistics.md on the intervals of times and of ratios within a block."""

from __future__ import annotations

import numpy as np

from attnbench.analysis.interval import estimates, ratio_half_width
from benchmarks.coverage.noise import NOISES, ROUNDS, Floats, Generator, Noise, visits

BLOCKS, MEMBERS = 4, 8


def errors(rng: Generator, noise: Noise, rounds: int, draws: int) -> tuple[Floats, Floats]:
    """Error and half width, [2, cells], of every cell's time, and of its ratio to its block's first member."""
    times, ratios = [], []
    for deviations in noise.draw(rng, (draws, rounds, BLOCKS, MEMBERS)):
        level = rng.normal(0, 1, (BLOCKS, MEMBERS))
        found = estimates(visits(deviations, level), "wall_time_s")
        for block in range(BLOCKS):
            baseline = found[f"{block}.0"]
            for member in range(MEMBERS):
                cell = found[f"{block}.{member}"]
                error = cell.level - level[block, member]
                times.append((error, cell.half_width))
                if member:
                    relative = error - baseline.level + level[block, 0]
                    ratios.append((relative, ratio_half_width(cell, baseline)))
    return np.array(times).T, np.array(ratios).T


def judged(pairs: Floats) -> str:
    """Coverage, and the mean half width over that of an oracle, who knows which width covers 95 % of the errors."""
    error, half = np.abs(pairs[0]), pairs[1]
    return f"{np.mean(error <= half):.1%}, {half.mean() / np.quantile(error, 0.95):.2f}"


def table(draws: int) -> str:
    """Coverage and width of the 95 % intervals by noise and rounds."""
    rows: dict[str, list[str]] = {"a time": [], "a ratio within a block": []}
    for name, noise in NOISES.items():
        found = [errors(np.random.default_rng(rounds), noise, rounds, draws) for rounds in ROUNDS]
        for kind, which in (("a time", 0), ("a ratio within a block", 1)):
            rows[kind].append(f"| {name} | {' | '.join(judged(pair[which]) for pair in found)} |")
    head = f"| noise | {' | '.join(f'R = {rounds}' for rounds in ROUNDS)} |\n|---|{'--:|' * len(ROUNDS)}"
    return "\n\n".join(
        f"Of {kind}: coverage, width over an oracle's\n\n{head}\n" + "\n".join(r) for kind, r in rows.items()
    )
