"""The worker processes of a run: the one that measures now, and the one that forecasts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        forecaster: others, whose worker forecasts in place of an own one, and stays.
    """

    plan: Plan
    number: int
    start: Callable[[int, int], worker_process.Worker] = worker_process.start
    measuring: worker_process.Worker | None = None
    start_s: list[float] = field(default_factory=list)
    forecast_s: float = 0.0
    forecasting: worker_process.Worker | None = None
    forecaster: Workers | None = None

    @property
    def can_forecast(self) -> bool:
        """Whether no worker must be started for a forecast."""
        return self.forecaster.can_forecast if self.forecaster is not None else self.forecasting is not None

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
        if self.forecaster is not None:
            forecast = self.forecaster.forecast(cell, timeout)
            self.forecast_s = self.forecaster.forecast_s
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
        """A fresh process, with fresh imports. Raises WorkerLost; Stopped where it would import other code."""
        if self.plan.code is not None:
            changed = changes(self.plan.code.files, measured_code(self.plan.operators_from).files)
            if changed:
                raise Stopped(
                    f"since it was begun {changed}, and one run cannot hold times of both. "
                    "Put it back as it was before continuing, or start a new run"
                )
        return self.start(number, threads)

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
def lasting_forecaster(
    start: Callable[[int, int], worker_process.Worker] = worker_process.start,
) -> Iterator[Callable[[Plan], Workers]]:
    """By plan the workers that forecast for it: the same for run after run, of which each would start one otherwise.

    Args:
        start: starts a worker, by its number and threads.
    """
    lasting: list[Workers] = []

    def of(plan: Plan) -> Workers:
        if not lasting:
            lasting.append(Workers(plan, FORECASTER, start))
        lasting[0].plan = plan
        return lasting[0]

    try:
        yield of
    finally:
        for workers in lasting:
            workers.kill()
