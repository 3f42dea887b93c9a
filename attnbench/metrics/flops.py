"""Analytic FLOPs of the definition, beside what the reference executes and what torch counted."""

from __future__ import annotations

from attnbench.metric import Metric

METRIC = Metric(
    column="flops",
    unit="flop",
    meaning="Analytic FLOPs of the definition, beside what the reference executes and what torch counted.",
    columns=("flops", "reference_flops", "flops_counted"),
    exact=True,
)
