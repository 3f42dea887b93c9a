"""A run: the check of every cell, then the timed rounds of those that are ok; each visit is stored as it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attnbench.measure import worker_process
from attnbench.measure.added_rounds import add_rounds, make_rounds
from attnbench.measure.budget import Budget
from attnbench.measure.check_round import check_cells
from attnbench.measure.progress import Progress
from attnbench.measure.time_left import TimeLeft
from attnbench.measure.timed_rounds import TimedRounds
from attnbench.measure.visit_log import VisitLog
from attnbench.measure.visit_maker import VisitMaker
from attnbench.measure.worker_pool import Stopped, Workers
from attnbench.plan.plan import Plan
from attnbench.problem import Cell
from attnbench.store.journal import Journal
from attnbench.store.records import Visit

__all__ = ["Progress", "Runner", "Stopped"]


class Runner:
    """A run: a new one, or one that continues where it was interrupted.

    Args:
        plan: what it is to do.
        journal: where its visits are stored; those that are there are not made again.
        progress: what it reports to.
        start: starts a worker, by its number and threads.
        begun: when the budget's time began, on the clock `now`; None: with this object.
        now: a clock; seconds.
        workers: in place of workers of its own.
        lasting: whose workers forecast and check in place of own ones, and stay.
        rates: of the hardware, by which it says how long it will take; empty: they are not known.
    """

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        progress: Progress,
        start: Callable[[int, int], worker_process.Worker] = worker_process.start,
        *,
        begun: float | None = None,
        now: Callable[[], float] = time.monotonic,
        workers: Workers | None = None,
        lasting: Workers | None = None,
        rates: Mapping[str, Any] | None = None,
    ) -> None:
        self.plan = plan
        self.journal = journal
        last = max((v.process for v in journal.visits), default=-1)
        self.workers = workers or Workers(plan, last, start, lasting=lasting)
        self._log = VisitLog(plan, journal)
        budget = Budget(plan, self.workers.start_s, now() if begun is None else begun, now)
        self._left = TimeLeft(budget, plan.operators_from, rates or {}, plan.measure.rounds)
        self.maker = VisitMaker(plan, self.workers, self._log, budget, progress, self._left)
        for visit in journal.visits:
            budget.note_check(visit)

    def run(self) -> None:
        """Makes every missing visit. However it ends (Stopped, BadInput, KeyboardInterrupt), results.csv is current."""
        rounds = TimedRounds(self.maker)
        try:
            check_cells(self.maker)
            self._end_checks()
            done = rounds.plan_rounds()
            make_rounds(rounds, 0, done)
            rounds.skip_unreached()
            add_rounds(rounds, done)
            self._report_share()
        finally:
            self.workers.kill()
            self._log.write_results()

    def _report_share(self) -> None:
        maker = self.maker
        if maker.sampled_s:
            run_s = maker.budget.elapsed_s()
            maker.progress.message(f"timed samples: {maker.sampled_s:.0f} of {run_s:.0f} s")

    def check(self, *, keep: bool = False) -> None:
        """Makes the missing checks alone. keep: the workers stay, for cells to come."""
        self._left.rounds = 0
        try:
            check_cells(self.maker)
        finally:
            if not keep:
                self._end_checks()

    def survivors(self) -> list[Cell]:
        """The cells that a timed round may visit."""
        return self._log.survivors(1)

    def _end_checks(self) -> None:
        self.workers.end_checks()
        self._log.write_results()

    def end_process(self) -> None:
        """Ends the worker, so that the next visit is made by a fresh one; results.csv is made current."""
        self.workers.end()
        self._log.write_results()


def exit_code(visits: Iterable[Visit]) -> int:
    """0: only ok and skipped, with at least one time. 1: anything else happened. 3: nothing was measured."""
    stored = list(visits)
    if any(v.status not in ("ok", "skipped") for v in stored):
        return 1
    return 0 if any(v.status == "ok" and v.round > 0 for v in stored) else 3
