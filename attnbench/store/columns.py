"""The columns of results.csv, in their order, and what each holds."""

from __future__ import annotations

from typing import Any

from attnbench.problem import LATER, SIDES, SIZES
from attnbench.registry import metrics, metrics_in_csv

_BEFORE = (
    "key", "operator", "impl", "kernel", "scope", "params", "device", "dtype", "mode", "batch", "heads",
    "seq_len", "height", "width", "channels", "causal", "status", "reason", "rounds", "samples",
)  # fmt: skip
_BEHIND = ("threads", "contract", *LATER, "cause")

TEXT = (
    "key", "operator", "impl", "scope", "params", "dtype", "mode", "device", "status", "reason", "kernel", "contract",
    "cause", "device_id",
)  # fmt: skip
"""Columns of text."""

_WHOLE = (*SIZES, *SIDES, *LATER, "round", "process", "order", "samples", "threads", "rounds", "part")
"""Columns of counts that are no metric's."""


def first_columns() -> tuple[str, ...]:
    """The columns with which results.csv begins, in every run: the cell's, those of metrics with a `csv_place` but for
    their `csv_later`, and what it was measured under."""
    placed = (metric for metric in metrics_in_csv().values() if metric.csv_place is not None)
    figures = (name for metric in placed for name in metric.columns if name not in metric.csv_later)
    return (*_BEFORE, *figures, *_BEHIND)


def result_columns() -> tuple[str, ...]:
    """Every column of results.csv: `first_columns`, then the others of metrics with a `csv_place`, those with a clock
    last, and those of metrics without one; each by the metrics' names."""
    others = sorted(metrics().values(), key=lambda metric: (metric.csv_place is None, bool(metric.clock)))
    return tuple(dict.fromkeys((*first_columns(), *(name for metric in others for name in metric.columns))))


def dtype_of(column: str) -> Any:
    """The pandas dtype of a column. "Int64": counts and bytes, of which no digit is lost and missing is NA.

    A column that no metric declares is one of bytes where its name ends so, else a number.
    """
    if column == "causal":
        return "bool"
    if column in ("warnings", "operations") or column in TEXT:
        return "object"
    fallback: type[int] | type[float] = int if column in _WHOLE or column.endswith("_bytes") else float
    kind = next((m.columns[column] for m in metrics().values() if column in m.columns), fallback)
    return "Int64" if kind is int else "float64"
