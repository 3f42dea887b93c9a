"""Energy of one call from NVML's counter; empty where there is none."""

from __future__ import annotations

from attnbench.metric import Metric

METRIC = Metric(
    column="energy_j",
    unit="j",
    meaning="Energy of one call from NVML's counter; empty where there is none.",
    columns=("energy_j",),
    exact=False,
)
