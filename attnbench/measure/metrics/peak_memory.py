"""Peak allocated above the live inputs, from the allocator's own events."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.measure.machine.allocator import give_back
from attnbench.metric import Metric

if TYPE_CHECKING:
    from attnbench.measure.worker.prepared_cell import Outputs, Subject
    from attnbench.measure.worker.visit import Bench

METRIC = Metric(
    column="peak_memory_bytes",
    columns={
        "peak_memory_bytes": int,
        "peak_memory_total_bytes": int,
        "input_bytes": int,
        "parameter_bytes": int,
        "reserved_memory_bytes": int,
        "process_memory_bytes": int,
    },
    unit="bytes",
    meaning="Peak allocated above the live inputs, from the allocator's own events.",
    title="Peak memory, parameters included",
    label="peak memory",
    place=3,
    exact=True,
    guarded=("parameter_bytes",),
    least="leanest",
    added=("parameter_bytes",),
    growth="memory",
    role="memory",
    csv_place=4,
)


def check(bench: Bench) -> dict[str, float | int]:
    """One call on one set, nothing else of the cell alive; the check has called it before, so workspaces are there."""
    from attnbench.measure.worker.fake_memory import total_bytes

    subject = bench.subject
    subject.release()
    inputs = subject.inputs(subject.cell.problem, seed=0)
    call = subject.bind(subject.call, subject.cell.problem, inputs)
    if subject.cell.mode == "fwd_bwd":
        subject.perform(call)  # draws the cotangent, which is live before the measured call as the inputs are
    gc.collect()
    gc.disable()
    try:
        found = _cuda(subject, call) if subject.device == "cuda" else _cpu(subject, call)
    finally:
        gc.enable()
    sizes = {"input_bytes": total_bytes(inputs.data), "parameter_bytes": total_bytes(inputs.parameters)}
    live = sum(sizes.values()) + total_bytes(inputs.choices)
    return {**found, **sizes, "peak_memory_total_bytes": found["peak_memory_bytes"] + live}


def _cpu(subject: Subject, call: Callable[[], Outputs]) -> dict[str, float | int]:
    """From the profiler's memory events; VmHWM, set back before, beside it."""
    from torch.autograd.profiler import profile

    give_back()  # what the check left free is none of this call's
    _reset_resident_peak()
    with profile(use_kineto=True, profile_memory=True) as profiler:
        outputs = subject.perform(call)
    del outputs
    found: dict[str, float | int] = {"peak_memory_bytes": peak_of_events(profiler)}
    resident = _resident_peak()
    return found if resident is None else {**found, "process_memory_bytes": resident}


def peak_of_events(profiler: Any) -> int:
    """The most bytes alive at once of what was allocated under a torch profiler, in the order of its events."""
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: int(e.start_ns())):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def _cuda(subject: Subject, call: Callable[[], Outputs]) -> dict[str, float | int]:
    import torch

    from attnbench.measure.machine.nvml import Gpu

    subject.synchronise()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = subject.perform(call)
    found: dict[str, float | int] = {
        "peak_memory_bytes": torch.cuda.max_memory_allocated() - before,
        "reserved_memory_bytes": torch.cuda.max_memory_reserved(),
    }
    held = Gpu.current().process_memory_bytes()
    del outputs
    return found if held is None else {**found, "process_memory_bytes": held}


def _reset_resident_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _resident_peak() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
