"""Makes one visit: a request to a worker, the time it may take, and what is stored of the answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from attnbench.errors import BadInput, printable
from attnbench.measure.budget import Budget
from attnbench.measure.device import device_of
from attnbench.measure.progress import Progress
from attnbench.measure.protocol import NOTHING_KNOWN, Forecast, VisitAnswer, VisitRequest, WorkerLost
from attnbench.measure.visit_log import VisitLog
from attnbench.measure.worker_pool import Stopped, Workers
from attnbench.plan.plan import Plan
from attnbench.plan.settings import Measure
from attnbench.problem import Cell, columns_of
from attnbench.store.reading import parse_visit
from attnbench.store.records import Cause, Sample, Status, Visit

COMPILE_LIMIT_S = 300.0
"""What a cell of impl `compiled` may take beside its cell_timeout."""

UNSTEADY_VISITS = 5
"""Visits without one steady sample, one after another, before the run ends."""


@dataclass
class VisitMaker:
    """Makes the visits of a run, and stores them.

    Args:
        plan: the run's.
        workers: that measure.
        log: where visits are stored.
        budget: the time that is left.
        progress: what it reports to.
        harness_s: seconds of visits spent outside the operators' calls, one entry per visit that is ok.
        remaining_s: what the timed visits still to come are expected to take; None: not known yet.
    """

    plan: Plan
    workers: Workers
    log: VisitLog
    budget: Budget
    progress: Progress
    harness_s: list[float] = field(default_factory=list)
    remaining_s: float | None = None
    _unsteady: int = 0

    def make(
        self, cell: Cell, number: int, position: int, measure: Measure, forecast: Forecast = NOTHING_KNOWN
    ) -> bool:
        """One visit in the current worker process or, where there is none, a fresh one.

        Args:
            cell: that is visited.
            number: of the round; 0: its check.
            position: in the round.
            measure: how it is timed.
            forecast: what its shapes tell, for a check.

        Returns: False where the budget ended a timed visit, which then is not stored.
        Raises: Stopped.
        """
        self.progress.begun(cell, number)
        most_s = self.plan.limits.cell_timeout_s + (COMPILE_LIMIT_S if cell.impl == "compiled" else 0.0)
        self.workers.ready()
        timeout = self.budget.timeout_s(most_s, cell, number)
        begun = time.perf_counter()
        try:
            answer = self.workers.ask(self._request(cell, number, measure, forecast), timeout)
        except WorkerLost as lost:
            if lost.status == "timeout" and timeout < most_s:
                if number == 0:
                    reason = f"the budget of {self.budget.limit_s:g} s ended while it was checked"
                    self.skip(cell, number, position, reason, "budget")
                return number == 0
            reason = f"{lost} (cell_timeout)" if lost.status == "timeout" else str(lost)
            answer = VisitAnswer(lost.status, reason, lost.cause)
        visit = self._store_answer(cell, number, position, answer)
        if visit.status == "ok":
            forecast_s = 0.0 if number else self.workers.forecast_s
            self.harness_s.append(time.perf_counter() - begun + forecast_s - visit.metrics.get("operator_s", 0.0))
        self._watch_clock(visit, throttled=answer.throttled)
        self.log.write_results_if_due()
        return True

    def skip(
        self, cell: Cell, number: int, position: int, reason: str, cause: Cause, status: Status = "skipped"
    ) -> None:
        """Stores why a cell is not visited in a round."""
        self._store(self._without_figures(cell, number, position, status, reason, cause))

    def _request(self, cell: Cell, number: int, measure: Measure, forecast: Forecast) -> VisitRequest:
        checked = self.log.check_of(cell).metrics if number else {}
        return VisitRequest(
            phase="time" if number else "check",
            cell=cell,
            measure=measure,
            device=self.plan.device,
            operators_from=tuple(self.plan.operators_from),
            memory_limit=self.plan.memory_limit,
            host_limit=self.plan.memory_limit if device_of(self.plan.device).is_host else None,
            forecast=forecast,
            tolerance=checked.get("tolerance"),
            answers=tuple(checked[name] for name in ("answer_0", "answer_1", "answer_2") if name in checked),
        )

    def _store_answer(self, cell: Cell, number: int, position: int, answer: VisitAnswer) -> Visit:
        """Stores a visit and its samples; as a crash where what is stored of it could not be read again."""
        visit = replace(
            self._without_figures(cell, number, position, answer.status, answer.reason, answer.cause),
            kernel=answer.kernel,
            metrics=answer.metrics,
            samples=len(answer.samples),
            warnings=answer.warnings,
            operations=answer.operations,
        )
        try:
            visit = parse_visit(visit.line().encode().decode(), "its visit")
        except (BadInput, ValueError) as error:  # an operator has written to the pipe
            reason = f"the worker sent what is no answer: {printable(error)}"
            return self._store(self._without_figures(cell, number, position, "crashed", reason, "crashed"))
        samples = [Sample(cell.key, number, visit.process, n, *sample) for n, sample in enumerate(answer.samples)]
        return self._store(visit, samples)

    def _without_figures(
        self, cell: Cell, number: int, position: int, status: Status, reason: str, cause: Cause
    ) -> Visit:
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

    def _store(self, visit: Visit, samples: Sequence[Sample] = ()) -> Visit:
        visit = self.log.add(visit, samples)
        self.budget.note_check(visit)
        self.progress.ended(visit, self.remaining_s if visit.round else None)
        return visit

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
