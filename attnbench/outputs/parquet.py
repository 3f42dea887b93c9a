"""Parquet: one table of a run, a row for each metric of a cell; suite, machine, versions and contract beside it.

`pandas.read_parquet` gives its types back, and what is beside it as `attrs["attnbench"]`.
"""

from __future__ import annotations

import importlib.util
import io
import sys
from typing import TYPE_CHECKING, Any

from attnbench import __version__
from attnbench.errors import BadInput
from attnbench.outputs._export import Measurement, machine, measurements
from attnbench.outputs._html_page import data
from attnbench.problem import LATER, SIDES, SIZES

if TYPE_CHECKING:
    from attnbench.analysis.summary import Summary

DOCUMENT = True

VERSION = 1
"""Of the table: raised when the meaning of a column changes or one is taken away; columns may be added."""

COLUMNS = {
    **dict.fromkeys(("key", "series", "operator", "impl", "params"), "string"),
    **dict.fromkeys(("scope", "mode", "dtype", "device"), "string"),
    "causal": "boolean",
    **dict.fromkeys((*SIZES, *SIDES, *LATER), "Int64"),
    **dict.fromkeys(("metric", "unit"), "string"),
    **dict.fromkeys(("value", "low", "high"), "float64"),
    **dict.fromkeys(("status", "reason"), "string"),
}
"""The columns with their pandas types, the same of every run. low, high: of the 95 % interval; in base units."""


def check() -> None:
    """Raises BadInput where the extra is missing, and where bytes would reach a terminal."""
    _check_installed()
    if sys.stdout.isatty():
        raise BadInput("--format parquet is binary, and stdout is a terminal. Write it to a file: … > run.parquet.")


def _check_installed() -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise BadInput(
            "--format parquet: pyarrow is not installed. Install the extra: pip install 'attnbench[export]'."
        )


def run(summary: Summary) -> bytes:
    """The file's bytes."""
    _check_installed()
    import pandas as pd

    rows = [_row(each) for each in measurements(summary)]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    table.attrs["attnbench"] = data(
        {
            "version": VERSION,
            "attnbench": __version__,
            "suite": summary.name,
            "baseline": summary.baseline,
            "contract": summary.contract,
            "environment": machine(summary),
        }
    )
    file = io.BytesIO()
    table.to_parquet(file, engine="pyarrow", index=False)
    return file.getvalue()


def _row(each: Measurement) -> dict[str, Any]:
    row = {
        "key": each.benchmark,
        "series": each.series.name,
        **{name: getattr(each.series, name) for name in ("operator", "impl", "params")},
        **{name: getattr(each, name) for name in ("scope", "mode", "device")},
        "dtype": each.problem.dtype,
        "causal": each.problem.causal,
        **each.sizes,
        "metric": each.quantity.name,
        "unit": each.quantity.metric.unit,
        **{name: getattr(each.figure, name) for name in ("value", "low", "high", "status", "reason")},
    }
    plain: dict[str, Any] = data(row)
    return plain
