"""The runs of a folder of run folders, each with the figures of some metrics: the same as `show` has of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from attnbench.analysis.compare.matching import completed, defaults_of
from attnbench.analysis.compare.same_machine import EXACT, MACHINE
from attnbench.analysis.crossover import BEYOND
from attnbench.analysis.interval import Estimate, estimates_of
from attnbench.analysis.metric_values import Quantity, exact_levels
from attnbench.analysis.results import outcome
from attnbench.analysis.run import name_in, stored_name
from attnbench.analysis.swept import Swept, swept_of
from attnbench.contract import contract_parts, has_turns
from attnbench.errors import BadInput
from attnbench.metric import Metric
from attnbench.problem import BASELINE, Cell, block_of, canonical_params
from attnbench.registry import metrics
from attnbench.store.gate_file import BASE, GATE, HEAD, PairedChange, read_gate
from attnbench.store.many_runs import ManyVisits, RunVisits, read_many, run_folders
from attnbench.store.reading import read_environment
from attnbench.store.records import SUITE, Cause
from attnbench.store.trusted_json import read_text
from attnbench.terminal import escaped
from attnbench.yaml_file import parse

Outcome = tuple[str, str, Cause]
"""The status of a cell in a run, its reason and its cause."""


@dataclass(frozen=True)
class Snapshot:
    """One run.

    Args:
        folder: its place below the folder of all.
        suite: its name.
        baseline: the suite's.
        started: when, in UTC; None: not stored.
        commit: of attnbench, or of a gate's side, "+" after it where files differ; None: not stored.
        code: a digest of the measured source; None: not stored.
        circumstances: by name, what its times and bytes depend on beside the code; missing: None.
        gate: of a gate's two runs, which were measured in turns, the gate's folder; else empty.
        side: of these, `base` or `head`.
        outcomes: by the key of a cell, as completed.
        devices: by key, the kind of device.
        quantities: by metric.
        swept: what its suite varies.
    """

    folder: str
    suite: str
    baseline: str
    started: datetime | None
    commit: str | None
    code: str | None
    circumstances: Mapping[str, Any]
    gate: str
    side: str
    outcomes: Mapping[str, Outcome]
    devices: Mapping[str, str]
    quantities: Mapping[str, Quantity]
    swept: Sequence[Swept]

    def is_same_code(self, other: Snapshot) -> bool:
        """Whether both measured the same source, as far as that is known."""
        if self.code is not None and other.code is not None:
            return self.code == other.code
        return self.commit is not None and self.commit == other.commit and not self.commit.endswith("+")

    def alike(self, metric: Metric) -> tuple[Any, ...]:
        """The same for runs whose figures of a metric may be compared but for noise."""
        if metric.analytic:
            return ()
        names = EXACT if metric.exact else tuple(self.circumstances)
        return tuple(_hashable(self.circumstances.get(name)) for name in (*names, CONTRACT))


CONTRACT = "contract"
"""Of circumstances: the contract's version and its settings but for the number of rounds."""

DEVICES = "device_id"
"""Of circumstances: the anonymous id of the device, or of the several of a run that was joined."""


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None))) else json.dumps(value, sort_keys=True)


@dataclass(frozen=True)
class Snapshots:
    """The runs of a folder.

    Args:
        runs: by time.
        cells: by kind of device and key, as completed.
        exact: `<operator> <params>` that compute softmax attention.
        gates: by the folder of a gate, what it found changed, by keys as completed.
        unread: by folder, why a run, or a gate's decision, is left out.
    """

    runs: Sequence[Snapshot]
    cells: Mapping[tuple[str, str], Cell]
    exact: frozenset[str]
    gates: Mapping[str, Sequence[PairedChange]]
    unread: Mapping[str, str]


def read_snapshots(root: Path, names: Sequence[str]) -> Snapshots:
    """The runs below a folder. names: of metrics.

    Raises: BadInput where it holds none that can be read.
    """
    folders, left_out = run_folders(root)
    if not folders:
        raise BadInput(f"{root}: no run folder in it. Give a folder that holds folders which `attnbench run` wrote.")
    columns = list(dict.fromkeys(c for name in names for c in (metrics()[name].column, *metrics()[name].added)))
    visits = read_many(root, folders, columns)
    unread = {**visits.unread, **left_out}
    files: dict[Path, tuple[dict[str, Any], str, str]] = {}
    parsed: dict[str, tuple[str, str]] = {}
    for folder in visits.runs:
        try:
            environment, text = read_environment(folder), read_text(folder / SUITE)
            if text not in parsed:
                parsed[text] = _suite(folder / SUITE, text)
            files[folder] = environment, *parsed[text]
        except BadInput as error:
            unread[folder] = str(error)
    environments = sorted((environment for environment, _, _ in files.values()), key=lambda e: str(e.get("started")))
    keys = _Keys(visits, environments)
    runs = [
        _snapshot(root, folder, visits, keys, names, environment, suite, baseline)
        for folder, (environment, suite, baseline) in files.items()
    ]
    gates, more = _gates(root, runs, keys)
    told = {_place(root, folder): reason.replace(f"{root}/", "") for folder, reason in unread.items()} | more
    if not runs:
        reasons = "; ".join(list(told.values())[:3])
        raise BadInput(f"{root}: none of its {len(folders)} run folders can be read: {reasons}")
    measured = {(run.devices[key], key): keys.cell(key) for run in runs for key in run.outcomes}
    return Snapshots(sorted(runs, key=_when), measured, keys.exact(environments), gates, told)


def _when(run: Snapshot) -> tuple[Any, ...]:
    started = run.started or datetime.min.replace(tzinfo=timezone.utc)
    return started, run.gate or run.folder, run.side == HEAD, run.folder


def _place(root: Path, folder: Path) -> str:
    return escaped(str(folder.relative_to(root)))


def _suite(path: Path, text: str) -> tuple[str, str]:
    """The name and the baseline of a suite; empty: it has no name. Raises BadInput."""
    suite = parse(text, str(path))
    return name_in(suite, "name", path), name_in(suite, "baseline", path) or BASELINE


class _Keys:
    """The cells of all runs with the defaults of the parameters that they lack, so that the same cell has one key."""

    def __init__(self, visits: ManyVisits, environments: Iterable[Mapping[str, Any]]) -> None:
        self._defaults = defaults_of(environments)
        every = [completed(stored.cell, self._defaults) for stored in visits.cells]
        self.keys = [cell.key for cell in every]
        self._cells = dict(zip(self.keys, every, strict=True))
        self._stored = {stored.cell.key: key for stored, key in zip(visits.cells, self.keys, strict=True)}

    def cell(self, key: str) -> Cell:
        """By its completed key."""
        return self._cells[key]

    def today(self, key: str) -> str:
        """The completed key of a stored one; of one that no run has, the same."""
        return self._stored.get(key, key)

    def exact(self, environments: Iterable[Mapping[str, Any]]) -> frozenset[str]:
        """What computes softmax attention, by the completed params."""
        return frozenset(self._identity(each) for stored in environments for each in stored.get("exact", ()))

    def _identity(self, stored: str) -> str:
        operator, _, params = stored.partition(" ")
        try:
            values = json.loads(params)
            return f"{operator} {canonical_params({**self._defaults.get(operator, {}), **values})}"
        except (ValueError, TypeError, RecursionError):
            return stored


def _snapshot(
    root: Path,
    folder: Path,
    visits: ManyVisits,
    keys: _Keys,
    names: Sequence[str],
    environment: Mapping[str, Any],
    suite: str,
    baseline: str,
) -> Snapshot:
    own = visits.runs[folder]
    order = list(dict.fromkeys(own.cells.tolist()))
    firsts, outcomes = _outcomes(own)
    is_side = folder.name in (BASE, HEAD) and (folder.parent / GATE).is_file() and folder.parent != root
    looks = tuple(environment.get("looks", ()))
    statuses = {keys.keys[cell]: outcomes[cell] for cell in order}
    return Snapshot(
        folder=_place(root, folder),
        suite=suite or stored_name(environment) or folder.name,
        baseline=baseline,
        started=_time(environment.get("started")),
        commit=_text(environment.get("commit")),
        code=_digest(environment.get("code")),
        circumstances={
            **{name: environment.get(name) for name in MACHINE},
            DEVICES: _devices(environment),
            CONTRACT: " ".join(contract_parts(own.contract)).strip(),
        },
        gate=_place(root, folder.parent) if is_side else "",
        side=folder.name if is_side else "",
        outcomes=statuses,
        devices={keys.keys[cell]: visits.cells[cell].device for cell in order},
        quantities={name: _quantity(name, own, keys, firsts, statuses, looks) for name in names},
        swept=swept_of(environment.get("sweep")),
    )


def _time(text: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (TypeError, ValueError, OverflowError):
        return None


def _devices(environment: Mapping[str, Any]) -> str | None:
    joined = {str(part["facts"].get("device_id") or "") for part in environment.get("parts", ())}
    return ", ".join(sorted(joined)) or environment.get("device_id") or None


def _text(value: Any) -> str | None:
    return value[:64] if isinstance(value, str) and value else None


def _digest(code: Any) -> str | None:
    return (
        hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()[:12] if isinstance(code, dict) else None
    )


def _outcomes(visits: RunVisits) -> tuple[dict[int, int], dict[int, Outcome]]:
    """By cell, the place of its check, and its outcome."""
    cells, first = np.unique(visits.cells, return_index=True)
    checks = np.flatnonzero(visits.rounds == 0)
    checked, at = np.unique(visits.cells[checks], return_index=True)
    firsts = dict(zip(cells.tolist(), first.tolist(), strict=True))
    firsts |= dict(zip(checked.tolist(), checks[at].tolist(), strict=True))
    outcomes: dict[int, Outcome] = dict.fromkeys(firsts, ("ok", "", ""))
    for cell in {int(visits.cells[place]) for place in visits.failures}:
        places = np.flatnonzero(visits.cells == cell).tolist()
        rows = {place: _row(visits, place) for place in places}
        found = outcome(rows[firsts[cell]], [row for row in rows.values() if row["round"] > 0])
        outcomes[cell] = (found["status"], found["reason"], found["cause"])
    return firsts, outcomes


def _row(visits: RunVisits, place: int) -> dict[str, Any]:
    status, reason, cause = visits.failures.get(place, ("ok", "", ""))
    return {"status": status, "reason": reason, "cause": cause, "round": int(visits.rounds[place])}


def _quantity(
    name: str,
    visits: RunVisits,
    keys: _Keys,
    firsts: Mapping[int, int],
    outcomes: Mapping[str, Outcome],
    looks: tuple[int, ...],
) -> Quantity:
    """A metric of a run, with the values and the levels that `metric_values.quantity` has.

    Args:
        firsts: by cell, the place of its check.
        outcomes: by key.
        looks: of the run.
    """
    metric = metrics()[name]
    allowed = ("ok", *BEYOND) if metric.analytic else ("ok",)
    if metric.timed:
        levels = {key: each for key, each in _levels(metric, visits, keys, looks) if outcomes[key][0] == "ok"}
        values = {key: math.exp(each.level) for key, each in levels.items()}
        if metric.derived == "median":
            values = dict(_medians(metric, visits, keys, levels))
        return Quantity(name, metric, values, levels)
    values = {}
    for cell, place in firsts.items():
        key = keys.keys[cell]
        figure = _figure(visits.figures[metric.column][place])
        if figure is not None and outcomes[key][0] in allowed:
            values[key] = figure + sum(_figure(visits.figures[added][place]) or 0.0 for added in metric.added)
    return Quantity(name, metric, values, exact_levels(values))


def _figure(stored: Any) -> float | None:
    """A figure of a visit; None: missing."""
    return None if math.isnan(stored) or stored < 0 else float(stored)


def _levels(metric: Metric, visits: RunVisits, keys: _Keys, looks: tuple[int, ...]) -> Iterator[tuple[str, Estimate]]:
    figures = visits.figures[metric.column]
    usable = np.flatnonzero((visits.rounds > 0) & visits.ok & (figures > 0))
    if not len(usable):
        return
    cells, own = _numbered(visits.cells[usable])
    blocks = _numbered(np.array([block_of(keys.keys[cell]) for cell in cells], dtype=object))[1]
    in_turns = has_turns(visits.contract)
    found = estimates_of(
        np.log(figures[usable].astype(np.float64)),
        own,
        blocks[own] if in_turns else None,
        _numbered(visits.processes[usable])[1],
        visits.parts[usable] if in_turns else None,
        visits.rounds[usable],
        stops=looks,
        devices=_numbered(visits.devices[usable])[1],
    )
    yield from zip([keys.keys[cell] for cell in cells], found, strict=True)


def _numbered(values: Any) -> tuple[list[int], Any]:
    """The distinct values in the order in which they occur, and the position of each value among them."""
    import pandas as pd

    codes, distinct = pd.factorize(values)
    return distinct.tolist(), codes


def _medians(
    metric: Metric, visits: RunVisits, keys: _Keys, levels: Mapping[str, Estimate]
) -> Iterator[tuple[str, float]]:
    figures = visits.figures[metric.column]
    for cell in dict.fromkeys(visits.cells.tolist()):
        mine = figures[(visits.cells == cell) & (visits.rounds > 0) & visits.ok]
        present = [each for each in map(_figure, mine.tolist()) if each is not None]
        if present and keys.keys[cell] in levels:
            yield keys.keys[cell], median(present)


def _gates(
    root: Path, runs: Sequence[Snapshot], keys: _Keys
) -> tuple[dict[str, Sequence[PairedChange]], dict[str, str]]:
    """What each gate with both of its runs found, and why the decision of others cannot be read."""
    sides: dict[str, set[str]] = {}
    for run in runs:
        sides.setdefault(run.gate, set()).add(run.side)
    gates: dict[str, Sequence[PairedChange]] = {}
    unread = {}
    for place in (place for place, both in sides.items() if place and both == {BASE, HEAD}):
        try:
            found = read_gate(root / place)
        except BadInput as error:
            unread[f"{place}/{GATE}"] = str(error).replace(f"{root}/", "")
            continue
        gates[place] = [
            PairedChange(keys.today(each.key), each.metric, each.verdict, each.ratio, each.low, each.high)
            for each in found
        ]
    return gates, unread
