"""The processor that the worker itself runs on; memory is the process's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from attnbench.measure.device import Call, Device
from attnbench.measure.machine import allocator, host, identity

MEMORY_BYTES = 2**33
"""Stands for the machine's memory where the system does not state it."""

SDPA_EPS = 2.0**-18
"""torch's float32 SDPA kernel on the CPU has an exponential of 20 bits (`exp_u20`); the error of a weight is that of an
exponential and of their sum."""


def memory_limit(fraction: float, environment: Mapping[str, Any]) -> int:
    """Bytes that a cell may need: a fraction of the memory, never more than is available now."""
    sizes = [size for size in (environment["memory_bytes"], environment["cgroup_memory_bytes"]) if size]
    share = int(fraction * min(sizes)) if sizes else MEMORY_BYTES
    available = host.memory_available_bytes()
    return share if available is None else min(share, available)


def memory() -> tuple[str, int | None]:
    """What is available now."""
    return "this machine", host.memory_available_bytes()


def peak_memory(call: Call) -> dict[str, int]:
    """From the profiler's memory events; VmHWM, set back before, beside it."""
    from torch.autograd.profiler import profile

    allocator.give_back()  # what the check left free is none of this call's
    _reset_resident_peak()
    with profile(use_kineto=True, profile_memory=True) as profiler:
        outputs = call()
    del outputs
    columns = {"peak_memory_bytes": peak_of_events(profiler)}
    resident = _resident_peak()
    return columns if resident is None else {**columns, "process_memory_bytes": resident}


def peak_of_events(profiler: Any) -> int:
    """The most bytes alive at once of what was allocated under a torch profiler, in the order of its events."""
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: int(event.start_ns())):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def _reset_resident_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _resident_peak() -> int | None:
    stated = host.stated_in("/proc/self/status", "VmHWM:")
    return int(stated.split()[0]) * 1024 if stated else None


def seed(number: int) -> None:
    """Seeds the default generator of tensors on the CPU."""
    torch.default_generator.manual_seed(number)


DEVICE = Device(
    type="cpu",
    preference=0,
    is_host=True,
    memory_limit=memory_limit,
    memory=memory,
    peak_memory=peak_memory,
    unmeasured="need a GPU",
    facts=lambda: {"device_id": identity.of_host()},
    matmul_side=1024,
    copied_bytes=lambda: 1 << 28,
    affordable_flops=1e10,
    empty_cache=allocator.give_back,
    seed=seed,
    sdpa_eps=SDPA_EPS,
)
