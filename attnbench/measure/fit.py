"""The longest sequence, the largest image or the largest batch that fits a memory, per operator and impl.

Everything is predicted from shapes. What is counted, with L layers of the same operator:

- train: parameters and their gradients of L layers, what each layer keeps from forward to backward, and the most that
  one layer holds at once: its inputs, its output, their gradients, and temporaries.
- infer: parameters of L layers, and the most that one layer holds at once.
- decode: parameters and state of L layers after N tokens, and the most that a step of one layer holds at once.

Not counted: optimizer states, and the rest of a model (embeddings, logits; MLPs and norms unless the scope is block).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from time import process_time
from typing import TYPE_CHECKING, Any, Literal

from attnbench import interrupts
from attnbench.analysis.cards import CARDS, card, check_holds
from attnbench.analysis.memory_budget import Budget, Need, of_gpu, of_host
from attnbench.axes import AXES
from attnbench.errors import BadInput, refusing
from attnbench.measure.device import HOST, Device, device_names, device_of
from attnbench.measure.largest import STARTS, Largest, Search, Unknown
from attnbench.measure.worker.forecast import footprint
from attnbench.naming import option
from attnbench.plan.fit_request import DECODE
from attnbench.problem import Cell, columns_of
from attnbench.registry import device_type_of, why_not
from attnbench.units import memory, shown

if TYPE_CHECKING:
    from attnbench.measure.worker.fake_memory import Footprint
    from attnbench.operator import Operator
    from attnbench.plan.fit_request import FitRequest

SECONDS = 40.0
"""Of this process, which all searches of a request may take together."""

LEAST_SECONDS = 1.0
"""The same of one search."""

SHARES = 4
"""What one search may take, in equal shares of what is left: most take less than one."""

OPERATION_S = 40e-6
"""What an operation on tensors without data takes, about."""

UNKNOWN = "its memory is not known from shapes, or by more operations than are followed for so many operators"

Outcome = Literal["fits", "too large", "undefined", "unknown"]


def budget(size: str | None, device: str | None) -> Budget:
    """What `--memory` and `--device` say.

    Args:
        size: such as 24GiB, or a share of the device's, such as 80%; None: all that the device has.
        device: the name of a card, or a kind of device of this machine; None: a GPU of that size.

    Raises: BadInput.
    """
    with refusing(f"{option('memory')}: ", ". Give such a size."):
        share, total = memory(size) if size is not None else (1.0, None)
    if device is None and total is None:
        asked = "missing" if size is None else f"{size} of what"
        raise BadInput(
            f"{option('memory')}: {asked}? Give {option('memory')} 24GiB, or {option('device')} with one of "
            f"{', '.join([*CARDS, HOST])}."
        )
    kind = device_of(device) if device in device_names() else None
    of, present = ("a GPU", None) if device is None else _device_memory(device, kind, needed=total is None)
    check_holds(size, total, of, present)
    total = total if total is not None else int(share * (present or 0))
    is_host = kind is not None and kind.is_host
    held = of_host(of, total) if is_host else of_gpu(of, total)
    if held.left_bytes <= 0:
        elsewhere = f", or {option('device')} {HOST}, where less is reserved"
        raise BadInput(
            f"{option('memory')} {size}: {shown(held.context_bytes + held.library_bytes, 'bytes')} are reserved, and "
            f"nothing is left. Give more{'' if is_host else elsewhere}."
        )
    return held


def _device_memory(device: str, kind: Device | None, needed: bool) -> tuple[str, int | None]:
    """What it is, and its memory.

    Args:
        kind: None: `device` is the name of a card.
        needed: whether its memory must be known.

    Raises: BadInput.
    """
    if kind is None:
        named = card(device, others=tuple(device_names()))
        return named.of, named.memory_bytes
    reason = kind.why_not()
    if reason is None:
        return kind.memory()
    if needed:
        raise BadInput(
            f"{option('device')} {device}: {reason}. Name a card ({', '.join(CARDS)}), or give {option('memory')}."
        )
    return "a GPU", None


def need(of: Footprint, layers: int, trained: bool) -> Need:
    """What L layers need, of which one is at work.

    Args:
        of: one layer's footprint, in fwd_bwd where it is trained.
        layers: L.
        trained: whether they keep what their backward needs.
    """
    at_work = of.total_bytes + of.cotangent_bytes - of.parameter_bytes - of.saved_bytes - of.state_bytes
    others = (layers - 1) * trained
    return Need(
        parameter_bytes=layers * of.parameter_bytes,
        gradient_bytes=others * of.parameter_bytes,
        saved_bytes=layers * of.saved_bytes,
        state_bytes=layers * of.state_bytes,
        working_bytes=at_work + others * of.choice_bytes,
    )


@dataclass
class Case:
    """One operator's impl, of any size on an axis.

    Attributes:
        most: operations of a call above which its need stays unknown; None: any number.
        needs: by size, those found.
    """

    operator: Operator
    cell: Cell
    request: FitRequest
    most: int | None = None
    needs: dict[int, Need] = field(default_factory=dict)

    def at(self, size: int) -> Cell | None:
        """The cell of a size, of an image its side; None where no problem is of that size."""
        axis = AXES[self.request.axis]
        try:
            problem = axis.at(self.cell.problem, size ** len(axis.columns))
        except ValueError:  # it has fewer tokens than are new
            return None
        return replace(self.cell, problem=problem) if problem.past or self.request.mode != DECODE else None

    def reason(self, size: int) -> str | None:
        """Why there is nothing of a size, or None."""
        cell = self.at(size)
        return "no token is before the new ones" if cell is None else why_not(self.operator, cell, HOST)

    def need(self, size: int) -> Need:
        """What is needed at a size. Raises Unknown."""
        if size not in self.needs:
            cell = self.at(size)
            assert cell is not None
            form = self.operator.forms[cell.scope]
            predicted = footprint(form, cell.problem, cell.params, cell.mode, cell.impl, self.most)
            if predicted is None:
                raise Unknown
            self.needs[size] = need(predicted, self.request.layers, cell.mode != "fwd")
        return self.needs[size]

    def search(self, limit: int, seconds: float) -> Search:
        """The search of the largest size that needs no more than a limit, and takes about so many seconds."""
        self.most = int(seconds / OPERATION_S)
        return Search(
            lambda size: self.need(size).total_bytes,
            lambda size: self.reason(size) is None,
            limit,
            AXES[self.request.axis].most,
            seconds,
            STARTS if AXES[self.request.axis].domain else (1,),
        )


def cases(request: FitRequest) -> list[Case]:
    """Every operator by its reference, and by what torch alone computes: kernels for a GPU do not run on tensors
    without data."""
    return [
        Case(operator, replace(cell, impl=impl), request)
        for operator, cell in request.cells
        for impl in ("reference", *(name for name in _impls(operator, cell) if device_type_of(name) is None))
    ]


def _impls(operator: Operator, cell: Cell) -> Iterable[str]:
    return operator.forms[cell.scope].impls if cell.scope in operator.forms else ()


def fits(request: FitRequest, limit: int) -> list[dict[str, Any]]:
    """A row for every operator and impl, that with the largest size first; those that are not defined last.

    Args:
        request: what is searched.
        limit: bytes that may be needed.
    """
    importlib.import_module("torch._dynamo")  # which fake tensors import: a second that is no search's
    every = cases(request)
    left, rows = SECONDS, []
    for number, case in enumerate(every):
        interrupts.check()
        begun = process_time()
        rows.append(_row(case, limit, max(LEAST_SECONDS, SHARES * left / (len(every) - number))))
        left -= process_time() - begun
    return sorted(rows, key=lambda row: (row["outcome"] != "fits", -(row["largest"] or 0)))


def _row(case: Case, limit: int, seconds: float) -> dict[str, Any]:
    axis = AXES[case.request.axis]
    search = case.search(limit, seconds)
    start = search.first()
    if start is None:
        return _columns(case, limit, "undefined", reason=case.reason(search.starts[0]))
    try:
        end = search.run(start)
    except Unknown:
        return _columns(case, limit, "unknown", reason=UNKNOWN)
    if not end.size:
        smallest = min(case.needs)
        reason = f"at {smallest}, the smallest size, it needs {shown(case.needs[smallest].total_bytes, 'bytes')}"
        return _columns(case, limit, "too large", end, reason)
    is_last = not end.beyond and end.size < axis.most // 2
    return _columns(case, limit, "fits", end, case.reason(2 * end.size) if is_last else None)


def _columns(
    case: Case, limit: int, outcome: Outcome, end: Largest | None = None, reason: str | None = None
) -> dict[str, Any]:
    size = end.size if end else 0
    cell, parts = case.at(size) if size else None, case.needs.get(size)
    problem = (cell or case.cell).problem
    columns = columns_of(cell or case.cell) | {"kv_heads": int(problem.kv_heads), "query_len": int(problem.query_len)}
    searched = {} if size else dict.fromkeys(AXES[case.request.axis].fields(AXES[case.request.axis].uniform(1)))
    return {
        **columns,
        **searched,
        "params": dict(case.cell.params),
        "mode": case.request.mode,
        "layers": case.request.layers,
        "source": "predicted",
        "axis": case.request.axis,
        "outcome": outcome,
        "largest": size or None,
        "at_bound": bool(size) and 2 * size > AXES[case.request.axis].most and not (end and end.beyond),
        "exact": end.is_exact if end and size else None,
        "exact_up_to": end.figured or size if end and size else None,
        "limit_bytes": limit,
        "memory_bytes": parts.total_bytes if parts else None,
        **{name: getattr(parts, name, None) for name in Need.__dataclass_fields__},
        "largest_part": parts.largest_part if parts else None,
        "beyond": end.beyond or None if end else None,
        "beyond_bytes": end.beyond_need or None if end else None,
        "reason": reason,
    }
