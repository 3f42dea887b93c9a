"""What a crossover search reports: its rounds, what they are expected to take, and how precise it is after each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from attnbench.analysis.crossover_search import LEAST_ROUNDS, STEP, Search, half_width
from attnbench.axes import Axis
from attnbench.measure.budget import Budget
from attnbench.measure.progress import Progress
from attnbench.measure.time_left import expected_calls
from attnbench.plan import time_budget
from attnbench.plan.plan import Plan
from attnbench.problem import Cell
from attnbench.progress import Reached, Stage
from attnbench.store.records import Visit

NEAR = 4
"""So many sizes lie around a crossing: they are added to those on the way up, and repeated."""


@dataclass(frozen=True)
class Foreseen:
    """What a search is expected to take, before anything is called.

    Args:
        first_s: its first round, checks included.
        again_s: each further round.
    """

    first_s: float
    again_s: float


@dataclass
class SearchProgress:
    """Progress of a search: how many visits it takes is not known beforehand.

    Args:
        progress: what it reports to.
        most: rounds.
        foreseen: by formulas; None: the rates of the hardware are not known.
        now: a clock; seconds.
    """

    progress: Progress
    most: int
    foreseen: Foreseen | None
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._begun = self.now()

    def next_round(self, number: int, searches: Collection[Search]) -> None:
        """A round begins. searches: as they are after the last one."""
        taken_s, self._begun = self.now() - self._begun, self.now()
        last, left_s = max(LEAST_ROUNDS, number), None
        if number > 2:
            left_s = taken_s * (last - number + 1)
        elif self.foreseen:
            left_s = (LEAST_ROUNDS - 1) * self.foreseen.again_s
            left_s = left_s + self.foreseen.first_s if number == 1 else left_s * taken_s / self.foreseen.first_s
        self.progress.planned(Stage("round", number, last, self.most), None, left_s)
        if number > 1:
            self.progress.reached(_reached(searches))

    def planned(self, stage: Stage, visits: int | None, seconds: float | None) -> None:
        """Nothing: a probe is no plan."""

    def begun(self, cell: Cell, round: int) -> None:
        """See `progress.Progress`."""
        self.progress.begun(cell, round)

    def ended(self, visit: Visit, seconds: float | None) -> None:
        """See `progress.Progress`."""
        self.progress.ended(visit, None)

    def reached(self, reached: Reached) -> None:
        """See `progress.Progress`."""

    def message(self, text: str) -> None:
        """See `progress.Progress`."""
        self.progress.message(text)


def _reached(searches: Collection[Search]) -> Reached:
    halves, done = [], 0
    for each in searches:
        near = each.crossing()
        halves.append(half_width(near) if near else math.inf)
        done += bool(each.ended) or halves[-1] <= each.precision
    wanted = max(each.precision for each in searches)
    return Reached(done, len(searches), wanted, max(halves) if math.isfinite(max(halves)) else None)


def foreseen(
    plan: Plan, pairs: Iterable[tuple[Cell, Cell]], axis: Axis, low: int, high: int, rates: Mapping[str, Any]
) -> Foreseen | None:
    """What searches are expected to take, each with its crossing where the formulas have it.

    Args:
        plan: theirs.
        pairs: what each compares: a cell of a series and one of the baseline, of any size.
        axis: what sizes are positions on.
        low, high: the range of sizes.
        rates: of the hardware; None is returned where there are none.
    """
    if not rates:
        return None
    budget = Budget(plan, (), 0.0)
    first_s = again_s = 0.0
    for pair in pairs:
        nearest, sizes = axis.allowed(pair[1].problem), [low]
        while (larger := min(nearest(sizes[-1] * STEP), high)) > sizes[-1]:
            sizes.append(larger)
        for index, size in enumerate(sizes):
            cells = [replace(cell, problem=axis.at(cell.problem, size)) for cell in pair]
            calls = expected_calls(cells, plan.operators_from, rates)
            visits_s = sum(budget.visit_s(cell, calls[cell.key]) for cell in cells)
            checks_s = sum(time_budget.check_s(cell, calls[cell.key]) for cell in cells)
            first_s += visits_s + checks_s
            cheaper = calls[cells[0].key] < calls[cells[1].key]
            if index and cheaper:
                break
        first_s += NEAR * (visits_s + checks_s) / STEP  # between this size and the one before
        again_s += NEAR * visits_s / STEP
    starts_s = time_budget.START_S
    return Foreseen(first_s + 3 * starts_s, again_s + starts_s)
