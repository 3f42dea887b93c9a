"""What a run takes and what it can afford: sizes go before operators, the small ones first unless a suite says
otherwise, and the baseline comes first at each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from attnbench.metric import Metric
from attnbench.plan.blocks import baseline_of, blocks_of, weight
from attnbench.plan.settings import (
    BATCH_S,
    MOST_CALLS,
    SAMPLE_S,
    WARM_UP_S,
    Measure,
    stays_with_one_set,
    untimed_calls,
)
from attnbench.problem import Cell
from attnbench.registry import compiles
from attnbench.units import count

if TYPE_CHECKING:
    from attnbench.operator import Cost

CALLS_AROUND = 4
"""So many warm calls take as long as those of a timed visit that are no samples: the first one, which is cold, of short
calls a second, one after a write, and at times one after its return."""

CALLS_AROUND_FEW = 3
"""The same of a visit that stays with one input set, as one of few samples does where calls are long."""

VISIT_S = 0.03
"""What a visit costs beside its calls and its samples."""

TURN_S = 0.001
"""What a turn's sample costs beside its calls."""

PREPARE_S = 0.1
"""What it takes on a GPU to draw a member's inputs, load its kernels and compare its first calls: on one H100 most took
0.05 to 0.2 s, but for what torch compiles."""

CHECK_SHARE = 0.5
"""The check goes no further up in size once it has used this share of the budget: the next size may take many times as
long. Down in size it goes as long as there is time for all rounds of what it has checked."""

START_S = 1.5
"""What a fresh worker costs, once per round."""

END_S = 2.5
"""Kept for what comes after the last visit: results.csv and the tables."""

GRACE_S = 2.5
"""By so much the baseline at the first size may pass the budget: without a time of it nothing else says anything."""

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

CHECK_CALLS = 10
CHECK_S = 0.03
"""A check visit takes this and as long as so many warm calls: four of its own, one of them cold and one under torch's
profiler with fresh memory, and those of the reference, in float64 too."""

COMPILE_S = 20.0
"""What torch.compile takes, in every process again."""

BUILD_S = 4.0
"""What building the kernels of a cell takes, once: later processes read them from Triton's cache. The mean of 162 cells
on one H100."""


@dataclass(frozen=True)
class Timed:
    """A cell that is to be timed.

    Args:
        cell: that is called.
        call_s: what a call takes.
        turns: that its block takes without a budget.
        weight: its samples in a turn.
        around_s: what a visit costs beside its calls, its samples and VISIT_S, see `around_s`.
        share: of the timed rounds that visit it.
        calls_around: CALLS_AROUND, or CALLS_AROUND_FEW.
    """

    cell: Cell
    call_s: float
    turns: int
    weight: int = 1
    around_s: float = 0.0
    share: float = 1.0
    calls_around: int = CALLS_AROUND

    def round_s(self, turns: int, clocks: int = 1) -> float:
        """What it is expected to take of a round on the average; see `visit_s`."""
        return self.share * self.visit_s(turns, clocks)

    def visit_s(self, turns: int, clocks: int = 1) -> float:
        """What a visit is expected to take.

        Args:
            turns: that its block takes at most.
            clocks: metrics that take samples.
        """
        samples = min(turns, self.turns) * self.weight
        calls_s = self.calls_around * self.call_s + samples * sample_s(self.call_s, clocks)
        return VISIT_S + self.around_s + calls_s


@dataclass(frozen=True)
class Afforded:
    """What a budget affords.

    Attributes:
        rounds: as many are begun.
        turns: that a block takes at most.
        out_of_reach: by key, why a cell is not timed.
    """

    rounds: int
    turns: int
    out_of_reach: Mapping[str, str]


def size(cell: Cell) -> tuple[int, ...]:
    """What cells are ordered by: tokens, new ones, channels, batch, heads, those of keys."""
    p = cell.problem
    return (p.seq_len, p.query_len, p.channels, p.batch, p.heads, p.kv_heads)


def growth(cell: Cell, smaller: Cell) -> float:
    """By how much a call of a cell may take longer, as N² of all tokens, and as N where the new ones are as many."""
    a, b = cell.problem, smaller.problem
    width = max(a.channels / b.channels, a.heads / b.heads) * a.batch / b.batch
    return max(1.0, width**2 * (a.seq_len * a.query_len) / (b.seq_len * b.query_len))


def rank(cell: Cell, *, largest_first: bool = False) -> tuple[int, ...]:
    """What sizes are ordered by where not all can be measured."""
    return tuple(-number for number in size(cell)) if largest_first else size(cell)


def precedence(cell: Cell, baseline: str, *, largest_first: bool = False) -> tuple[Any, ...]:
    """What comes first where not everything can: by size; at the same size, the baseline's operator."""
    return (rank(cell, largest_first=largest_first), cell.operator != baseline)


def rates_fit(budget_s: float | None) -> bool:
    """Whether a run has time to measure the rates of its hardware."""
    return budget_s is None or budget_s * RATES_SHARE >= RATES_S


def shard_s(budget_s: float, share: float, devices: int, rounds: int) -> float:
    """What of a suite's budget a shard may take: its share of the work, as many times as devices work at once, and no
    more than a run of the whole; and what only starting it takes, which a run of the whole takes once.

    Args:
        budget_s: of the suite.
        share: what the shard is expected to take, over what a run of the whole suite is.
        devices: that measure shards at once.
        rounds: in which it has units, each a process.
    """
    return starting_s(rounds) + budget_s * min(1.0, devices * share)


def starting_s(rounds: int) -> float:
    """What starting and ending a run takes, beside its checks and its blocks. rounds: a process each."""
    return RATES_S + START_S * (3 + rounds) + END_S


def call_s(cost: Cost, cell: Cell, rates: Mapping[str, Any]) -> float:
    """The seconds that a call is expected to take: an estimate, right within a factor of about four.

    rates: as environment.json stores them; where one is missing, that part counts nothing.
    """
    flops = cost.reference_flops if cell.impl in ("reference", "compiled") else cost.flops
    rate = rates.get("matmul_flops_per_s", {}).get(cell.problem.dtype) or math.inf
    roofline = max(flops / rate, cost.bytes_moved / (rates.get("copy_bytes_per_s") or math.inf))
    return max(SHORTEST_S, CALL_BY_ROOFLINE * roofline)


def check_s(cell: Cell, call: float) -> float:
    """What the check of a cell is expected to take, of which a call takes `call` seconds."""
    built = BUILD_S if compiles(cell.impl) and not compile_s(cell) else 0.0
    return CHECK_S + CHECK_CALLS * call + built + compile_s(cell)


def compile_s(cell: Cell) -> float:
    """What compiling a cell is expected to take in every process."""
    return COMPILE_S if cell.impl == "compiled" else 0.0


def around_s(metrics: Iterable[Metric], *, device_clock: bool) -> float:
    """What a visit costs on a kind of device beside its calls and its samples: PREPARE_S, the calls that raise the
    device's clock rate, where it no longer rises, and those that metrics make at the end.

    Args:
        metrics: that are taken.
        device_clock: whether the device has a clock of its own.
    """
    if not device_clock:
        return sum(metric.finish_s for metric in metrics if not metric.needs_gpu)
    return PREPARE_S + WARM_UP_S + sum(metric.finish_s for metric in metrics)


def timed_calls(call_s: float) -> int:
    """The timed calls of a sample."""
    return max(1, min(MOST_CALLS, math.ceil(SAMPLE_S / call_s))) if call_s else MOST_CALLS


def sample_s(call_s: float, clocks: int = 1) -> float:
    """What a turn's sample of a member takes. clocks: metrics that take samples."""
    return TURN_S + untimed_calls(call_s) * call_s + clocks * timed_calls(call_s) * max(call_s, BATCH_S)


def timed(
    calls_s: Sequence[tuple[Cell, float]], measure: Measure, baseline: str, around_s: float = 0.0
) -> Iterator[Timed]:
    """What is to be timed of cells, by the seconds of their calls, block by block. around_s: see `Timed`."""
    by_key = {cell.key: call for cell, call in calls_s}
    for block in blocks_of(cell for cell, _ in calls_s):
        base = baseline_of(block, baseline)
        series = [by_key[cell.key] for cell in block if cell != base] or [by_key[cell.key] for cell in block]
        typical_s = median(max(call, BATCH_S) * timed_calls(call) for call in series)
        enough = math.ceil(measure.max_time_s / typical_s)
        turns = max(measure.min_turns, min(measure.max_turns, enough))
        for cell in block:
            call_s, samples = by_key[cell.key], weight(cell, base)
            few = stays_with_one_set(call_s, samples * measure.max_turns)
            around = CALLS_AROUND_FEW if few else CALLS_AROUND
            yield Timed(cell, call_s, turns, samples, around_s, calls_around=around)


def afford(
    cells: Sequence[Timed],
    measure: Measure,
    left_s: float | None,
    clocks: int = 1,
    start_s: float = START_S,
    before_all: int = 0,
) -> Afforded:
    """Shortens every visit alike; where even the fewest turns are too much, leaves out the last sizes of all; where
    even the first size is, makes fewer rounds; and of a single round that is too long, what comes last.

    Args:
        cells: that are to be timed, in order of precedence.
        measure: the suite's.
        left_s: of the budget; None: no budget.
        clocks: metrics that take samples.
        start_s: what a fresh worker costs.
        before_all: so many of the first cells are timed in any case.
    """
    if left_s is None:
        return Afforded(measure.rounds, measure.max_turns, {})
    costs = [(each.cell, each.round_s(measure.min_turns, clocks)) for each in cells]
    number, reached = max(measure.rounds, 1), 0
    while not reached and number:
        round_s = max(left_s, 0.0) / number - start_s
        reached = _reached(costs, round_s, whole_sizes=True)
        number -= not reached
    if not reached:
        number, round_s = 1, max(left_s, 0.0) - start_s
        reached = max(before_all, _reached(costs, round_s, whole_sizes=False))
    turns = _most_turns(cells[:reached], measure, round_s, clocks)
    return Afforded(min(number, measure.rounds), turns, _out_of_reach(costs[reached:], measure.rounds))


def _most_turns(cells: Sequence[Timed], measure: Measure, round_s: float, clocks: int) -> int:
    """The most turns, up to the suite's, with which a round of these cells takes at most round_s."""
    possible = range(measure.max_turns, measure.min_turns, -1)
    fitting = (turns for turns in possible if sum(each.round_s(turns, clocks) for each in cells) <= round_s)
    return next(fitting, measure.min_turns)


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
