"""Energy of one call from NVML's counter; empty where there is none."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from attnbench.metric import Metric

if TYPE_CHECKING:
    from attnbench.measure.worker.visit import Bench

SPAN_S = 0.5
"""Calls go on for at least this long: NVML's counter moves every 20 to 100 ms."""

METRIC = Metric(
    column="energy_j",
    columns={"energy_j": float, "energy_resolution_j": float},
    unit="j",
    meaning="Energy of one call from NVML's counter; empty where there is none.",
    title="Energy",
    place=5,
    derived="median",
    least="most frugal",
    growth="time",
    needs_gpu=True,
    finish_s=SPAN_S,
    csv_place=5,
    csv_later=("energy_resolution_j",),
)


def finish(bench: Bench) -> dict[str, float]:
    """Joules per call of the whole board while calls follow one another, and the counter's step per call."""
    from attnbench.measure.worker.prepared_cell import grad_mode

    subject = bench.subject
    device = subject.device
    if device.energy_j() is None:
        return {}
    count = 0
    with subject.spent.inside(), grad_mode(subject.cell.mode):
        subject.synchronise()
        start, before = perf_counter(), device.energy_j()
        while perf_counter() - start < SPAN_S:
            for call in subject.calls:
                call()
            count += len(subject.calls)
            subject.synchronise()
        after = device.energy_j()
    if after is None or before is None or after <= before:
        return {}
    return {"energy_j": (after - before) / count, "energy_resolution_j": device.energy_step_j / count}
