"""What a run would do, without doing it: the cells that would be skipped here, and the time that is expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnbench.errors import BadInput
from attnbench.measure import support, worker_process
from attnbench.measure.device import device_of
from attnbench.measure.protocol import RatesRequest, WorkerLost
from attnbench.measure.worker_pool import Stopped, Workers
from attnbench.plan import time_budget
from attnbench.plan.plan import Plan
from attnbench.registry import clocks, metrics, operators
from attnbench.user_code import user_errors


@dataclass(frozen=True)
class Outlook:
    """What a run would do.

    Args:
        skipped: by key, why a cell cannot run here.
        seconds: by key of the other cells, what check and rounds are expected to take.
        starts_s: what the worker processes cost besides.
        rated: whether this machine's rates could be measured; where not, every call is taken for the shortest.
    """

    skipped: Mapping[str, str]
    seconds: Mapping[str, float]
    starts_s: float
    rated: bool

    @property
    def total_s(self) -> float:
        """The whole run: an estimate, see `time_budget.call_s`."""
        return self.starts_s + sum(self.seconds.values())


def outlook(plan: Plan) -> Outlook:
    """Asks a worker what the operators support here and for the rates of the hardware; measures no cell.

    Raises: BadInput where an operator does not answer.
    """
    reasons, rates = _support_and_rates(plan)
    skipped = {cell.key: reason for cell, reason in zip(plan.cells, reasons, strict=True) if reason is not None}
    sources = operators(plan.operators_from)
    device_clock = device_of(plan.device).clock is not None
    sampled = len(clocks(device_clock=device_clock))
    around_s = time_budget.around_s(metrics().values(), device_clock=device_clock)
    calls_s = []
    for cell in plan.cells:
        if cell.key not in skipped:
            source = sources[cell.operator]
            with user_errors(f"{source.location}: cost"):
                cost = source.load().forms[cell.scope].cost(cell.problem, cell.params, cell.mode)
            calls_s.append((cell, time_budget.call_s(cost, cell, rates)))
    measure = plan.measure
    seconds = {
        each.cell.key: time_budget.check_s(each.cell, each.call_s)
        + len(plan.rounds_of(each.cell)) * (each.visit_s(measure.max_turns, sampled) + time_budget.compile_s(each.cell))
        for each in time_budget.timed(calls_s, measure, plan.baseline, around_s)
    }
    return Outlook(skipped, seconds, time_budget.START_S * (2 + plan.measure.rounds), bool(rates))


def _support_and_rates(plan: Plan) -> tuple[list[str | None], dict[str, Any]]:
    """By cell, why it cannot run; and the rates, empty where they cannot be measured."""
    workers = Workers(plan, -1)
    try:
        reasons = [reason for _, reason in support.reasons(workers, plan.cells, worker_process.START_TIMEOUT_S)]
        dtypes = tuple(sorted({cell.problem.dtype for cell in plan.cells}))
        try:
            rates = workers.ask(RatesRequest(plan.device, dtypes), worker_process.START_TIMEOUT_S).rates
        except WorkerLost:
            rates = {}
        return reasons, rates
    except Stopped as stopped:
        raise BadInput(f"asking the operators what they support: {stopped}.") from None
    finally:
        workers.kill()
