"""The columns of results.csv, in their order, and what each holds."""

from __future__ import annotations

from typing import Any

COLUMNS = (
    "key", "operator", "impl", "kernel", "scope", "params", "device", "dtype", "mode", "batch", "heads",
    "seq_len", "height", "width", "channels", "causal", "status", "reason", "rounds", "samples",
    "wall_time_s", "wall_time_low_s", "wall_time_high_s",
    "device_time_s", "device_time_low_s", "device_time_high_s",
    "flops", "reference_flops", "flops_counted", "bytes_required",
    "peak_memory_bytes", "peak_memory_total_bytes", "input_bytes", "parameter_bytes",
    "reserved_memory_bytes", "process_memory_bytes", "energy_j",
    "relative_error", "tolerance", "checked_seq_len", "threads", "contract", "cause",
)  # fmt: skip
"""results.csv, in this order, one row per key; columns of further metrics follow."""


TEXT = (
    "key", "operator", "impl", "scope", "params", "dtype", "mode", "device", "status", "reason", "kernel", "contract",
    "cause",
)  # fmt: skip
"""Columns of text."""

WHOLE = (
    "batch", "heads", "seq_len", "height", "width", "channels", "round", "process", "order", "samples", "threads",
    "bytes_required", "checked_seq_len", "rounds", "flops", "reference_flops", "flops_counted", "flops_uncounted",
    "impl_flops",
)  # fmt: skip
"""Columns of counts that do not end in `_bytes`."""


def dtype_of(column: str) -> Any:
    """The pandas dtype of a column. "Int64": counts and bytes, of which no digit is lost and missing is NA."""
    if column in ("causal",):
        return "bool"
    if column in WHOLE or column.endswith("_bytes"):
        return "Int64"
    if column in ("warnings", "operations") or column in TEXT:
        return "object"
    return "float64"
