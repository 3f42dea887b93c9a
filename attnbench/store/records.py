"""The only schema of what is stored. Reading and writing of run folders; nothing here imports torch.

A run folder holds visits.jsonl and samples.csv (append-only), results.csv (derived), environment.json, suite.yaml.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from attnbench.errors import BadInput
from attnbench.operator import Growth
from attnbench.problem import BASELINE, CELL_COLUMNS, DTYPES, MODES, SCOPES, cell_of
from attnbench.store.trusted_json import (
    REPAIR,
    decoded,
    is_number,
    is_text,
    is_whole,
    parse_object,
    read_bytes,
    read_text,
    short,
)
from attnbench.terminal import escaped

if TYPE_CHECKING:
    from pandas import DataFrame

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


@dataclass(frozen=True)
class Run:
    """A stored run, checked.

    visits: one row per visit in the order stored: key, CELL_COLUMNS, device, round, process, order, status, reason,
    kernel, samples, threads, contract, cause, warnings, operations, then every metric column (missing: NaN or NA).
    environment: environment.json. suite_text: suite.yaml as run. stored_keys: by key, the one in the run's files,
    where `analysis.matching` has completed cells.
    """

    folder: Path
    visits: DataFrame
    environment: dict[str, Any]
    suite_text: str
    stored_keys: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def results(self) -> DataFrame:
        """results.csv, derived again from the visits: one row per key."""
        from attnbench.analysis.results import derive

        return derive(self.visits)

    @cached_property
    def suite(self) -> dict[str, Any]:
        """suite.yaml as plain data; nothing that it names is imported. Raises BadInput."""
        from attnbench.yaml_file import parse

        return parse(self.suite_text, str(self.folder / SUITE))

    @property
    def baseline(self) -> str:
        """The operator that the suite compares the others with. Raises BadInput."""
        return self._named("baseline") or BASELINE

    @property
    def name(self) -> str:
        """The suite's name, or the folder's. Raises BadInput."""
        return self._named("name") or self.folder.name

    def _named(self, key: str) -> str:
        value = self.suite.get(key) or ""
        if not isinstance(value, str):
            raise BadInput(f"{self.folder / SUITE}: {key} = {short(value)}; allowed: a name. {REPAIR}")
        return escaped(value)

    @cached_property
    def samples(self) -> DataFrame:
        """samples.csv without the samples of unfinished visits; columns SAMPLE_COLUMNS."""
        from attnbench.store.frames import read_samples

        if not self.stored_keys:
            return read_samples(self.folder, self.visits)
        today = {stored: key for key, stored in self.stored_keys.items()}
        table = read_samples(self.folder, self.visits.assign(key=self.visits["key"].map(self.stored_keys)))
        return table.assign(key=table["key"].map(today))


def read_run(path: str | Path) -> Run:
    """The run stored in a folder. Raises BadInput where it is none, or where what it holds cannot be trusted.

    A torn last line is a visit that never finished, and is left out.
    """
    from attnbench.store.frames import frame

    folder = Path(path)
    if not os.path.isdir(folder):
        raise BadInput(f"{path}: no such folder. Give a folder that `attnbench run` wrote.")
    for name in (VISITS, ENVIRONMENT, SUITE):
        if not os.path.isfile(folder / name):
            raise BadInput(f"{folder}: not a run folder, it has no {name}. Give a folder that `attnbench run` wrote.")
    visits = read_visits(folder)
    contracts = sorted({visit.contract for visit in visits})
    if len(contracts) > 1:
        raise BadInput(
            f"{folder / VISITS}: visits of different contracts ({' and '.join(contracts)}) in one run; "
            "their numbers do not mean the same. Separate them, or measure again."
        )
    environment = parse_object(read_text(folder / ENVIRONMENT), str(folder / ENVIRONMENT))
    for name, (allowed, good) in _DEFINITIONS.items():
        if name in environment and not good(environment[name]):
            told = f"{name} = {short(environment[name])}; allowed: {allowed}"
            raise BadInput(f"{folder / ENVIRONMENT}: {told}. {REPAIR}")
    return Run(folder, frame(visits), environment, read_text(folder / SUITE))


def read_visits(folder: Path) -> list[Visit]:
    """Every finished visit, in the order stored. Raises BadInput: wrong types, foreign lines, a visit twice."""
    return parse_visits(read_bytes(folder / VISITS), folder / VISITS)


def parse_visits(data: bytes, path: Path) -> list[Visit]:
    """The whole lines of a visits.jsonl; what follows them is a visit that never finished. Raises BadInput."""
    lines = decoded(data, path, torn=True).split("\n")[:-1]
    visits: list[Visit] = []
    seen: dict[tuple[str, int], int] = {}
    for number, text in enumerate(lines, 1):
        visit = parse_visit(text, f"{path}, line {number}")
        first = seen.setdefault((visit.key, visit.round), number)
        if first != number:
            raise BadInput(
                f"{path}, line {number}: key {visit.key} in round {visit.round} again, first on line {first}; "
                "a visit is measured once. Remove the copied lines."
            )
        visits.append(visit)
    return visits


def parse_visit(text: str, where: str) -> Visit:
    """One line of visits.jsonl. Raises BadInput naming `where`; fields it does not know are left out."""
    given = parse_object(text, where)
    known = {f.name for f in fields(Visit)}
    missing = sorted({"key", "cell", "device", "round", "process", "order", "status"} - set(given))
    if missing:
        raise BadInput(f"{where}: '{missing[0]}' is missing. A visit has {', '.join(sorted(known))}. {REPAIR}")
    values = {name: given[name] for name in given if name in known}
    for name, value in values.items():
        allowed, good = _FIELDS[name]
        if not good(value):
            raise BadInput(f"{where}: {name} = {short(value)}; allowed: {allowed}. {REPAIR}")
    values["warnings"] = tuple(values.get("warnings", ()))
    cell = values["cell"] = {name: values["cell"][name] for name in CELL_COLUMNS}
    try:
        key = cell_of(cell).key
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise BadInput(f"{where}: cell cannot be: {error}. {REPAIR}") from None
    if key != values["key"]:
        raise BadInput(f"{where}: key = {short(values['key'])}, but its cell is {key}. {REPAIR}")
    return Visit(**values)


def dtype_of(column: str) -> Any:
    """The pandas dtype of a column. "Int64": counts and bytes, of which no digit is lost and missing is NA."""
    if column in ("causal",):
        return "bool"
    if column in _WHOLE or column.endswith("_bytes"):
        return "Int64"
    if column in ("warnings", "operations") or column in _TEXT:
        return "object"
    return "float64"


_TEXT = (
    "key", "operator", "impl", "scope", "params", "dtype", "mode", "device", "status", "reason", "kernel", "contract",
    "cause",
)  # fmt: skip
_WHOLE = (
    "batch", "heads", "seq_len", "height", "width", "channels", "round", "process", "order", "samples", "threads",
    "bytes_required", "checked_seq_len", "rounds", "flops", "reference_flops", "flops_counted", "flops_uncounted",
    "impl_flops",
)  # fmt: skip


def _is_cell(value: object) -> bool:
    if not isinstance(value, dict) or not set(CELL_COLUMNS) <= set(value):
        return False
    sizes = all(is_whole(value[n]) and value[n] > 0 for n in ("batch", "heads", "seq_len", "channels"))
    image = all(value[n] is None or (is_whole(value[n]) and value[n] > 0) for n in ("height", "width"))
    text = all(is_text(value[n]) for n in ("operator", "impl", "params"))
    # A backslash: a control character that `parse_object` has written out. Nothing is named so.
    text = text and not any("\\" in value[n] for n in ("operator", "impl"))
    named = value["scope"] in SCOPES and value["mode"] in MODES and value["dtype"] in DTYPES
    return sizes and image and text and named and isinstance(value["causal"], bool)


def _is_growth(value: object) -> bool:
    return isinstance(value, str) and value in get_args(Growth)


def _is_param(value: object) -> bool:
    return isinstance(value, (bool, str)) or (isinstance(value, (int, float)) and math.isfinite(value))


def _are_rates(value: Mapping[str, Any]) -> bool:
    return is_number(value.get("copy_bytes_per_s", 0)) and _is_table(is_number)(value.get("matmul_flops_per_s", {}))


def _is_table(good: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(good(v) for v in value.values())


def _up_to(most: int) -> tuple[str, Callable[[object], bool]]:
    return f"a whole number from 0 to {most}", lambda value: is_whole(value) and cast(int, value) <= most


def _are_metrics(value: object) -> bool:
    if not isinstance(value, dict) or not all(is_metric(name, number) for name, number in value.items()):
        return False
    for clock in ("wall_time", "device_time"):
        ends = [value.get(name) for name in (f"{clock}_low_s", f"{clock}_s", f"{clock}_high_s")]
        known = [end for end in ends if end is not None]
        if known != sorted(known):
            return False
    return True


def is_metric(name: str, value: object) -> bool:
    """Whether a number can be what its column says. Times beyond LONGEST_S and beyond exabytes are damage."""
    if not name or name in _NO_METRIC or not is_number(value):
        return False
    whole = dtype_of(name) == "Int64"
    most = LONGEST_S if name.endswith("_s") else 2.0**60 if name.endswith("_bytes") else 2.0**63 if whole else 1e12
    return cast(float, value) < most and (is_whole(value) or not whole)


_NO_METRIC = {*(f.name for f in fields(Visit)), *CELL_COLUMNS, "rounds", *(c for c in COLUMNS if c in _TEXT)}
"""Columns that are no metric's: one stored under such a name would take the column's place."""

_DEFINITIONS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "exact": ("a list of text", lambda value: isinstance(value, list) and all(map(is_text, value))),
    "families": ("an object of text", _is_table(is_text)),
    "defaults": ("an object of objects of parameters", _is_table(_is_table(_is_param))),
    "estimates": ("an object of text", _is_table(is_text)),
    "stated": (f"an object of objects of {', '.join(get_args(Growth))}", _is_table(_is_table(_is_growth))),
    "rates": ("an object of rates", lambda value: isinstance(value, dict) and _are_rates(value)),
}
"""What the outputs read of environment.json."""

_FIELDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "key": ("text", is_text),
    "cell": (f"an object with {', '.join(CELL_COLUMNS)}, each of its type", _is_cell),
    "device": ("cpu, cuda", lambda value: value in ("cpu", "cuda")),
    "round": _up_to(10**4),
    "process": _up_to(10**7),
    "order": _up_to(10**7),
    "status": (", ".join(STATUSES), lambda value: isinstance(value, str) and value in STATUSES),
    "reason": ("text", is_text),
    "kernel": ("text", is_text),
    "metrics": ("an object of numbers ≥ 0: counts and bytes whole, low ≤ value ≤ high, none absurd", _are_metrics),
    "samples": _up_to(10**8),
    "warnings": ("a list of text", lambda value: isinstance(value, list) and all(map(is_text, value))),
    "operations": ("an object of whole numbers ≥ 0", _is_table(is_whole)),
    "threads": ("a whole number up to 10000, or null", lambda value: value is None or _up_to(10**4)[1](value)),
    "contract": ("text", is_text),
    "cause": (f"empty, {', '.join(CAUSES[1:])}", lambda value: isinstance(value, str) and value in CAUSES),
}
