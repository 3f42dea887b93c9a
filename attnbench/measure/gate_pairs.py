"""Measures time for a gate: pairs of fresh processes, one of each side, whose visits take turns."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnbench.analysis.compare import tier1_paired
from attnbench.analysis.compare.findings import Finding
from attnbench.analysis.compare.matching import Defaults, same_cells
from attnbench.analysis.compare.tier1_paired import FEWEST_VISITS, TURNS
from attnbench.measure.device import device_of
from attnbench.measure.gate_sides import Log
from attnbench.measure.runner import Runner
from attnbench.plan import time_budget
from attnbench.problem import Cell
from attnbench.registry import clocks
from attnbench.store.frames import frame
from attnbench.thresholds import Gate
from attnbench.units import count

if TYPE_CHECKING:
    import pandas as pd

    from attnbench.analysis.compare.tier1_paired import Noise, Power

Twins = tuple[Cell, ...]
"""One cell as every side has it, base first: its params differ where a change adds a parameter to the operator."""


@dataclass(frozen=True)
class Stage:
    """Pairs of fresh processes that measure some cells. A turn is a round.

    Args:
        first: the number of its first round.
        pairs: of processes.
        turns: that a pair takes: in each every side visits every cell.
    """

    first: int
    pairs: int
    turns: int

    @classmethod
    def of(cls, cells: Sequence[Twins], pairs: int, first: int = 1) -> Stage:
        """A stage of these cells: few cells take more turns."""
        return cls(first, pairs, max(TURNS, math.ceil(FEWEST_VISITS / max(len(cells), 1))))

    @property
    def after(self) -> int:
        """The number of the first round after it."""
        return self.first + self.pairs * self.turns

    def expected_s(self, sides: Sequence[Runner], cells: Sequence[Twins]) -> float:
        """Seconds that it takes at most."""
        turn = sum(runner.expected_s(cell) for twins in cells for runner, cell in zip(sides, twins, strict=True))
        return self.pairs * (self.turns * turn + len(sides) * time_budget.START_S)


def measure_pairs(sides: Sequence[Runner], cells: Sequence[Twins], stage: Stage, seed: int, log: Log) -> None:
    """Measures a stage: in every turn every cell is visited by all sides, one right after the other.

    Args:
        sides: the runs; those of a pair start a fresh process each.
        cells: in random order, as are the sides at each.
        stage: pairs and turns.
        seed: of the random orders.
        log: shows progress, a line for every pair.
    """
    for number in range(stage.first, stage.after):
        pair, turn = divmod(number - stage.first, stage.turns)
        draw = random.Random(f"{seed} {number}")
        if turn == 0:
            for runner in sides:
                runner.end_process()
        order = sorted(cells, key=lambda twins: twins[-1].key)
        draw.shuffle(order)
        for position, twins in enumerate(order):
            for index in draw.sample(range(len(sides)), len(sides)):
                sides[index].visit(twins[index], number, position)
        if turn == stage.turns - 1:
            log(f"pair {pair + 1} of {stage.pairs}: {count(len(order), 'cell')}, {count(stage.turns, 'visit')} each")
    for runner in sides:
        runner.end_process()


def table_of_pairs(sides: tuple[Runner, Runner], column: str, stage: Stage, cells: Sequence[Twins]) -> pd.DataFrame:
    """A row for each cell and pair in which both sides have a time.

    Returns: the columns key (the candidate's), pair, and before and after: the fastest of the pair's visits.
    """
    before, after = (fastest(frame(runner.journal.visits), column, stage) for runner in sides)
    before = before.rename({a.key: b.key for a, b in cells}, level="key")
    return before.rename("before").reset_index().merge(after.rename("after").reset_index(), on=["key", "pair"])


def fastest(visits: pd.DataFrame, column: str, stage: Stage) -> pd.Series[float]:
    """The fastest of a stage's visits that are ok, by key and pair; empty where no visit has the column."""
    visits = visits if column in visits else visits.assign(**{column: math.nan})
    ok = visits[visits["round"].between(stage.first, stage.after - 1) & (visits["status"] == "ok")]
    pair = (ok["round"].astype(int) - stage.first) // stage.turns
    return ok.groupby(["key", pair.rename("pair")])[column].min().dropna()


def both_survive(sides: tuple[Runner, Runner], defaults: Defaults) -> list[Twins]:
    """The cells that are ok in the checks of both sides. defaults: of the operators' parameters."""
    before, after = ({cell.key: cell for cell in runner.survivors()} for runner in sides)
    return [(before[a], after[b]) for a, b in same_cells(before.values(), after.values(), defaults).items()]


def tier1(
    sides: tuple[Runner, Runner], twins: Sequence[Twins], gate: Gate, noise: Noise, pairs: int | None, log: Log
) -> tuple[list[Finding], list[str]]:
    """Both stages of the paired decision on every metric with a clock that is gated.

    Args:
        sides: base and candidate.
        twins: the cells that both can run.
        gate: the thresholds.
        noise: what the number of pairs is planned with.
        pairs: of each stage; None: as many as the power calculation wants.
        log: shows progress.

    Returns: the findings, and notes on what the plan promises.
    """
    cells = [after for _, after in twins]
    timed = clocks(device_clock=device_of(sides[0].plan.device).clock is not None)
    metrics = [m for m in timed if any(gate.threshold(m, cell.key) is not None for cell in cells)]
    if not cells or not metrics:
        return [], [
            f"no time was compared: no cell that both revisions can run has a threshold for {' or '.join(timed)}"
        ]
    limits = [(c.key, t) for m in metrics for c in cells if (t := gate.threshold(m, c.key)) is not None]
    thresholds = {key: max(t, 0.001) for key, t in sorted(limits, reverse=True)}  # of two metrics the smaller one
    pairs, *powers = tier1_paired.pairs_for(thresholds, len(cells), noise, pairs)
    stage = Stage.of(twins, pairs)
    notes = _promises(powers, stage.expected_s(sides, twins), noise)
    log(notes[0])

    def measured(stage: Stage, twins: Sequence[Twins]) -> dict[str, pd.DataFrame]:
        measure_pairs(sides, twins, stage, sides[1].plan.seed, log)
        return {m: table_of_pairs(sides, timed[m].column, stage, twins) for m in metrics}

    first = measured(stage, twins)
    second: dict[str, pd.DataFrame] = {}
    marked = {key for m, table in first.items() for key in tier1_paired.marked(table, gate, m)}
    if marked:
        log(f"{count(len(marked), 'cell')} looked slower; confirming in fresh processes")
        confirmed = [each for each in twins if each[-1].key in marked]
        second = measured(Stage.of(confirmed, pairs, stage.after), confirmed)
    findings = [f for m in metrics for f in tier1_paired.decide(first[m], second.get(m), gate, m)]
    return [*findings, *(f for m in metrics for f in untimed(cells, first[m], gate, m))], notes


def _promises(powers: Sequence[Power], seconds: float, noise: Noise) -> list[str]:
    """What a plan can see, before anything is measured.

    Args:
        powers: for the smallest threshold and for twice it.
        seconds: that a stage takes at most.
        noise: that the plan was made with.
    """
    once, twice = powers
    minutes = max(1, math.ceil(seconds / 60))
    rate = tier1_paired.FIRST * tier1_paired.CONFIRM
    notes = [
        f"{count(once.pairs, 'pair')} of processes per stage (at most about {minutes} min), "
        f"{count(once.cells, 'cell')}: a slow-down of {once.effect:.1%} is found with {once.power:.0%}, one of "
        f"{twice.effect:.1%} with {twice.power:.0%}; at most {rate:.1%} false alarms per suite"
    ]
    if once.power < tier1_paired.POWER:
        smallest = tier1_paired.smallest_change(
            once.pairs, once.cells, once.effect, noise.typical, noise.shared, tier1_paired.POWER
        )
        notes.append(
            f"the threshold {once.effect:.1%} is below what this machine can see in {count(once.pairs, 'pair')}: "
            f"{smallest:.1%}"
        )
    return notes


def untimed(cells: Sequence[Cell], pairs: pd.DataFrame, gate: Gate, metric: str) -> Iterator[Finding]:
    """Cells with a threshold of which no pair gave a time on both sides: these are undecided."""
    timed = set(pairs["key"])
    for cell in cells:
        threshold = gate.threshold(metric, cell.key)
        if threshold is not None and cell.key not in timed:
            yield Finding(
                subject=cell.key,
                name=cell.key,
                metric=metric,
                before=None,
                after=None,
                verdict="undecided",
                threshold=threshold,
                reason="no pair of processes gave a time on both sides",
            )
