"""The timed rounds: passes over the blocks of all cells whose check is ok, in random order, each by a fresh process."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from attnbench.measure.blocks import Member, measure_block
from attnbench.measure.visit_log import stops
from attnbench.measure.visit_maker import Place, VisitMaker
from attnbench.plan.blocks import baseline_of, blocks_of, parts_of, weight
from attnbench.plan.time_budget import Afforded
from attnbench.problem import Cell
from attnbench.progress import Stage
from attnbench.units import count


@dataclass
class TimedRounds:
    """The timed rounds of a run.

    Attributes:
        maker: makes the visits.
        not_made: visits that the budget left no time for.
        last: the number of the last round before the next look.
    """

    maker: VisitMaker
    not_made: int = 0
    last: int = 0

    def plan_rounds(self) -> int:
        """Fixes what the budget affords, and reports it. Returns the number of rounds before the first look."""
        log, budget, progress = self.maker.log, self.maker.budget, self.maker.progress
        survivors = sorted(log.survivors(1), key=budget.precedence)
        incomplete = [cell for cell in survivors if not log.is_complete(cell)]
        afforded = budget.afford(incomplete, sum(map(budget.goes_before_all, survivors)))
        if self.maker.plan.rounds_by_key is not None:  # its blocks are not in every round: each is made that fits
            afforded = replace(afforded, rounds=self.maker.plan.measure.rounds)
        for position, cell in enumerate(incomplete):
            first = self.maker.plan.rounds_of(cell)[0]
            if cell.key in afforded.out_of_reach and not log.has(cell, first):
                self.maker.skip(cell, first, position, afforded.out_of_reach[cell.key], "budget")
        timed = [cell for cell in incomplete if cell.key not in afforded.out_of_reach]
        for text in self._cuts(afforded, timing=bool(timed)):
            progress.message(text)
        visits = self.maker.plan.visits
        rounds = range(1, afforded.rounds + 1)
        self.expect([[c for c in timed if visits(c, n) and not log.has(c, n)] for n in rounds], afforded.rounds)
        return afforded.rounds

    def expect(self, rounds: Sequence[Sequence[Cell]], last: int) -> None:
        """What is to come.

        Args:
            rounds: the cells that each will visit.
            last: the number of the last one.
        """
        left = self.maker.left
        left.timed_s, left.starts = sum(map(self.maker.budget.expected_s, rounds)), sum(map(bool, rounds))
        self.last = last

    def make_round(self, number: int, only: frozenset[str] | None = None) -> None:
        """Measures the blocks of a round of which visits are missing, as far as the budget reaches.

        Then its process ends, and results.csv is made current. Raises Stopped.

        Args:
            number: of the round.
            only: the keys of the cells that are visited; None: all.
        """
        maker, budget = self.maker, self.maker.budget
        draw = random.Random(f"{maker.plan.seed} {number}")
        missing = dict(enumerate(self.missing(number, only)))
        stage = Stage("round", number, self.last, stops(maker.plan.measure)[-1])
        if visits := sum(map(len, missing.values())):
            maker.progress.planned(stage, visits, maker.left.seconds())
        maker.left.starts = max(0, maker.left.starts - bool(visits))
        for position, index in enumerate(self._order(missing, draw)):
            cells = missing.pop(index)
            later = [cell for others in missing.values() for cell in others]
            maker.left.timed_s = max(0.0, (maker.left.timed_s or 0.0) - budget.expected_s(cells))
            if cells and budget.fits(cells, later, starts=not maker.workers.measuring):
                maker.workers.ready()
                begun = budget.now()
                self.not_made += self._measure(cells, Place(number, position), draw)
                budget.note_block(cells, budget.now() - begun)
            else:
                self.not_made += len(cells)
        maker.workers.end()
        maker.log.write_results()

    def _order(self, missing: Mapping[int, Sequence[Cell]], draw: random.Random) -> list[int]:
        """The blocks in random order; where a budget may end soon, the first of all is one that goes before the others.

        By what that takes, it shows whether visits take longer than expected.
        """
        order, budget = draw.sample(sorted(missing), len(missing)), self.maker.budget
        if budget.limit_s is None or budget.has_timed or not any(missing.values()):
            return order
        first = min((n for n in order if missing[n]), key=lambda n: budget.precedence(missing[n][0]))
        return [first, *(n for n in order if n != first)]

    def missing(self, number: int, only: frozenset[str] | None = None) -> list[list[Cell]]:
        """By block, the cells that a round must visit; with some of them, the baseline. See `make_round`."""
        log, plan = self.maker.log, self.maker.plan
        survivors = [cell for cell in log.survivors(number) if plan.visits(cell, number)]
        blocks = []
        for block in blocks_of(sorted(survivors, key=lambda cell: cell.key)):
            cells = [c for c in block if not log.has(c, number) and (only is None or c.key in only)]
            base = baseline_of(block, plan.baseline)
            blocks.append([*([base] if cells and base is not None and base not in cells else []), *cells])
        return blocks

    def _measure(self, cells: Sequence[Cell], place: Place, draw: random.Random) -> int:
        """Measures the missing cells of a block, in the parts that fit into memory. Returns how many were not made."""
        maker = self.maker
        base = baseline_of(cells, maker.plan.baseline)
        memory = {cell.key: maker.memory(cell) for cell in cells}
        for part in parts_of(draw.sample(cells, len(cells)), base, memory, maker.plan.memory_limit):
            members = [Member((cell,), weight(cell, base)) for cell in part]
            first = Place(place.round, place.position, maker.log.next_part(cells, place.round))
            if not measure_block([maker], members, first, maker.budget.measure, draw):
                return sum(not maker.log.has(cell, place.round) for cell in cells)
        return 0

    def skip_unreached(self) -> None:
        """Skips what the budget left without any time; a visit of a later round is left to a resumed run."""
        if not self.not_made:
            return
        limit = self.maker.budget.title
        self.maker.progress.message(f"{limit} ended before {self.not_made} of the planned visits")
        timed = self.maker.log.timed_keys()
        for position, cell in enumerate(self.maker.log.survivors(1)):
            if cell.key not in timed:
                first = self.maker.plan.rounds_of(cell)[0]
                self.maker.skip(cell, first, position, f"{limit} does not reach it", "budget")

    def _cuts(self, afforded: Afforded, *, timing: bool) -> Iterator[str]:
        """What the budget takes away from the rounds, as sentences. timing: whether any cell is to be timed."""
        plan, visits = self.maker.plan, self.maker.log.journal.visits
        timed = timing or any(visit.round and visit.status == "ok" for visit in visits)
        if not timed and any(visit.cause == "budget" for visit in visits):
            yield (
                f"{self.maker.budget.title} is too short for any time here: three processes are needed, "
                f"and one takes {self.maker.budget.start_s():.1f} s to start. Give a longer --budget"
            )
        elif timing and afforded.rounds < plan.measure.rounds:
            yield f"the budget leaves {afforded.rounds} of {count(plan.measure.rounds, 'round')}"
        if timing and afforded.turns < plan.measure.max_turns:
            yield f"the budget leaves at most {count(afforded.turns, 'turn')} to a block"
