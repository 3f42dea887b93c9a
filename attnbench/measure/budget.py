"""The time budget of a run in progress: what it leaves for checks and timed visits, and what they are expected to take.

Sizes go before operators, and at each size the baseline's operator comes first. What the budget does not reach is left
out alike: a size that takes too long for one operator is measured of none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

from attnbench.measure.device import device_of
from attnbench.plan import time_budget
from attnbench.plan.plan import Plan, series_of
from attnbench.problem import Cell
from attnbench.registry import clocks, metrics
from attnbench.store.records import Visit
from attnbench.units import duration

LEAST_TIMEOUT_S = 1.0
"""A request has at least so much time, however little the budget leaves."""


@dataclass
class Budget:
    """What a run may take, and what its visits have taken so far.

    Args:
        plan: the run's; its limits may have no budget, which leaves everything as the suite has it.
        starts_s: seconds that each worker of the run took to start.
        begun: when the budget's time began, on the clock `now`.
        now: a clock; seconds.
    """

    plan: Plan
    starts_s: Sequence[float]
    begun: float
    now: Callable[[], float] = time.monotonic
    _check_s: dict[tuple[Any, ...], tuple[Cell, float, float]] = field(default_factory=dict)
    _call_s: dict[str, float] = field(default_factory=dict)
    _recompile_s: dict[str, float] = field(default_factory=dict)
    _least_s: dict[str, float] = field(default_factory=dict)
    _first_left_out: tuple[int, ...] | None = None
    _taken_s: float = 0.0
    _expected_s: float = 0.0

    def __post_init__(self) -> None:
        self.measure = self.plan.measure
        self.limit_s = self.plan.limits.budget_s
        self._cells = {cell.key: cell for cell in self.plan.cells}
        device_clock = device_of(self.plan.device).clock is not None
        self._clocks = len(clocks(device_clock=device_clock))
        self._around_s = time_budget.around_s(metrics().values(), device_clock=device_clock)
        self._first = min(map(self._rank, self.plan.cells), default=())

    def note_check(self, visit: Visit) -> None:
        """Takes from a check that is ok what later visits are expected to take."""
        cell = self._cells.get(visit.key)
        if visit.round:
            self._least_s.pop(visit.key, None)
        if visit.round or visit.status != "ok" or cell is None:
            return
        names = ("check_time_s", "compile_s", "recompile_s")
        call_s, compile_s, recompile_s = (float(visit.metrics.get(name, 0.0)) for name in names)
        self._check_s[series_of(cell)] = (cell, float(visit.metrics.get("visit_s", 0.0)), compile_s)
        self._call_s[cell.key] = call_s
        self._recompile_s[cell.key] = recompile_s
        self._least_s[cell.key] = self._fewest_s([cell])

    def note_block(self, cells: Iterable[Cell], seconds: float) -> None:
        """A block of these cells has taken so many seconds."""
        self._taken_s += seconds
        self._expected_s += self.expected_s(cells)

    @property
    def title(self) -> str:
        """`the budget of 47 s`, where there is one."""
        return "the budget" if self.limit_s is None else f"the budget of {duration(self.limit_s)}"

    @property
    def has_timed(self) -> bool:
        """Whether it is known what blocks take."""
        return self._expected_s > 0

    @property
    def late(self) -> float:
        """By what factor blocks have taken longer than expected."""
        return self._taken_s / self._expected_s if self._expected_s else 1.0

    def checked_call_s(self, cell: Cell) -> float:
        """What a call took in the check of a cell that is ok."""
        return self._call_s[cell.key]

    def visit_s(self, cell: Cell, call_s: float) -> float:
        """What a cell is expected to take in a round, if a call takes so many seconds."""
        (timed,) = time_budget.timed([(cell, call_s)], self.measure, self.plan.baseline, self._around_s)
        return timed.visit_s(self.measure.max_turns, self._clocks) + time_budget.compile_s(cell)

    def expected_s(self, cells: Iterable[Cell]) -> float:
        """What blocks of these cells are expected to take in a round, after their checks."""
        return self._timing_s(cells, self.measure.max_turns)

    def _fewest_s(self, cells: Iterable[Cell]) -> float:
        """The same with the fewest turns."""
        return self._timing_s(cells, self.measure.min_turns)

    def _timing_s(self, cells: Iterable[Cell], turns: int) -> float:
        return sum(each.visit_s(turns, self._clocks) + self._recompile_s[each.cell.key] for each in self._timed(cells))

    def _timed(self, cells: Iterable[Cell]) -> Iterator[time_budget.Timed]:
        calls_s = [(cell, self._call_s[cell.key]) for cell in cells]
        return time_budget.timed(calls_s, self.measure, self.plan.baseline, self._around_s)

    def precedence(self, cell: Cell) -> tuple[Any, ...]:
        """What cells are sorted by: where not everything can be measured, the first of them are."""
        return time_budget.precedence(cell, self.plan.baseline, largest_first=self.plan.limits.largest_first)

    def _rank(self, cell: Cell) -> tuple[int, ...]:
        return time_budget.rank(cell, largest_first=self.plan.limits.largest_first)

    def start_s(self) -> float:
        """What a fresh worker costs: as those of this run did."""
        return mean(self.starts_s) if self.starts_s else time_budget.START_S

    def left_s(self, number: int, cells: Sequence[Cell] = ()) -> float | None:
        """Seconds that the budget leaves for visits of a round; checks must leave time for a round of what is checked.

        Args:
            number: of the round.
            cells: whose visits it is for, where these may all go before all.

        Returns: None where there is no budget.
        """
        if self.limit_s is None:
            return None
        timing = 0.0 if number else self._round_s()
        reserved = time_budget.END_S
        if number <= 1 and cells and all(map(self.goes_before_all, cells)):
            reserved = -time_budget.GRACE_S
        return self.limit_s - reserved - self.elapsed_s() - timing

    def _round_s(self) -> float:
        """What a round of all that is checked and not timed yet takes, with the fewest turns."""
        return time_budget.ROOM * (self.start_s() + sum(self._least_s.values()))

    def timeout_s(self, most: float, cell: Cell, number: int) -> float:
        """A limit in seconds, cut to what the budget leaves for a cell in a round."""
        left = self.left_s(number, [cell])
        return most if left is None else min(most, max(left, LEAST_TIMEOUT_S))

    def goes_before_all(self, cell: Cell) -> bool:
        """Whether it is the baseline at the first size: for its first time it may use what is kept for the end, and
        some more."""
        return cell.operator == self.plan.baseline and self._is_first(cell)

    def reason_against_check(self, cell: Cell, starts: int) -> str | None:
        """Why the budget leaves a cell out: what is checked must be timed as well, and sizes are left out alike.

        Args:
            cell: that is to be checked next.
            starts: workers that must be started for it.
        """
        left = self.left_s(0, [cell])
        if self.limit_s is None or left is None:
            return None
        expected_s, first = self._expected_check_s(cell, starts), self._is_first(cell)
        if self.plan.limits.largest_first:
            late = expected_s + (self.plan.measure.rounds - 1) * self._round_s() > left
        else:
            late = self.elapsed_s() > time_budget.CHECK_SHARE * self.limit_s
        fits = expected_s <= left and (first or not late)
        if not fits and not first and self._first_left_out is None:
            self._first_left_out = self._rank(cell)
        if fits and (self._first_left_out is None or self._rank(cell) < self._first_left_out):
            return None
        return f"{self.title} does not reach this {'cell' if first else 'size'}"

    def afford(self, cells: Sequence[Cell], before_all: int) -> time_budget.Afforded:
        """Fixes what the budget affords: from here on visits are expected to be as short as it makes them.

        Args:
            cells: that are to be timed.
            before_all: so many of the first by precedence are timed in any case.
        """
        rounds = self.plan.measure.rounds
        every = (replace(each, share=len(self.plan.rounds_of(each.cell)) / rounds) for each in self._timed(cells))
        timed = sorted(every, key=lambda each: self.precedence(each.cell))
        afforded = time_budget.afford(
            timed, self.plan.measure, self.left_s(1), self._clocks, self.start_s(), before_all
        )
        self.measure = replace(self.plan.measure, max_turns=afforded.turns)
        return afforded

    def fits(self, cells: Sequence[Cell], later: Iterable[Cell], starts: int) -> bool:
        """Whether the budget leaves time for a block, beside those that go before it.

        Args:
            cells: of the block that is to be measured next.
            later: still to come in the round.
            starts: workers that must be started for it.
        """
        left = self.left_s(1, cells)
        if left is None:
            return True
        rank = min(map(self.precedence, cells))
        before = self._fewest_s(other for other in later if self.precedence(other) < rank)
        return starts * self.start_s() + max(1.0, self.late) * (before + self._fewest_s(cells)) <= left

    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return self.now() - self.begun

    def _is_first(self, cell: Cell) -> bool:
        return self._rank(cell) == self._first

    def _expected_check_s(self, cell: Cell, starts: int) -> float:
        """The most that a check is expected to take, from the last of its series: it may grow with N², but for what the
        compiler takes.
        """
        starting = starts * self.start_s()
        last = self._check_s.get(series_of(cell))
        if last is None:
            return starting + time_budget.CHECK_S
        smaller, seconds, compile_s = last
        return starting + compile_s + (seconds - compile_s) * time_budget.growth(cell, smaller)
