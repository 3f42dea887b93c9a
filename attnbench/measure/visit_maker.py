"""Makes visits: requests to a worker, the time they may take, and what is stored of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from attnbench.errors import BadInput, printable
from attnbench.measure.budget import Budget
from attnbench.measure.device import device_of
from attnbench.measure.progress import Progress
from attnbench.measure.protocol import (
    NOTHING_KNOWN,
    A_co,
    CheckRequest,
    Forecast,
    PrepareRequest,
    Request,
    VisitAnswer,
    WorkerLost,
)
from attnbench.measure.time_left import TimeLeft
from attnbench.measure.visit_log import VisitLog
from attnbench.measure.worker_pool import Stopped, Workers
from attnbench.plan.plan import Plan
from attnbench.plan.settings import BATCH_S
from attnbench.problem import Cell, columns_of
from attnbench.registry import compiles
from attnbench.store.reading import parse_visit
from attnbench.store.records import Cause, Sample, Status, Visit

COMPILE_LIMIT_S = 300.0
"""What a cell may take beside its cell_timeout while it is made ready, where its impl compiles."""

UNSTEADY_VISITS = 5
"""Visits without one steady sample, one after another, before the run ends."""


class OutOfTime(Exception):
    """The budget has ended while a worker was to answer, and the worker is gone."""


@dataclass(frozen=True)
class Place:
    """Where in a run visits are made.

    Args:
        round: its number; 0: the checks.
        position: in the round.
        part: of a block; the first number that its parts have not used in this round.
    """

    round: int
    position: int = 0
    part: int = 0


@dataclass
class VisitMaker:
    """Makes the visits of a run, and stores them.

    Args:
        plan: the run's.
        workers: that measure.
        log: where visits are stored.
        budget: the time that is left.
        progress: what it reports to.
        left: what the run is still expected to take.
        harness_s: seconds of visits spent outside the operators' calls, one entry per visit that is ok.
        sampled_s: seconds of all samples taken.
        apart: operators and impls that change what the next one would find.
    """

    plan: Plan
    workers: Workers
    log: VisitLog
    budget: Budget
    progress: Progress
    left: TimeLeft
    harness_s: list[float] = field(default_factory=list)
    sampled_s: float = 0.0
    apart: set[tuple[str, str]] = field(default_factory=set)
    _unsteady: int = 0

    def check(self, cell: Cell, position: int, forecast: Forecast = NOTHING_KNOWN) -> None:
        """The check of a cell, in the current worker process or, where there is none, a fresh one. Raises Stopped.

        Args:
            cell: that is checked.
            position: in round 0.
            forecast: what its shapes tell.
        """
        self.progress.begun(cell, 0)
        self.workers.ready()
        begun = self.budget.now()
        request = CheckRequest(
            cell, self.plan.device, tuple(self.plan.operators_from), self.plan.memory_limit, self._host_limit, forecast
        )
        try:
            answer = self.ask(request, cell, 0)
        except OutOfTime:
            reason = f"{self.budget.title} ended while it was checked"
            self.skip(cell, 0, position, reason, "budget")
            return
        except WorkerLost as lost:
            answer = VisitAnswer(lost.status, str(lost), lost.cause)
        if answer.restart:
            self.apart.add((cell.operator, cell.impl))
            self.workers.end()
        self.end([(cell, answer)], Place(0, position), self.budget.now() - begun + self.workers.forecast_s)

    def ask(self, request: Request[A_co], cell: Cell, number: int) -> A_co:
        """The worker's answer about a cell in a round. Raises WorkerLost, OutOfTime, Stopped."""
        compiling = compiles(cell.impl) and isinstance(request, (CheckRequest, PrepareRequest))
        most_s = self.plan.limits.cell_timeout_s + (COMPILE_LIMIT_S if compiling else 0.0)
        timeout = self.budget.timeout_s(most_s, cell, number)
        try:
            return self.workers.ask(request, timeout, keep=True)
        except WorkerLost as lost:
            if lost.status != "timeout":
                raise
            if timeout < most_s:
                raise OutOfTime from None
            raise WorkerLost(lost.status, f"{lost} (cell_timeout)", lost.cause) from None

    def preparation(self, cell: Cell, most_samples: int) -> PrepareRequest:
        """Asks for a cell as a member of the worker's block, by what its check has found.

        Args:
            cell: that is asked for.
            most_samples: that its visit has.
        """
        checked = self.log.check_of(cell).metrics
        return PrepareRequest(
            cell=cell,
            device=self.plan.device,
            operators_from=tuple(self.plan.operators_from),
            memory_limit=self.plan.memory_limit,
            host_limit=self._host_limit,
            tolerance=checked.get("tolerance"),
            answers=tuple(checked[name] for name in ("answer_0", "answer_1") if name in checked),
            following=int(checked.get("following", 1)),
            most_samples=most_samples,
        )

    def memory(self, cell: Cell) -> tuple[int, int]:
        """Bytes that a cell holds as a member of a block while others are called, and at most while it is called."""
        checked = self.log.check_of(cell).metrics
        return int(checked.get("held_bytes", 0)), int(checked.get("peak_memory_bytes", 0))

    def take(self, cell: Cell, place: Place, index: int, samples: Sequence[tuple[str, float, str]]) -> None:
        """Stores samples of a visit that goes on. index: of the first of them within the visit."""
        numbered = enumerate(samples, index)
        process = self.workers.number
        self.log.journal.take(Sample(cell.key, place.round, process, n, *each, place.part) for n, each in numbered)
        self.sampled_s += sum(max(seconds, BATCH_S) for _, seconds, _ in samples)

    def end(self, answers: Sequence[tuple[Cell, VisitAnswer]], place: Place, seconds: float = 0.0) -> None:
        """Stores visits that have ended together; their samples are stored already. Raises Stopped.

        Args:
            answers: what became of each.
            place: where they were made.
            seconds: that they took together.
        """
        visits = self._store(*(self._visit(cell, answer, place) for cell, answer in answers), seconds=seconds)
        inside_s = sum(visit.metrics.get("operator_s", 0.0) for visit in visits)
        self.harness_s += [(seconds - inside_s) / len(visits) for visit in visits if visit.status == "ok"]
        for visit, (_, answer) in zip(visits, answers, strict=True):
            self._watch_clock(visit, throttled=answer.throttled)
        self.log.write_results_if_due()

    def skip(
        self, cell: Cell, number: int, position: int, reason: str, cause: Cause, status: Status = "skipped"
    ) -> None:
        """Stores why a cell is not visited in a round."""
        self._store(self._without_figures(cell, Place(number, position), status, reason, cause))

    @property
    def _host_limit(self) -> int | None:
        return self.plan.memory_limit if device_of(self.plan.device).is_host else None

    def _visit(self, cell: Cell, answer: VisitAnswer, place: Place) -> Visit:
        """What is stored of an answer: a crash where it could not be read again."""
        visit = replace(
            self._without_figures(cell, place, answer.status, answer.reason, answer.cause),
            kernel=answer.kernel,
            metrics=answer.metrics,
            samples=len(answer.samples),
            warnings=answer.warnings,
            operations=answer.operations,
        )
        try:
            return parse_visit(visit.line().encode().decode(), "its visit")
        except (BadInput, ValueError) as error:  # an operator has written to the pipe
            reason = f"the worker sent what is no answer: {printable(error)}"
            return self._without_figures(cell, place, "crashed", reason, "crashed")

    def _without_figures(self, cell: Cell, place: Place, status: Status, reason: str, cause: Cause) -> Visit:
        return Visit(
            key=cell.key,
            cell=columns_of(cell),
            device=self.plan.device,
            round=place.round,
            process=max(self.workers.number, 0),
            order=place.position,
            status=status,
            reason=reason,
            cause=cause,
            threads=self.plan.threads,
            contract=self.plan.contract,
            part=place.part,
            device_id=self.plan.device_id,
        )

    def _store(self, *visits: Visit, seconds: float = 0.0) -> list[Visit]:
        stored = self.log.add(*visits)
        for visit in stored:
            self.budget.note_check(visit)
            if visit.round == 0:
                self.left.note_check(visit, seconds)
        left_s = self.left.seconds()
        for visit in stored:
            self.progress.ended(visit, left_s)
        return stored

    def _watch_clock(self, visit: Visit, *, throttled: bool) -> None:
        if throttled:
            self._unsteady += 1
        elif visit.samples:
            self._unsteady = 0
        if self._unsteady >= UNSTEADY_VISITS:
            raise Stopped(
                f"the GPU's clock was throttled throughout {UNSTEADY_VISITS} visits in a row. "
                "Cool the machine, raise the power limit or "
                "lock a lower clock (nvidia-smi --lock-gpu-clocks), then continue with --resume."
            )
