"""How often `compare_callables` is right: the gate's test with one cell, either way, whose pairs may be of one process.

Such pairs may follow each other, and share the luck of their process: then the interval holds the ratio of that
process, and the second table says how often it misses that over all processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from attnbench.analysis.compare.tier1_paired import LOOKS
from attnbench.measure.paired_callables import Paired, decide
from benchmarks.coverage.gate import MODELS, SCALE, SCALES, UNCHANGED
from benchmarks.coverage.noise import NOISES, STUDY
from benchmarks.gate_rules import CHUNK, THRESHOLD, Floats, Generator, clopper_pearson, read, resampled

LAG, SD = 0.33, 0.035
LUCK = (0.01, 0.02, 0.04)
"""Standard deviations of what all pairs of one process have in common, in logs."""

Draw = Callable[[Generator, int], Floats]
"""(generator, comparisons) → log ratios of pairs, [comparisons, pairs]."""


def of_one(rng: Generator, comparisons: int, model: str) -> Floats:
    """Pairs of one cell under a noise model."""
    before, after = (NOISES[model].draw(rng, (comparisons, LOOKS[-1], 1, 1)) for _ in range(2))
    return np.asarray(SCALES.get(model, SCALE) * (after - before)).reshape(comparisons, LOOKS[-1])


def recorded(rng: Generator, comparisons: int, ratios: Floats) -> Floats:
    """Recorded pairs of a cell, which is drawn anew for each comparison."""
    logs = resampled(rng, comparisons, ratios)
    return np.asarray(logs[np.arange(comparisons), :, rng.integers(0, logs.shape[2], comparisons)])


def following(rng: Generator, comparisons: int) -> Floats:
    """Pairs each of which has a part of the one before."""
    logs = SD * rng.standard_normal((comparisons, LOOKS[-1]))
    for pair in range(1, LOOKS[-1]):
        logs[:, pair] = LAG * logs[:, pair - 1] + (1 - LAG**2) ** 0.5 * logs[:, pair]
    return logs


def lucky(rng: Generator, comparisons: int, luck: float) -> Floats:
    """Pairs of one process, whose luck they have in common."""
    shape = (comparisons, LOOKS[-1])
    return SD * rng.standard_normal(shape) + luck * rng.standard_normal((comparisons, 1))


def compared(logs: Floats, threshold: float = THRESHOLD) -> Paired:
    """What is decided of one comparison."""
    return decide(((1.0, math.exp(log)) for log in logs), LOOKS, threshold, math.inf)


def row(name: str, draw: Draw, draws: int) -> str:
    """A line of the first table."""
    rng = np.random.default_rng(18)

    def found(change: float, comparisons: int) -> list[Paired]:
        parts = (draw(rng, min(CHUNK, comparisons - begun)) for begun in range(0, comparisons, CHUNK))
        return [compared(logs + math.log1p(change)) for part in parts for logs in part]

    def share(every: list[Paired], *verdicts: str) -> float:
        return sum(each.decided.verdict in verdicts for each in every) / len(every)

    same = found(0, UNCHANGED * draws)
    slow, slower, faster = (found(change, draws) for change in (THRESHOLD, 2 * THRESHOLD, 1 / (1 + THRESHOLD) - 1))
    wrong = share(same, "slower", "faster")
    most = clopper_pearson(round(wrong * len(same)), len(same))[1]
    pairs = [np.quantile([each.pairs for each in every], [0.5, 0.9]) for every in (same, slow)]
    return (
        f"| {name} | {draw(np.random.default_rng(1), 100).std():.1%} | {wrong:.2%} (≤ {most:.2%}) | "
        f"{share(same, 'undecided'):.1%} ({share(slow, 'undecided'):.1%}) | {share(slow, 'slower'):.1%} | "
        f"{share(slower, 'slower'):.1%} | {share(faster, 'faster'):.1%} | "
        + " | ".join(f"{median:.0f} ({ninth:.0f})" for median, ninth in pairs)
        + " |"
    )


def table(draws: int) -> str:
    """The part of the page."""
    lines = [
        f"Two functions with a threshold of {THRESHOLD:.0%}; {UNCHANGED * draws} comparisons of equal ones, {draws} "
        "for each change. False alarms: equal ones called slower or faster; the other columns as of the gate.",
        "",
        "| noise | sd of a pair | false alarms | undecided (+5 %) | +5 % found | +10 % found | −5 % found | "
        "pairs, same | +5 % |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [row(model, partial(of_one, model=model), draws) for model in MODELS if model != "shared 8 %"]
    for name, condition in (("recorded, quiet", "clean"), ("recorded, loaded", "loaded")):
        ratios = read(STUDY / f"{condition}.csv").ratios("base", "again")
        lines.append(row(name, partial(recorded, ratios=ratios), draws))
    lines.append(row(f"pairs follow each other (lag 1: {LAG})", following, draws))
    return "\n".join([*lines, "", *_luck(draws)])


def _luck(draws: int) -> list[str]:
    """How often one process finds a change between equal functions, by what its pairs have in common."""
    rng = np.random.default_rng(18)
    lines = [
        "Equal functions in pairs of one process, whose luck these share, called slower or faster:",
        "",
        "| sd of a process's luck | threshold 5% | threshold 10% | threshold 20% |",
        "|--:|--:|--:|--:|",
    ]
    for luck in LUCK:
        every = lucky(rng, 10 * draws, luck)
        rates = []
        for threshold in (0.05, 0.10, 0.20):
            wrong = sum(compared(logs, threshold).decided.verdict in ("slower", "faster") for logs in every)
            rates.append(f"{wrong / len(every):.1%}")
        lines.append(f"| {luck:.0%} | {' | '.join(rates)} |")
    return lines
