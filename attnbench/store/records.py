"""The only schema of what is stored: a visit, a sample, and the files of a run folder.

A run folder holds visits.jsonl and samples.csv (append-only), results.csv (derived), environment.json, suite.yaml.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from attnbench.store.trusted_json import is_number

VISITS, SAMPLES, RESULTS, ENVIRONMENT, SUITE = (
    "visits.jsonl", "samples.csv", "results.csv", "environment.json", "suite.yaml",
)  # fmt: skip
"""The files of a run folder."""

Status = Literal["ok", "skipped", "wrong", "oom", "timeout", "crashed", "error"]
STATUSES: tuple[Status, ...] = get_args(Status)

Cause = Literal[
    "",
    "unsupported",
    "predicted_memory",
    "beyond_oom",
    "beyond_timeout",
    "budget",
    "oom",
    "killed",
    "timeout",
    "crashed",
    "raised",
    "bad_inputs",
    "wrong",
    "tampered",
]
CAUSES: tuple[Cause, ...] = get_args(Cause)
"""Why a visit has its status, for code to decide on; `reason` says the same to a person.

unsupported: outside the operator's definition, or its impl cannot run here. predicted_memory: more than the limit,
known from shapes. beyond_oom, beyond_timeout: a smaller size of the series ran out of memory or time. budget: not
reached. oom: an allocation failed. killed: by the kernel, for memory. timeout: cell_timeout. crashed: the worker died.
raised: an exception of the operator's. bad_inputs: what its make_inputs returns does not fit the cell. wrong: the check
found another output. tampered: the operator replaces what attnbench measures with. Empty: nothing to say, or not
stored.
"""

CAUSE_OF: dict[Status, Cause] = {
    "oom": "oom", "timeout": "timeout", "crashed": "crashed", "error": "raised", "wrong": "wrong",
}  # fmt: skip
"""The cause of a status where nothing more special is known."""

ENDED_AS: dict[Cause, Status] = {"predicted_memory": "oom", "beyond_oom": "oom", "beyond_timeout": "timeout"}
"""What would have become of a cell that was skipped for this cause."""

LONGEST_S = 1e8
"""Three years: a longer time is damage."""


@dataclass(frozen=True)
class Visit:
    """One cell in one round, as one line of visits.jsonl.

    cell: CELL_COLUMNS by name (params: canonical JSON). round: 0 is the check. process: number of the worker that
    measured it within the run. order: position in the round. metrics: values by results.csv column; a wall_time_s
    here is the median of this visit's samples. warnings: sentences for the user. operations: dispatched operators
    and launched kernels with their counts (check only).
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
    cause: Cause = ""

    def line(self) -> str:
        """The visit as its line of visits.jsonl, line end included."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False, ensure_ascii=False) + "\n"


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

    def line(self) -> str:
        """The sample as its row of samples.csv, line end included. No field needs quoting."""
        return ",".join(str(value) for value in asdict(self).values()) + "\n"


def is_sample(taken: object) -> bool:
    """Whether (clock, seconds, flags) can be stored as a sample."""
    if not isinstance(taken, (list, tuple)) or len(taken) != 3:
        return False
    clock, seconds, flags = taken
    named = clock in ("wall", "device") and isinstance(flags, str) and flags.replace("+", "").isalpha() is bool(flags)
    return named and is_number(seconds) and seconds < LONGEST_S


SAMPLE_COLUMNS = tuple(f.name for f in fields(Sample))
