"""The part of docs/statistics.md on runs whose rounds are shared out to several devices of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from attnbench.analysis.interval import estimates, ratio_half_width
from benchmarks.coverage.intervals import BLOCKS, MEMBERS, judged
from benchmarks.coverage.noise import NOISES, Floats, Generator, visits

SD = 0.03
"""By how much devices differ: all of a device together, and a series on it beside the others. In logs."""

SHARES: Mapping[str, Sequence[Sequence[int]]] = {
    "4 devices, 1 round each": [[0, 1, 2, 3]],
    "4 devices, 2 rounds each": [[0, 0, 1, 1, 2, 2, 3, 3]],
    "4 devices, 1 to 6 rounds": [[0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3]],
    "4 devices, a block on 3 of them": [[0, 1, 2], [1, 2, 3], [2, 3, 0], [3, 0, 1]],
    "4 devices, one block on 1 of them": [[0, 0, 0, 0], [0, 0, 1, 1], [2, 2, 3, 3], [0, 1, 2, 3]],
    "2 devices, 3 rounds each": [[0, 0, 0, 1, 1, 1]],
}
"""What is simulated: by block, in turn, the device of each round."""

EQUAL = ("4 devices, 2 rounds each", "4 devices that are equal, 2 rounds each", 0.0)
"""As one of these, but that devices do not differ: what the term costs."""

NAMES = ("Gaussian", "unlike cells", "shared 8 %", "recorded, loaded")


def run_on_devices(rng: Generator, deviations: Floats, devices: Sequence[Sequence[int]], sd: float) -> pd.DataFrame:
    """A simulated run whose true log times are 0 on the average of all devices there are.

    Args:
        deviations: [rounds, blocks, members].
        devices: by block, in turn, the device of each round.
        sd: of what a device does to all, and of what it does to a series at all sizes.
    """
    _, blocks, members = deviations.shape
    device = np.array([devices[block % len(devices)] for block in range(blocks)]).T  # [rounds, blocks]
    most = device.max() + 1
    common, series = sd * rng.standard_normal(most), sd * rng.standard_normal((most, members))
    run = visits(deviations + common[device][..., None] + series[device], np.zeros((blocks, members)))
    name = np.repeat(device.ravel(), members)
    return run.assign(device_id=[f"{each:x}" for each in name], process=run["process"] * most + name)


def errors(
    rng: Generator, noise: str, devices: Sequence[Sequence[int]], draws: int, *, known: bool = True, sd: float = SD
) -> tuple[Floats, Floats]:
    """Error and half width, [2, cells], of every cell's time, and of its ratio to its block's first member.

    Args:
        devices: as `run_on_devices`.
        known: whether it is known which device measured what.
        sd: how much devices differ.
    """
    times, ratios = [], []
    for deviations in NOISES[noise].draw(rng, (draws, len(devices[0]), BLOCKS, MEMBERS)):
        run = run_on_devices(rng, deviations, devices, sd)
        levels = estimates(run if known else run.drop(columns="device_id"), "wall_time_s")
        for key, level in levels.items():
            baseline = levels[f"{key[0]}.0"]
            times.append((level.level, level.half_width))
            if level is not baseline:
                ratios.append((level.level - baseline.level, ratio_half_width(level, baseline)))
    return np.array(times).T, np.array(ratios).T


def table(draws: int) -> str:
    """Coverage and width of the 95 % intervals by noise and by which device makes which rounds."""
    head = (
        "| rounds | noise | of a ratio | without the term | of a time | without the term |\n|---|---|--:|--:|--:|--:|"
    )
    rows = [head]
    for title, shown, sd in [*((title, title, SD) for title in SHARES), EQUAL]:
        for noise in NAMES:
            found = errors(np.random.default_rng(0), noise, SHARES[title], draws, sd=sd)
            without = errors(np.random.default_rng(0), noise, SHARES[title], draws, sd=sd, known=False)
            figures = [judged(pairs) for which in (1, 0) for pairs in (found[which], without[which])]
            rows.append(f"| {shown} | {noise} | {' | '.join(figures)} |")
    return "\n".join(rows)
