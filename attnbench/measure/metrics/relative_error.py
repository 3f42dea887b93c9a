"""Largest error against float64 truth over its largest value, beside the bound it was held to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.metric import Metric

if TYPE_CHECKING:
    from attnbench.measure.worker.visit import Bench

METRIC = Metric(
    column="relative_error",
    columns={"relative_error": float, "tolerance": float, "checked_seq_len": int},
    unit="",
    meaning="Largest error against float64 truth over its largest value, beside the bound it was held to.",
    comparable=False,
    csv_place=6,
)


def check(bench: Bench) -> dict[str, float | int]:
    """What the check before timing found; it runs first, whatever the metrics."""
    return dict(bench.checked)
