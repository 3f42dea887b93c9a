"""What the kind `cuda` asks of torch, in which order, on a torch that only pretends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._C._autograd import DeviceType

from attnbench.measure.device import cuda


class Allocator:
    """As much of torch.cuda as memory is read from; it writes down what was asked, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.free = 2**40

    def __getattr__(self, name: str) -> Callable[[], object]:
        values = {"memory_allocated": 100, "max_memory_allocated": 350, "max_memory_reserved": 1024}

        def asked() -> object:
            self.log.append(name)
            return (self.free, 2**40) if name == "mem_get_info" else values.get(name)

        return asked


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    pretended = Allocator()
    monkeypatch.setattr(cuda, "torch", SimpleNamespace(cuda=pretended))
    return pretended


@pytest.mark.parametrize("process", [None, 5000])
def test_memory_is_read_above_what_is_live_while_the_outputs_are(
    allocator: Allocator, process: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call() -> object:
        allocator.log.append("call")
        return Outputs()

    class Outputs:
        def __del__(self) -> None:
            allocator.log.append("outputs end")

    monkeypatch.setattr(cuda, "gpu", lambda: SimpleNamespace(process_memory_bytes=lambda: process))
    columns = cuda.DEVICE.peak_memory(call)
    assert allocator.log == [
        "synchronize", "empty_cache", "reset_peak_memory_stats", "memory_allocated", "call", "max_memory_allocated",
        "max_memory_reserved", "outputs end",
    ]  # fmt: skip
    known = {} if process is None else {"process_memory_bytes": process}
    assert columns == {"peak_memory_bytes": 250, "reserved_memory_bytes": 1024, **known}


@pytest.mark.parametrize(("free", "size"), [(2**40, cuda.COPIED_BYTES), (2**30, 2**28)])
def test_a_copy_takes_no_more_than_a_quarter_of_what_is_free(allocator: Allocator, free: int, size: int) -> None:
    allocator.free = free
    assert cuda.DEVICE.copied_bytes() == size


def test_kernels_are_counted_the_longest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def event(name: str, time: float, device: DeviceType = DeviceType.CUDA) -> object:
        return SimpleNamespace(name=name, device_time_total=time, device_type=device)

    events = [
        event("softmax", 5.0), event("gemm", 4.0), event("Memcpy DtoD", 90.0), event("gemm", 4.0),
        event("Memset", 90.0), event("aten::mm", 90.0, DeviceType.CPU),
    ]  # fmt: skip
    profiler = SimpleNamespace(events=lambda: events)
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: nullcontext(profiler))
    launched = cuda.DEVICE.launched_kernels(lambda: None)
    assert list(launched.items()) == [("gemm", 2), ("softmax", 1)]


def test_a_fraction_of_the_gpu_is_the_limit() -> None:
    assert cuda.DEVICE.memory_limit(0.8, {"gpu": {"memory_bytes": 1000}, "memory_bytes": 10}) == 800
