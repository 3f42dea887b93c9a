"""Wall time of one call, host clock, device synchronised on both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.metric import Metric

if TYPE_CHECKING:
    from attnbench.measure.worker.clocks import Clock
    from attnbench.measure.worker.prepared_cell import Subject

METRIC = Metric(
    column="wall_time_s",
    columns={
        "wall_time_s": float,
        "wall_time_low_s": float,
        "wall_time_high_s": float,
        "wall_time_median_s": float,
        "first_call_s": float,
    },
    unit="s",
    meaning="Wall time of one call, host clock, device synchronised on both sides.",
    title="Wall time",
    place=1,
    clock="wall",
    derived="interval",
    least="fastest",
    growth="time",
    role="time",
    csv_place=1,
    csv_later=("wall_time_median_s", "first_call_s"),
)


def timer(subject: Subject, call_s: float) -> Clock:
    """Samples by the host's clock."""
    from attnbench.measure.worker import clocks

    return clocks.host_clock(subject)
