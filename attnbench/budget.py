"""What a run can afford: decided once, after the scout, and for all operators alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from attnbench.number import count
from attnbench.problem import Cell
from attnbench.settings import Measure

CALLS_AROUND = 9
"""Calls of a timed visit that are not samples: outputs before and after, on each set, and the least of the warm-up."""

VISIT_S = 0.05
"""What a visit costs beside its calls."""

SCOUT_SHARE = 0.5
"""The scout goes no further up in size once it has used this share of the budget."""

START_S = 2.5
"""What a fresh worker costs, once per round."""


@dataclass(frozen=True)
class Afforded:
    """max_time_s: of every visit alike. out_of_reach: cells of the sizes that are not timed, with the reason."""

    max_time_s: float
    out_of_reach: Mapping[str, str]


def size(cell: Cell) -> tuple[int, int, int]:
    """What cells are ordered by: tokens, channels, batch."""
    p = cell.problem
    return (p.seq_len, p.channels, p.batch)


def visit_s(call_s: float, measure: Measure, clocks: int = 1) -> float:
    """The most a timed visit is expected to take. clocks: 2 where device time is taken as well."""
    samples = max(measure.min_samples * call_s, min(measure.max_time_s, measure.max_samples * max(call_s, 1e-4)))
    return VISIT_S + CALLS_AROUND * call_s + clocks * samples


def least_s(call_s: float, measure: Measure, clocks: int = 1) -> float:
    """What a timed visit takes with the fewest samples that give an interval of their own."""
    return visit_s(call_s, replace(measure, max_time_s=0.0), clocks)


def afford(
    scouted: Sequence[tuple[Cell, float]], measure: Measure, left_s: float | None, rounds: int, clocks: int = 1
) -> Afforded:
    """Shortens every visit alike; where even the fewest samples are too much, leaves out the largest sizes of all.

    scouted: each cell that is to be timed with the seconds of its call. left_s: of the budget; None: no budget.
    """
    if left_s is None:
        return Afforded(measure.max_time_s, {})
    per_round = max(left_s, 0.0) / max(rounds, 1) - START_S
    kept = sorted(scouted, key=lambda pair: size(pair[0]))
    out: dict[str, str] = {}
    while kept and sum(least_s(t, measure, clocks) for _, t in kept) > per_round:
        largest = size(kept[-1][0])
        dropped = [(cell, t) for cell, t in kept if size(cell) == largest]
        kept = kept[: len(kept) - len(dropped)]
        cost = sum(least_s(t, measure, clocks) for _, t in dropped) * rounds
        told = f"{count(len(dropped), 'cell')} of it would take about {cost:.0f} s more"
        reason = f"the budget does not reach this size: {told}"
        out.update({cell.key: reason for cell, _ in dropped})
    low, high = 0.0, measure.max_time_s
    for _ in range(30):
        middle = (low + high) / 2
        shorter = replace(measure, max_time_s=middle)
        fits = sum(visit_s(t, shorter, clocks) for _, t in kept) <= per_round
        low, high = (middle, high) if fits else (low, middle)
    whole = sum(visit_s(t, measure, clocks) for _, t in kept) <= per_round
    return Afforded(measure.max_time_s if whole else max(low, 0.01), out)
