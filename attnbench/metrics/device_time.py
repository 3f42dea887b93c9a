"""Device time of one call between CUDA events; empty on a CPU."""

from __future__ import annotations

from attnbench.metric import Metric

METRIC = Metric(
    column="device_time_s",
    unit="s",
    meaning="Device time of one call between CUDA events; empty on a CPU.",
    columns=("device_time_s", "device_time_low_s", "device_time_high_s"),
    exact=False,
)
