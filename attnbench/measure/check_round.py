"""Round 0: every cell is checked once, size by size, so that what cannot run or does not fit is never timed."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.groups import groups_of
from attnbench.measure import support, worker_process
from attnbench.measure.support import Reason
from attnbench.measure.visit_log import stops
from attnbench.measure.visit_maker import VisitMaker
from attnbench.plan.plan import series_of
from attnbench.problem import SIZES, Cell, Problem
from attnbench.progress import Stage
from attnbench.store.records import CAUSE_OF, Cause


def check_cells(maker: VisitMaker) -> None:
    """Makes the missing checks of a run. Raises Stopped."""
    order = sorted(maker.plan.cells, key=maker.budget.precedence)
    missing = [cell for cell in order if not maker.log.has(cell, 0)]
    if not missing:
        return
    maker.left.expect(missing, [cell for cell in maker.log.survivors(1) if not maker.log.is_complete(cell)])
    first, most = (stops(maker.plan.measure)[at] if maker.left.rounds else 0 for at in (0, -1))
    maker.workers.begin_checks()
    maker.progress.planned(Stage("check", last=first, most=most), len(missing), maker.left.seconds())
    unable = _unable(maker, order)
    for position, cell in enumerate(order):
        if maker.log.has(cell, 0):
            continue
        if cell.key not in unable:
            _check(maker, cell, position)
            continue
        status, reason = unable[cell.key]
        if reason is not None:
            cause: Cause = "unsupported" if status == "skipped" else CAUSE_OF[status]
            maker.skip(cell, 0, position, reason, cause, status)


def _check(maker: VisitMaker, cell: Cell, position: int) -> None:
    """One check, unless a smaller cell, the budget or its shapes speak against it."""
    workers = maker.workers
    starts = (not workers.measuring) + (not workers.can_forecast)
    refusal = _beyond(maker, cell) or _over_budget(maker, cell, starts)
    if refusal is None:
        timeout = maker.budget.timeout_s(maker.plan.limits.cell_timeout_s, cell, 0)
        forecast = workers.forecast(cell, timeout)
        refusal = _over_memory(forecast.total_bytes, maker.plan.memory_limit)
    if refusal is None:
        maker.check(cell, position, forecast)
    else:
        maker.skip(cell, 0, position, *refusal)


def _unable(maker: VisitMaker, order: Sequence[Cell]) -> dict[str, Reason]:
    """Cells that cannot run here, by key."""
    timeout = maker.budget.timeout_s(worker_process.START_TIMEOUT_S, order[0], 0)
    told = support.reasons(maker.workers, order, timeout)
    if timeout < worker_process.START_TIMEOUT_S and any(status == "timeout" for status, _ in told):
        return {}  # the budget has ended, which skips them all
    reasons = {cell.key: each for cell, each in zip(order, told, strict=True)}
    unable: dict[str, Reason] = {}
    for members in groups_of((series_of(cell), cell) for cell in order).values():
        distinct = {reasons[cell.key] for cell in members}
        # Of a shard each is stored: what all shards have in common, only who joins them knows.
        whole = maker.plan.rounds_by_key is None
        everywhere = whole and len(distinct) == 1 and next(iter(distinct))[1] is not None
        for index, cell in enumerate(members):
            status, reason = reasons[cell.key]
            if reason is not None:
                unable[cell.key] = (status, None if everywhere and index else reason)
    return unable


def _beyond(maker: VisitMaker, cell: Cell) -> tuple[str, Cause] | None:
    """A smaller cell of the series ran out of memory or time."""
    failure = maker.log.smaller_that_failed(cell)
    if failure is None:
        return None
    smaller, visit = failure
    size = f"beyond {', '.join(_differing(smaller.problem, cell.problem))}"
    if visit.status == "oom":
        return f"{size}, which ran out of memory", "beyond_oom"
    return f"{size}, which ran out of time", "beyond_timeout"


def _differing(problem: Problem, other: Problem) -> list[str]:
    """The sizes of a problem that another one does not have, each as it is named."""
    sizes = {**{name: getattr(problem, name) for name in SIZES if name != "seq_len"}, **problem.given}
    differing = [f"{name} {number}" for name, number in sizes.items() if getattr(other, name) != number]
    return [problem.size, *differing] if problem.size != other.size else differing


def _over_budget(maker: VisitMaker, cell: Cell, starts: int) -> tuple[str, Cause] | None:
    reason = maker.budget.reason_against_check(cell, starts)
    return None if reason is None else (reason, "budget")


def _over_memory(total: int | None, limit: int) -> tuple[str, Cause] | None:
    """total: bytes that a cell is predicted to need; None: not known. limit: bytes."""
    if total is None or total <= limit:
        return None
    reason = (
        f"predicted to need {total / 2**20:,.0f} MiB, {(total - limit) / 2**20:,.0f} MiB over "
        f"the limit of {limit / 2**20:,.0f} MiB"
    )
    return reason, "predicted_memory"
