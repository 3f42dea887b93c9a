"""FLOPs as torch's FlopCounterMode counts them, without what it does beside: it asks of every call whether the
operation is made of others, and follows modules, which takes longer than the small calls of tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from attnbench.measure.worker.fake_memory import output_like, run
from attnbench.measure.worker.operations import WHOLE, Dispatched
from attnbench.operator import Form, Inputs
from attnbench.problem import Params, Problem


class FlopCounter(Dispatched):
    """Adds up the FLOPs of what runs inside it in `total`. `test_operators.py` holds it against torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func in WHOLE and func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def of_both_passes(
    form: Form, problem: Problem, params: Params, inputs: Inputs, by_torch: FlopCounterMode | None = None
) -> list[int]:
    """What the reference executes on these tensors: in the forward pass, and with the backward one after it.

    by_torch: counts it as well.
    """
    cotangent = output_like(form.reference, problem, params, inputs)
    flops: list[int] = []

    def reference(*given: Any, **tensors: Tensor) -> Tensor:
        output = form.reference(*given, **tensors)
        flops.append(counter.total)
        return output

    with by_torch or nullcontext(), FlopCounter() as counter:
        run(reference, problem, params, inputs, cotangent, within=nullcontext())
    return [*flops, counter.total]
