"""The part of docs/statistics.md on runs that stop as soon as their intervals are narrow enough."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from attnbench.analysis.interval import Estimate, estimates, ratio_half_width
from attnbench.analysis.looks import confidence_after, looks
from benchmarks.coverage.noise import NOISES, Generator, Noise, visits

STOPS = looks(3, 24)
BUDGET_END = 14
"""The last round of runs that the budget ends."""

MEMBERS = 8
Path = dict[int, tuple[Estimate, Estimate]]
"""A series and its baseline after so many rounds."""

PRECISION = 0.5
"""The half width at which a run stops, over the median of 95 % at the first look."""


def paths(rng: Generator, noise: Noise, draws: int) -> list[Path]:
    """Of every ratio within a block to its first member, the levels after each look and after BUDGET_END."""
    every = []
    for deviations in noise.draw(rng, (draws, STOPS[-1], 1, MEMBERS)):
        run = visits(deviations, np.zeros((1, MEMBERS)))
        levels = {n: estimates(run[run["round"] <= n], "wall_time_s") for n in sorted({*STOPS, BUDGET_END})}
        every += [{n: (at[f"0.{m}"], at["0.0"]) for n, at in levels.items()} for m in range(1, MEMBERS)]
    return every


def judged(path: Path, rounds: int, stops: tuple[int, ...]) -> tuple[float, bool]:
    """The half width after so many rounds, and whether the interval holds the truth. stops: the looks that count."""
    confidence = confidence_after(stops, rounds, rounds)
    series, baseline = (replace(level, confidence=confidence) for level in path[rounds])
    half = ratio_half_width(series, baseline)
    return half, abs(series.level - baseline.level) <= half


def row(noise: Noise, draws: int) -> list[str]:
    """With 95 % at each look, and with what `analysis.looks` has there; then the half widths of these over those."""
    cells, every = [], paths(np.random.default_rng(0), noise, draws)
    cut = (*(n for n in STOPS if n < BUDGET_END), BUDGET_END)
    enough = PRECISION * float(np.median([judged(path, STOPS[0], ())[0] for path in every]))
    widths: list[list[float]] = []
    for stops in ((), STOPS):
        runs = [{n: judged(path, n, stops) for n in path} for path in every]
        cells += [f"{np.mean([all(run[n][1] for n in looked) for run in runs]):.1%}" for looked in (STOPS, cut)]
        ends = [next((n for n in STOPS if run[n][0] <= enough), STOPS[-1]) for run in runs]
        held = np.mean([run[end][1] for run, end in zip(runs, ends, strict=True)])
        cells.append(f"{held:.1%} ({np.mean(ends):.1f})")
        widths.append([float(np.mean([run[n][0] for run in runs])) for n in (STOPS[0], STOPS[-1], BUDGET_END)])
    return [*cells, " / ".join(f"{wide / narrow:.2f}" for narrow, wide in zip(*widths, strict=True))]


def table(draws: int) -> str:
    """Coverage of all looks together, and where a run stops by the width of its interval."""
    about = ("all looks", f"all looks, ended in round {BUDGET_END}", f"stopped at {PRECISION:.0%} (rounds)")
    heads = [f"{name}: {what}" for name in ("95 % each", "error spent") for what in about]
    heads.append(f"width over that of 95 %, after {STOPS[0]} / {STOPS[-1]} / {BUDGET_END}")
    rows = [f"| {name} | {' | '.join(row(noise, draws))} |" for name, noise in NOISES.items()]
    return "\n".join([f"| noise | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads), *rows])
