"""Measures what a crossover search asks for, into a run folder: pairs of a series and its baseline at chosen sizes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from attnbench.analysis.crossover import BEYOND, Pair
from attnbench.analysis.crossover_search import LEAST_ROUNDS
from attnbench.analysis.interval import Estimate, estimates
from attnbench.axes import Axis
from attnbench.measure import worker_process
from attnbench.measure.blocks import Member, measure_block
from attnbench.measure.progress import Progress
from attnbench.measure.runner import Runner
from attnbench.measure.visit_maker import Place
from attnbench.measure.worker_pool import Workers
from attnbench.plan.plan import Plan
from attnbench.problem import Cell
from attnbench.store.frames import frame
from attnbench.store.journal import Journal
from attnbench.store.records import ENDED_AS, Visit


@dataclass
class Probes:
    """`crossover_search.Prober` over worker processes. One process measures a round; another makes the checks.

    Attributes:
        plan: with no cells yet.
        axis: what sizes are positions on.
        series: by name, a cell of it and one of its baseline, of any size; those measured differ in size alone.
        column: of the visits; what is compared.
        start: starts a worker process.
        cells: all so far, by key.
        sizes: of a series, all so far.
    """

    plan: Plan
    journal: Journal
    progress: Progress
    axis: Axis
    series: Mapping[str, tuple[Cell, Cell]]
    column: str
    start: Callable[[int, int], worker_process.Worker] = worker_process.start
    cells: dict[str, Cell] = field(default_factory=dict)
    sizes: dict[str, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        last = max((visit.process for visit in self.journal.visits), default=-1)
        self._checking = Workers(self.plan, last, self.start)
        self._timing = Workers(self.plan, last, self.start)
        self._random = random.Random(self.plan.seed)
        self._round = 0
        self._levels: tuple[tuple[int, int], dict[str, Estimate]] = ((0, 0), {})

    def next_round(self, number: int) -> None:
        """Fresh processes from here on."""
        self._timing.end()

    def measure(self, series: str, size: int, round: int) -> None:
        """Measures a block of a series and the baseline at a size in a round, where that is missing."""
        self._round = max(self._round, round)
        self.sizes.setdefault(series, set()).add(size)
        pair = self._pair(series, size)
        self._check(pair)
        visited = {visit.key for visit in self.journal.visits if visit.round == round}
        alive = [cell for cell in pair if self._status(cell) == "ok"]
        if any(cell.key not in visited for cell in alive):
            self._number(self._timing)
            maker = self._runner(self._timing).maker
            place = Place(round, len(visited), maker.log.next_part(pair, round))
            measure_block([maker], [Member((cell,)) for cell in alive], place, self.plan.measure, self._random)

    def pairs(self, series: str) -> list[Pair]:
        """See `crossover_search.Prober`.

        Later rounds, which a resumed run has, are left out: so the search takes the same way again.
        """
        now = self._round, len(self.journal.visits)
        if now != self._levels[0]:
            visits = frame([visit for visit in self.journal.visits if visit.round <= self._round])
            looks = tuple(range(LEAST_ROUNDS, max(self.plan.measure.rounds, LEAST_ROUNDS) + 1))
            self._levels = now, estimates(visits, self.column, stops=looks)
        _, levels = self._levels
        return [
            self._paired(series, size, levels.get(cell.key), levels.get(base.key))
            for size in sorted(self.sizes.get(series, ()))
            for cell, base in [self._pair(series, size)]
        ]

    def once(self, series: str, size: int) -> Pair:
        """See `crossover_search.Prober`; the call is the check's."""
        cell, base = self._pair(series, size)
        self._check([cell, base])
        return self._paired(series, size, self._one_call(cell), self._one_call(base))

    def close(self) -> None:
        """Ends every process; results.csv is made current."""
        for workers in (self._timing, self._checking):
            workers.end_forecasting()
            workers.end()
        if self.journal.visits:
            self._runner(self._timing).end_process()

    def kill(self) -> None:
        """The same at once, and nothing is written."""
        for workers in (self._timing, self._checking):
            workers.kill()

    def _pair(self, series: str, size: int) -> list[Cell]:
        pair = [replace(cell, problem=self.axis.at(cell.problem, size)) for cell in self.series[series]]
        for cell in pair:
            self.cells.setdefault(cell.key, cell)
        return pair

    def _runner(self, workers: Workers) -> Runner:
        plan = replace(self.plan, cells=tuple(self.cells.values()))
        return Runner(plan, self.journal, self.progress, workers=workers)

    def _check(self, cells: Sequence[Cell]) -> None:
        checked = {visit.key for visit in self.journal.visits if visit.round == 0}
        missing = [cell for cell in cells if cell.key not in checked]
        if missing:
            self._number(self._checking)
            self._runner(self._checking).check(keep=True)

    def _number(self, workers: Workers) -> None:
        """A worker about to be started has a number of its own in the run."""
        if workers.measuring is None:
            workers.number = max(self._timing.number, self._checking.number)

    def _visit(self, cell: Cell) -> Visit | None:
        """The last visit of a cell that did not end well, else its check."""
        key = cell.key
        visits = [visit for visit in self.journal.visits if visit.key == key]
        return next((v for v in reversed(visits) if v.status != "ok"), visits[0] if visits else None)

    def _status(self, cell: Cell) -> str:
        visit = self._visit(cell)
        if visit is None:
            return "skipped"
        return ENDED_AS.get(visit.cause, visit.status)

    def _one_call(self, cell: Cell) -> Estimate | None:
        """The level of the check's call, without an interval."""
        visit = self._visit(cell)
        time = visit.metrics.get("check_time_s") if visit is not None and visit.status == "ok" else None
        return Estimate(math.log(time), math.nan, 0.0, math.nan, 0.0, 1) if time else None

    def _paired(self, series: str, size: int, level: Estimate | None, base: Estimate | None) -> Pair:
        cells = self._pair(series, size)
        a, b = (self._status(cell) for cell in cells)
        problem = cells[0].problem
        position, label = self.axis.position(problem), self.axis.label(problem)
        return Pair(position, label, None if a in BEYOND else level, None if b in BEYOND else base, a, b)
