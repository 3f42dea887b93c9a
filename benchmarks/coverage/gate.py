"""How often the gate is right, on the noise models and on recorded pairs: a suite of eight cells in two blocks.

A pair of processes is one draw for each side; its log ratio is their difference. The sides' deviations are scaled so
that a ratio varies by about as much as recorded ones do, 3 to 5 % from pair to pair; of "shared 8 %", so that the
pair's luck is 8 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from attnbench.analysis.compare.tier1_paired import LOOKS
from benchmarks.coverage.noise import NOISES, STUDY
from benchmarks.gate_rules import THRESHOLD, Draw, Floats, Generator, rates, read, resampled

BLOCKS = (0, 0, 0, 0, 1, 1, 1, 1)
PLANTED = (3, 7)
"""The cells of one operator."""

SLOW_DOWNS = (0.05, 0.10)
SCALE = 0.35
SCALES = {"shared 8 %": 0.5**0.5}
MODELS = ("Gaussian", "t3", "skewed", "bimodal", "unlike cells", "shared 8 %")
UNCHANGED = 50
"""Suites without a slow-down, for one with: false alarms are rare."""


def paired(rng: Generator, suites: int, model: str) -> Floats:
    """Log ratios of pairs under a noise model, [suites, pairs, cells]."""
    before, after = (NOISES[model].draw(rng, (suites, LOOKS[-1], 2, len(BLOCKS) // 2)) for _ in range(2))
    return np.asarray(SCALES.get(model, SCALE) * (after - before)).reshape(suites, LOOKS[-1], -1)


def row(name: str, draw: Draw, draws: int, blocks: Sequence[object] = BLOCKS, planted: Sequence[int] = PLANTED) -> str:
    """A line of the table. draw: of unchanged code."""

    def slower(rng: Generator, suites: int, share: float) -> Floats:
        logs = draw(rng, suites)
        logs[:, :, list(planted)] += np.log1p(share)
        return logs

    same = rates(draw, UNCHANGED * draws, blocks)
    slow = [rates(partial(slower, share=share), draws, blocks, planted) for share in SLOW_DOWNS]
    spread = float(draw(np.random.default_rng(1), 100).std())
    detected = " | ".join(f"{rate.found / draws:.1%}" for rate in slow)
    return (
        f"| {name} | {spread:.1%} | {same.alarms / same.draws:.2%} (≤ {same.most_alarms:.2%}) | "
        f"{same.undecided / same.draws:.1%} ({slow[0].undecided / draws:.1%}) | {detected} | "
        f"{same.pairs[0]:.0f} ({same.pairs[1]:.0f}) | "
        f"{slow[0].pairs[0]:.0f} ({slow[0].pairs[1]:.0f}) |"
    )


def table(draws: int) -> str:
    """The part of the page."""
    lines = [
        f"Suites of {len(BLOCKS)} cells with a threshold of {THRESHOLD:.0%}; {UNCHANGED * draws} without a change, "
        f"{draws} for each slow-down of one operator (two cells). False alarms with the upper end of their 95 % "
        "interval; undecided: suites with such a cell, unchanged and with +5 %; pairs: the median, and what "
        "nine suites in ten stay below.",
        "",
        "| noise | sd of a pair | false alarms | undecided (+5 %) | +5 % found | +10 % found | pairs, same | +5 % |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [row(model, partial(paired, model=model), draws) for model in MODELS]
    for name, condition in (("recorded, quiet", "clean"), ("recorded, loaded", "loaded")):
        study = read(STUDY / f"{condition}.csv")
        draw = partial(resampled, ratios=study.ratios("base", "again"))
        lines.append(row(name, draw, draws, study.sizes, study.of("studied")))
    return "\n".join(lines)
