"""What a run takes and what it can afford: sizes go before operators, small ones first, and the baseline at each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from attnbench.plan.settings import Measure
from attnbench.problem import Cell
from attnbench.units import count

if TYPE_CHECKING:
    from attnbench.operator import Cost

CALLS_AROUND = 13
"""Calls of a timed visit that are not samples: outputs before and after, on each set and with changes of two of them,
and the least of the warm-up."""

VISIT_S = 0.05
"""What a visit costs beside its calls."""

CHECK_SHARE = 0.5
"""The check goes no further up in size once it has used this share of the budget."""

START_S = 2.5
"""What a fresh worker costs, once per round."""

END_S = 2.5
"""Kept for what comes after the last visit: results.csv and the tables."""

GRACE_S = 2.5
"""By so much the baseline at the smallest size may pass the budget: without a time of it nothing else says anything."""

ROOM = 1.2
"""The check leaves so much more than the least that a timed round is expected to take."""

RATES_SHARE = 0.1
RATES_S = 6.0
"""The rates of the hardware are measured only where so many seconds are at most this share of the budget."""

CALL_BY_ROOFLINE = 4.0
"""A call's time over what its FLOPs and bytes take at the hardware's rates: the median of 800 cells, most of them
eager, in results/reference; nine in ten lie between 1.4 and 20."""

SHORTEST_S = 1e-4
"""No call is expected to take less: launching it takes so long."""

CHECK_CALLS = 12
CHECK_S = 0.03
"""A check visit takes this and so many calls: its checks, in float64 too, and its memory passes (the same runs)."""

COMPILE_S = 20.0
"""What compiling takes, in every process again."""


@dataclass(frozen=True)
class Afforded:
    """What a budget affords.

    Attributes:
        rounds: as many are begun.
        max_time_s: of sampling, for every visit alike.
        out_of_reach: by key, why a cell is not timed.
    """

    rounds: int
    max_time_s: float
    out_of_reach: Mapping[str, str]


def size(cell: Cell) -> tuple[int, int, int]:
    """What cells are ordered by: tokens, channels, batch."""
    p = cell.problem
    return (p.seq_len, p.channels, p.batch)


def precedence(cell: Cell, baseline: str) -> tuple[Any, ...]:
    """What comes first where not everything can: the smaller size; at the same size, the baseline's operator."""
    return (size(cell), cell.operator != baseline)


def rates_fit(budget_s: float | None) -> bool:
    """Whether a run has time to measure the rates of its hardware."""
    return budget_s is None or budget_s * RATES_SHARE >= RATES_S


def call_s(cost: Cost, cell: Cell, rates: Mapping[str, Any]) -> float:
    """The seconds that a call is expected to take: an estimate, right within a factor of about four.

    rates: as environment.json stores them; where one is missing, that part counts nothing.
    """
    flops = cost.reference_flops if cell.impl in ("reference", "compiled") else cost.flops
    rate = rates.get("matmul_flops_per_s", {}).get(cell.problem.dtype) or math.inf
    roofline = max(flops / rate, cost.bytes_required / (rates.get("copy_bytes_per_s") or math.inf))
    return max(SHORTEST_S, CALL_BY_ROOFLINE * roofline)


def cell_s(cell: Cell, call: float, measure: Measure, clocks: int = 1) -> float:
    """What the check and all rounds of a cell are expected to take, of which a call takes `call` seconds."""
    compiling = COMPILE_S if cell.impl == "compiled" else 0.0
    check = CHECK_S + CHECK_CALLS * call + compiling
    return check + measure.rounds * (visit_s(call, measure, clocks) + compiling)


def visit_s(call_s: float, measure: Measure, clocks: int = 1) -> float:
    """The most a timed visit is expected to take. clocks: metrics that take samples."""
    samples = max(measure.min_samples * call_s, min(measure.max_time_s, measure.max_samples * max(call_s, 1e-4)))
    return VISIT_S + CALLS_AROUND * call_s + clocks * samples


def least_s(call_s: float, measure: Measure, clocks: int = 1) -> float:
    """What a timed visit takes with the fewest samples that give an interval of their own."""
    return visit_s(call_s, replace(measure, max_time_s=0.0), clocks)


def afford(
    calls_s: Sequence[tuple[Cell, float]],
    measure: Measure,
    left_s: float | None,
    rounds: int,
    clocks: int = 1,
    start_s: float = START_S,
    before_all: int = 0,
) -> Afforded:
    """Shortens every visit alike; where even the fewest samples are too much, leaves out the largest sizes of all;
    where even the smallest size is, makes fewer rounds; and of a single round that is too long, what comes last.

    Args:
        calls_s: each cell that is to be timed with the seconds of its call, in order of precedence.
        measure: the suite's.
        left_s: of the budget; None: no budget.
        rounds: as many as the suite asks for.
        clocks: metrics that take samples.
        start_s: what a fresh worker costs.
        before_all: so many of the first cells are timed in any case.
    """
    if left_s is None:
        return Afforded(rounds, measure.max_time_s, {})
    costs = [(cell, least_s(call, measure, clocks)) for cell, call in calls_s]
    number, reached = max(rounds, 1), 0
    while not reached and number:
        round_s = max(left_s, 0.0) / number - start_s
        reached = _reached(costs, round_s, whole_sizes=True)
        number -= not reached
    if not reached:
        number, round_s = 1, max(left_s, 0.0) - start_s
        reached = max(before_all, _reached(costs, round_s, whole_sizes=False))
    max_time_s = _max_time_s([call for _, call in calls_s[:reached]], measure, round_s, clocks)
    return Afforded(min(number, rounds), max_time_s, _out_of_reach(costs[reached:], rounds))


def _max_time_s(calls_s: Sequence[float], measure: Measure, round_s: float, clocks: int) -> float:
    """The longest sampling, up to the suite's, with which a round of these calls takes at most round_s."""

    def fits(seconds: float) -> bool:
        shorter = replace(measure, max_time_s=seconds)
        return sum(visit_s(call, shorter, clocks) for call in calls_s) <= round_s

    if fits(measure.max_time_s):
        return measure.max_time_s
    low, high = 0.0, measure.max_time_s
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return max(low, 0.01)


def _out_of_reach(costs: Sequence[tuple[Cell, float]], rounds: int) -> dict[str, str]:
    """By key, why a cell is not timed. costs: the seconds of one visit of each."""
    reasons: dict[str, str] = {}
    for cell, _ in costs:
        same = [seconds for other, seconds in costs if size(other) == size(cell)]
        more = f"{count(len(same), 'cell')} of it would take about {sum(same) * rounds:.0f} s more"
        reasons[cell.key] = f"the budget does not reach this size: {more}"
    return reasons


def _reached(costs: Sequence[tuple[Cell, float]], most_s: float, *, whole_sizes: bool) -> int:
    """How many of the first cells fit into so many seconds. whole_sizes: all cells of a size, or none."""
    reached, spent = 0, 0.0
    for index, (cell, seconds) in enumerate(costs):
        spent += seconds
        if spent > most_s:
            break
        last_of_size = index + 1 == len(costs) or size(costs[index + 1][0]) != size(cell)
        if last_of_size or not whole_sizes:
            reached = index + 1
    return reached
