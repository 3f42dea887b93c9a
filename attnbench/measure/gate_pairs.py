"""Measures time for a gate: pairs of fresh processes, one of each side, whose visits take turns."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

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

    from attnbench.analysis.compare.tier1_paired import Noise

Twins = tuple[Cell, ...]
"""One cell as every side has it, base first: its params differ where a change adds a parameter to the operator."""


@dataclass(frozen=True)
class Stage:
    """Pairs of fresh processes that measure some cells, each in so many turns; a turn is a round, numbered from
    `first`."""

    first: int
    pairs: int
    turns: int

    @classmethod
    def of(cls, cells: Sequence[Twins], pairs: int, first: int = 1) -> Stage:
        """With the turns that so many cells take."""
        return cls(first, pairs, max(TURNS, math.ceil(FEWEST_VISITS / max(len(cells), 1))))

    @property
    def after(self) -> int:
        """The first round of what comes next."""
        return self.first + self.pairs * self.turns

    def expected_s(self, sides: Sequence[Runner], cells: Sequence[Twins]) -> float:
        """The most that it is expected to take."""
        turn = sum(runner.expected_s(cell) for twins in cells for runner, cell in zip(sides, twins, strict=True))
        return self.pairs * (self.turns * turn + len(sides) * time_budget.START_S)


def measure_pairs(sides: Sequence[Runner], cells: Sequence[Twins], stage: Stage, seed: int, log: Log) -> None:
    """In every turn every cell is visited by all sides, one right after the other; both in random order."""
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
    """key (the candidate's), pair, before, after: the fastest of a pair's visits on each side, where both have a
    time."""
    before, after = (fastest(frame(runner.journal.visits), column, stage) for runner in sides)
    before = before.rename({a.key: b.key for a, b in cells}, level="key")
    return before.rename("before").reset_index().merge(after.rename("after").reset_index(), on=["key", "pair"])


def fastest(visits: pd.DataFrame, column: str, stage: Stage) -> pd.Series[float]:
    """By key and pair, the fastest of a stage's visits that are ok; none where no visit has the column."""
    visits = visits if column in visits else visits.assign(**{column: math.nan})
    chosen = visits[visits["round"].between(stage.first, stage.after - 1) & (visits["status"] == "ok")]
    pair = (chosen["round"].astype(int) - stage.first) // stage.turns
    return chosen.groupby(["key", pair.rename("pair")])[column].min().dropna()


def both_survive(sides: tuple[Runner, Runner], defaults: Defaults) -> list[Twins]:
    """Cells that both sides' checks found ok. defaults: of the operators' parameters."""
    before, after = ({cell.key: cell for cell in runner.survivors()} for runner in sides)
    return [(before[a], after[b]) for a, b in same_cells(before.values(), after.values(), defaults).items()]


def tier1(
    sides: tuple[Runner, Runner], twins: Sequence[Twins], gate: Gate, noise: Noise, pairs: int | None, log: Log
) -> tuple[list[Finding], list[str]]:
    """Both stages of the paired decision on every metric with a clock that is gated.

    twins: the cells. pairs: of each stage; None: as many as the power calculation wants. Returns the findings and
    notes.
    """
    from attnbench.analysis.compare import tier1_paired

    cells, seed = [after for _, after in twins], sides[1].plan.seed
    timed = clocks(device_clock=device_of(sides[0].plan.device).clock is not None)
    metrics = [m for m in timed if any(gate.threshold(m, cell.key) is not None for cell in cells)]
    if not cells or not metrics:
        return [], [
            f"no time was compared: no cell that both revisions can run has a threshold for {' or '.join(timed)}"
        ]
    asked = [(c.key, t) for m in metrics for c in cells if (t := gate.threshold(m, c.key)) is not None]
    thresholds = {key: max(t, 0.001) for key, t in sorted(asked, reverse=True)}  # of two metrics the smaller one
    threshold = min(thresholds.values())
    wanted, once, twice = tier1_paired.pairs_for(thresholds, len(cells), noise)
    number = pairs or wanted
    once, twice = (
        replace(
            p,
            pairs=number,
            power=tier1_paired.power(number, len(cells), p.effect, threshold, noise.typical, noise.shared),
        )
        for p in (once, twice)
    )
    stage = Stage.of(twins, number)
    minutes = max(1, math.ceil(stage.expected_s(sides, twins) / 60))
    rate = tier1_paired.FIRST * tier1_paired.CONFIRM
    promise = (
        f"{count(number, 'pair')} of processes per stage (at most about {minutes} min), {count(len(cells), 'cell')}: "
        f"a slow-down of {once.effect:.1%} is found with {once.power:.0%}, one of {twice.effect:.1%} with "
        f"{twice.power:.0%}; at most {rate:.1%} false alarms per suite"
    )
    log(promise)
    notes = [promise]
    if once.power < tier1_paired.POWER:
        seen = tier1_paired.smallest_change(
            number, len(cells), threshold, noise.typical, noise.shared, tier1_paired.POWER
        )
        notes.append(
            f"the threshold {threshold:.1%} is below what this machine can see in {count(number, 'pair')}: {seen:.1%}"
        )
    measure_pairs(sides, twins, stage, seed, log)
    firsts = {m: table_of_pairs(sides, timed[m].column, stage, twins) for m in metrics}
    keys = {key for m, table in firsts.items() for key in tier1_paired.marked(table, gate, m)}
    seconds: dict[str, pd.DataFrame] = {}
    if keys:
        log(f"{count(len(keys), 'cell')} looked slower; confirming in fresh processes")
        looked_at = [each for each in twins if each[-1].key in keys]
        again = Stage.of(looked_at, number, stage.after)
        measure_pairs(sides, looked_at, again, seed, log)
        seconds = {m: table_of_pairs(sides, timed[m].column, again, looked_at) for m in metrics}
    found = [f for m in metrics for f in tier1_paired.decide(firsts[m], seconds.get(m), gate, m)]
    return [*found, *(f for m in metrics for f in untimed(cells, firsts[m], gate, m))], notes


def untimed(cells: Sequence[Cell], pairs: pd.DataFrame, gate: Gate, metric: str) -> Iterator[Finding]:
    """Cells with a threshold of which no pair gave a time on both sides: these are undecided."""
    seen = set(pairs["key"])
    for cell in cells:
        threshold = gate.threshold(metric, cell.key)
        if threshold is not None and cell.key not in seen:
            yield Finding(
                cell.key, cell.key, metric, None, None, "undecided", threshold=threshold,
                reason="no pair of processes gave a time on both sides",
            )  # fmt: skip
