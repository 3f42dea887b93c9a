"""JSON, in base units; missing is null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.outputs._rows import Listing

if TYPE_CHECKING:
    from attnbench.analysis.compare.findings import Comparison
    from attnbench.analysis.crossover import Crossover
    from attnbench.analysis.dispatch import Dispatch
    from attnbench.analysis.grid import Grid, Row
    from attnbench.analysis.history import History
    from attnbench.analysis.recommendation import Choice, Recommendation
    from attnbench.analysis.reproduction import Reproduction
    from attnbench.analysis.series import Panel, Series
    from attnbench.analysis.summary import Line, PanelReport, Summary, Table

VERSION = 3
"""Of a run: raised when the meaning of a field changes or one is taken away; fields may be added."""

GRID_VERSION = 1
"""The same of grids."""

COMPARISON_VERSION = 1
"""The same of comparisons."""

HOLDS_FOLDER = True


def run(summary: Summary, folder: Path | None = None) -> str:
    """The document of `document`. folder: that of a run just measured, a further field."""
    return _text(_plain({**document(summary), **({} if folder is None else {"folder": str(folder)})}))


def grids(grids: Sequence[Grid]) -> str:
    """`version` and `grids`, each with `axis` (of the columns), `over` (of the rows), `baseline`, `metric` (the one
    that decides), `fixed` (what all cells have in common), `sizes` (of the columns, by label) and `rows`.

    A row: `label` and `position` on `over`; `cells`, one for each column, with the fields of `analysis.grid.Spot`,
    `use` as a recommendation of `document`; `against_baseline`, `against_exact`, the crossover of the cheapest other
    operator (`analysis.crossover.Crossover`); and `panel`, that of `document`, with all figures and crossovers.
    """
    return _text(_plain({"version": GRID_VERSION, "grids": [_grid(grid) for grid in grids]}))


def _grid(grid: Grid) -> dict[str, Any]:
    return {
        "axis": grid.axis,
        "over": grid.over,
        "baseline": grid.baseline,
        "metric": grid.rows[0].table.quantity.name,
        "fixed": dict(grid.fixed),
        "sizes": dict(grid.sizes),
        "rows": [_row(row) for row in grid.rows],
    }


def _row(row: Row) -> dict[str, Any]:
    borders = {"against_baseline": row.against_baseline, "against_exact": row.against_exact}
    return {
        "label": row.label,
        "position": row.position,
        "cells": [{**vars(spot), "use": _recommendation(spot.use) if spot.use else None} for spot in row.spots],
        **{side: _crossover(border.crossover if border else None) for side, border in borders.items()},
        "panel": {name: value for name, value in _panel_report(row.report).items() if name != "recommendations"},
    }


def rows(listing: Listing, folder: Path | None = None) -> str:
    """A list of objects, or the document that they are a part of.

    Args:
        listing: what is shown.
        folder: that of a run just measured, in every object as `run`.
    """
    if listing.document is not None:
        return _text(listing.document)
    place = {} if folder is None else {"run": str(folder)}
    return _text([{**row, **place} for row in listing.rows])


def comparisons(compared: Sequence[Comparison]) -> str:
    """`version` and `comparisons`, each with `before`, `after`, `decision`, `exit_code`, `measured`, `notes`,
    `findings` (the fields of `findings.Finding`, in base units, all of them), `missing`, `new` (keys) and `crossovers`
    (the fields of `findings.CrossoverShift`, `before` and `after` in words)."""
    return _text(_plain({"version": COMPARISON_VERSION, "comparisons": [_comparison(each) for each in compared]}))


def rules(dispatch: Dispatch) -> str:
    """The document that `dispatch.schema.json` beside this file describes."""
    from attnbench.outputs._rules import document

    return _text(_plain(document(dispatch)))


def claims(reproduction: Reproduction) -> str:
    """A list of objects, one per number, or per claim without any; of a brief table one per paper."""
    from attnbench.outputs._paper_listing import listing

    return rows(listing(reproduction))


def history(history: History) -> str:
    """The document of `_history.document`."""
    from attnbench.outputs import _history as view

    return _text(_plain(_with_crossovers(view.document(history))))


def _text(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def document(summary: Summary) -> dict[str, Any]:
    """`version`, `suite`, `baseline`, `skipped` (series: reason), `untried_exact` (series of exact softmax that are
    known to be fast on the run's GPU and were right nowhere: reason, empty where not in the suite), `answer`
    (`analysis.answer.Answer`, every row in its order; in `against_…` of a standing a crossover as of a series) and
    `panels`.

    A panel: `axis`, `fixed` (what its series have in common), `skipped`, `properties` (by the name of a series, those
    of `attnbench list properties` in the panel's form; none where the run stored none), `metrics` and
    `recommendations` (per size `choices`, all that cannot be told from `fastest`, and the `speed_up` of that over
    `best_exact`).
    A metric: `metric`, `column`, `unit`, `comparable` (whether crossovers and exponents of it mean anything),
    `best_exact` (what `against_exact` is called in the tables), `curve` (of a metric that has one: what it is over, and
    what its points are judged by) and `series`.
    A series: `name`, `operator`, `impl`, `params`, `exact`, `estimates` (the exact map it is an estimate of), `figures`
    (per size), `doubling` (of times and energy: `analysis.scaling.Doubling`), `growth` (of exact figures:
    `analysis.scaling.ExactGrowth`), `growth_of` (of FLOPs: whether what was "counted" or what is "stated" grows so),
    `stated`, `agreement` (of `growth`), `against_baseline` and `against_exact` (`analysis.crossover.Crossover`).
    """
    return {
        "version": VERSION,
        "suite": summary.name,
        "baseline": summary.baseline,
        "answer": _answer(summary),
        "panels": [{**_panel_report(report), **_properties(report.panel, summary)} for report in summary.panels],
        "skipped": summary.skipped,
        "untried_exact": summary.untried_exact,
    }


def _properties(panel: Panel, summary: Summary) -> dict[str, Any]:
    return {"properties": {s.name: dict(summary.properties_of(panel, s)) for s in panel.series}}


def _answer(summary: Summary) -> dict[str, Any]:
    from attnbench.analysis.answer import answer

    plain: dict[str, Any] = _with_crossovers(answer(summary))
    for table in plain["tables"]:
        for row in table["rows"]:
            row["params"] = json.loads(row["params"])
    return plain


def _with_crossovers(value: Any) -> Any:
    """Data classes as objects, crossovers as those of a series."""
    from attnbench.analysis.crossover import Crossover

    if isinstance(value, Crossover):
        return _crossover(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _with_crossovers(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {name: _with_crossovers(each) for name, each in value.items()}
    return [_with_crossovers(each) for each in value] if isinstance(value, (list, tuple)) else value


def _panel_report(report: PanelReport) -> dict[str, Any]:
    return {
        "axis": report.panel.axis,
        "fixed": dict(report.panel.fixed),
        "together": dict(report.panel.together),
        "skipped": report.skipped,
        "metrics": [_table(table) for table in report.tables],
        "recommendations": [_recommendation(each) for each in report.recommendations],
    }


def _table(table: Table) -> dict[str, Any]:
    metric = table.quantity.metric
    lines = [_line(line) for line in table.lines]
    return {
        "metric": table.quantity.name,
        "column": metric.column,
        "unit": metric.unit,
        "comparable": metric.comparable,
        "best_exact": metric.best_exact,
        "curve": {"over": metric.curve.over, "beside": metric.curve.beside_name} if metric.curve else None,
        "series": lines,
    }


def _line(line: Line) -> dict[str, Any]:
    return {
        **_series(line.series),
        "exact": line.exact,
        "estimates": line.estimates,
        "figures": [asdict(figure) for figure in line.figures],
        "doubling": line.doubling,
        "growth": line.growth,
        "growth_of": line.origin,
        "stated": line.stated,
        "agreement": line.agreement,
        "against_baseline": _crossover(line.against_baseline),
        "against_exact": _crossover(line.against_exact),
    }


def _series(series: Series) -> dict[str, Any]:
    return {
        "name": series.name,
        "operator": series.operator,
        "impl": series.impl,
        "params": json.loads(series.params),
    }


def _crossover(crossover: Crossover | None) -> dict[str, Any] | None:
    if crossover is None:
        return None
    result = asdict(crossover)
    for side in ("baseline_beyond", "series_beyond"):
        beyond = getattr(crossover, side)
        result[side] = {"label": beyond[0], "status": beyond[1]} if beyond else None
    return result


def _recommendation(each: Recommendation) -> dict[str, Any]:
    return {
        "size": each.size,
        "label": each.label,
        "choices": [_choice(choice) for choice in each.choices],
        "fastest": _choice(each.fastest),
        "best_exact": _choice(each.exact),
        "speed_up": {"value": each.speed_up, "low": each.low, "high": each.high},
    }


def _choice(choice: Choice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    note = None if choice.exact else "a different function; quality not measured here"
    figures = {"time_s": choice.time_s, "memory_bytes": choice.memory_bytes, "exact": choice.exact, "note": note}
    return {**_series(choice.series), **figures}


def _comparison(comparison: Comparison) -> dict[str, Any]:
    from attnbench.outputs._run_tables import shift_texts

    return {
        "before": comparison.before,
        "after": comparison.after,
        "decision": comparison.decision,
        "exit_code": comparison.exit_code,
        "measured": comparison.measured,
        "notes": comparison.notes,
        "devices": comparison.devices,
        "findings": comparison.findings,
        "missing": comparison.missing,
        "new": comparison.new,
        "crossovers": [
            {**_plain(shift), **dict(zip(("before", "after"), shift_texts(shift), strict=True))}
            for shift in comparison.shifts
        ],
    }


def _plain(value: Any) -> Any:
    """JSON's types: nan and infinities are null, whole floats of counts stay numbers."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value
