"""The report of a run: what was found, its curves, all tables, what was not measured, and on which machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.analysis.grid import Grid, maps
from attnbench.analysis.summary import Summary
from attnbench.outputs._answer import ShortTable, machine, view
from attnbench.outputs._grid_tables import legend as grid_legend
from attnbench.outputs._html_charts import chart_page
from attnbench.outputs._html_curves import curve_blocks
from attnbench.outputs._html_maps import map_blocks
from attnbench.outputs._html_page import Block, part, section, tables
from attnbench.outputs._run_tables import Field, TextTable, marks, not_measured, parts
from attnbench.units import count, first_few

if TYPE_CHECKING:
    from markupsafe import Markup

_MOST_FACTS, _LONGEST_FACT = 80, 300
_MOST_LINES = 50


def run_page(summary: Summary, folder: Path | None) -> str:
    """The document. folder: that of a run just measured."""
    two_axes = maps(summary)
    blocks = [
        *_answer(summary),
        *curve_blocks(summary),
        *map_blocks(two_axes),
        *(tables(each, i == 0) for i, each in enumerate(parts(summary))),
        *_circumstances(summary, grid_legend(two_axes)),
    ]
    rest = "attnbench show RUN --axis AXIS --metric METRIC --format html holds a part; --format json all of it."
    kinds = ["curves", "map"] if two_axes else ["curves"]
    return chart_page(f"attnbench: {summary.name}", blocks, kinds, rest, list(_subtitle(summary, folder)))


def grids_page(grids: Sequence[Grid]) -> str:
    """The document of maps of two axes."""
    words = section("marks", "marks", "How to read it", part("notes", grid_legend(grids)))
    title = f"attnbench: {', '.join(dict.fromkeys(f'{grid.axis} × {grid.over}' for grid in grids))}"
    rest = "attnbench show RUN --over AXIS --format json holds all of it."
    return chart_page(title, [*map_blocks(grids), words], ["map"], rest)


def _answer(summary: Summary) -> Iterator[Block]:
    """The verdicts, and what a user would take instead."""
    series = {line.series.name for report in summary.panels for table in report.tables for line in table.every}
    answer = view(summary, whole=True, most_rows=len(series))
    if answer is None:
        return
    notes = [*answer.sentences, *answer.notes]
    content = part("paragraph", answer.heading) + part("notes", notes, "verdicts")
    yield section("verdicts", "answer", "Where softmax stops paying", content)
    for i, table in enumerate(answer.tables):
        title = f"What to take instead, over {table.names.full}"
        table_block = part("text_table", _text_table(title, table))
        yield Block(title, table_block if i == 0 else part("panel", title, table_block, False), rank=1)


def _text_table(title: str, table: ShortTable) -> TextTable:
    columns = [
        [Field(text, order=order) for text, order in zip(c.texts, c.orders or (None,) * len(c.texts), strict=True)]
        for c in table.columns
    ]
    return TextTable(title, tuple(table.headings), tuple(zip(*columns, strict=True)))


def _subtitle(summary: Summary, folder: Path | None) -> Iterator[str]:
    facts = summary.environment
    software = f"torch {facts['torch']}" if "torch" in facts else ""
    parts = (machine(facts), software, facts.get("started"))
    yield ", ".join(str(each)[:_LONGEST_FACT] for each in parts if each)
    if folder is not None:
        yield f"Run folder: {folder}"


def _circumstances(summary: Summary, more: Sequence[str]) -> Iterator[Block]:
    """How to read it, what was not measured, warnings, and the machine. more: of how to read it."""
    yield section("marks", "marks", "How to read it", part("notes", [*marks(summary), *more]))
    lost = [*not_measured(summary), *_failures(summary)]
    yield section("not measured", "lost", "Not measured, and why", _listed(lost))
    warned = [f"{text} ({count(number, 'visit')})" for text, number in summary.warnings.items()]
    yield section("warnings", "warnings", "Warnings", _listed(warned))
    rows = list(_facts(summary.environment))[:_MOST_FACTS]
    table = part("facts", rows, "Machine and software", ("what", "value"))
    yield section("environment", "environment", "Environment", table)


def _failures(summary: Summary) -> list[str]:
    """By status and reason the series that have no figure somewhere, with the first size."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for series in (series for report in summary.panels for series in report.panel.series):
        if series.name not in summary.skipped:
            for point in series.points:
                if point.status != "ok":
                    groups.setdefault((point.status, point.reason), {}).setdefault(series.name, point.label)
    return [
        ": ".join(filter(None, (status, ", ".join(f"{name} at {label}" for name, label in places.items()), reason)))
        for (status, reason), places in groups.items()
    ]


def _listed(lines: Sequence[str]) -> Markup:
    return part("notes", first_few(lines, _MOST_LINES)) if lines else part("paragraph", "None.")


def _facts(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Names and values; of a mapping each of its own."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _facts(value, f"{before}{name} ")
        elif value not in (None, ""):
            yield before + name, str(value)[:_LONGEST_FACT]
