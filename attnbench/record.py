"""The only schema of what is stored. Reading and writing of run folders; nothing here imports torch.

A run folder holds visits.jsonl and samples.csv (append-only), results.csv (derived), environment.json, suite.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Status = Literal["ok", "skipped", "wrong", "oom", "timeout", "crashed", "error"]
STATUSES: tuple[Status, ...] = get_args(Status)

CONTRACT = 1
"""Version of the timing contract: raised by hand when the meaning of a stored number changes."""

CELL_COLUMNS = (
    "operator", "impl", "scope", "params", "dtype", "mode",
    "batch", "heads", "seq_len", "height", "width", "channels", "causal",
)  # fmt: skip
"""What identifies a cell: a visit carries these too, and a series is the rows that differ in one axis of them."""

COLUMNS = (
    "key", "operator", "impl", "kernel", "scope", "params", "device", "dtype", "mode", "batch", "heads",
    "seq_len", "height", "width", "channels", "causal", "status", "reason", "rounds", "samples",
    "wall_time_s", "wall_time_low_s", "wall_time_high_s",
    "device_time_s", "device_time_low_s", "device_time_high_s",
    "flops", "reference_flops", "flops_counted", "bytes_required",
    "peak_memory_bytes", "peak_memory_total_bytes", "input_bytes", "parameter_bytes",
    "reserved_memory_bytes", "process_memory_bytes", "energy_j",
    "relative_error", "tolerance", "checked_seq_len", "threads", "contract",
)  # fmt: skip
"""results.csv, in this order, one row per key; columns of further metrics follow."""


@dataclass(frozen=True)
class Visit:
    """One cell in one round, as one line of visits.jsonl.

    cell: CELL_COLUMNS by name (params: canonical JSON). round: 0 is the scout. process: number of the worker that
    measured it within the run. order: position in the round. metrics: values by results.csv column; a wall_time_s
    here is the median of this visit's samples. warnings: sentences for the user. operations: dispatched operators
    and launched kernels with their counts (scout only).
    """

    key: str
    cell: dict[str, Any]
    device: str
    round: int
    process: int
    order: int
    status: Status
    reason: str = ""
    kernel: str = ""
    metrics: dict[str, float | int] = field(default_factory=dict)
    samples: int = 0
    warnings: tuple[str, ...] = ()
    operations: dict[str, int] = field(default_factory=dict)
    threads: int | None = None
    contract: str = ""


@dataclass(frozen=True)
class Sample:
    """One timed sample, as one row of samples.csv. seconds: per call (a block's time over its calls).

    clock: "wall" or "device". flags: "" or words joined by "+", such as "throttled", "switched".
    """

    key: str
    round: int
    process: int
    index: int
    clock: str
    seconds: float
    flags: str = ""
