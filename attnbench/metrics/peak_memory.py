"""Peak allocated above the live inputs, from the allocator's own events."""

from __future__ import annotations

from attnbench.metric import Metric

METRIC = Metric(
    column="peak_memory_bytes",
    unit="bytes",
    meaning="Peak allocated above the live inputs, from the allocator's own events.",
    columns=(
        "peak_memory_bytes",
        "peak_memory_total_bytes",
        "input_bytes",
        "parameter_bytes",
        "reserved_memory_bytes",
        "process_memory_bytes",
    ),
    exact=True,
)
