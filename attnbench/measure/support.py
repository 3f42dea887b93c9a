"""Why cells cannot run here, as a worker hears from their operators."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.groups import groups_of
from attnbench.measure.protocol import SupportRequest, WorkerLost
from attnbench.measure.worker_pool import Workers
from attnbench.problem import Cell
from attnbench.store.records import Status

Reason = tuple[Status, str | None]
"""What becomes of a cell that cannot run here, and why; None: it can, or an earlier cell of its series says it."""


def reasons(workers: Workers, cells: Sequence[Cell], timeout: float) -> list[Reason]:
    """The reason of each cell; the cells of an operator whose process is lost when it is asked have that for one.

    Args:
        workers: of the run's plan.
        timeout: seconds that an answer may take.

    Raises: Stopped.
    """
    request = SupportRequest(tuple(cells), workers.plan.device, tuple(workers.plan.operators_from))
    by_operator = groups_of((cell.operator, cell) for cell in cells)
    try:
        return list(workers.ask(request, timeout).reasons)
    except WorkerLost as lost:
        if len(by_operator) == 1:
            return [(lost.status, f"asked what it supports: {lost}")] * len(cells)
    by_key: dict[str, Reason] = {}
    for own in by_operator.values():
        by_key |= zip((cell.key for cell in own), reasons(workers, own, timeout), strict=True)
    return [by_key[cell.key] for cell in cells]
