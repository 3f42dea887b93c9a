"""CSV, in base units; missing is empty. Of a run: one row per panel, metric, series and size.

The points of a metric's curve have rows of their own, under the names of their columns in results.csv.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from attnbench.analysis.compare.findings import Comparison, Finding
from attnbench.outputs._rows import Listing, text_of
from attnbench.problem import LATER

if TYPE_CHECKING:
    from attnbench.analysis.dispatch import Dispatch
    from attnbench.analysis.grid import Grid
    from attnbench.analysis.history import History
    from attnbench.analysis.reproduction import Reproduction
    from attnbench.analysis.summary import Figure, PanelReport, Summary, Table

COLUMNS = (
    "axis", "scope", "mode", "dtype", "causal", "batch", "heads", "head_dim", "channels", "problem", "device",
    "metric", "unit", "series", "operator", "impl", "params", "size", "label", "value", "low", "high",
    "ratio_to_baseline", "best", "first_win", "status", "reason", *LATER,
)  # fmt: skip


def run(summary: Summary) -> str:
    """With a header, ending with a newline."""
    return _figures(summary.panels)


def grids(grids: Sequence[Grid]) -> str:
    """The figures of every cell, as `run`."""
    return _figures([row.report for grid in grids for row in grid.rows])


def _figures(reports: Sequence[PanelReport]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for report in reports:
        panel = report.panel
        sizes = {label: _with_problem(panel.fixed_at(label)) for label in panel.sizes}
        for table in report.tables:
            for line in table.lines:
                series = {
                    "axis": panel.axis, "metric": table.quantity.name, "unit": table.quantity.metric.unit,
                    "series": line.series.name, "operator": line.series.operator, "impl": line.series.impl,
                    "params": line.series.params,
                }  # fmt: skip
                for f in line.figures:
                    fixed = sizes[f.label]
                    writer.writerow(
                        {
                            **fixed, **series, "size": f.size, "label": f.label, "value": f.value, "low": f.low,
                            "high": f.high, "ratio_to_baseline": f.vs_baseline, "best": f.best,
                            "first_win": f.first_win, "status": f.status, "reason": f.reason,
                        }
                    )  # fmt: skip
                    for column, value in _points(table, f).items():
                        row = {**fixed, **series, "metric": column, "size": f.size, "label": f.label, "value": value}
                        writer.writerow({**row, "status": f.status})
    return file.getvalue()


def _with_problem(fixed: dict[str, Any]) -> dict[str, Any]:
    """What a panel has fixed, by column."""
    return {("problem" if name == "size" else name): value for name, value in fixed.items()}


def rows(listing: Listing) -> str:
    """Nested values are JSON. Empty where there are no rows."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    if listing.rows:
        writer.writerow(listing.rows[0])
    writer.writerows([text_of(value) for value in row.values()] for row in listing.rows)
    return file.getvalue()


def comparisons(compared: Sequence[Comparison]) -> str:
    """One row per finding, with a header for each comparison."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [*Finding.__dataclass_fields__], lineterminator="\n")
    for comparison in compared:
        writer.writeheader()
        writer.writerows(_finite(asdict(finding)) for finding in comparison.findings)
    return file.getvalue()


def rules(dispatch: Dispatch) -> str:
    """One row for each range of each panel, with a header."""
    from attnbench.outputs import _rules as view

    return rows(Listing(view.rows(dispatch)))


def claims(reproduction: Reproduction) -> str:
    """One row per number, or per claim without any; of a brief table one per paper."""
    from attnbench.outputs._paper_listing import listing

    return rows(listing(reproduction))


def history(history: History) -> str:
    """One row per run, panel, metric, series and size, with a header."""
    from attnbench.outputs import _history as view

    return rows(Listing(list(view.rows(history))))


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}


def _points(table: Table, figure: Figure) -> dict[str, float | None]:
    """The curve of a figure by column, without what its own row says."""
    curve = table.quantity.metric.curve
    if curve is None:
        return {}
    points = {curve.columns[p.at]: p.value for p in figure.curve if p.at != curve.main}
    return points | {curve.beside[p.at]: p.beside for p in figure.curve}
