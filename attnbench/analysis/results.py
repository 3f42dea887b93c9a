"""results.csv from visits: one row per key. Derived only, so that it can always be made again."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from statistics import median, median_low
from typing import TYPE_CHECKING, Any

from attnbench.files import replace
from attnbench.metric import Metric
from attnbench.problem import CELL_COLUMNS
from attnbench.registry import metrics
from attnbench.store.columns import result_columns
from attnbench.store.records import RESULTS

if TYPE_CHECKING:
    from pandas import DataFrame


def derive(visits: DataFrame) -> DataFrame:
    """One row per key, in the order of the first visit, with `result_columns`.

    status: the check's where it is not ok; `wrong` where any round found the output wrong, and then no time;
    ok as long as one timed round gave a time (reason names the rounds that were lost), else the timed rounds' own.
    What a metric takes in timed rounds is derived from them as its `Metric.derived` says; the rest is the check's.
    """
    import pandas as pd

    timed = [(metric, _intervals(visits, metric)) for metric in metrics().values() if metric.timed]
    groups: dict[str, list[dict[str, Any]]] = {}
    for visit in visits.to_dict("records"):  # plain rows: slicing a frame per key would take most of `show`
        groups.setdefault(str(visit["key"]), []).append({str(name): value for name, value in visit.items()})
    rows = [_row(key, group, timed) for key, group in groups.items()]
    table = pd.DataFrame(rows, columns=list(result_columns()))
    for name in table.columns:
        if name in visits and name not in CELL_COLUMNS:
            table[name] = table[name].astype(visits[name].dtype)
    return table.astype({"rounds": "Int64", "height": "Int64", "width": "Int64", "causal": "bool"})


def write(folder: Path, visits: DataFrame) -> DataFrame:
    """Derives results.csv and replaces it atomically. Returns what was written. Raises OSError."""
    table = derive(visits)
    replace(folder / RESULTS, table.to_csv(index=False))
    return table


_Intervals = dict[Hashable, tuple[float, float, float]]
"""The centre over timed rounds and the ends of its interval, by key."""


def _intervals(visits: DataFrame, metric: Metric) -> _Intervals:
    from attnbench.analysis.interval import intervals

    if metric.derived != "interval":
        return {}
    found = intervals(visits, metric.column).to_dict("index")
    return {key: (each["value"], each["low"], each["high"]) for key, each in found.items()}


def _row(key: str, group: list[dict[str, Any]], timed: list[tuple[Metric, _Intervals]]) -> dict[str, Any]:
    rounds = [visit for visit in group if visit["round"] > 0]
    checks = [visit for visit in group if visit["round"] == 0]
    first = (checks or rounds)[0]
    good = [visit for visit in rounds if visit["status"] == "ok"]
    row = {**first, **_status(first, rounds, good), "rounds": len(good)}
    row["samples"] = sum(int(visit["samples"]) for visit in good)
    for metric, intervals in timed:
        row.update(_over_rounds(metric, good if row["status"] == "ok" else [], intervals.get(key)))
    return row


def _over_rounds(
    metric: Metric, good: list[dict[str, Any]], interval: tuple[float, float, float] | None
) -> dict[str, Any]:
    """The columns of a timed metric from the rounds that are ok; missing: None."""
    found = {name: _middle([visit[name] for visit in good if name in visit]) for name in metric.columns}
    if metric.derived == "interval":
        ends = interval if interval is not None and good else (None, None, None)
        found.update(zip((metric.column, *metric.ends), ends, strict=True))
    return found


def _middle(values: list[Any]) -> Any:
    """The median of what is not missing; of counts a count."""
    import pandas as pd

    known = [value for value in values if not pd.isna(value)]
    if not known:
        return None
    return float(median(known)) if any(isinstance(value, float) for value in known) else median_low(known)


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
