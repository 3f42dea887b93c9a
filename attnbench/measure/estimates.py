"""The analytic cost of a cell, and its memory from shapes: nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attnbench.measure.worker.forecast import footprint
from attnbench.registry import undefined

if TYPE_CHECKING:
    from attnbench.operator import Operator
    from attnbench.problem import Cell


MOST_OPERATIONS = 40_000
"""Of a call whose memory is predicted, which takes some seconds; of more it stays unknown where there are others."""

FEW = 3
"""Operators of which the memory of each is predicted, however long that takes."""


def most_operations(operators: int) -> int | None:
    """How many operations of a call are followed to predict its memory, of so many operators; None: all."""
    return MOST_OPERATIONS if operators > FEW else None


def estimates(cells: Sequence[tuple[Operator, Cell]]) -> list[dict[str, Any]]:
    """A row of each cell; where operators are more than a few, no memory of a call that has too many operations."""
    most = most_operations(len({cell.operator for _, cell in cells}))
    return [estimate(operator, cell, most) for operator, cell in cells]


def estimate(operator: Operator, cell: Cell, most: int | None = None) -> dict[str, Any]:
    """The cell's columns and figures in base units; None, with the reason, outside the operator's definition.

    most: operations of a call above which its memory is None as well; None: any number.
    """
    p = cell.problem
    outside = undefined(operator, cell)
    form = operator.forms[cell.scope] if outside is None else None
    cost = form and form.cost(p, cell.params, cell.mode)
    memory = form and footprint(form, p, cell.params, cell.mode, most=most)
    return {
        "operator": cell.operator,
        "params": dict(cell.params),
        "scope": cell.scope,
        "mode": cell.mode,
        "dtype": p.dtype,
        "batch": p.batch,
        "heads": p.heads,
        "seq_len": p.seq_len,
        "height": p.height,
        "width": p.width,
        "channels": p.channels,
        "causal": p.causal,
        "kv_heads": int(p.kv_heads),
        "query_len": int(p.query_len),
        "source": "analytic",
        "flops": cost and cost.flops,
        "reference_flops": cost and cost.reference_flops,
        "multiply_adds": cost and _halved(cost.flops),
        "elementwise": cost and cost.elementwise,
        "bytes_required": cost and cost.bytes_required,
        "bytes_moved": cost and cost.bytes_moved,
        "arithmetic_intensity": cost.flops / cost.bytes_moved if cost and cost.bytes_moved else None,
        "state_bytes": cost and cost.state_bytes,
        "reason": outside,
        "peak_memory_bytes": memory and memory.peak_bytes,
        "input_bytes": memory and memory.input_bytes,
        "parameter_bytes": memory and memory.parameter_bytes,
    }


def _halved(flops: int) -> int | float:
    return flops // 2 if flops % 2 == 0 else flops / 2
