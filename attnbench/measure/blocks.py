"""A block is measured: its members take turns, in one process or in one of each side of a gate.

    measure_block([maker], members, place, measure, draw)             a run: a member is one cell
    measure_block([base, candidate], members, place, measure, draw)   a gate: a member is a cell of each side

Every member is prepared; then they take turns: in each, a member is sampled as often as its weight, in random order, on
all sides one right after the other; then each is finished. Samples are on disk as they come, the visits together when
the block ends. A member that fails gets its status, and the block starts again without it; one that changes what the
others would find is measured afterwards, alone in a fresh process. Processes are started where there are none: who
wants fresh ones ends those before.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from statistics import median
from typing import NoReturn, TypeVar

from attnbench.analysis.undisturbed import undisturbed
from attnbench.measure.protocol import (
    CellAnswer,
    FinishRequest,
    PreparedAnswer,
    ReleaseRequest,
    Request,
    SampleRequest,
    VisitAnswer,
    WorkerLost,
    is_steady,
)
from attnbench.measure.visit_maker import OutOfTime, Place, VisitMaker
from attnbench.plan.settings import Measure
from attnbench.problem import Cell
from attnbench.registry import clocks
from attnbench.store.records import distinct

C = TypeVar("C", bound=CellAnswer)

Timed = tuple[str, float, str]
"""Clock, seconds, flags."""

RELEASE_TIMEOUT_S = 60.0
"""Freeing memory takes no longer; a worker that does not answer by then is ended."""


@dataclass(frozen=True)
class Member:
    """What takes turns in a block.

    Args:
        cells: as each side has it.
        weight: samples in a turn.
    """

    cells: tuple[Cell, ...]
    weight: int = 1


class _Lost(Exception):
    """A member can take no turns here. apart: whether it can alone; else its status is stored."""

    def __init__(self, member: Member, *, apart: bool) -> None:
        self.member, self.apart = member, apart


def measure_block(
    sides: Sequence[VisitMaker], members: Sequence[Member], place: Place, measure: Measure, draw: random.Random
) -> bool:
    """Measures a block, and stores a visit of each member on each side.

    Args:
        sides: by whom its cells are visited.
        members: all that are measured together.
        place: where in the run.
        measure: how many turns it takes.
        draw: of the random orders.

    Returns: False where the budget ended it: what is not stored then must be measured again.
    Raises: Stopped.
    """
    parts = count(place.part)
    together = [member for member in members if not _is_apart(sides, member)]
    apart = [member for member in members if _is_apart(sides, member)]
    try:
        while together:
            try:
                _Turns(sides, together, replace(place, part=next(parts)), measure, draw).take()
                break
            except _Lost as lost:
                together.remove(lost.member)
                apart += [lost.member] if lost.apart else []
        for member in apart:
            _end_processes(sides)
            with contextlib.suppress(_Lost):
                _Turns(sides, [member], replace(place, part=next(parts)), measure, draw, alone=True).take()
            _end_processes(sides)
    except OutOfTime:
        _end_processes(sides)
        return False
    return True


def _failure(answer: CellAnswer) -> VisitAnswer:
    return VisitAnswer(answer.status, answer.reason, answer.cause, warnings=answer.warnings, restart=answer.restart)


def _is_apart(sides: Sequence[VisitMaker], member: Member) -> bool:
    return any((cell.operator, cell.impl) in side.apart for side, cell in zip(sides, member.cells, strict=True))


def _end_processes(sides: Sequence[VisitMaker]) -> None:
    for side in sides:
        side.workers.end()


@dataclass
class _Visit:
    """The visit of a member on a side, while it is made.

    Args:
        weight: samples in a turn.
        turns: what each sample took, as many in a row as make a turn.
        warnings: of its samples, without repetition, in order.
    """

    cell: Cell
    prepared: PreparedAnswer
    weight: int
    turns: list[Sequence[Timed]] = field(default_factory=list)
    warnings: tuple[str, ...] = ()

    @property
    def samples(self) -> list[Timed]:
        """All that was timed."""
        return list(chain.from_iterable(self.turns))

    @property
    def sampled_s(self) -> float:
        """Seconds of all samples."""
        return sum(seconds for _, seconds, _ in self.samples)

    def answer(self, last: VisitAnswer) -> VisitAnswer:
        """What becomes of it. last: the answer that finished it."""
        members = [list(chain.from_iterable(self.turns[first :: self.weight])) for first in range(self.weight)]
        figures, throttled = _figures(members)
        first = {"first_call_s": self.prepared.first_call_s} if self.prepared.first_call_s is not None else {}
        return replace(
            last,
            metrics={**last.metrics, **figures, **first},
            samples=self.samples,
            warnings=distinct((*self.prepared.warnings, *self.warnings, *last.warnings)),
            throttled=throttled,
        )


def _figures(members: Sequence[Sequence[Timed]]) -> tuple[dict[str, float], bool]:
    """The undisturbed and the median time of each clock, and whether a clock was throttled throughout.

    Args:
        members: what was timed of each member that the cell stands for.
    """
    figures: dict[str, float] = {}
    taken = {clock for samples in members for clock, _, _ in samples}
    for metric in clocks(device_clock=True).values():
        steady = [
            [s for clock, s, flags in samples if clock == metric.clock and is_steady(flags)] for samples in members
        ]
        if any(steady):
            figures |= {
                metric.column: undisturbed(*filter(None, steady)),
                metric.median_column: median(chain.from_iterable(steady)),
            }
            taken.discard(metric.clock)
    return figures, bool(taken)


@dataclass
class _Turns:
    """One attempt at a block, see `measure_block`. alone: its one member may change what it likes."""

    sides: Sequence[VisitMaker]
    members: Sequence[Member]
    place: Place
    measure: Measure
    draw: random.Random
    alone: bool = False
    _visits: dict[tuple[int, str], _Visit] = field(default_factory=dict)

    def take(self) -> None:
        """Prepares, samples and finishes the members, and stores their visits. Raises _Lost, OutOfTime."""
        now = self.sides[0].budget.now
        for maker in self.sides:
            maker.workers.ready()
        begun = now()
        for member, side in self._in_random_order(self.members):
            self._prepare(member, side)
        preparing_s = now() - begun
        entries = [member for member in self.members for _ in range(member.weight)]
        turns, turn_s = 0, 0.0
        while self._goes_on(turns, turn_s, preparing_s):
            turn_begun = now()
            for member, side in self._in_random_order(entries):
                self._sample(member, side)
            turns, turn_s = turns + 1, now() - turn_begun
        ended = [(side, self._finish(member, side)) for member, side in self._in_random_order(self.members)]
        self._release()
        for number, maker in enumerate(self.sides):
            maker.end([visit for side, visit in ended if side == number], self.place, now() - begun)

    def _in_random_order(self, members: Sequence[Member]) -> Iterator[tuple[Member, int]]:
        for member in self.draw.sample(members, len(members)):
            for side in self.draw.sample(range(len(self.sides)), len(self.sides)):
                yield member, side

    def _goes_on(self, turns: int, turn_s: float, preparing_s: float) -> bool:
        """Whether there is another turn; finishing is taken to last as long as preparing."""
        if turns == 0:
            return True
        for side, maker in enumerate(self.sides):
            left_s = maker.budget.left_s(self.place.round, [member.cells[side] for member in self.members])
            if left_s is not None and left_s < turn_s + preparing_s:
                return False
        series = [member for member in self.members if member.weight == 1] or self.members
        sampled_s = median(self._visits[0, member.cells[0].key].sampled_s for member in series)
        enough = turns >= self.measure.max_turns or sampled_s >= self.measure.max_time_s
        return turns < self.measure.min_turns or not enough

    def _prepare(self, member: Member, side: int) -> None:
        maker, cell = self.sides[side], member.cells[side]
        maker.progress.begun(cell, self.place.round)
        answer = self._answer(maker.preparation(cell, self.measure.max_turns * member.weight), member, side)
        self._visits[side, cell.key] = _Visit(cell, answer, member.weight)

    def _sample(self, member: Member, side: int) -> None:
        maker, visit = self.sides[side], self._visits[side, member.cells[side].key]
        maker.progress.begun(visit.cell, self.place.round)
        answer = self._answer(SampleRequest(visit.cell.key), member, side)
        visit.warnings = distinct((*visit.warnings, *answer.warnings))
        maker.take(visit.cell, self.place, sum(map(len, visit.turns)), answer.samples)
        visit.turns.append(answer.samples)

    def _finish(self, member: Member, side: int) -> tuple[Cell, VisitAnswer]:
        """What became of a member's visit; one that ends badly spoils no other, where its process lives."""
        visit = self._visits[side, member.cells[side].key]
        answer = self._answer(FinishRequest(visit.cell.key), member, side, survivable=True)
        return visit.cell, visit.answer(answer) if answer.status == "ok" else replace(answer, samples=visit.samples)

    def _answer(self, request: Request[C], member: Member, side: int, *, survivable: bool = False) -> C:
        """The answer to a request about a member; survivable: a failure is one, too. Raises _Lost, OutOfTime."""
        maker, cell = self.sides[side], member.cells[side]
        try:
            answer = maker.ask(request, cell, self.place.round)
        except WorkerLost as lost:
            self._fail(member, side, VisitAnswer(lost.status, str(lost), lost.cause))
        if answer.status != "ok" and (answer.fatal or answer.restart or not survivable):
            self._fail(member, side, _failure(answer))
        if answer.restart and not self.alone:
            maker.apart.add((cell.operator, cell.impl))
            _end_processes(self.sides)
            raise _Lost(member, apart=True)
        return answer

    def _fail(self, member: Member, side: int, answer: VisitAnswer) -> NoReturn:
        if answer.fatal or answer.restart or self.sides[side].workers.measuring is None:
            _end_processes(self.sides)
        self._release()
        visit = self._visits.get((side, member.cells[side].key))
        answer = replace(answer, samples=visit.samples if visit else ())
        self.sides[side].end([(member.cells[side], answer)], self.place)
        raise _Lost(member, apart=False)

    def _release(self) -> None:
        for side in self.sides:
            if side.workers.measuring is not None:
                with contextlib.suppress(WorkerLost):
                    side.workers.ask(ReleaseRequest(), RELEASE_TIMEOUT_S)
