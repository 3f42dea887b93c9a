"""What really runs in one call: dispatched operators, and on CUDA the launched kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from attnbench.measure.worker.prepared_cell import Subject

KERNEL_PREFIX = "cuda:"
"""Marks launched kernels among the operations of a visit."""


class Dispatched(TorchDispatchMode):
    """Counts the operators that reach a backend while it is active, by name without a default overload."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Under inference_mode composite operators arrive whole: SDPA's choice of kernel would stay hidden.
        with self:
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        self.counts[str(func).removesuffix(".default")] += 1
        return func(*args, **(kwargs or {}))


def operations(subject: Subject) -> dict[str, int]:
    """Operators and kernels of one call on the first set, with their counts."""
    call = subject.calls[0]
    with Dispatched() as seen:
        subject.perform(call)
    return {**dict(sorted(seen.counts.items())), **(_kernels(subject) if subject.device == "cuda" else {})}


def _kernels(subject: Subject) -> dict[str, int]:
    """Kernels in the order of their device time, longest first."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        subject.perform(subject.calls[0])
    events = [e for e in profiler.events() if e.device_type == DeviceType.CUDA]
    time: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for event in events:
        if not event.name.startswith(("Memcpy", "Memset")):
            time[event.name] += event.device_time_total
            count[event.name] += 1
    return {KERNEL_PREFIX + name: count[name] for name, _ in time.most_common()}


def kernel(subject: Subject, seen: Mapping[str, int]) -> str:
    """What the `kernel` column says: the longest kernel on CUDA, SDPA's backend, else what the impl states."""
    launched = [name.removeprefix(KERNEL_PREFIX) for name in seen if name.startswith(KERNEL_PREFIX)]
    impl = subject.cell.impl
    if launched and impl != "reference":
        return launched[0]
    if impl == "reference":
        return "eager"
    if impl == "compiled":
        return "inductor"
    fused = [name for name in seen if "scaled_dot_product" in name and "backward" not in name]
    if fused:
        return fused[0].removeprefix("aten.").lstrip("_")
    return "SDPA math" if impl == "sdpa" else subject.form.impls[impl].kernel
