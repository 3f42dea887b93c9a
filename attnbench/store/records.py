"""The schema of a run folder: a visit, a sample, and its files.

A run folder holds visits.jsonl and samples.csv (append-only), results.csv (derived), environment.json, suite.yaml.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from attnbench.store.trusted_json import is_name, is_number

FILES = VISITS, SAMPLES, RESULTS, ENVIRONMENT, SUITE = (
    "visits.jsonl", "samples.csv", "results.csv", "environment.json", "suite.yaml",
)  # fmt: skip
"""The files of a run folder."""

SEARCH = "search.json"
"""Beside them, what a crossover search was asked."""

FLEET, SHARDS = "fleet.json", "shards"
"""Of a fleet's folder: what it measures, and below which the run folder of each shard is."""

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
"""Why a visit has its status, for code; `reason` is the same as text for people.

- unsupported: outside the operator's definition, or the impl cannot run here
- predicted_memory: more than the limit, computed from shapes
- beyond_oom, beyond_timeout: a smaller size of the series ran out of memory or time
- budget: not reached within the time budget
- oom: an allocation failed
- killed: by the operating system, for memory
- timeout: longer than cell_timeout
- crashed: the worker died
- raised: the operator raised an exception
- bad_inputs: the result of its make_inputs does not fit the cell, or its dtype does not hold what follows from it
- wrong: its output differs from the reference
- tampered: the operator replaced code that attnbench measures with
- empty: status ok, or not stored
"""

CAUSE_OF: dict[Status, Cause] = {
    "oom": "oom", "timeout": "timeout", "crashed": "crashed", "error": "raised", "wrong": "wrong",
}  # fmt: skip
"""The cause of a status where no more specific one is known."""

ENDED_AS: dict[Cause, Status] = {"predicted_memory": "oom", "beyond_oom": "oom", "beyond_timeout": "timeout"}
"""The status that a cell skipped for this cause would have had."""

RETRIED: tuple[Status, ...] = ("ok", "crashed", "error")
"""A cell whose last visit ended otherwise is not visited again: the outcome would be the same, or worthless."""

LONGEST_S = 1e8
"""Three years, in seconds; a longer stored time is damage."""


_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?!\w)")


def without_numbers(text: str) -> str:
    """What texts have in common that say the same of other numbers, such as of more threads at each call."""
    return _NUMBER.sub("#", text)


WARNED = ("operator", "impl", "params", "scope", "mode")
"""Columns of a cell: those of which all are alike tell the same warning once."""

MOST_WARNINGS = 5
"""So many different warnings of a visit are stored, and of a series shown: more differ in what they name alone, such as
an environment variable of another name at each call."""


def distinct(texts: Iterable[str], most: int | None = MOST_WARNINGS) -> tuple[str, ...]:
    """Texts in order; of those that differ in their numbers alone there is one, with the largest.

    most: of them; None: all.
    """
    kept: dict[str, str] = {}
    for text in texts:
        kind = without_numbers(text)
        if kind not in kept and len(kept) == most:
            continue
        kept[kind] = max(kept.get(kind, text), text, key=lambda each: [float(n) for n in _NUMBER.findall(each)][::-1])
    return tuple(kept.values())


@dataclass(frozen=True)
class Visit:
    """One cell in one round, as one line of visits.jsonl.

    Attributes:
        key: the cell's.
        cell: CELL_COLUMNS by name (params: canonical JSON).
        device: the kind of device, such as "cpu".
        round: 0 is the check.
        process: number of the worker within the run.
        order: position in the round; of contract 3 that of its block.
        reason: why it has its status, for people; empty where ok.
        kernel: what the impl ran, where known.
        metrics: values by column of results.csv, in base units; wall_time_s is the undisturbed time of this visit's
            samples (contracts 1 and 2: their median).
        samples: how many.
        warnings: sentences for the user.
        operations: dispatched operators and launched kernels with their counts (check only).
        threads: of the worker; None: not stored.
        contract: under which its times were measured.
        cause: why it has its status, for code.
        part: of its block, where that was measured in several; each has the baseline.
        device_id: tells the devices of one model apart, and nothing else; empty: not stored.
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
    part: int = 0
    device_id: str = ""

    def line(self) -> str:
        """The visit as a line of visits.jsonl, with its line end."""
        return json.dumps(vars(self), separators=(",", ":"), allow_nan=False, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Sample:
    """One timed sample, as one row of samples.csv.

    Attributes:
        key: the cell's.
        round, process: of its visit.
        index: position within the visit.
        clock: `Metric.clock` of the metric that took it.
        seconds: per call; where a sample times several calls, their mean.
        flags: "" or words joined by "+", such as "throttled", "switched".
        part: of its visit.
    """

    key: str
    round: int
    process: int
    index: int
    clock: str
    seconds: float
    flags: str = ""
    part: int = 0

    def line(self) -> str:
        """The sample as a row of samples.csv, with its line end. No field needs quoting."""
        return ",".join(map(str, vars(self).values())) + "\n"


def is_sample(value: object) -> bool:
    """Whether a value is a valid (clock, seconds, flags)."""
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        return False
    clock, seconds, flags = value
    named = is_name(clock) and isinstance(flags, str) and flags.replace("+", "").isalpha() is bool(flags)
    return named and is_number(seconds) and seconds < LONGEST_S


SAMPLE_COLUMNS = tuple(f.name for f in fields(Sample))
OLDER_SAMPLE_COLUMNS = SAMPLE_COLUMNS[: SAMPLE_COLUMNS.index("part")]
"""Of contracts 1 and 2, whose visits have no parts."""
