"""A plan's units are dealt into shards by what they are expected to take, alike on every machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnbench.measure.device import device_of
from attnbench.measure.time_left import expected_calls
from attnbench.plan import time_budget
from attnbench.plan.blocks import blocks_of
from attnbench.plan.plan import Plan
from attnbench.plan.settings import Measure
from attnbench.plan.shards import Shard, Unit, deal
from attnbench.problem import Cell, block_of
from attnbench.registry import clocks
from attnbench.store.shards import StoredShard

if TYPE_CHECKING:
    from attnbench.plan.suite import Suite


def dealt(plan: Plan, shard: Shard) -> StoredShard:
    """What a shard measures of a plan of the whole suite. Raises BadInput where there are more shards than units."""
    expected = _expected(plan.cells, plan.operators_from, plan.measure, plan.baseline, plan.device)
    every = deal(*expected, plan.measure.rounds, shard.of)
    return StoredShard((shard.number,), shard.of, every[shard.number - 1], sum(map(len, every)))


@dataclass(frozen=True)
class Share:
    """What a shard is of its suite.

    Attributes:
        share: what it is expected to take, over what a run of the whole suite is; all together more than 1, as checks
            repeat.
        rounds: in which it has units.
    """

    share: float
    rounds: int


def dealt_shares(suite: Suite, device: str, of: int) -> list[Share]:
    """What each shard of a suite is.

    Args:
        device: the name of the kind that is measured on.
        of: into how many it is dealt.
    """
    from attnbench.plan.cells import cells

    measure = suite.measure
    block_s, check_s = _expected(cells(suite), suite.operators_from, measure, suite.baseline, device)
    whole_s = measure.rounds * sum(block_s.values()) + sum(check_s.values())

    def expected_s(units: Sequence[Unit]) -> float:
        return sum(block_s[block] for block, _ in units) + sum(
            check_s[block] for block in {block for block, _ in units}
        )

    every = deal(block_s, check_s, measure.rounds, of)
    return [Share(expected_s(units) / whole_s, len({number for _, number in units})) for units in every]


def _expected(
    cells: Sequence[Cell], operators_from: Sequence[str], measure: Measure, baseline: str, device: str
) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """By block, the seconds that a round of it, and its check, are expected to take.

    A call is expected to take what a machine with the rates of the kind of device takes, which no machine was asked
    for.
    """
    kind = device_of(device)
    dtypes = {cell.problem.dtype for cell in cells}
    rates = {
        "matmul_flops_per_s": dict.fromkeys(dtypes, 3 * kind.affordable_flops),
        "copy_bytes_per_s": kind.affordable_flops,
    }
    calls_s = expected_calls(cells, operators_from, rates)
    sampled = len(clocks(device_clock=kind.clock is not None))
    timed = time_budget.timed([(cell, calls_s[cell.key]) for cell in cells], measure, baseline)
    visits_s = {each.cell.key: each.visit_s(measure.max_turns, sampled) for each in timed}
    blocks = {block_of(block[0].key): block for block in blocks_of(cells)}
    seconds = {name: sum(visits_s[c.key] + time_budget.compile_s(c) for c in block) for name, block in blocks.items()}
    checks_s = {name: sum(time_budget.check_s(c, calls_s[c.key]) for c in block) for name, block in blocks.items()}
    return seconds, checks_s
