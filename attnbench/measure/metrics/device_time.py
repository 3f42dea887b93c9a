"""Device time of one call between CUDA events; empty on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.metric import Metric

if TYPE_CHECKING:
    from attnbench.measure.worker.clocks import Clock
    from attnbench.measure.worker.prepared_cell import Subject

METRIC = Metric(
    column="device_time_s",
    columns={
        "device_time_s": float,
        "device_time_low_s": float,
        "device_time_high_s": float,
        "device_time_median_s": float,
    },
    unit="s",
    meaning="Device time of one call between CUDA events; empty on a CPU.",
    title="Device time",
    place=2,
    clock="device",
    derived="interval",
    least="fastest",
    growth="time",
    role="time",
    needs_gpu=True,
    csv_place=2,
    csv_later=("device_time_median_s",),
)


def timer(subject: Subject, call_s: float) -> Clock | None:
    """Samples by the device's own clock, where it has one. call_s: seconds of one call."""
    from attnbench.measure.worker import clocks

    return clocks.device_clock(subject, call_s)
