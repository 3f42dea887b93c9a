"""The worker processes of a run: the one that measures now, and the one that forecasts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from attnbench.measure import worker_process
from attnbench.measure.protocol import NOTHING_KNOWN, A_co, Forecast, ForecastRequest, Request, WorkerLost
from attnbench.plan.measured_code import changes, measured_code
from attnbench.plan.plan import Plan
from attnbench.problem import Cell

STARTS = 3
"""Workers that fail to start one after another before the run ends."""

FORECASTER = -1
"""The number of the worker that forecasts; it measures nothing, so no visit carries it."""


class Stopped(Exception):
    """The run cannot go on; the text says why. What is stored stays."""


@dataclass
class Workers:
    """Starts workers as they are needed.

    Attributes:
        plan: the run's, which says what a worker must find.
        number: of the last worker started (`process` of its visits).
        start: starts a worker, by its number and threads.
        measuring: the worker that measures; None: the next request starts one.
        start_s: seconds that each start took.
        forecast_s: seconds that the last forecast took.
        forecasting: the worker that forecasts; None: the next forecast starts one.
        lasting: others, whose workers forecast and check in place of own ones, and stay.
    """

    plan: Plan
    number: int
    start: Callable[[int, int], worker_process.Worker] = worker_process.start
    measuring: worker_process.Worker | None = None
    start_s: list[float] = field(default_factory=list)
    forecast_s: float = 0.0
    forecasting: worker_process.Worker | None = None
    lasting: Workers | None = None

    @property
    def can_forecast(self) -> bool:
        """Whether no worker must be started for a forecast."""
        return self.lasting.can_forecast if self.lasting is not None else self.forecasting is not None

    def ask(self, request: Request[A_co], timeout: float, *, keep: bool = False) -> A_co:
        """The measuring worker's answer; starts one where there is none. Raises WorkerLost, Stopped.

        Args:
            request: one of `protocol`'s.
            timeout: seconds that the answer may take.
            keep: a worker stays in which an operator has changed what the next one would find.
        """
        worker = self.ready()
        try:
            answer = worker.ask(request, timeout)
        except WorkerLost:
            self.measuring = None
            raise
        if answer.fatal or (answer.restart and not keep):
            self.end()
        return answer

    def forecast(self, cell: Cell, timeout: float) -> Forecast:
        """What shapes alone tell of a cell, from a worker that measures nothing; empty where that fails."""
        if self.lasting is not None:
            forecast = self.lasting.forecast(cell, timeout)
            self.forecast_s = self.lasting.forecast_s
            return forecast
        try:
            if self.forecasting is None:
                self.forecasting = self._start(FORECASTER, 1)
            begun = time.perf_counter()
            answer = self.forecasting.ask(ForecastRequest(cell, tuple(self.plan.operators_from)), timeout)
        except WorkerLost:
            self.forecasting = None
            return NOTHING_KNOWN
        self.forecast_s = time.perf_counter() - begun
        if answer.restart:
            self.end_forecasting()
        return answer.forecast

    def begin_checks(self) -> None:
        """Takes over the worker that has checked for the run before, where there is one and it lives."""
        if self.lasting is None or self.measuring is not None:
            return
        worker, self.lasting.measuring = self.lasting.measuring, None
        if worker is not None and worker.is_alive:
            self.number += 1
            self.measuring = worker
            self.start_s.append(worker.start_s)
        elif worker is not None:
            worker.kill()

    def end_checks(self) -> None:
        """Ends what the checks alone need, or leaves it to the workers that outlast the run."""
        self.end_forecasting()
        if self.lasting is not None and self.lasting.measuring is None:
            self.lasting.measuring, self.measuring = self.measuring, None
        self.end()

    def end(self) -> None:
        """Ends the measuring worker, so that a fresh one makes the next visit."""
        if self.measuring is not None:
            self.measuring.close()
            self.measuring = None

    def end_forecasting(self) -> None:
        """Ends the worker that forecasts."""
        if self.forecasting is not None:
            self.forecasting.close()
            self.forecasting = None

    def kill(self) -> None:
        """Ends all of them at once."""
        for worker in (self.measuring, self.forecasting):
            if worker is not None:
                worker.kill()
        self.measuring = self.forecasting = None

    def _start(self, number: int, threads: int) -> worker_process.Worker:
        """A fresh process, with fresh imports. Raises WorkerLost; Stopped where it has imported other code."""
        with ThreadPoolExecutor(1) as beside, ExitStack() as unless_right:  # both take a while
            changed = beside.submit(self._changed_code)
            worker = self.start(number, threads)
            unless_right.callback(worker.kill)
            if changed.result():
                raise Stopped(
                    f"since it was begun {changed.result()}, and one run cannot hold times of both. "
                    "Put it back as it was before continuing, or start a new run"
                )
            unless_right.pop_all()
        return worker

    def _changed_code(self) -> str:
        """What differs between the measured code as it is and as the run began with it, in words."""
        code = self.plan.code
        return "" if code is None else changes(code.files, measured_code(self.plan.operators_from).files)

    def ready(self) -> worker_process.Worker:
        """The measuring worker; starts one where there is none. Raises Stopped."""
        failures: list[str] = []
        while self.measuring is None:
            self.number += 1
            try:
                self.measuring = self._start(self.number, self.plan.threads)
                self.start_s.append(self.measuring.start_s)
            except WorkerLost as lost:
                failures.append(str(lost))
                if len(failures) == STARTS:
                    raise Stopped(f"{STARTS} workers in a row did not start: {failures[-1]}") from None
        return self.measuring


@contextmanager
def lasting_workers(
    start: Callable[[int, int], worker_process.Worker] = worker_process.start,
) -> Iterator[Callable[[Plan], Workers]]:
    """By plan the workers that forecast and check for it: the same for run after run of the same code, of which each
    would start its own otherwise. Times are measured in fresh ones.

    Args:
        start: starts a worker, by its number and threads.
    """
    lasting: list[Workers] = []

    def of(plan: Plan) -> Workers:
        if lasting and _imported(lasting[0].plan) != _imported(plan):
            lasting.pop().kill()
        if not lasting:
            lasting.append(Workers(plan, FORECASTER, start))
        return lasting[0]

    try:
        yield of
    finally:
        for workers in lasting:
            workers.kill()


def _imported(plan: Plan) -> tuple[object, ...]:
    """What a worker has taken in when it is ready, and keeps."""
    return plan.code, plan.operators_from, plan.threads
