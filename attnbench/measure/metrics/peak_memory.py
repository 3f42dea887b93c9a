"""Peak allocated above the live inputs, from the allocator's own events."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from attnbench.metric import Metric

if TYPE_CHECKING:
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
    title="Peak memory without inputs, parameters included",
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
    """One call on the first set; the check has called it before, so workspaces are there."""
    from attnbench.measure.worker.fake_memory import total_bytes

    subject = bench.subject
    inputs = subject.sets[0]
    call = subject.bind(subject.call, subject.cell.problem, inputs)
    if subject.cell.mode == "fwd_bwd" and not subject.cotangents:
        subject.perform(call)  # draws the cotangent, which is live before the measured call as the inputs are
    gc.collect()
    enabled = gc.isenabled()  # an operator that switched it off has changed its process, which shows as such
    gc.disable()
    try:
        peak = subject.device.peak_memory(lambda: subject.perform(call))
    finally:
        if enabled:
            gc.enable()
    sizes = {"input_bytes": total_bytes(inputs.data), "parameter_bytes": total_bytes(inputs.parameters)}
    live = sum(sizes.values()) + total_bytes(inputs.choices) + total_bytes(inputs.state)
    return {**peak, **sizes, "peak_memory_total_bytes": peak["peak_memory_bytes"] + live}
