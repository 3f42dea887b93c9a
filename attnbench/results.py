"""results.csv from visits: one row per key. Derived only, so that it can always be made again."""

from __future__ import annotations

import os
from collections.abc import Hashable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from attnbench.record import CELL_COLUMNS, COLUMNS, RESULTS

if TYPE_CHECKING:
    from pandas import DataFrame

TIMED = ("wall_time", "device_time", "energy")
"""Metrics taken in timed rounds; everything else is the scout's."""


def derive(visits: DataFrame) -> DataFrame:
    """One row per key, in the order of the first visit, with COLUMNS and then the columns of further metrics.

    status: the scout's where it is not ok; `wrong` where any round found the output wrong, and then no time;
    ok as long as one timed round gave a time (reason names the rounds that were lost), else the timed rounds' own.
    Times are the centre and interval over timed rounds, `analysis.interval.intervals`.
    """
    import pandas as pd

    intervals: dict[str, dict[Hashable, Any]] = {
        name: dict(found.to_dict("index")) for name, found in _intervals(visits).items()
    }
    groups: dict[str, list[dict[str, Any]]] = {}
    for visit in visits.to_dict("records"):  # plain rows: slicing a frame per key would take most of `show`
        groups.setdefault(str(visit["key"]), []).append({str(name): value for name, value in visit.items()})
    rows = [_row(key, group, intervals) for key, group in groups.items()]
    columns = [*COLUMNS, *_further()]
    table = pd.DataFrame(rows, columns=columns)
    for name in columns:
        if name in visits and name not in CELL_COLUMNS:
            table[name] = table[name].astype(visits[name].dtype)
    return table.astype({"rounds": "Int64", "height": "Int64", "width": "Int64", "causal": "bool"})


def write(folder: Path, visits: DataFrame) -> DataFrame:
    """Derives results.csv and replaces it atomically. Returns what was written. Raises OSError."""
    table = derive(visits)
    beside = folder / f".{RESULTS}.new"
    with beside.open("w", encoding="utf-8", newline="") as file:
        table.to_csv(file, index=False)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(folder / RESULTS)
    return table


def _further() -> list[str]:
    """Columns of metrics that COLUMNS does not know."""
    from importlib import import_module

    from attnbench.registry import scan

    names = [n for m in scan("attnbench.metrics") for n in import_module(f"attnbench.metrics.{m}").METRIC.columns]
    return [name for name in dict.fromkeys(names) if name not in COLUMNS]


def _intervals(visits: DataFrame) -> dict[str, DataFrame]:
    from attnbench.analysis.interval import intervals

    return {column: intervals(visits, column) for column in ("wall_time_s", "device_time_s")}


def _row(key: str, group: list[dict[str, Any]], intervals: dict[str, dict[Hashable, Any]]) -> dict[str, Any]:
    timed = [visit for visit in group if visit["round"] > 0]
    scout = [visit for visit in group if visit["round"] == 0]
    first = (scout or timed)[0]
    good = [visit for visit in timed if visit["status"] == "ok"]
    row = {**first, **_status(first, timed, good), "rounds": len(good)}
    status = row["status"]
    row["samples"] = sum(int(visit["samples"]) for visit in good)
    for column in ("wall_time_s", "device_time_s"):
        stem = column.removesuffix("_s")
        found = intervals[column].get(key) if status == "ok" else None
        for name, source in ((column, "value"), (f"{stem}_low_s", "low"), (f"{stem}_high_s", "high")):
            row[name] = found[source] if found else None
    energy = [visit["energy_j"] for visit in good if visit["energy_j"] == visit["energy_j"]]
    row["energy_j"] = median(energy) if status == "ok" and energy else None
    return row


def _status(first: dict[str, Any], timed: list[dict[str, Any]], good: list[dict[str, Any]]) -> dict[str, Any]:
    """status, reason and cause of a row."""
    own = {name: first[name] for name in ("status", "reason", "cause")}
    if own["status"] != "ok":
        return own
    lost = [visit for visit in timed if visit["status"] != "ok"]
    told = "; ".join(f"round {v['round']}: {v['status']}, {v['reason']}" for v in lost)
    decisive = next((visit for visit in lost if visit["status"] == "wrong"), lost[0] if lost and not good else None)
    if decisive is not None:
        return {"status": decisive["status"], "reason": told, "cause": decisive["cause"]}
    return {**own, "reason": told or own["reason"]}
