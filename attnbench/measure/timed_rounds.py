"""The timed rounds: passes over all cells whose check is ok, in random order, each by a fresh process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from attnbench.measure.visit_maker import VisitMaker
from attnbench.plan.time_budget import Afforded
from attnbench.units import count


@dataclass
class TimedRounds:
    """The timed rounds of a run. not_made: visits that the budget left no time for."""

    maker: VisitMaker
    not_made: int = 0

    def plan_rounds(self) -> int:
        """Fixes what the budget affords, and reports it. Returns the number of rounds."""
        log, budget, progress = self.maker.log, self.maker.budget, self.maker.progress
        survivors = sorted(log.survivors(1), key=budget.precedence)
        incomplete = [cell for cell in survivors if not log.is_complete(cell)]
        afforded = budget.afford(incomplete, sum(map(budget.goes_before_all, survivors)))
        for position, cell in enumerate(incomplete):
            if cell.key in afforded.out_of_reach and not log.has(cell, 1):
                self.maker.skip(cell, 1, position, afforded.out_of_reach[cell.key], "budget")
        timed = [cell for cell in incomplete if cell.key not in afforded.out_of_reach]
        for text in self._cuts(afforded, timing=bool(timed)):
            progress.message(text)
        missing = [cell for n in range(1, afforded.rounds + 1) for cell in timed if not log.has(cell, n)]
        self.maker.remaining_s = sum(map(budget.timed_visit_s, missing))
        progress.planned(len(missing), self.maker.remaining_s)
        return afforded.rounds

    def make_round(self, number: int) -> None:
        """Makes the missing visits of a round, as far as the budget reaches. Raises Stopped."""
        maker, budget = self.maker, self.maker.budget
        order = sorted(maker.log.survivors(1), key=lambda cell: cell.key)
        random.Random(f"{maker.plan.seed} {number}").shuffle(order)
        alive = {cell.key for cell in maker.log.survivors(number)}
        missing = {cell.key: cell for cell in order if cell.key in alive and not maker.log.has(cell, number)}
        for position, cell in enumerate(order):
            if missing.pop(cell.key, None) is None:
                continue
            if budget.fits(cell, missing.values(), starts=not maker.workers.measuring):
                maker.workers.ready()
                begun = budget.now()
                self.not_made += not maker.make(cell, number, position, budget.measure)
                budget.note_timed(cell, budget.now() - begun)
            else:
                self.not_made += 1
            maker.remaining_s = (maker.remaining_s or 0.0) - budget.timed_visit_s(cell)

    def skip_unreached(self) -> None:
        """Skips what the budget left without any time; a visit of a later round is left to a resumed run."""
        if not self.not_made:
            return
        limit = f"the budget of {self.maker.budget.limit_s:g} s"
        self.maker.progress.message(f"{limit} ended before {self.not_made} of the planned visits")
        timed = self.maker.log.timed_keys()
        for position, cell in enumerate(self.maker.log.survivors(1)):
            if cell.key not in timed:
                self.maker.skip(cell, 1, position, f"{limit} does not reach it", "budget")

    def _cuts(self, afforded: Afforded, *, timing: bool) -> Iterator[str]:
        """What the budget takes away from the rounds, as sentences. timing: whether any cell is to be timed."""
        plan, visits = self.maker.plan, self.maker.log.journal.visits
        timed = timing or any(visit.round and visit.status == "ok" for visit in visits)
        if not timed and any(visit.cause == "budget" for visit in visits):
            yield (
                f"the budget of {plan.limits.budget_s:g} s is too short for any time here: three processes are needed, "
                f"and one takes {self.maker.budget.start_s():.1f} s to start. Give a longer --budget"
            )
        elif timing and afforded.rounds < plan.measure.rounds:
            yield f"the budget leaves {afforded.rounds} of {count(plan.measure.rounds, 'round')}"
        if timing and afforded.max_time_s < plan.measure.max_time_s:
            yield f"the budget leaves {afforded.max_time_s:.2g} s of sampling to every visit"
