"""What really runs in one call: dispatched operators, and the kernels that the device launches."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from attnbench.measure.worker.prepared_cell import Outputs, Subject

WHOLE: set[OpOverload] = set()
"""Operators that are seen not to be made of others: to ask takes as long as a small one of them."""


class Dispatched(TorchDispatchMode):
    """Counts the operators that reach a backend while it is active, by name without a default overload."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether it is hidden from torch's compiler, which torch then imports: that takes as long as torch itself."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if isinstance(func, OpOverload) and func not in WHOLE:
            # Under inference_mode composite operators arrive whole: SDPA's choice of kernel would stay hidden.
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
            WHOLE.add(func)
        self.counts[str(func).removesuffix(".default")] += 1
        return func(*args, **(kwargs or {}))


class DispatchedByCompiled(Dispatched):
    """The same of compiled code, which runs compiled inside it: left alone, as torch leaves it inside other modes, it
    would run eagerly."""

    __torch_dispatch__ = Dispatched.__torch_dispatch__

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Whether torch.compile compiles, and calls what it has compiled, while this mode is active."""
        return True


def counting(call: Callable[[], Outputs], counts: Counter[str]) -> Callable[[], Outputs]:
    """The same call, which adds the operators that it dispatches to counts, and those that detach what it returns."""

    def counted() -> Outputs:
        mode = DispatchedByCompiled if "torch._dynamo" in sys.modules else Dispatched
        with mode() as dispatched:
            outputs = call()
            for tensor in outputs:
                tensor.detach()
        counts.update(dispatched.counts)
        return outputs

    return counted


def operations(subject: Subject, dispatched: Mapping[str, int]) -> dict[str, int]:
    """Operators and kernels of one call, with their counts. dispatched: the operators."""
    launched = subject.device.launched_kernels(lambda: subject.perform(subject.calls[0]))
    prefix = kernel_prefix(subject)
    return {**dict(sorted(dispatched.items())), **{prefix + name: count for name, count in launched.items()}}


def kernel_prefix(subject: Subject) -> str:
    """Marks launched kernels among the operations of a visit."""
    return f"{subject.device.type}:"


def kernel(subject: Subject, counts: Mapping[str, int]) -> str:
    """What the `kernel` column says: the longest kernel launched, SDPA's backend, else what the impl states.

    Args:
        counts: the operations of a call.
    """
    prefix = kernel_prefix(subject)
    launched = [name.removeprefix(prefix) for name in counts if name.startswith(prefix)]
    impl = subject.cell.impl
    if launched and impl != "reference":
        return launched[0]
    if impl == "reference":
        return "eager"
    if impl == "compiled":
        return "inductor"
    fused = [name for name in counts if "scaled_dot_product" in name and "backward" not in name]
    if fused:
        return fused[0].removeprefix("aten.").lstrip("_")
    return "SDPA math" if impl == "sdpa" else subject.form.impls[impl].kernel
