"""results.csv from visits: one row per key. Derived only, so that it can always be made again."""

from __future__ import annotations

import os
from pathlib import Path
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

    intervals = _intervals(visits)
    rows = [_row(key, group, intervals) for key, group in visits.groupby("key", sort=False)]
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


def _row(key: Any, group: DataFrame, intervals: dict[str, DataFrame]) -> dict[str, Any]:
    timed = group[group["round"] > 0]
    scout = group[group["round"] == 0]
    first = (scout if len(scout) else timed).iloc[0]
    good = timed[timed["status"] == "ok"]
    status, reason = _status(first, timed, good)
    row: dict[str, Any] = {str(name): value for name, value in first.items()}
    row.update(status=status, reason=reason, rounds=len(good), samples=int(good["samples"].sum()))
    for column in ("wall_time_s", "device_time_s"):
        stem = column.removesuffix("_s")
        found = intervals[column]
        known = status == "ok" and key in found.index
        for name, source in ((column, "value"), (f"{stem}_low_s", "low"), (f"{stem}_high_s", "high")):
            row[name] = found.at[key, source] if known else None
    energy = good["energy_j"].dropna()
    row["energy_j"] = energy.median() if status == "ok" and len(energy) else None
    return row


def _status(first: Any, timed: DataFrame, good: DataFrame) -> tuple[str, str]:
    if first["status"] != "ok":
        return first["status"], first["reason"]
    lost = timed[timed["status"] != "ok"]
    each = zip(lost["round"], lost["status"], lost["reason"], strict=True)
    told = "; ".join(f"round {number}: {status}, {reason}" for number, status, reason in each)
    if (lost["status"] == "wrong").any():
        return "wrong", told
    if len(lost) and not len(good):
        return str(lost["status"].iloc[0]), told
    return "ok", told or first["reason"]
