"""Bencher's metric format: by benchmark (a cell's key) and measure a value, with the ends of its 95 % interval.

https://bencher.dev/docs/reference/bencher-metric-format; `bencher run --adapter json --file run.json` reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.outputs._export import document, tracked

if TYPE_CHECKING:
    from attnbench.analysis.summary import Summary

DOCUMENT = True


def run(summary: Summary) -> str:
    """An object. A measure is the column of results.csv in Bencher's spelling, its unit at the end: `wall-time-s`."""
    benchmarks: dict[str, dict[str, dict[str, float]]] = {}
    for each, value in tracked(summary):
        measure = each.quantity.metric.column.replace("_", "-")
        ends = dict(zip(("lower_value", "upper_value"), each.interval or (), strict=False))
        benchmarks.setdefault(each.benchmark, {})[measure] = {"value": value, **ends}
    return document(benchmarks)
