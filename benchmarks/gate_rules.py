"""The decisions that the gate study compares on the same recorded blocks: the gate's and those of naive rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import betaincinv
from scipy.stats import mannwhitneyu

from attnbench.analysis.compare.findings import Verdict
from attnbench.analysis.compare.tier1_paired import LOOKS, PairedTest

THRESHOLD = 0.05
CHUNK = 100

Floats = npt.NDArray[np.float64]
Generator = np.random.Generator
Draw = Callable[[Generator, int], Floats]
"""(generator, suites) → log ratios after / before, [suites, pairs, cells]."""


@dataclass(frozen=True)
class Blocks:
    """Recorded blocks.

    Args:
        cells: names, operator and size.
        logs: by variant, log of the fastest samples, which the gate compares, [blocks, cells].
        samples: by variant and cell, for each block; microseconds.
    """

    cells: tuple[str, ...]
    logs: Mapping[str, Floats]
    samples: Mapping[tuple[str, str], Sequence[Floats]]

    def __len__(self) -> int:
        return len(next(iter(self.logs.values()), ()))

    @property
    def sizes(self) -> tuple[str, ...]:
        """Of each cell: what is measured together."""
        return tuple(cell.split(".")[1] for cell in self.cells)

    def of(self, operator: str) -> tuple[int, ...]:
        """The cells of an operator."""
        return tuple(i for i, cell in enumerate(self.cells) if cell.split(".")[0] == operator)

    def ratios(self, before: str, after: str) -> Floats:
        """Log ratios of two variants, [blocks, cells]."""
        return self.logs[after] - self.logs[before]


def read(path: Path) -> Blocks:
    """The blocks of one condition; an incomplete block is left out."""
    table = pd.read_csv(path, dtype={"samples_us": str})
    rows = table.groupby("block").size()
    table = table[table["block"].isin(rows[rows == rows.max()].index)].sort_values("block")
    cells = tuple(sorted(table["cell"].unique()))
    samples = {
        (str(variant), str(cell)): [np.array(text.split(), dtype=float) for text in group["samples_us"]]
        for (variant, cell), group in table.groupby(["variant", "cell"])
    }
    logs = {
        variant: np.log(np.array([[s.min() for s in samples[variant, cell]] for cell in cells]).T)
        for variant in table["variant"].unique()
    }
    return Blocks(cells, logs, samples)


@dataclass(frozen=True)
class Outcome:
    """The gate's decision on a suite. pairs: that it took. visits: of one side, of all cells."""

    verdicts: tuple[Verdict, ...]
    pairs: int
    visits: int

    def slower(self, cells: Sequence[int]) -> bool:
        """Whether one of some cells is called slower."""
        return any(self.verdicts[cell] == "slower" for cell in cells)


def gate(logs: Floats, blocks: Sequence[object], threshold: float = THRESHOLD) -> Outcome:
    """attnbench gate, tier 1. logs: [pairs, cells] of after / before, of all pairs that it may use, of all cells."""
    keys = [str(cell) for cell in range(len(blocks))]
    looks = (*(look for look in LOOKS if look < len(logs)), min(len(logs), LOOKS[-1]))
    test = PairedTest("wall_time", dict.fromkeys(keys, threshold), blocks, looks, len(keys))
    known = np.array(logs, dtype=np.float64)
    done = visits = 0
    for look in looks:
        measured = test.measured
        if not measured:
            break
        known[done:look, [key not in measured for key in keys]] = np.nan
        visits += len(measured) * (look - done)
        done = look
        test.look(known[:look])
    return Outcome(tuple(test.decided[key].verdict for key in keys), done, visits)


def clopper_pearson(hits: int, draws: int) -> tuple[float, float]:
    """The 95 % interval of a share (Clopper and Pearson 1934, "The use of confidence or fiducial limits")."""
    low = float(betaincinv(hits, draws - hits + 1, 0.025)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, draws - hits, 0.975)) if hits < draws else 1.0
    return low, high


@dataclass(frozen=True)
class Rates:
    """How many suites, of so many draws,

    Args:
        draws: suites.
        found: call a planted cell slower.
        alarms: call another cell slower.
        undecided: have an undecided cell.
        pairs: that they took: the median, and what nine in ten stay below.
    """

    draws: int
    found: int
    alarms: int
    undecided: int
    pairs: tuple[float, float]

    @property
    def most_alarms(self) -> float:
        """The upper end of the 95 % interval of the share of false alarms."""
        return clopper_pearson(self.alarms, self.draws)[1]


def rated(outcomes: Sequence[Outcome], planted: Sequence[int]) -> Rates:
    """The rates of decisions. planted: the cells that are slower."""
    others = [cell for cell in range(len(outcomes[0].verdicts)) if cell not in planted]
    median, most = np.quantile([outcome.pairs for outcome in outcomes], [0.5, 0.9]).tolist()
    return Rates(
        draws=len(outcomes),
        found=sum(outcome.slower(planted) for outcome in outcomes),
        alarms=sum(outcome.slower(others) for outcome in outcomes),
        undecided=sum("undecided" in outcome.verdicts for outcome in outcomes),
        pairs=(median, most),
    )


def rates(draw: Draw, suites: int, blocks: Sequence[object], planted: Sequence[int] = ()) -> Rates:
    """The rates of the gate on drawn suites."""
    rng = np.random.default_rng(15)
    logs = (each for begun in range(0, suites, CHUNK) for each in draw(rng, min(CHUNK, suites - begun)))
    return rated([gate(each, blocks) for each in logs], planted)


def resampled(rng: Generator, suites: int, ratios: Floats) -> Floats:
    """Suites of LOOKS[-1] pairs, drawn with replacement from what recorded ones leave around their means."""
    centred = ratios - ratios.mean(axis=0)
    drawn = centred[rng.integers(0, len(ratios), (suites, LOOKS[-1]))]
    return np.asarray(drawn * rng.choice([-1.0, 1.0], (suites, LOOKS[-1], 1)))


def swapped(rng: Generator, suites: int, ratios: Floats) -> Floats:
    """The recorded pairs of unchanged code, each once, in random order, their sides changed over at random."""
    return np.asarray(ordered(rng, suites, ratios) * rng.choice([-1.0, 1.0], (suites, len(ratios), 1)))


def ordered(rng: Generator, suites: int, ratios: Floats) -> Floats:
    """The recorded pairs, each once, in random order."""
    return np.asarray(ratios[np.argsort(rng.random((suites, len(ratios))), axis=1)])


def disjoint(ratios: Floats, blocks: Sequence[object]) -> Iterator[Outcome]:
    """Decisions that share no pair, one after the other in the order of recording. One for which too few are left, and
    which is not decided by them, is none."""
    while len(ratios) >= LOOKS[0]:
        outcome = gate(ratios, blocks)
        if "undecided" in outcome.verdicts and outcome.pairs < LOOKS[-1]:
            return
        yield outcome
        ratios = ratios[outcome.pairs :]


Rule = Callable[[Floats, Floats], bool]
"""(samples before, samples after) → whether a cell is called slower."""


def _ratio(before: Floats, after: Floats) -> float:
    return float(np.median(after) / np.median(before))


def _above_5_percent(before: Floats, after: Floats) -> bool:
    return _ratio(before, after) > 1.05


def _mann_whitney(before: Floats, after: Floats) -> bool:
    return _ratio(before, after) > 1 and float(mannwhitneyu(before, after).pvalue) < 0.05


def _asv(before: Floats, after: Floats) -> bool:
    """asv 0.6 `continuous`: worse by more than --factor (1.1), and `is_different`: Mann-Whitney p < 0.002.

    https://github.com/airspeed-velocity/asv, asv/commands/compare.py and asv_runner/statistics.py.
    """
    return _ratio(before, after) > 1.1 and float(mannwhitneyu(before, after).pvalue) < 0.002


NAIVE: Mapping[str, Rule] = {
    "ratio of medians > 5 %": _above_5_percent,
    "Mann-Whitney, p < .05": _mann_whitney,
    "asv: ratio > 1.1 and p < .002": _asv,
}


def naive(
    rule: Rule, blocks: Blocks, before: str, after: str, each: int, groups: int, planted: Sequence[int] = ()
) -> Rates:
    """The rates of a rule on the pooled samples of random groups of `each` blocks; of one block: of every block."""
    rng = np.random.default_rng(0)
    chosen = (
        np.arange(len(blocks))[:, None]
        if each == 1
        else np.array([rng.choice(len(blocks), each, replace=False) for _ in range(groups)])
    )

    def verdicts(group: Sequence[int]) -> tuple[Verdict, ...]:
        pooled = (
            [np.concatenate([blocks.samples[variant, cell][b] for b in group]) for variant in (before, after)]
            for cell in blocks.cells
        )
        return tuple("slower" if rule(*both) else "same" for both in pooled)

    return rated([Outcome(verdicts(group.tolist()), each, each * len(blocks.cells)) for group in chosen], planted)
