"""What a run in progress is still expected to take: before anything is called by the formulas of its operators, then by
what calls of the same series took at smaller sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from attnbench.measure.budget import Budget
from attnbench.plan import time_budget
from attnbench.plan.plan import series_of
from attnbench.problem import Cell
from attnbench.registry import operators
from attnbench.store.records import Visit


def expected_calls(cells: Iterable[Cell], operators_from: Sequence[str], rates: Mapping[str, Any]) -> dict[str, float]:
    """By key, the seconds that a call is expected to take, see `time_budget.call_s`.

    Operators of a user's own are not asked: they are taken to last as long as the median of the others there.
    """
    sources, calls = operators(operators_from), {}
    others: dict[object, list[float]] = {}
    own = []
    for cell in cells:
        source, place = sources.get(cell.operator), (cell.problem, cell.mode)
        if source is None or not source.shipped:
            own.append((cell.key, place))
            continue
        try:
            cost = source.load().forms[cell.scope].cost(cell.problem, cell.params, cell.mode)
        except (KeyError, ValueError):  # a side of a gate may have other parameters, or another definition
            own.append((cell.key, place))
            continue
        calls[cell.key] = time_budget.call_s(cost, cell, rates)
        others.setdefault(place, []).append(calls[cell.key])
    return calls | {key: median(others.get(place, [time_budget.SHORTEST_S])) for key, place in own}


NOMINAL_FLOPS_PER_S, NOMINAL_BYTES_PER_S = 3e10, 1e10
"""The rates of hardware that nobody has measured: by them sizes are told apart, but nothing is foreseen."""


@dataclass
class TimeLeft:
    """What is left of a run.

    Args:
        budget: of the run, and what its checks have found.
        operators_from: a user's .py files and packages.
        rates: of the hardware; empty: nothing is foreseen before the first calls.
        rounds: timed ones up to the first look; 0: the check is all.
        timed_s: what the blocks still to come are expected to take; None: the check has not ended.
        starts: processes that are still to be started.
    """

    budget: Budget
    operators_from: Sequence[str]
    rates: Mapping[str, Any]
    rounds: int
    timed_s: float | None = None
    starts: int = 0
    _checked_s: float = 0.0
    _foreseen_s: float = 0.0
    _cells: dict[str, Cell] = field(default_factory=dict)
    _new: set[str] = field(default_factory=set)
    _call_s: dict[str, float] = field(default_factory=dict)
    _check_s: dict[str, float] = field(default_factory=dict)
    _visit_s: dict[str, float] = field(default_factory=dict)

    def expect(self, cells: Sequence[Cell], checked: Iterable[Cell]) -> None:
        """The checks begin.

        Args:
            cells: whose check is to come.
            checked: whose check has ended well.
        """
        dtypes = dict.fromkeys((cell.problem.dtype for cell in cells), NOMINAL_FLOPS_PER_S)
        nominal = {"matmul_flops_per_s": dtypes, "copy_bytes_per_s": NOMINAL_BYTES_PER_S}
        self._call_s = expected_calls(cells, self.operators_from, self.rates or nominal)
        self._cells = {cell.key: cell for cell in cells}
        self._new = set(self._cells)
        self._check_s = {cell.key: time_budget.check_s(cell, self._call_s[cell.key]) for cell in cells}
        self._visit_s = {c.key: self._share(c) * self.budget.visit_s(c, self._call_s[c.key]) for c in cells}
        self._visit_s |= {cell.key: self._share(cell) * self.budget.expected_s([cell]) for cell in checked}
        self.starts = 2 + self.rounds

    def note_check(self, visit: Visit, seconds: float) -> None:
        """A check has ended. Larger cells of its series are expected to take longer than it by as much as before."""
        cell, foreseen_s = self._cells.pop(visit.key, None), self._check_s.pop(visit.key, 0.0)
        self._visit_s.pop(visit.key, None)
        if cell is None or visit.status != "ok":
            return
        if visit.key in self._new:
            self._checked_s, self._foreseen_s = self._checked_s + seconds, self._foreseen_s + foreseen_s
        self._visit_s[visit.key] = self._share(cell) * self.budget.expected_s([cell])
        call_s = self.budget.checked_call_s(cell)
        around_s = max(time_budget.CHECK_S, seconds - time_budget.CHECK_CALLS * call_s)
        for key, other in self._cells.items():
            if series_of(other) == series_of(cell):
                self._new.discard(key)
                longer = call_s * self._call_s[key] / self._call_s[cell.key]
                self._check_s[key] = around_s + time_budget.CHECK_CALLS * longer
                self._visit_s[key] = self._share(other) * self.budget.visit_s(other, longer)

    def _share(self, cell: Cell) -> float:
        """Of the timed rounds, those that visit a cell."""
        plan = self.budget.plan
        rounds = plan.measure.rounds  # none where only the check is made
        return len(plan.rounds_of(cell)) / rounds if rounds else 1.0

    def seconds(self) -> float | None:
        """All that is left, up to the next look; None: nobody knows."""
        limit_s = None if self.budget.limit_s is None else max(0.0, self.budget.limit_s - self.budget.elapsed_s())
        if self.timed_s is None:
            if self._check_s and not self.rates and not self._foreseen_s:
                return limit_s
            new = self._new & self._cells.keys()
            new_s = sum(self._check_s[key] + self.rounds * self._visit_s[key] for key in new)
            known_s = sum(self._check_s.values()) + self.rounds * sum(self._visit_s.values()) - new_s
            left_s = known_s + new_s * (self._checked_s / self._foreseen_s if self._foreseen_s else 1.0)
        else:
            left_s = self.timed_s * self.budget.late
        left_s += self.starts * self.budget.start_s()
        return left_s if limit_s is None else min(left_s, limit_s)
