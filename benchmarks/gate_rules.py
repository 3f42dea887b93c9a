"""The decisions that the gate study compares on the same recorded blocks: the gate's and those of naive rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import betaincinv
from scipy.stats import mannwhitneyu

from attnbench.analysis.compare import tier1_paired
from attnbench.thresholds import Gate

GATE = Gate({"wall_time": 0.05})
FAILS, PASSES, UNDECIDED = "fails", "passes", "undecided"

Samples = Mapping[tuple[int, str], np.ndarray]


@dataclass(frozen=True)
class Blocks:
    """Recorded blocks. keys: by cell. medians, samples: by variant, then (block, cell); microseconds."""

    numbers: tuple[int, ...]
    keys: Mapping[str, str]
    medians: Mapping[str, Mapping[tuple[int, str], float]]
    samples: Mapping[str, Samples]


@dataclass(frozen=True)
class Decision:
    """A rule's decision on a suite, and the cells that it blames."""

    outcome: str
    blamed: frozenset[str] = frozenset()


Rule = Callable[[Blocks, str, str, Sequence[int]], Decision]
"""(blocks, variant before, variant after, numbers of the blocks to use) → the decision."""


def read(path: Path, keys: Mapping[str, str]) -> Blocks:
    """The blocks of one condition; an incomplete block is left out."""
    table = pd.read_csv(path, dtype={"samples_us": str})
    rows = table.groupby("block").size()
    table = table[table["block"].isin(rows[rows == rows.max()].index)]
    medians: dict[str, dict[tuple[int, str], float]] = {}
    samples: dict[str, dict[tuple[int, str], np.ndarray]] = {}
    for block, cell, variant, median, text in table.itertuples(index=False):
        medians.setdefault(variant, {})[block, cell] = float(median)
        samples.setdefault(variant, {})[block, cell] = np.array(text.split(), dtype=float)
    return Blocks(tuple(int(b) for b in sorted(table["block"].unique())), keys, medians, samples)


def pairs(
    blocks: Blocks, before: str, after: str, numbers: Sequence[int], cells: Sequence[str] | None = None
) -> pd.DataFrame:
    """The pairs that `tier1_paired` takes: one per block, numbered from 0."""
    rows = [
        (blocks.keys[cell], pair, blocks.medians[before][block, cell], blocks.medians[after][block, cell])
        for pair, block in enumerate(numbers)
        for cell in (cells or blocks.keys)
    ]
    return pd.DataFrame(rows, columns=["key", "pair", "before", "after"])


def gate(
    blocks: Blocks, before: str, after: str, numbers: Sequence[int], cells: Sequence[str] | None = None
) -> Decision:
    """attnbench gate, tier 1: the first half of the blocks is stage 1, the second confirms what that marked."""
    half = len(numbers) // 2
    first = pairs(blocks, before, after, numbers[:half], cells)
    keys = set(tier1_paired.marked(first, GATE, "wall_time"))
    second = pairs(blocks, before, after, numbers[half:], [c for c, key in blocks.keys.items() if key in keys])
    findings = tier1_paired.decide(first, second if keys else None, GATE, "wall_time")
    names = {key: cell for cell, key in blocks.keys.items()}
    blamed = frozenset(names[f.subject] for f in findings if f.regression)
    undecided = any(f.verdict == "undecided" for f in findings)
    return Decision(FAILS if blamed else UNDECIDED if undecided else PASSES, blamed)


def _per_cell(test: Callable[[np.ndarray, np.ndarray], bool]) -> Rule:
    """A rule that fails a suite for any cell whose samples, pooled over the blocks, fail a test."""

    def rule(blocks: Blocks, before: str, after: str, numbers: Sequence[int]) -> Decision:
        blamed = frozenset(
            cell
            for cell in blocks.keys
            if test(*(np.concatenate([blocks.samples[v][b, cell] for b in numbers]) for v in (before, after)))
        )
        return Decision(FAILS if blamed else PASSES, blamed)

    return rule


def _ratio(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.median(after) / np.median(before))


def _above_5_percent(before: np.ndarray, after: np.ndarray) -> bool:
    return _ratio(before, after) > 1.05


def _mann_whitney(before: np.ndarray, after: np.ndarray) -> bool:
    return _ratio(before, after) > 1 and float(mannwhitneyu(before, after).pvalue) < 0.05


def _asv(before: np.ndarray, after: np.ndarray) -> bool:
    """asv 0.6 `continuous`: worse by more than --factor (1.1), and `is_different`: Mann-Whitney p < 0.002.

    https://github.com/airspeed-velocity/asv, asv/commands/compare.py and asv_runner/statistics.py.
    """
    return _ratio(before, after) > 1.1 and float(mannwhitneyu(before, after).pvalue) < 0.002


NAIVE: Mapping[str, Rule] = {
    "ratio of medians > 5 %": _per_cell(_above_5_percent),
    "Mann-Whitney, p < .05": _per_cell(_mann_whitney),
    "asv: ratio > 1.1 and p < .002": _per_cell(_asv),
}


@dataclass(frozen=True)
class Rates:
    """Shares of resampled decisions.

    Attributes:
        found: blame the planted operator.
        alarms: blame another one.
        undecided: come to no decision.
        independent: the number of disjoint groups of blocks.
    """

    found: float
    alarms: float
    undecided: float
    independent: int

    def interval(self, share: float) -> tuple[float, float]:
        """95 %, as if only the independent decisions had been made.

        The mean over all groups of blocks varies no more than the mean over disjoint ones (Hoeffding 1963, "Probability
        Inequalities for Sums of Bounded Random Variables", sec. 5), so Clopper and Pearson's interval for those, at a
        count that need not be whole, is not too narrow.
        """
        n, k = self.independent, share * self.independent
        low = float(betaincinv(k, n - k + 1, 0.025)) if k > 0 else 0.0
        high = float(betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0
        return low, high


def rates(
    rule: Rule, blocks: Blocks, before: str, after: str, each: int, resamples: int, planted: str, seed: int = 0
) -> Rates:
    """Decisions on random groups of `each` different blocks. planted: the slower operator; "": none."""
    rng = np.random.default_rng(seed)
    if each == 1:
        groups: list[tuple[int, ...]] = [(number,) for number in blocks.numbers]
    else:
        groups = [tuple(rng.choice(blocks.numbers, each, replace=False).tolist()) for _ in range(resamples)]
    decisions = [rule(blocks, before, after, group) for group in groups]
    right = [{cell for cell in d.blamed if cell.split(".")[0] == planted} for d in decisions]
    return Rates(
        float(np.mean([bool(blamed) for blamed in right])),
        float(np.mean([bool(d.blamed - blamed) for d, blamed in zip(decisions, right, strict=True)])),
        float(np.mean([d.outcome == UNDECIDED for d in decisions])),
        len(blocks.numbers) // each,
    )
