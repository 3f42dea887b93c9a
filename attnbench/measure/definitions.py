"""Whether what is to be measured is inside the operators' definitions: asked before any process is started."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from attnbench.axes import AXES, Axis
from attnbench.errors import BadInput
from attnbench.measure.device import device_of
from attnbench.problem import Cell
from attnbench.registry import Source, operators, undefined, why_not
from attnbench.user_code import user_errors

if TYPE_CHECKING:
    from attnbench.plan.search_request import SearchRequest


def reason_against(source: Source, cell: Cell, device: str) -> str | None:
    """Why a cell is outside its operator's definition, or on this host's processor why its impl cannot run; or None.

    Raises: BadInput where a user's operator fails.
    """
    kind, operator = device_of(device), source.load()
    with user_errors(f"{source.location}: why_not"):
        if kind.is_host:
            return why_not(operator, cell, kind.type)
        return undefined(operator, cell)


def check_any_defined(cells: Sequence[Cell], operators_from: Sequence[str], device: str, where: str) -> None:
    """Nothing where a cell can be measured.

    Args:
        where: what plans the cells, for the message.

    Raises: BadInput where every one is outside its operator's definition.
    """
    sources, reasons = operators(operators_from), dict[str, dict[str, None]]()
    for cell in cells:
        reason = reason_against(sources[cell.operator], cell, device)
        if reason is None:
            return
        reasons.setdefault(reason, {})[cell.operator] = None
    if reasons:
        lines = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
        raise BadInput(
            f"{where}: nothing of it can be measured on {device}: {'; '.join(lines)}. Change the sweep, the problem or "
            "the operators; `attnbench list operators NAME` says what each is defined on."
        )


def check_defined(
    searched: Iterable[tuple[Cell, Cell]],
    request: SearchRequest,
    axis: Axis,
    operators_from: Sequence[str],
    device: str,
) -> None:
    """Nothing where the smallest size of every search can be measured.

    Args:
        searched: what each compares: a cell of a series and one of the baseline, of any size.
        axis: of the request, with what is constant along it.

    Raises: BadInput, which says of each series that cannot at which sizes it can.
    """
    sources = operators(operators_from)
    cells = {cell.key: cell for pair in searched for cell in pair}
    mistakes = dict.fromkeys(_mistake(sources[cell.operator], cell, request, axis, device) for cell in cells.values())
    if any(mistakes):
        raise BadInput(" ".join(filter(None, mistakes)))


def _mistake(source: Source, cell: Cell, request: SearchRequest, axis: Axis, device: str) -> str:
    """Why a series cannot be searched; empty where it can."""
    sizes = [(size, reason_against(source, sized, device)) for size, sized in _sizes(cell, request, axis)]
    name, smallest = f"{cell.operator}:{cell.impl}", sizes[0][1]
    if smallest is None:
        return ""
    defined = next((size for size, reason in sizes if reason is None), None)
    if defined is not None:
        return f"{name}: at --low {request.low}: {smallest}. Give --low {axis.size(defined)} or more."
    domains = source.load().domains
    others = [other.name for other in AXES.values() if other.domain in domains]
    todo = f"Give --axis {others[0]}" if cell.problem.domain not in domains else "Leave it out, or change the problem"
    return f"{name}: {smallest}: at every size from {request.low} to {request.high} along {axis.name}. {todo}."


def _sizes(cell: Cell, request: SearchRequest, axis: Axis) -> Iterator[tuple[int, Cell]]:
    """Positions from the smallest to the largest, each about twice the last, with the cell there."""
    nearest = axis.allowed(cell.problem)
    low, high = (math.prod(axis.uniform(end)) for end in (request.low, request.high))
    size = low
    while True:
        yield size, replace(cell, problem=axis.at(cell.problem, size))
        larger = min(nearest(size * 2), high)
        if larger <= size:
            return
        size = larger
