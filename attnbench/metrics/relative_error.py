"""Largest error against float64 truth over its largest value, beside the bound it was held to."""

from __future__ import annotations

from attnbench.metric import Metric

METRIC = Metric(
    column="relative_error",
    unit="",
    meaning="Largest error against float64 truth over its largest value, beside the bound it was held to.",
    columns=("relative_error", "tolerance", "checked_seq_len"),
    exact=False,
)
