"""How often `compare_callables` is right: the gate's test with one cell, whose pairs may be of one process.

Such pairs may follow each other, and share the luck of their process: then
the interval holds the ratio of that process, and the second table says how often it misses that over all processes.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from attnbench.analysis.compare.tier1_paired import LOOKS
from benchmarks.coverage.gate import MODELS, SCALE, SCALES, row
from benchmarks.coverage.noise import NOISES, STUDY
from benchmarks.gate_rules import THRESHOLD, Floats, Generator, gate, read, resampled

LAG, SD = 0.33, 0.035
LUCK = (0.01, 0.02, 0.04)
"""Standard deviations of what all pairs of one process have in common, in logs."""


def of_one(rng: Generator, comparisons: int, model: str) -> Floats:
    """Log ratios of pairs of one cell under a noise model, [comparisons, pairs, 1]."""
    shape = (comparisons, LOOKS[-1], 1, 1)
    before, after = (NOISES[model].draw(rng, shape) for _ in range(2))
    return np.asarray(SCALES.get(model, SCALE) * (after - before)).reshape(comparisons, LOOKS[-1], 1)


def following(rng: Generator, comparisons: int) -> Floats:
    """Pairs each of which has a part of the one before."""
    logs = SD * rng.standard_normal((comparisons, LOOKS[-1], 1))
    for pair in range(1, LOOKS[-1]):
        logs[:, pair] = LAG * logs[:, pair - 1] + (1 - LAG**2) ** 0.5 * logs[:, pair]
    return logs


def lucky(rng: Generator, comparisons: int, luck: float) -> Floats:
    """Pairs of one process, whose luck they have in common."""
    logs = SD * rng.standard_normal((comparisons, LOOKS[-1], 1))
    return logs + luck * rng.standard_normal((comparisons, 1, 1))


def table(draws: int) -> str:
    """The part of the page."""
    lines = [
        f"One cell with a threshold of {THRESHOLD:.0%}; the columns are those of the gate.",
        "",
        "| noise | sd of a pair | false alarms | undecided (+5 %) | +5 % found | +10 % found | pairs, same | +5 % |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    one = {"blocks": (0,), "planted": (0,)}
    lines += [row(model, partial(of_one, model=model), draws, **one) for model in MODELS if model != "shared 8 %"]
    for name, condition in (("recorded, quiet", "clean"), ("recorded, loaded", "loaded")):
        ratios = read(STUDY / f"{condition}.csv").ratios("base", "again")
        lines.append(row(name, partial(_of_any, ratios=ratios), draws, **one))
    lines.append(row(f"pairs follow each other (lag 1: {LAG})", following, draws, **one))
    lines += ["", *_luck(draws)]
    return "\n".join(lines)


def _of_any(rng: Generator, comparisons: int, ratios: Floats) -> Floats:
    """Recorded pairs of a cell drawn anew for each comparison."""
    logs = resampled(rng, comparisons, ratios)
    return logs[np.arange(comparisons), :, rng.integers(0, logs.shape[2], comparisons)][:, :, None]


def _luck(draws: int) -> list[str]:
    """How often the same function is called slower in one process, where a process makes it so much so or so."""
    rng = np.random.default_rng(18)
    lines = [
        "The same function twice, in pairs of one process whose luck they share, called slower or faster:",
        "",
        "| sd of a process's luck | threshold 5% | threshold 10% | threshold 20% |",
        "|--:|--:|--:|--:|",
    ]
    for luck in LUCK:
        suites = lucky(rng, 10 * draws, luck)
        rates = []
        for threshold in (0.05, 0.10, 0.20):
            wrong = sum(gate(logs, (0,), threshold).verdicts[0] in ("slower", "faster") for logs in suites)
            rates.append(f"{wrong / len(suites):.1%}")
        lines.append(f"| {luck:.0%} | {' | '.join(rates)} |")
    return lines
