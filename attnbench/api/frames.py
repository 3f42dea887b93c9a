"""What analyses say, as pandas frames of plain columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from attnbench.analysis.crossover import Crossover
    from attnbench.analysis.summary import PanelReport, Summary

_OF_A_CROSSOVER = (
    "metric", "series", "operator", "impl", "params", "against", "baseline", "kind", "at", "low", "high", "bracket",
    "direction", "cheaper", "first", "last", "ratio_at_smallest", "ratio_at_largest", "text",
)  # fmt: skip


def of_cells(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of cells, their params as one text."""
    import pandas as pd

    from attnbench.problem import canonical_params

    return pd.DataFrame([{**row, "params": canonical_params(row["params"])} for row in rows]).convert_dtypes()


def crossovers(summary: Summary) -> pd.DataFrame:
    """A row for every crossing, and one for a series that has none: see `StoredRun.crossovers`."""
    import pandas as pd

    rows = [row for report in summary.panels for row in _crossovers(report)]
    fixed = dict.fromkeys(name for report in summary.panels for name in ("axis", *report.panel.fixed))
    columns = [*fixed, *_OF_A_CROSSOVER]
    table = pd.DataFrame(rows, columns=columns)
    whole = [name for name in fixed if pd.api.types.is_float_dtype(table[name])]  # of panels some of which lack it
    table = table.astype(dict.fromkeys(whole, "Int64"))
    numbers = dict.fromkeys(("at", "low", "high", "ratio_at_smallest", "ratio_at_largest"), "float64")
    texts = dict.fromkeys(("direction", "first", "last"), "string")
    return table.astype({**numbers, **texts, "bracket": "boolean", "cheaper": "boolean"})


def _crossovers(report: PanelReport) -> Iterator[dict[str, Any]]:
    from attnbench.outputs._run_tables import crossover_text

    panel = {"axis": report.panel.axis, **report.panel.fixed}
    for table in report.tables:
        best_exact = table.quantity.metric.best_exact
        for line in table.lines:
            series = {
                "metric": table.quantity.name,
                "series": line.series.name,
                "operator": line.series.operator,
                "impl": line.series.impl,
                "params": line.series.params,
            }
            for against, baseline, crossover in (
                ("baseline", report.baseline, line.against_baseline),
                ("best exact", best_exact, line.against_exact),
            ):
                if crossover is not None:
                    text = crossover_text(crossover, report.panel.axis, baseline)
                    beside = {"against": against, "baseline": baseline, "text": text}
                    for row in _of(crossover):
                        yield {**panel, **series, **beside, **row}


def _of(crossover: Crossover) -> Iterator[dict[str, Any]]:
    """The rows of one crossover."""
    stretch = crossover.stretch
    ratios = {
        "ratio_at_smallest": crossover.smallest and crossover.smallest.ratio,
        "ratio_at_largest": crossover.largest and crossover.largest.ratio,
    }
    sides = {"cheaper": stretch.cheaper, "first": stretch.first, "last": stretch.last} if stretch else {}
    common = {"kind": crossover.kind, **ratios, **sides}
    if not crossover.crossings:
        yield common
    for each in crossover.crossings:
        yield {
            **common,
            "at": each.at,
            "low": each.low,
            "high": each.high,
            "bracket": each.bracket,
            "direction": each.direction,
        }
