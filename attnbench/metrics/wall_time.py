"""Wall time of one call, host clock, device synchronised on both sides."""

from __future__ import annotations

from attnbench.metric import Metric

METRIC = Metric(
    column="wall_time_s",
    unit="s",
    meaning="Wall time of one call, host clock, device synchronised on both sides.",
    columns=("wall_time_s", "wall_time_low_s", "wall_time_high_s"),
    exact=False,
)
