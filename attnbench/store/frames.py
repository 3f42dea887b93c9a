"""Visits and samples as pandas DataFrames."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from attnbench.errors import BadInput
from attnbench.files import is_file
from attnbench.problem import CELL_COLUMNS
from attnbench.store.columns import dtype_of, first_columns
from attnbench.store.records import LONGEST_S, OLDER_SAMPLE_COLUMNS, SAMPLE_COLUMNS, SAMPLES, Visit
from attnbench.store.trusted_json import REPAIR, read_text
from attnbench.units import quoted


def frame(visits: Sequence[Visit]) -> pd.DataFrame:
    """Visits as a DataFrame, one row per visit, in the layout of `Run.visits`."""
    rows = [{**vars(visit), **visit.cell, **visit.metrics} for visit in visits]
    plain = [f.name for f in fields(Visit) if f.name not in ("key", "cell", "metrics")]
    metrics = [name for name in first_columns() if name not in {*plain, *CELL_COLUMNS, "key", "rounds"}]
    unlisted = sorted({name for visit in visits for name in visit.metrics} - set(metrics))
    names = ["key", *CELL_COLUMNS, *plain, *metrics, *unlisted]
    return table({name: [row.get(name) for row in rows] for name in names}, {name: dtype_of(name) for name in names})


def table(columns: Mapping[str, Sequence[Any]], types: Mapping[str, Any]) -> pd.DataFrame:
    """Columns of plain values, None or NaN where one is missing, as a DataFrame.

    types: the pandas dtype by column; of others it is by the values.
    """
    index = pd.RangeIndex(len(next(iter(columns.values()))))  # the same object for all: nothing is to be aligned
    series = {name: pd.Series(values, index, types.get(name)) for name, values in columns.items()}
    return pd.DataFrame(series, index, copy=False)


def read_samples(folder: Path, visits: pd.DataFrame) -> pd.DataFrame:
    """The rows of samples.csv that belong to finished visits; an incomplete last row is left out.

    Args:
        folder: of the run.
        visits: as `Run.visits`.
    Raises: BadInput for wrong columns or types.
    """
    path = folder / SAMPLES
    if not is_file(path):
        return pd.DataFrame(columns=list(SAMPLE_COLUMNS))
    text = read_text(path)
    text = text[: text.rfind("\n") + 1]
    head = text.partition("\n")[0].rstrip("\r")
    if head not in (",".join(SAMPLE_COLUMNS), ",".join(OLDER_SAMPLE_COLUMNS)):
        raise BadInput(f"{path}, line 1: {quoted(head)}; allowed: {','.join(SAMPLE_COLUMNS)}. {REPAIR}")
    types = dict.fromkeys(("key", "clock", "flags"), "str")
    try:
        table = pd.read_csv(io.StringIO(text), dtype=types, keep_default_na=False, on_bad_lines="error")
        table = (table if "part" in table else table.assign(part=0))[list(SAMPLE_COLUMNS)]
        for name in ("round", "process", "index", "part"):
            numbers = pd.to_numeric(table[name])
            if len(numbers) and not (numbers % 1 == 0).all():
                raise ValueError(f"{name} holds a number that is not whole")
            table[name] = numbers.astype("int64")
        table["seconds"] = pd.to_numeric(table["seconds"]).astype("float64")
    except (ValueError, KeyError, OverflowError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise BadInput(f"{path}: {reason}. It has the columns {', '.join(SAMPLE_COLUMNS)}. {REPAIR}") from None
    damaged = ~((table["seconds"] >= 0) & (table["seconds"] < LONGEST_S))
    if damaged.any():
        row = int(damaged.to_numpy().argmax())
        raise BadInput(
            f"{path}, line {row + 2}: seconds = {table['seconds'].iloc[row]}; allowed: 0 to {LONGEST_S:g}. {REPAIR}"
        )
    visit = ["key", "round", "process", "part"]
    finished = pd.MultiIndex.from_frame(visits[visit].astype(dict.fromkeys(visit[1:], int)))
    return table[pd.MultiIndex.from_frame(table[visit]).isin(finished)].reset_index(drop=True)
