"""Wall time of one call, host clock, device synchronised on both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.metric import Metric

if TYPE_CHECKING:
    from attnbench.measure.worker.visit import Bench

METRIC = Metric(
    column="wall_time_s",
    unit="s",
    meaning="Wall time of one call, host clock, device synchronised on both sides.",
    columns=("wall_time_s", "wall_time_low_s", "wall_time_high_s"),
    exact=False,
    derived="interval",
    least="fastest",
)


def timed(bench: Bench) -> dict[str, float]:
    """Median of this visit's samples, with its within-process interval; the samples go to the bench."""
    from attnbench.measure.worker import timing as clock

    timing = clock.wall_time(bench.subject, bench.measure, bench.estimate)
    return bench.keep("wall", timing)
