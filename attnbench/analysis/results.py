"""results.csv from visits: one row per key. It is derived, so it can be made again at any time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, nan
from pathlib import Path
from statistics import median, median_low
from typing import TYPE_CHECKING, Any

from attnbench.files import replace
from attnbench.groups import groups_of
from attnbench.metric import Metric
from attnbench.problem import CELL_COLUMNS, LATER, SIDES
from attnbench.registry import metrics
from attnbench.store.columns import result_columns
from attnbench.store.records import RESULTS

if TYPE_CHECKING:
    from pandas import DataFrame


def derive(visits: DataFrame, stops: tuple[int, ...] = ()) -> DataFrame:
    """One row per key, in the order of the first visit, with `result_columns`.

    status: the check's where it is not ok; `wrong` where any round found the output wrong, and then no time;
    ok as long as one timed round gave a time (reason names the rounds that were lost), else the timed rounds' own.
    What a metric takes in timed rounds is derived from them as its `Metric.derived` says; the rest is the check's.

    Args:
        visits: one row per visit, as `Run.visits`.
        stops: the looks of the run.
    """
    from attnbench.store.frames import table

    timed = [(metric, _intervals(visits, metric, stops)) for metric in metrics().values() if metric.timed]
    rows = [_row(key, group, timed) for key, group in _by_key(visits).items()]
    types = {str(name): dtype for name, dtype in visits.dtypes.items() if name not in CELL_COLUMNS}
    types |= {"rounds": "Int64", **dict.fromkeys((*SIDES, *LATER), "Int64"), "causal": "bool"}
    return table({name: [row.get(name, nan) for row in rows] for name in result_columns()}, types)


def outcomes(visits: DataFrame) -> dict[str, dict[str, Any]]:
    """By key the status, reason and cause that results.csv has of it. visits: as `Run.visits`."""
    visits_by_key = _by_key(visits[["key", "round", "status", "reason", "cause"]])
    return {key: outcome(*_check_and_rounds(group)) for key, group in visits_by_key.items()}


def _by_key(visits: DataFrame) -> dict[str, list[_Row]]:
    """The visits of each key as plain rows: slicing a frame per key would take most of `show`."""
    names = [str(name) for name in visits.columns]
    values = zip(*(column.tolist() for _, column in visits.items()), strict=True)
    rows = (dict(zip(names, each, strict=True)) for each in values)
    return groups_of((str(row["key"]), row) for row in rows)


def write(folder: Path, visits: DataFrame, stops: tuple[int, ...] = ()) -> DataFrame:
    """Derives results.csv of a run folder and replaces it atomically.

    Returns: its rows. Raises: OSError.
    """
    table = derive(visits, stops)
    replace(folder / RESULTS, table.to_csv(index=False))
    return table


_Row = dict[str, Any]

_Intervals = dict[str, tuple[float, float, float]]
"""By key, the centre over timed rounds and the ends of its interval (nan from one round)."""


def _intervals(visits: DataFrame, metric: Metric, stops: tuple[int, ...]) -> _Intervals:
    from attnbench.analysis.interval import estimates

    if metric.derived != "interval":
        return {}
    levels = estimates(visits, metric.column, stops=stops)
    return {key: (exp(e.level), exp(e.level - e.half_width), exp(e.level + e.half_width)) for key, e in levels.items()}


def _row(key: str, visits: list[_Row], timed: list[tuple[Metric, _Intervals]]) -> _Row:
    """The row of a cell from its visits."""
    first, rounds = _check_and_rounds(visits)
    ok = [visit for visit in rounds if visit["status"] == "ok"]
    row = {**first, **outcome(first, rounds), "rounds": len({visit["round"] for visit in ok})}
    row["samples"] = sum(int(visit["samples"]) for visit in ok)
    for metric, intervals in timed:
        row.update(_over_rounds(metric, ok if row["status"] == "ok" else [], intervals.get(key)))
    return row


def _check_and_rounds(visits: list[_Row]) -> tuple[_Row, list[_Row]]:
    """The check, or the first visit where there is none, and the timed visits of a cell."""
    rounds = [visit for visit in visits if visit["round"] > 0]
    checks = [visit for visit in visits if visit["round"] == 0]
    return (checks or rounds)[0], rounds


def _over_rounds(metric: Metric, visits: list[_Row], interval: tuple[float, float, float] | None) -> _Row:
    """The columns of a timed metric from the visits that count; missing: None."""
    figures = {name: _middle([visit[name] for visit in visits if name in visit]) for name in metric.columns}
    if metric.derived == "interval":
        ends = interval if interval is not None and visits else (None, None, None)
        figures.update(zip((metric.column, *metric.ends), ends, strict=True))
    return figures


def _middle(values: list[Any]) -> Any:
    """The median of what is not missing; of counts a count."""
    import pandas as pd

    present = [value for value in values if not pd.isna(value)]
    if not present:
        return None
    return float(median(present)) if any(isinstance(value, float) for value in present) else median_low(present)


def outcome(first: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """status, reason and cause of a cell.

    Args:
        first: the check.
        rounds: the timed visits.
    """
    checked = {name: first[name] for name in ("status", "reason", "cause")}
    if checked["status"] != "ok":
        return checked
    lost = [visit for visit in rounds if visit["status"] != "ok"]
    ok = len(rounds) > len(lost)
    reasons = "; ".join(f"round {v['round']}: {v['status']}, {v['reason']}" for v in lost)
    decisive = next((visit for visit in lost if visit["status"] == "wrong"), lost[0] if lost and not ok else None)
    if decisive is not None:
        return {"status": decisive["status"], "reason": reasons, "cause": decisive["cause"]}
    return {**checked, "reason": reasons or checked["reason"]}
