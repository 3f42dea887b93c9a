"""What the curves of a report show: every panel as plain data, rounded, with the texts that scripts cannot make."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attnbench.analysis.answer import Modes, Row, Verdict, answer
from attnbench.analysis.crossover import BEYOND, Crossing
from attnbench.analysis.relative import Comparand, Relative, comparands
from attnbench.analysis.series import in_a_line
from attnbench.analysis.summary import Line, PanelReport, Summary, Table
from attnbench.axes import AXES
from attnbench.groups import groups_of
from attnbench.outputs._colours import MOST_COLOURED
from attnbench.outputs._html_charts import style
from attnbench.outputs._html_page import Block, part, script_data, section
from attnbench.outputs._run_tables import crossover_text


def curve_blocks(summary: Summary) -> Iterator[Block]:
    """A chart for each axis, and the data of its panels."""
    found = answer(summary)
    judged = zip(summary.panels, found.verdicts, strict=True)
    for axis, reports in groups_of((each[0].panel.axis, each) for each in judged).items():
        blocks = [_block(*each, found.tables) for each in reports if any(map(_is_drawn, each[0].tables))]
        if blocks:
            chart = part("chart", "curves", axis, f"Curves over {axis}")
            yield section(f"curves over {axis}", f"curves-{axis}", f"Over {axis}", chart)
            yield from blocks


def _block(report: PanelReport, verdict: Verdict, taken: Sequence[Modes]) -> Block:
    facts = {name: text for name, text in report.panel.facts.items() if name != "mode"}
    rows = next((each.rows for each in taken if each.axis == report.panel.axis and each.fixed == facts), ())
    data = _panel(report, _first_shown(rows, verdict))
    return Block(f"curves of {report.panel.title}", script_data("curves", data), rank=2)


def _is_drawn(table: Table) -> bool:
    return any(figure.value for line in table.lines for figure in line.figures)


def _panel(report: PanelReport, first: Sequence[str]) -> dict[str, Any]:
    panel, tables = report.panel, [table for table in report.tables if _is_drawn(table)]
    names = list(dict.fromkeys(line.series.name for table in tables for line in table.lines))
    first = first or names[:MOST_COLOURED]
    operators = {series.name: series.operator for series in panel.series}
    return {
        "group": panel.axis,
        "unit": AXES[panel.axis].unit,
        "mode": panel.fixed["mode"],
        "rest": in_a_line({**panel.fixed, "mode": ""}, panel.walked),
        "sizes": [[size, label] for label, size in panel.sizes.items()],
        "series": [{"name": name, **style(name, operators), "shown": name in first} for name in names],
        "metrics": [_metric(report, table, names) for table in tables],
    }


def _first_shown(rows: Sequence[Row], verdict: Verdict) -> list[str]:
    """The series that a chart begins with: the baseline, exact softmax, what the verdict names, and what a user would
    take, each operator once."""
    named = {each.series for each in (verdict.against_baseline, verdict.against_exact) if each}
    pinned = [row for row in rows if row.role or row.name in named]
    chosen = {row.operator: row.name for row in reversed(rows) if row not in pinned}
    others = [
        row.name for row in rows if row.name in chosen.values() and row.operator not in {p.operator for p in pinned}
    ]
    return [*(row.name for row in pinned), *others][:MOST_COLOURED]


def _metric(report: PanelReport, table: Table, names: Sequence[str]) -> dict[str, Any]:
    positions = {label: i for i, label in enumerate(table.panel.sizes)}
    lines = {line.series.name: line for line in table.lines}
    ordered = [lines.get(name) for name in names]
    return {
        "name": table.quantity.name,
        "title": table.quantity.title,
        "unit": table.quantity.metric.unit,
        "figures": [_figures(line, positions) for line in ordered],
        "lost": [_lost(line, table) for line in ordered],
        "against": [_against(each, table, names, positions) for each in comparands(table, report.baseline)],
    }


def _figures(line: Line | None, positions: Mapping[str, int]) -> list[list[float | None]]:
    """[position of the size, value, low, high] each."""
    figures = line.figures if line else ()
    return [[positions[f.label], *map(rounded, (f.value, f.low, f.high))] for f in figures if f.value]


def _lost(line: Line | None, table: Table) -> str:
    """`oom at 8192`: the first size beyond its last figure at which it ran out of memory or time; else empty."""
    last = max((f.size for f in line.figures if f.value), default=0) if line else 0
    figures = line.figures if line and not table.quantity.metric.analytic else ()
    return next((f"{f.status} at {f.label}" for f in figures if f.status in BEYOND and f.size > last), "")


def _against(comparand: Comparand, table: Table, names: Sequence[str], positions: Mapping[str, int]) -> dict[str, Any]:
    relatives = [comparand.relatives.get(name) for name in names]
    axis = table.panel.axis
    return {
        "name": comparand.name,
        "values": [[positions[label], rounded(value)] for label, value in comparand.values.items() if value],
        "ratios": [_ratios(each, positions) for each in relatives],
        "crossings": [
            list(map(_crossing, each.crossover.crossings)) if each and each.crossover else [] for each in relatives
        ],
        "texts": [
            crossover_text(each.crossover, axis, comparand.name)
            if each and each.crossover and each.crossover.crossings
            else ""
            for each in relatives
        ],
    }


def _ratios(relative: Relative | None, positions: Mapping[str, int]) -> list[list[float | None]]:
    """[position of the size, ratio, by which factor its interval extends to both sides] each."""
    ratios = relative.ratios if relative else {}
    return [[positions[label], rounded(value), rounded(high / value, 4)] for label, (value, _, high) in ratios.items()]


def _crossing(crossing: Crossing) -> list[float | None]:
    return [*map(rounded, (crossing.at, crossing.low, crossing.high))]


def rounded(value: float | None, digits: int = 5) -> float | None:
    """Significant digits: more than any text shows. What has no value is None."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")
