"""What a run has stored so far: its visits by cell and round, and results.csv, which is derived from them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from attnbench.analysis import results
from attnbench.analysis.looks import looks
from attnbench.files import going_on
from attnbench.plan.plan import Plan, beyond
from attnbench.plan.settings import Measure
from attnbench.problem import Cell
from attnbench.store.frames import frame
from attnbench.store.journal import Journal
from attnbench.store.privacy import without_paths, without_private
from attnbench.store.records import RETRIED, Visit

RESULTS_EVERY_S = 10.0
"""results.csv is derived again this often, and after every round."""


def stops(measure: Measure) -> tuple[int, ...]:
    """The round counts at which a run may stop."""
    return looks(measure.rounds, measure.rounds if measure.crossover_precision is None else measure.max_rounds)


@dataclass
class VisitLog:
    """The visits of a plan's cells in a journal."""

    plan: Plan
    journal: Journal

    def __post_init__(self) -> None:
        self._cells = {cell.key: cell for cell in self.plan.cells}
        self._visits: dict[tuple[str, int], Visit] = {}
        self._last_part: dict[tuple[str, int], int] = {}
        for visit in self.journal.visits:
            self._note(visit)
        self._written = time.monotonic()

    def has(self, cell: Cell, number: int) -> bool:
        """Whether the visit of a cell in a round is stored."""
        return (cell.key, number) in self._visits

    def check_of(self, cell: Cell) -> Visit:
        """The visit of a cell in round 0."""
        return self._visits[cell.key, 0]

    def add(self, *visits: Visit) -> list[Visit]:
        """Stores visits together. Returns them as stored: without what tells who measures, and where."""
        stored = [
            replace(
                visit,
                reason=without_private(visit.reason),
                kernel=without_paths(visit.kernel),
                warnings=tuple(map(without_private, visit.warnings)),
            )
            for visit in visits
        ]
        self.journal.add(*stored)
        for visit in stored:
            self._note(visit)
        return stored

    def _note(self, visit: Visit) -> None:
        """A cell that is in several parts of a block has several visits in a round: one that is not ok stays."""
        earlier = self._visits.get((visit.key, visit.round))
        if earlier is None or earlier.status == "ok":
            self._visits[visit.key, visit.round] = visit
        self._last_part[visit.key, visit.round] = visit.part

    def next_part(self, cells: Iterable[Cell], number: int) -> int:
        """The first number that no part of a block of these cells has in a round."""
        return 1 + max((self._last_part.get((cell.key, number), -1) for cell in cells), default=-1)

    def survivors(self, number: int) -> list[Cell]:
        """Cells to visit in a timed round: their check is ok, and no timed round before ended them."""
        return [cell for cell in self.plan.cells if self._survives(cell, number)]

    def _survives(self, cell: Cell, number: int) -> bool:
        check = self._visits.get((cell.key, 0))
        earlier = [self._visits.get((cell.key, n)) for n in range(1, number)]
        return bool(check and check.status == "ok" and all(v is None or v.status in RETRIED for v in earlier))

    def is_complete(self, cell: Cell) -> bool:
        """Whether every timed round that is planned for a cell is stored."""
        return all(self.has(cell, n) for n in self.plan.rounds_of(cell))

    def timed_keys(self) -> set[str]:
        """The keys of cells of which a timed round is stored, however it ended."""
        return {key for key, number in self._visits if number}

    def smaller_that_failed(self, cell: Cell) -> tuple[Cell, Visit] | None:
        """A smaller cell of the same series that ran out of memory or time in its check, with that visit."""
        for visit in self.journal.visits:
            if visit.round == 0 and visit.status in ("oom", "timeout"):
                smaller = self._cells.get(visit.key)
                if smaller is not None and beyond(cell, smaller):
                    return smaller, visit
        return None

    def write_results(self) -> None:
        """Makes results.csv current, where there is any visit."""
        if self.journal.visits:
            with going_on(self.journal.folder, self.journal.todo):
                self.journal.check_place()
                results.write(self.journal.folder, frame(self.journal.visits), stops(self.plan.measure))
        self._written = time.monotonic()

    def write_results_if_due(self) -> None:
        """Makes results.csv current where that was long ago."""
        if time.monotonic() - self._written > RESULTS_EVERY_S:
            self.write_results()
