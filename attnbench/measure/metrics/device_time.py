"""Device time of one call between CUDA events; empty on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.metric import Metric

if TYPE_CHECKING:
    from attnbench.measure.worker.visit import Bench

METRIC = Metric(
    column="device_time_s",
    unit="s",
    meaning="Device time of one call between CUDA events; empty on a CPU.",
    columns=("device_time_s", "device_time_low_s", "device_time_high_s"),
    exact=False,
    derived="interval",
    least="fastest",
)


def timed(bench: Bench) -> dict[str, float]:
    """Median of this visit's samples, with its within-process interval; the samples go to the bench."""
    from attnbench.measure.worker import timing as clock

    if bench.subject.device != "cuda":
        return {}
    timing = clock.device_time(bench.subject, bench.measure, bench.estimate)
    return bench.keep("device", timing)
