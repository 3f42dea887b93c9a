"""What can be known of a cell from shapes alone: memory, and what torch counts. Nothing is computed.

It runs operators on fake tensors, which an operator with a cache of its own would keep; so a worker of its own does it,
which measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from attnbench.interrupts import Interrupted
from attnbench.measure.protocol import Forecast
from attnbench.measure.worker.fake_memory import (
    Footprint,
    TooManyOperations,
    output_like,
    predict,
    predict_on_meta,
    run,
)
from attnbench.operator import Form
from attnbench.problem import Cell, Mode, Params, Problem, Scope, canonical_params
from attnbench.registry import Source

T = TypeVar("T")


def forecast_of(cell: Cell, source: Source) -> Forecast:
    """What shapes alone tell of a cell."""
    reference_bytes, flops = _reference(
        source, cell.scope, cell.mode, cell.problem, canonical_params(cell.params), tuple(cell.params.items())
    )
    if cell.impl in ("reference", "compiled"):
        return Forecast(reference_bytes, reference_bytes, flops)
    form = source.load().forms[cell.scope]
    impl_bytes = _attempt(lambda: _total(form, cell.problem, cell.params, cell.mode, form.impls[cell.impl].load()))
    return Forecast(impl_bytes, reference_bytes, flops)


def footprint(
    form: Form,
    problem: Problem,
    params: Params,
    mode: Mode,
    impl: str = "reference",
    most: int | None = None,
) -> Footprint | None:
    """The memory of an impl; None where it does on real tensors what others do not support.

    Args:
        most: the operations of a reference, which take 40 µs each, above which it is None as well; None: any number.
    """
    if impl not in ("reference", "compiled"):
        return _attempt(lambda: predict(form, problem, params, mode, form.impls[impl].load()))
    try:
        on_meta = _attempt(lambda: predict_on_meta(form, problem, params, mode, most))
    except TooManyOperations:
        return None
    return on_meta or _attempt(lambda: predict(form, problem, params, mode))


@lru_cache(maxsize=8)
def _reference(
    source: Source, scope: Scope, mode: Mode, problem: Problem, canonical: str, params: tuple[tuple[str, Any], ...]
) -> tuple[int | None, int | None]:
    """Bytes and FLOPs of the reference, kept for the other impls of the same size. canonical: True and 1 are two."""
    form, values = source.load().forms[scope], dict(params)
    return (
        _attempt(lambda: _total(form, problem, values, mode, None)),
        _attempt(lambda: _counted(form, problem, values, mode)),
    )


def _attempt(figure: Callable[[], T]) -> T | None:
    try:
        return figure()
    except (TooManyOperations, Interrupted):
        raise
    except BaseException:  # whatever an operator does that fake tensors do not support
        return None


def _total(form: Form, problem: Problem, params: Params, mode: Mode, call: Callable[..., Any] | None) -> int:
    return predict(form, problem, params, mode, call).total_bytes


def _counted(form: Form, problem: Problem, params: Params, mode: Mode) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # brings Triton, which a worker that measures need not import

    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
        cotangent = output_like(form.reference, problem, params, inputs) if mode == "fwd_bwd" else None
        with FlopCounterMode(display=False) as counter:
            run(form.reference, problem, params, inputs, cotangent, within=nullcontext())
    return int(counter.get_total_flops())
