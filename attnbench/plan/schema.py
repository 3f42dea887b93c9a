"""What a suite's keys may hold. Operators are known by name only here: nothing imports torch."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnbench.errors import BadInput
from attnbench.naming import option
from attnbench.plan.mistakes import MAX_VALUES, Mistakes, Notes, Section, mistakes_of, several
from attnbench.plan.settings import MAX_ROUNDS, Limits, Measure
from attnbench.plan.sweep import Shape, Sweep, impossible, problems, read_shape, read_sweep
from attnbench.problem import BASELINE, MODES, MODES_SHORT, SCOPES, ParamValue
from attnbench.registry import metrics
from attnbench.registry import operators as known_operators
from attnbench.terminal import escaped
from attnbench.thresholds import MATCHED, OPERATIONS, Gate, Threshold
from attnbench.units import choice, fraction, memory, quoted, seconds, suggestion, text, whole_number
from attnbench.yaml_file import scalar

MAX_CELLS = 10_000
MAX_TURNS = 10_000
IMPLS = ("reference", "sdpa", "compiled", "cuda")
"""Impls that a suite may ask for whatever its operators are."""

IMPL_NAME = r"[a-z0-9_]+(:[a-z0-9_]+)?"
"""How an impl may be named: a variant stands after the colon."""
IMPL_NAMES = "small letters, digits and _, with a variant after a colon, such as cuda:flash"
"""The same in words."""

_NAME = text(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", "up to 64 letters, digits, - and _")
_LINE = text(r"[^\x00-\x1f\x7f-\x9f]{0,200}", "one line of up to 200 characters")


def read_fields(
    data: dict[str, Any], where: str, directory: Path, name: str, operators_from: Sequence[str] | None = None
) -> dict[str, Any]:
    """The fields of Suite that the YAML sets, with their defaults.

    Args:
        data: the YAML, parsed.
        where: how messages name it.
        directory: what relative paths are relative to.
        name: the suite's where the YAML has none.
        operators_from: in place of that of the YAML.

    Raises: BadInput with all mistakes.
    """
    notes = Notes(where)
    if operators_from is not None:
        data = {**data, "operators_from": list(operators_from)}
        data = data if operators_from else {key: value for key, value in data.items() if key != "operators_from"}
    top = Section(data, "", notes)
    fields: dict[str, Any] = {
        "name": top.take("name", _NAME, re.sub(r"[^A-Za-z0-9_-]", "-", name)[:64].lstrip("-_") or "suite"),
        "description": top.take("description", _LINE, ""),
        "operators_from": top.take("operators_from", _read_places(directory), ()),
    }
    known: Collection[str] = ()
    try:
        known = known_operators(fields["operators_from"])
    except BadInput as error:
        notes.add("operators_from", str(error).removeprefix("operators_from: "))
        known = known_operators()
    operator_name = read_operator_name(known)
    fields["baseline"] = top.take("baseline", operator_name, BASELINE)
    top.require("operators", "[softmax, linformer]")
    fields["operators"] = top.take("operators", _read_operators(known), ())
    fields["impls"] = top.take("impls", several(read_impl), ("reference", "sdpa"))
    fields["scope"] = top.take("scope", several(choice(SCOPES)), ("core",))
    top.require("sweep", "[{seq_len: [256, 1024, 4096]}]")
    sweeps = _read_sweeps(top, notes)
    top.taken.append("problem")
    shape = read_shape(data.get("problem", {}), "problem", notes)
    for path, sweep in sweeps.items():
        for name in sorted(sweep.operators - {name for name, _ in fields["operators"]}):
            notes.add(f"{path}.operators", f"{quoted(name)} is none of the suite's; add it to `operators:` above")
    fields["sweep"], fields["problem"] = tuple(sweeps.values()), shape or Shape()
    fields["mode"] = top.take("mode", several(choice(MODES, MODES_SHORT)), ("fwd",))
    fields["measure"] = _read_measure(top, notes)
    fields["limits"] = _read_limits(top, notes)
    fields["gate"] = _read_gate(top, notes)
    top.close()
    if shape is not None:
        _check_cells(fields, sweeps, shape, notes)
    notes.close()
    return fields


def read_operator_name(known: Collection[str]) -> Callable[[Any], str]:
    """Reads the name of an operator that exists."""

    def read(value: Any) -> str:
        if isinstance(value, str) and value in known:
            return value
        near = suggestion(value, known)
        raise ValueError(f"{quoted(value)} is no operator{near}; `attnbench list operators` shows all {len(known)}")

    return read


def read_impl(value: Any) -> str:
    """Reads the name of an impl; with - before it, it is left out of those that another name stands for. Whether an
    operator of the suite has one of this name, `cells` sees.
    """
    if isinstance(value, str) and re.fullmatch("-?" + IMPL_NAME, value):
        return value
    try:
        return choice(IMPLS)(value)
    except ValueError as error:
        raise ValueError(f"{error}, or an operator's own name for one: {IMPL_NAMES}") from None


def _read_places(directory: Path) -> Callable[[Any], tuple[str, ...]]:
    def place(value: Any) -> str:
        if isinstance(value, str) and value.endswith(".py") and "\0" not in value:
            return os.path.realpath(directory / value)
        if isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", value):
            return value
        raise ValueError(f"{quoted(value)}; allowed: the path of a .py file, relative to the suite, or a package")

    return several(place)


def _read_operators(known: Collection[str]) -> Callable[[Any], tuple[tuple[str, dict[str, Any]], ...]]:
    name = read_operator_name(known)

    def entry(value: Any, path: str, mistakes: list[tuple[str, str]]) -> list[tuple[str, dict[str, Any]]]:
        pairs = value.items() if isinstance(value, dict) else [(value, None)]
        variants = []
        for key, grid in pairs:
            try:
                operator = name(key)
                variants.append((operator, _read_grid(grid)))
            except Mistakes as error:
                mistakes += mistakes_of(error, f"{path}.{key}")
            except ValueError as error:
                mistakes.append((path, str(error)))
        return variants

    def read(value: Any) -> tuple[tuple[str, dict[str, Any]], ...]:
        if value == "all":
            return tuple((operator, {}) for operator in known)
        if not value or not isinstance(value, (dict, list, str)):
            raise ValueError(f"{'empty' if value in ({}, []) else quoted(value)}; allowed: all, or a list of names")
        if isinstance(value, list) and len(value) > MAX_VALUES:
            raise ValueError(f"{len(value)} entries; allowed: at most {MAX_VALUES}")
        mistakes: list[tuple[str, str]] = []
        if not isinstance(value, list):
            variants = entry(value, "", mistakes)
        else:
            variants = [variant for i, item in enumerate(value) for variant in entry(item, f"[{i}]", mistakes)]
        distinct: set[Any] = set()
        for operator, grid in variants:
            variant = (operator, frozenset(grid.items()))
            if variant in distinct:
                mistakes.append(("", f"'{operator}' is given twice with the same parameters; remove one"))
            distinct.add(variant)
        if mistakes:
            raise Mistakes(mistakes)
        return tuple(variants)

    return read


def _read_grid(value: Any) -> dict[str, tuple[ParamValue, ...]]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Mistakes([("", f"{quoted(value)}; allowed: parameters and their values, such as {{k: [64, 256]}}")])
    grid: dict[str, tuple[ParamValue, ...]] = {}
    mistakes: list[tuple[str, str]] = []
    for key, values in value.items():
        try:
            grid[key] = several(_read_param)(values)
        except ValueError as error:
            mistakes += mistakes_of(error, f".{key}")
    if mistakes:
        raise Mistakes(mistakes)
    return grid


def read_params(
    words: Sequence[str], operators: Mapping[str, Collection[str]], notes: Notes
) -> dict[str, dict[str, tuple[ParamValue, ...]]]:
    """The parameters of a command line by operator: to each those whose key it has, with one or several values.

    Args:
        words: of `--param`: `key=value` or `key=value,value` each, a value as a suite reads it; in quotes: one value.
        operators: the names of the parameters of each.
        notes: where mistakes are noted.
    """
    known = sorted({key for keys in operators.values() for key in keys})
    values: dict[str, tuple[ParamValue, ...]] = {}
    for pair in words:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            notes.add(option("param"), f"{quoted(pair)}; allowed: key=value, such as k=128")
            continue
        try:
            if key in values:
                raise ValueError("given twice; remove one")
            if operators and key not in known:
                near, allowed = suggestion(key, known), ", ".join(known) or "none"
                raise ValueError(f"none of {', '.join(operators)} has it{near}; allowed: {allowed}")
            parts = [value] if value[:1] in ("'", '"') else value.split(",")
            values[key] = several(_read_param)([scalar(part.strip()) for part in parts])
        except ValueError as error:
            notes.add(f"{option('param')} {key[:60]}", str(error))
    return {name: {key: value for key, value in values.items() if key in keys} for name, keys in operators.items()}


def _read_param(value: Any) -> ParamValue:
    if isinstance(value, str) and len(value) <= 200 and escaped(value) == value:
        return value
    if isinstance(value, (bool, int, float)) and math.isfinite(value) and abs(value) <= 2**53:
        return value
    raise ValueError(f"{quoted(value)}; allowed: a line of text, a finite number, true or false, or a list of them")


def _read_sweeps(top: Section, notes: Notes) -> dict[str, Sweep]:
    """The entries without mistakes, by key path."""
    top.taken.append("sweep")
    value = top.data.get("sweep", [{"seq_len": 1}])
    if isinstance(value, dict):
        notes.add("sweep", "a mapping; write a list of entries: `sweep: [{seq_len: [256, 1024]}]`")
        return {}
    if not isinstance(value, list) or not value:
        notes.add(
            "sweep",
            f"{'empty' if value == [] else quoted(value)}; allowed: a list such as [{{seq_len: [256, 1024]}}]",
        )
        return {}
    sweeps = {f"sweep[{i}]": read_sweep(entry, f"sweep[{i}]", notes) for i, entry in enumerate(value)}
    return {path: sweep for path, sweep in sweeps.items() if sweep is not None}


_REPLACED = {
    "within_process_precision": "crossover_precision is what a run is precise to now (5% by default)",
    "min_samples": "min_turns is the least that a visit takes now, of up to 8 calls each",
    "max_samples": "max_turns is the most that a visit takes now, of up to 8 calls each",
}
"""Keys of `measure` before timing contract 3, and what there is in their place."""


def _read_measure(top: Section, notes: Notes) -> Measure:
    default = Measure()
    section = _section(top, "measure", notes)
    for key, now in _REPLACED.items():
        if key in section.data:
            notes.add(section.at(key), f"of an earlier timing contract: {now}. Remove it")
    section.data = {key: value for key, value in section.data.items() if key not in _REPLACED}
    rounds = section.take("rounds", whole_number(1, MAX_ROUNDS), default.rounds)
    measure = Measure(
        rounds=rounds,
        max_rounds=section.take("max_rounds", whole_number(1, MAX_ROUNDS), max(rounds, default.max_rounds)),
        crossover_precision=section.take("crossover_precision", _read_precision, default.crossover_precision),
        min_turns=section.take("min_turns", whole_number(1, MAX_TURNS), default.min_turns),
        max_turns=section.take("max_turns", whole_number(1, MAX_TURNS), default.max_turns),
        max_time_s=section.take("max_time", seconds, default.max_time_s),
    )
    section.close()
    for low, high in (("rounds", "max_rounds"), ("min_turns", "max_turns")):
        least, most = getattr(measure, low), getattr(measure, high)
        if section.ok and least > most:
            notes.add("measure", f"{low} {least} is above {high} {most}; exchange them")
    return measure


def _read_precision(value: Any) -> float | None:
    """A percentage; null: no round is added."""
    if value is None:
        return None
    try:
        return fraction(1e-3, 1.0)(value)
    except ValueError as error:
        raise ValueError(f"{error}, or null: then `rounds` rounds are made and no more") from None


def _read_limits(top: Section, notes: Notes) -> Limits:
    default = Limits()
    section = _section(top, "limits", notes)
    memory_fraction, memory_bytes = section.take("memory", memory, (default.memory_fraction, default.memory_bytes))
    cell_timeout = section.take("cell_timeout", seconds, default.cell_timeout_s)
    budget = section.take("budget", seconds, default.budget_s)
    first = section.take("first", choice(("smallest", "largest")), "smallest")
    section.close()
    return Limits(memory_fraction, memory_bytes, cell_timeout, budget, first == "largest")


def _read_gate(top: Section, notes: Notes) -> Gate:
    section = _section(top, "gate", notes)
    thresholds = _take_thresholds(section)
    section.taken.append("overrides")
    entries = section.data.get("overrides", [])
    overrides: list[Threshold] = []
    if not isinstance(entries, list):
        notes.add(
            "gate.overrides", f"{quoted(entries)}; allowed: a list such as [{{operator: performer, wall_time: 10%}}]"
        )
        entries = []
    for i, entry in enumerate(entries):
        below = Section(entry, f"gate.overrides[{i}]", notes)
        match = {
            key: below.take(key, text(r"\S{1,200}", "a pattern; * and ? match"), "")
            for key in MATCHED
            if key in below.data
        }
        if "mode" in match:
            match["mode"] = MODES_SHORT.get(match["mode"], match["mode"])
        below.taken += [key for key in MATCHED if key not in below.taken]
        overrides.append(Threshold(match, _take_thresholds(below)))
        below.close()
        if below.ok and not (match and overrides[-1].thresholds):
            notes.add(
                below.path, "needs what it matches and a threshold, such as {operator: performer, wall_time: 10%}"
            )
    section.close()
    return Gate(thresholds, tuple(overrides))


def gated_names() -> list[str]:
    """What may have a threshold: the metrics, and the number of operations."""
    return [*metrics(), OPERATIONS]


def _take_thresholds(section: Section) -> dict[str, float]:
    metrics = gated_names()
    thresholds = {name: section.take(name, fraction(0.0, 100.0), math.nan) for name in metrics if name in section.data}
    section.taken += [name for name in metrics if name not in section.taken]
    return thresholds


def _section(top: Section, key: str, notes: Notes) -> Section:
    top.taken.append(key)
    return Section(top.data.get(key, {}), key, notes)


def _check_cells(fields: dict[str, Any], sweeps: dict[str, Sweep], shape: Shape, notes: Notes) -> None:
    """Notes a suite too large to be meant, problems that cannot be, and those that two entries share."""
    variants = {name: 0 for name, _ in fields["operators"]}
    for name, grid in fields["operators"]:
        variants[name] += math.prod(len(v) for v in grid.values())
    repeats = len(fields["impls"]) * len(fields["scope"]) * len(fields["mode"])
    points = {name: sum(s.count(shape) for s in sweeps.values() if s.measures(name)) for name in variants}
    cells = repeats * sum(variants[name] * points[name] for name in variants)
    if cells > MAX_CELLS:
        notes.add("", f"{cells} cells; allowed: at most {MAX_CELLS}. Use fewer sizes, operators or parameters")
        return
    for path, sweep in sweeps.items():
        for (name, number), sentence in impossible(sweep, shape).items():
            of_entry = number is not None or name == "tokens"
            notes.add(f"{path if of_entry else 'problem'}.{name}" + ("" if number is None else f"[{number}]"), sentence)
    if notes.mistakes:
        return
    entries: dict[Any, str] = {}
    for path, sweep in sweeps.items():
        for problem in problems(sweep, shape):
            if problem in entries and sweep.shares_operators(sweeps[entries[problem]]):
                notes.add(
                    path, f"{problem.size} at {problem.channels} channels is in {entries[problem]} already; remove one"
                )
            entries[problem] = path
