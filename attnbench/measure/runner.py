"""Drives rounds, workers, limits and resume: the check, then the rounds of survivors, each visit stored as it ends."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any, Protocol

from attnbench.analysis import results
from attnbench.errors import BadInput, printable
from attnbench.files import storing
from attnbench.measure import worker_process
from attnbench.measure.protocol import NOTHING_KNOWN, Forecast, SupportRequest, VisitAnswer, VisitRequest, WorkerLost
from attnbench.measure.worker_pool import Stopped, Workers
from attnbench.plan import time_budget
from attnbench.plan.plan import Plan, beyond, family
from attnbench.plan.settings import Measure
from attnbench.problem import Cell, columns_of
from attnbench.registry import clocks
from attnbench.store.frames import frame
from attnbench.store.journal import Journal
from attnbench.store.privacy import without_paths
from attnbench.store.reading import parse_visit
from attnbench.store.records import Cause, Sample, Status, Visit
from attnbench.units import count

__all__ = ["Progress", "Runner", "Stopped"]

COMPILE_LIMIT_S = 300.0
"""What a cell of impl `compiled` may take beside its cell_timeout."""

RESULTS_EVERY_S = 10.0
"""results.csv is derived again this often, and after every round."""

LEAST_TIMEOUT_S = 1.0
"""A request is given at least so much, however little the budget leaves."""

UNSTEADY_VISITS = 5
"""Visits without one steady sample, one after another, before the run ends."""

RETRIED = ("ok", "crashed", "error")
"""A cell whose last visit ended otherwise is not visited again: the outcome would be the same, or worthless."""


class Progress(Protocol):
    """Who is told how a run goes on."""

    def planned(self, visits: int, seconds: float | None) -> None:
        """So many visits are still to come, in about this time (None: not known yet)."""

    def begun(self, cell: Cell, round: int) -> None:
        """This visit is being made."""

    def ended(self, visit: Visit, seconds: float | None) -> None:
        """This visit is stored; about so many seconds are left (None: not known yet)."""

    def said(self, text: str) -> None:
        """A sentence for the user."""


@dataclass
class Runner:
    """A run in progress. harness_s: seconds of visits spent outside the operators' calls, one entry per visit.

    begun: when the budget's time began, on the clock `now`; None: with this object.
    """

    plan: Plan
    journal: Journal
    progress: Progress
    start: Callable[[int, int], worker_process.Worker] = worker_process.start
    harness_s: list[float] = field(default_factory=list)
    begun: float | None = None
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._begun = self.now() if self.begun is None else self.begun
        self._measure = self.plan.measure
        self.workers = Workers(self.plan, max((v.process for v in self.journal.visits), default=-1), self.start)
        self._done = {(v.key, v.round): v for v in self.journal.visits}
        self._written = time.monotonic()
        self._unsteady = 0
        self._cells = {cell.key: cell for cell in self.plan.cells}
        self._clocks = len(clocks(gpu=self.plan.device == "cuda"))
        self._smallest = min(map(time_budget.size, self.plan.cells), default=(0, 0, 0))
        self._beyond_budget: tuple[int, ...] | None = None
        self._check_s: dict[tuple[Any, ...], tuple[Cell, float]] = {}
        self._fewest_s: dict[str, float] = {}
        self._unmade = 0
        self._taken_s = self._foreseen_s = 0.0
        for visit in self.journal.visits:
            self._note_check(visit)

    def run(self) -> None:
        """Makes every missing visit. However it ends (Stopped, BadInput, KeyboardInterrupt), results.csv is current."""
        try:
            self._check()
            self.workers.end_oracle()
            self.workers.end()
            self._write()
            for number in range(1, self._rounds() + 1):
                self._round(number)
                self.workers.end()
                self._write()
            self._skip_unreached()
        finally:
            self.workers.kill()
            if self.journal.visits:
                self._write()

    def check(self, *, keep: bool = False) -> None:
        """Makes the missing visits of the check alone. keep: its workers stay, for cells to come."""
        try:
            self._check()
        finally:
            if not keep:
                self.workers.end_oracle()
                self.end_process()

    def survivors(self) -> list[Cell]:
        """The cells that a timed round may visit."""
        return self._survivors(1)

    def visit(self, cell: Cell, number: int, position: int) -> None:
        """One timed visit in round `number`, in the current worker process or, where there is none, a fresh one."""
        self._visit(cell, number, position, self.plan.measure)

    def expected_s(self, cell: Cell) -> float:
        """The most that a timed visit of a cell is expected to take, after its check."""
        return time_budget.visit_s(self._call_s(cell), self._measure, self._clocks)

    def end_process(self) -> None:
        """Ends the worker, so that the next visit is made by a fresh one; results.csv is made current."""
        self.workers.end()
        if self.journal.visits:
            self._write()

    # --- the check

    def _check(self) -> None:
        order = sorted(self.plan.cells, key=self._precedence)
        missing = [cell for cell in order if (cell.key, 0) not in self._done]
        if not missing:
            return
        unable = self._unable(order)
        self.progress.planned(len(missing), None)
        for position, cell in enumerate(order):
            if (cell.key, 0) in self._done:
                continue
            if cell.key in unable:
                status, reason = unable[cell.key]
                if reason is not None:
                    cause: Cause = "unsupported" if status == "skipped" else "raised"
                    self._store(self._unmeasured(cell, 0, position, status, reason, cause))
                continue
            skipped = self._beyond(cell) or self._unaffordable(cell)
            timeout = self._bounded(self.plan.limits.cell_timeout_s, cell, 0)
            forecast = self.workers.foresee(cell, timeout) if skipped is None else NOTHING_KNOWN
            skipped = skipped or self._over(forecast.total_bytes)
            if skipped is not None:
                self._store(self._unmeasured(cell, 0, position, "skipped", *skipped))
                continue
            self._visit(cell, 0, position, self.plan.measure, forecast)

    def _unable(self, order: Sequence[Cell]) -> dict[str, tuple[Status, str | None]]:
        """Cells that cannot run here, with the reason; None where an earlier cell of the series says it for all."""
        request = SupportRequest(tuple(order), self.plan.device, tuple(self.plan.operators_from))
        timeout = self._bounded(worker_process.START_TIMEOUT_S, order[0], 0)
        try:
            answer = self.workers.ask(request, timeout)
        except WorkerLost as lost:
            if lost.status == "timeout" and timeout < worker_process.START_TIMEOUT_S:
                return {}  # the budget has ended, which skips them all
            raise Stopped(f"asking the operators what they support: {lost}") from None
        reasons = {cell.key: each for cell, each in zip(order, answer.reasons, strict=True)}
        series: dict[tuple[Any, ...], list[Cell]] = {}
        for cell in order:
            series.setdefault(family(cell), []).append(cell)
        unable: dict[str, tuple[Status, str | None]] = {}
        for members in series.values():
            said = {reasons[cell.key] for cell in members}
            everywhere = len(said) == 1 and next(iter(said))[1] is not None
            for index, cell in enumerate(members):
                status, told = reasons[cell.key]
                if told is not None:
                    unable[cell.key] = (status, None if everywhere and index else told)
        return unable

    def _beyond(self, cell: Cell) -> tuple[str, Cause] | None:
        """Why a cell is not tried, with the cause: a smaller one of its series ran out of memory or time."""
        for visit in self.journal.visits:
            if visit.round == 0 and visit.status in ("oom", "timeout"):
                smaller = self._cells.get(visit.key)
                if smaller is not None and beyond(cell, smaller):
                    size = f"beyond {smaller.problem.size} with {smaller.problem.channels} channels"
                    if visit.status == "oom":
                        return f"{size}, which ran out of memory", "beyond_oom"
                    return f"{size}, which ran out of time", "beyond_timeout"
        return None

    def _is_smallest(self, cell: Cell) -> bool:
        return time_budget.size(cell) == self._smallest

    def _precedence(self, cell: Cell) -> tuple[Any, ...]:
        return time_budget.precedence(cell, self.plan.baseline)

    def _unaffordable(self, cell: Cell) -> tuple[str, Cause] | None:
        """Why the budget leaves a cell out: what is checked must be timed as well, and sizes are left out alike."""
        limit, left = self.plan.limits.budget_s, self._left(0, cell)
        if limit is None or left is None:
            return None
        late = self._elapsed() > time_budget.CHECK_SHARE * limit
        smallest = self._is_smallest(cell)
        fits = self._expected_check_s(cell) <= left and (smallest or not late)
        if not fits and not smallest and self._beyond_budget is None:
            self._beyond_budget = time_budget.size(cell)
        if fits and (self._beyond_budget is None or time_budget.size(cell) < self._beyond_budget):
            return None
        return f"the budget of {limit:g} s does not reach this {'cell' if smallest else 'size'}", "budget"

    def _expected_check_s(self, cell: Cell) -> float:
        """The most that a check visit is expected to take, from the last of its series: it may grow with N²."""
        starting = self._start_s() * ((not self.workers.measuring) + (not self.workers.foreseeing))
        before = self._check_s.get(family(cell))
        if before is None:
            return starting + time_budget.CHECK_S
        smaller, seconds = before
        grown = math.prod(time_budget.size(cell)) / math.prod(time_budget.size(smaller))
        return starting + seconds * max(grown, 1.0) ** 2

    def _note_check(self, visit: Visit) -> None:
        """Keeps of a check what the budget is planned with."""
        cell = self._cells.get(visit.key)
        if visit.round or visit.status != "ok" or cell is None:
            return
        self._check_s[family(cell)] = (cell, float(visit.metrics.get("visit_s", 0.0)))
        call_s, compiling = (float(visit.metrics.get(name, 0.0)) for name in ("check_time_s", "compile_s"))
        self._fewest_s[cell.key] = time_budget.least_s(call_s, self._measure, self._clocks) + compiling

    def _over(self, total: int | None) -> tuple[str, Cause] | None:
        limit = self.plan.memory_limit
        if total is None or total <= limit:
            return None
        reason = (
            f"predicted to need {total / 2**20:,.0f} MiB, {(total - limit) / 2**20:,.0f} MiB over "
            f"the limit of {limit / 2**20:,.0f} MiB"
        )
        return reason, "predicted_memory"

    # --- the timed rounds

    def _rounds(self) -> int:
        """Fixes what the budget affords. Returns the number of rounds."""
        survivors = sorted(self._survivors(1), key=self._precedence)
        checked = [(cell, self._call_s(cell)) for cell in survivors if not self._complete(cell)]
        afforded = time_budget.afford(
            checked, self.plan.measure, self._left(1), self.plan.measure.rounds, self._clocks, self._start_s(),
            sum(map(self._goes_before_all, survivors)),
        )  # fmt: skip
        rounds = afforded.rounds
        for position, (cell, _) in enumerate(checked):
            if cell.key in afforded.out_of_reach and (cell.key, 1) not in self._done:
                reason = afforded.out_of_reach[cell.key]
                self._store(self._unmeasured(cell, 1, position, "skipped", reason, "budget"))
        self._measure = replace(self.plan.measure, max_time_s=afforded.max_time_s)
        kept = [cell for cell, _ in checked if cell.key not in afforded.out_of_reach]
        for text in self._shortened(afforded, bool(kept)):
            self.progress.said(text)
        missing = [cell for n in range(1, rounds + 1) for cell in kept if (cell.key, n) not in self._done]
        self._left_s = sum(self.expected_s(cell) for cell in missing)
        self.progress.planned(len(missing), self._left_s)
        return rounds

    def _shortened(self, afforded: time_budget.Afforded, timing: bool) -> Iterator[str]:
        """What the budget takes away from the rounds, as sentences. timing: whether any cell is to be timed."""
        rounds, limit = self.plan.measure.rounds, self.plan.limits.budget_s
        visits = self.journal.visits
        timed = timing or any(visit.round and visit.status == "ok" for visit in visits)
        if not timed and any(visit.cause == "budget" for visit in visits):
            yield (
                f"the budget of {limit:g} s is too short for any time here: three processes are needed, and one takes "
                f"{self._start_s():.1f} s to start. Give a longer --budget"
            )
        elif timing and afforded.rounds < rounds:
            yield f"the budget leaves {afforded.rounds} of {count(rounds, 'round')}"
        if timing and afforded.max_time_s < self.plan.measure.max_time_s:
            yield f"the budget leaves {afforded.max_time_s:.2g} s of sampling to every visit"

    def _round(self, number: int) -> None:
        order = sorted(self._survivors(1), key=lambda cell: cell.key)
        random.Random(f"{self.plan.seed} {number}").shuffle(order)
        alive = {cell.key for cell in self._survivors(number)}
        missing = {cell.key: cell for cell in order if cell.key in alive and (cell.key, number) not in self._done}
        for position, cell in enumerate(order):
            if missing.pop(cell.key, None) is None:
                continue
            if self._fits(cell, missing.values()):
                self.workers.ready()
                begun = self.now()
                self._visit(cell, number, position, self._measure)
                self._taken_s += self.now() - begun
                self._foreseen_s += self.expected_s(cell)
            else:
                self._unmade += 1
            self._left_s = (self._left_s or 0.0) - self.expected_s(cell)

    def _fits(self, cell: Cell, still: Iterable[Cell]) -> bool:
        """Whether the budget leaves time for a visit, beside those still to come in the round that go before it."""
        left = self._left(1, cell)
        if left is None:
            return True
        own = self._precedence(cell)
        before = sum(self._fewest_s[other.key] for other in still if self._precedence(other) < own)
        starting = 0.0 if self.workers.measuring else self._start_s()
        late = max(1.0, self._taken_s / self._foreseen_s) if self._foreseen_s else 1.0
        return starting + late * (before + self._fewest_s[cell.key]) <= left

    def _skip_unreached(self) -> None:
        """What the budget left without any time is skipped; a visit of a later round is left to a resumed run."""
        if not self._unmade:
            return
        limit = f"the budget of {self.plan.limits.budget_s:g} s"
        self.progress.said(f"{limit} ended before {self._unmade} of the planned visits")
        timed = {key for key, number in self._done if number}
        for position, cell in enumerate(self._survivors(1)):
            if cell.key not in timed:
                self._store(self._unmeasured(cell, 1, position, "skipped", f"{limit} does not reach it", "budget"))

    def _survivors(self, number: int) -> list[Cell]:
        """Cells to visit in a timed round: the check found them ok, and no timed round before ended them."""
        found = []
        for cell in self.plan.cells:
            before = [self._done.get((cell.key, n)) for n in range(1, number)]
            checked = self._done.get((cell.key, 0))
            if checked and checked.status == "ok" and all(v is None or v.status in RETRIED for v in before):
                found.append(cell)
        return found

    def _complete(self, cell: Cell) -> bool:
        return all((cell.key, n) in self._done for n in range(1, self.plan.measure.rounds + 1))

    def _call_s(self, cell: Cell) -> float:
        return float(self._done[cell.key, 0].metrics.get("check_time_s", 0.0))

    # --- one visit

    def _visit(
        self,
        cell: Cell,
        number: int,
        position: int,
        measure: Measure,
        forecast: Forecast = NOTHING_KNOWN,
    ) -> None:
        self.progress.begun(cell, number)
        checked = self._done[cell.key, 0].metrics if number else {}
        request = VisitRequest(
            phase="time" if number else "check",
            cell=cell,
            measure=measure,
            device=self.plan.device,
            operators_from=tuple(self.plan.operators_from),
            memory_limit=self.plan.memory_limit,
            host_limit=self.plan.memory_limit if self.plan.device == "cpu" else None,
            forecast=forecast,
            tolerance=checked.get("tolerance"),
            answers=tuple(checked[name] for name in ("answer_0", "answer_1", "answer_2") if name in checked),
        )
        whole = self.plan.limits.cell_timeout_s + (COMPILE_LIMIT_S if cell.impl == "compiled" else 0.0)
        self.workers.ready()
        timeout = self._bounded(whole, cell, number)
        begun = time.perf_counter()
        try:
            answer = self.workers.ask(request, timeout)
        except WorkerLost as lost:
            if lost.status == "timeout" and timeout < whole:
                self._cut(cell, number, position)
                return
            reason = f"{lost} (cell_timeout)" if lost.status == "timeout" else str(lost)
            answer = VisitAnswer(lost.status, reason, lost.cause)
        try:
            visit, samples = self._stored_as(cell, number, position, answer)
        except (BadInput, ValueError) as error:  # an operator has written to the pipe
            reason = f"the worker sent what is no answer: {printable(error)}"
            visit, samples = self._unmeasured(cell, number, position, "crashed", reason, "crashed"), []
        self._store(visit, samples)
        if visit.status == "ok":
            foreseeing = 0.0 if number else self.workers.foreseen_s
            self.harness_s.append(time.perf_counter() - begun + foreseeing - visit.metrics.get("operator_s", 0.0))
        self._watch_clock(visit, throttled=answer.throttled)
        if time.monotonic() - self._written > RESULTS_EVERY_S:
            self._write()

    def _cut(self, cell: Cell, number: int, position: int) -> None:
        """A visit that the budget ended: of the check it is stored as skipped, of a round it was not made."""
        if number:
            self._unmade += 1
            return
        reason = f"the budget of {self.plan.limits.budget_s:g} s ended while it was checked"
        self._store(self._unmeasured(cell, number, position, "skipped", reason, "budget"))

    def _stored_as(self, cell: Cell, number: int, position: int, answer: VisitAnswer) -> tuple[Visit, list[Sample]]:
        """The visit and the samples of an answer. Raises where what is stored of it could not be read again."""
        visit = replace(
            self._unmeasured(cell, number, position, answer.status, answer.reason, answer.cause),
            kernel=answer.kernel,
            metrics=answer.metrics,
            samples=len(answer.samples),
            warnings=answer.warnings,
            operations=answer.operations,
        )
        visit = parse_visit(visit.line().encode().decode(), "its visit")
        return visit, [Sample(cell.key, number, visit.process, n, *sample) for n, sample in enumerate(answer.samples)]

    def _unmeasured(self, cell: Cell, number: int, position: int, status: Status, reason: str, cause: Cause) -> Visit:
        return Visit(
            key=cell.key,
            cell=columns_of(cell),
            device=self.plan.device,
            round=number,
            process=max(self.workers.number, 0),
            order=position,
            status=status,
            reason=reason,
            cause=cause,
            threads=self.plan.threads,
            contract=self.plan.contract,
        )

    def _store(self, visit: Visit, samples: Sequence[Sample] = ()) -> None:
        warnings = tuple(map(without_paths, visit.warnings))
        visit = replace(
            visit, reason=without_paths(visit.reason), kernel=without_paths(visit.kernel), warnings=warnings
        )
        self.journal.add(visit, samples)
        self._done[visit.key, visit.round] = visit
        self._note_check(visit)
        self.progress.ended(visit, self._left_s if visit.round else None)

    _left_s: float | None = None

    def _watch_clock(self, visit: Visit, *, throttled: bool) -> None:
        if throttled:
            self._unsteady += 1
        elif visit.samples:
            self._unsteady = 0
        if self._unsteady >= UNSTEADY_VISITS:
            raise Stopped(
                f"the GPU's clock was throttled throughout {UNSTEADY_VISITS} visits in a row. "
                "Cool the machine, raise the power limit or "
                "lock a lower clock (nvidia-smi --lock-gpu-clocks), then go on with --resume."
            )

    def _write(self) -> None:
        with storing(self.journal.folder):
            results.write(self.journal.folder, frame(self.journal.visits))
        self._written = time.monotonic()

    def _elapsed(self) -> float:
        return self.now() - self._begun

    def _left(self, number: int, cell: Cell | None = None) -> float | None:
        """Seconds that the budget leaves for visits of a round; those of the check must leave time for a round of what
        is checked. cell: of which, where it may be one that goes before all. None: there is no budget.
        """
        limit = self.plan.limits.budget_s
        if limit is None:
            return None
        timing = 0.0 if number else time_budget.ROOM * (self._start_s() + sum(self._fewest_s.values()))
        kept = time_budget.END_S
        if number <= 1 and cell is not None and self._goes_before_all(cell):
            kept = -time_budget.GRACE_S
        return limit - kept - self._elapsed() - timing

    def _goes_before_all(self, cell: Cell) -> bool:
        """The baseline at the smallest size: for its first time it may use what is kept for the end, and some more."""
        return cell.operator == self.plan.baseline and self._is_smallest(cell)

    def _bounded(self, timeout: float, cell: Cell, number: int) -> float:
        """A limit in seconds, cut to what the budget leaves for a cell."""
        left = self._left(number, cell)
        return timeout if left is None else min(timeout, max(left, LEAST_TIMEOUT_S))

    def _start_s(self) -> float:
        """What a fresh worker costs: as those of this run did."""
        return mean(self.workers.start_s) if self.workers.start_s else time_budget.START_S


def exit_code(visits: Iterable[Visit]) -> int:
    """0: only ok and skipped, with at least one time. 1: anything else happened. 3: nothing was measured."""
    seen = list(visits)
    if any(v.status not in ("ok", "skipped") for v in seen):
        return 1
    return 0 if any(v.status == "ok" and v.round > 0 for v in seen) else 3
