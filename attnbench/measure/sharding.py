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
class Expected:
    """What a shard is expected to take. Of its seconds only the ratios to those of other shards count.

    Attributes:
        check_s: for the checks of its blocks.
        timed_s: for its units.
        units: how many these are.
        rounds: in which it has units.
        share: of what a run of the whole suite is expected to take; all together more than 1, as checks repeat.
    """

    check_s: float
    timed_s: float
    units: int
    rounds: int
    share: float


def expected_of_shards(suite: Suite, device: str, of: int) -> list[Expected]:
    """What each shard of a suite is expected to take.

    Args:
        device: the name of the kind that is measured on.
        of: into how many it is dealt.
    """
    from attnbench.plan.cells import cells

    measure = suite.measure
    block_s, check_s = _expected(cells(suite), suite.operators_from, measure, suite.baseline, device)
    whole_s = measure.rounds * sum(block_s.values()) + sum(check_s.values())

    def expected(units: Sequence[Unit]) -> Expected:
        timed_s = sum(block_s[block] for block, _ in units)
        checked_s = sum(check_s[block] for block in {block for block, _ in units})
        rounds = len({number for _, number in units})
        return Expected(checked_s, timed_s, len(units), rounds, (checked_s + timed_s) / whole_s)

    return [expected(units) for units in deal(block_s, check_s, measure.rounds, of)]


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
