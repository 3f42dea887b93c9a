"""A plan's units are dealt into shards by what they are expected to take, alike on every machine."""

from __future__ import annotations

from attnbench.measure.device import device_of
from attnbench.measure.time_left import expected_calls
from attnbench.plan import time_budget
from attnbench.plan.blocks import blocks_of
from attnbench.plan.plan import Plan
from attnbench.plan.shards import Shard, deal
from attnbench.problem import block_of
from attnbench.registry import clocks
from attnbench.store.shards import StoredShard


def dealt(plan: Plan, shard: Shard) -> StoredShard:
    """What a shard measures of a plan of the whole suite. Raises BadInput where there are more shards than units.

    A call is expected to take what a machine with the rates of the kind of device takes, which no machine was asked
    for.
    """
    kind = device_of(plan.device)
    dtypes = {cell.problem.dtype for cell in plan.cells}
    rates = {
        "matmul_flops_per_s": dict.fromkeys(dtypes, 3 * kind.affordable_flops),
        "copy_bytes_per_s": kind.affordable_flops,
    }
    calls_s = expected_calls(plan.cells, plan.operators_from, rates)
    sampled = len(clocks(device_clock=kind.clock is not None))
    timed = time_budget.timed([(cell, calls_s[cell.key]) for cell in plan.cells], plan.measure, plan.baseline)
    visits_s = {each.cell.key: each.visit_s(plan.measure.max_turns, sampled) for each in timed}
    blocks = {block_of(block[0].key): block for block in blocks_of(plan.cells)}
    seconds = {name: sum(visits_s[c.key] + time_budget.compile_s(c) for c in block) for name, block in blocks.items()}
    checks_s = {name: sum(time_budget.check_s(c, calls_s[c.key]) for c in block) for name, block in blocks.items()}
    every = deal(seconds, checks_s, plan.measure.rounds, shard.of)
    return StoredShard((shard.number,), shard.of, every[shard.number - 1], sum(map(len, every)))
