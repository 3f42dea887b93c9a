"""Reads the visits and the environment of a run folder that may be damaged or foreign: validated, or BadInput."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast, get_args

from attnbench.contract import CONTRACT, contract_parts, is_newer
from attnbench.errors import BadInput
from attnbench.metric import Metric
from attnbench.operator import Growth
from attnbench.problem import CELL_COLUMNS, DTYPES, LATER, MODES, SCOPES, SIDES, SIZES, cell_of
from attnbench.registry import metrics
from attnbench.store.columns import TEXT, dtype_of
from attnbench.store.privacy import without_paths, without_private
from attnbench.store.records import CAUSES, ENVIRONMENT, LONGEST_S, STATUSES, VISITS, Visit
from attnbench.store.shards import is_part, is_shard
from attnbench.store.trusted_json import (
    REPAIR,
    decoded,
    is_device_id,
    is_name,
    is_number,
    is_text,
    is_whole,
    parse_object,
    read_bytes,
    read_text,
)
from attnbench.units import quoted

RENAMED = {"scout_time_s": "check_time_s"}
"""The present names of metrics that older runs, and workers of older revisions, store under another."""


def read_visits(folder: Path) -> list[Visit]:
    """Every finished visit, in the order stored. Raises BadInput for wrong types, foreign lines or a repeated visit."""
    return parse_visits(read_bytes(folder / VISITS), folder / VISITS)


def read_environment(folder: Path) -> dict[str, Any]:
    """environment.json of a run folder. Raises BadInput where a value that analyses read has a wrong type."""
    path = folder / ENVIRONMENT
    environment = parse_object(read_text(path), str(path))
    for name, (allowed, is_valid) in _ENVIRONMENT.items():
        if name in environment and not is_valid(environment[name]):
            raise BadInput(f"{path}: {name} = {quoted(environment[name])}; allowed: {allowed}. {REPAIR}")
    if "fast_exact" in environment:
        environment["fast_exact"] = {name: without_private(why) for name, why in environment["fast_exact"].items()}
    return environment


def parse_visits(data: bytes, path: Path) -> list[Visit]:
    """The visits of the complete lines of a visits.jsonl; an incomplete last line is an unfinished visit.

    Raises: BadInput.
    """
    lines = decoded(data, path, torn=True).split("\n")[:-1]
    visits: list[Visit] = []
    line_of: dict[tuple[str, int, int], int] = {}
    for number, text in enumerate(lines, 1):
        visit = parse_visit(text, f"{path}, line {number}")
        first = line_of.setdefault((visit.key, visit.round, visit.part), number)
        if first != number:
            raise BadInput(
                f"{path}, line {number}: key {visit.key} in round {visit.round} is a duplicate of line {first}; "
                "a visit is measured once. Remove the copied lines."
            )
        visits.append(visit)
    return visits


def parse_visit(text: str, where: str) -> Visit:
    """One line of visits.jsonl; unknown fields are left out.

    Args:
        text: the line.
        where: its file and number, for messages.
    Raises: BadInput.
    """
    stored = parse_object(text, where)
    contract = stored.get("contract")
    if isinstance(contract, str) and is_newer(contract):  # first: whatever else looks wrong may be right there
        raise BadInput(
            f"{where}: measured under timing contract {contract_parts(contract)[0]}, and this attnbench knows those up "
            f"to {CONTRACT}: what the times mean is not known here. Use the attnbench that measured it, or a later one."
        )
    names = {f.name for f in fields(Visit)}
    missing = sorted({"key", "cell", "device", "round", "process", "order", "status"} - set(stored))
    if missing:
        raise BadInput(f"{where}: '{missing[0]}' is missing. A visit has {', '.join(sorted(names))}. {REPAIR}")
    values = {name: stored[name] for name in stored if name in names}
    for name, value in values.items():
        if not is_valid(name, value):
            wrong = _impossible(value) if name == "metrics" and isinstance(value, dict) else value
            raise BadInput(f"{where}: {name} = {quoted(wrong)}; allowed: {_FIELDS[name][0]}. {REPAIR}")
    values["warnings"] = tuple(map(without_private, values.get("warnings", ())))
    values |= {"reason": without_private(values.get("reason", "")), "kernel": without_paths(values.get("kernel", ""))}
    values["metrics"] = {RENAMED.get(name, name): value for name, value in values.get("metrics", {}).items()}
    cell = values["cell"] = {name: values["cell"].get(name) for name in CELL_COLUMNS}
    try:
        key = cell_of(cell).key
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise BadInput(f"{where}: invalid cell: {error}. {REPAIR}") from None
    if key != values["key"]:
        raise BadInput(f"{where}: key = {quoted(values['key'])}, but its cell is {key}. {REPAIR}")
    return Visit(**values)


def is_valid(name: str, value: object) -> bool:
    """Whether a field of a visit may hold a value. name: the field's."""
    return _FIELDS[name][1](value)


def _is_cell(value: object) -> bool:
    if not isinstance(value, dict) or not set(CELL_COLUMNS) - set(LATER) <= set(value):
        return False
    sizes = all(is_whole(value[n]) and value[n] > 0 for n in SIZES)
    image = all(value.get(n) is None or (is_whole(value[n]) and value[n] > 0) for n in (*SIDES, *LATER))
    text = all(is_text(value[n]) for n in ("operator", "impl", "params"))
    # A backslash comes from a control character that `parse_object` has escaped; no name contains one.
    text = text and not any("\\" in value[n] for n in ("operator", "impl"))
    named = value["scope"] in SCOPES and value["mode"] in MODES and value["dtype"] in DTYPES
    return sizes and image and text and named and isinstance(value["causal"], bool)


def _is_growth(value: object) -> bool:
    return isinstance(value, str) and value in get_args(Growth)


def _is_truth(value: object) -> bool:
    return isinstance(value, bool)


def _is_param(value: object) -> bool:
    return isinstance(value, (bool, str)) or (isinstance(value, (int, float)) and math.isfinite(value))


def _are_rates(value: Mapping[str, Any]) -> bool:
    return is_number(value.get("copy_bytes_per_s", 0)) and _is_table(is_number)(value.get("matmul_flops_per_s", {}))


def _are_looks(value: object) -> bool:
    """At most 20; `analysis.looks` has 16 up to 1000 rounds."""
    looks = value if isinstance(value, list) and all(map(is_whole, value)) else []
    return 0 < len(looks) <= 20 and looks == sorted(set(looks)) and looks[0] >= 1 and looks[-1] <= 1000


def _are_parts(value: object) -> bool:
    return isinstance(value, list) and all(map(is_part, value))


def _is_table(is_valid: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(is_valid(v) for v in value.values())


def _up_to(most: int) -> tuple[str, Callable[[object], bool]]:
    return f"a whole number from 0 to {most}", lambda value: is_whole(value) and cast(int, value) <= most


def _are_metrics(value: object) -> bool:
    return isinstance(value, dict) and not _impossible(value)


def _impossible(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a visit's metrics those that cannot be; where low ≤ value ≤ high does not hold, all three."""
    wrong = {name: number for name, number in values.items() if not is_metric(name, number)}
    intervals = [_interval(values, each) for each in metrics().values() if each.derived == "interval" and not wrong]
    return wrong or next((own for own in intervals if [*own.values()] != sorted(own.values())), {})


def _interval(values: Mapping[str, Any], metric: Metric) -> dict[str, Any]:
    """Its low, value and high, of those that are there."""
    low, high = metric.ends
    return {name: values[name] for name in (low, metric.column, high) if values.get(name) is not None}


def is_metric(name: str, value: object) -> bool:
    """Whether a value is possible for its column. Times above LONGEST_S and sizes above an exabyte are damage."""
    if not name or name in _NO_METRIC or not is_number(value):
        return False
    integral = dtype_of(name) == "Int64"
    most = LONGEST_S if name.endswith("_s") else 2.0**60 if name.endswith("_bytes") else 2.0**63 if integral else 1e12
    return cast(float, value) < most and (is_whole(value) or not integral)


_NO_METRIC = {*(f.name for f in fields(Visit)), *CELL_COLUMNS, "rounds", *TEXT}
"""Columns that belong to no metric; a metric stored under such a name would replace the column."""


_ENVIRONMENT: dict[str, tuple[str, Callable[[object], bool]]] = {
    "exact": ("a list of text", lambda value: isinstance(value, list) and all(map(is_text, value))),
    "fast_exact": ("an object of text", _is_table(is_text)),
    "families": ("an object of text", _is_table(is_text)),
    "defaults": ("an object of objects of parameters", _is_table(_is_table(_is_param))),
    "estimates": ("an object of text", _is_table(is_text)),
    "properties": ("an object of objects of true and false by name", _is_table(_is_table(_is_table(_is_truth)))),
    "stated": (f"an object of objects of {', '.join(get_args(Growth))}", _is_table(_is_table(_is_growth))),
    "looks": ("a list of whole numbers, ascending, from 1 to 1000", _are_looks),
    "device_id": ("empty, or up to 32 hexadecimal digits", is_device_id),
    "shard": ("an object with numbers, of, dealt and units, as `attnbench run --shard` stores it", is_shard),
    "parts": ("a list of what was joined, as `attnbench merge` stores it", _are_parts),
    "rates": ("an object of rates", lambda value: isinstance(value, dict) and _are_rates(value)),
}
"""The values of environment.json that analyses read: what is allowed, and the test."""


_FIELDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "key": ("text", is_text),
    "cell": (f"an object with {', '.join(CELL_COLUMNS)}, each of its type", _is_cell),
    "device": ("a name of lower-case letters, digits and _", is_name),
    "round": _up_to(10**4),
    "process": _up_to(10**7),
    "order": _up_to(10**7),
    "status": (", ".join(STATUSES), lambda value: isinstance(value, str) and value in STATUSES),
    "reason": ("text", is_text),
    "kernel": ("text", is_text),
    "metrics": ("an object of numbers ≥ 0: counts and bytes whole, low ≤ value ≤ high, all plausible", _are_metrics),
    "samples": _up_to(10**8),
    "warnings": ("a list of text", lambda value: isinstance(value, list) and all(map(is_text, value))),
    "operations": ("an object of whole numbers ≥ 0", _is_table(is_whole)),
    "threads": ("a whole number up to 10000, or null", lambda value: value is None or _up_to(10**4)[1](value)),
    "contract": ("text", is_text),
    "part": _up_to(10**7),
    "device_id": ("empty, or up to 32 hexadecimal digits", is_device_id),
    "cause": (f"empty, {', '.join(CAUSES[1:])}", lambda value: isinstance(value, str) and value in CAUSES),
}
