"""On committed reference runs every view tells the same crossovers: table, Markdown, JSON, pictures."""

from __future__ import annotations

import io
import json as json_module
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Annotation
from rich.console import Console

from attnbench.analysis.crossover import Crossover
from attnbench.analysis.run import Run, read_run
from attnbench.analysis.summary import Summary, summarise
from attnbench.axes import AXES
from attnbench.outputs import _graphs, json
from attnbench.outputs import _run_tables as blocks
from attnbench.outputs._graph_picture import picture_of
from attnbench.outputs._graphs import drawings
from attnbench.outputs._picture_parts import AS_IT_NEEDS
from attnbench.outputs.table import write
from attnbench.registry import metrics

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
UNITS = {"seq_len": "tokens", "image_size": "pixels", "channels": "channels"}
JOINED = r"; | and (?=from )| (?=up to )"
"""What joins the crossings of a text."""
RUNS = ["cpu-image", "cpu-channels"]


@lru_cache
def stored(name: str) -> tuple[Run, Summary]:
    run = read_run(REFERENCE / name)
    return run, summarise(run)


def crossings(summary: Summary) -> Iterator[tuple[int, str, str, str, dict[str, Any]]]:
    """(panel, metric, series, side, crossing) of every crossing, from the JSON."""
    for i, panel in enumerate(json_module.loads(json.run(summary))["panels"]):
        for metric in panel["metrics"]:
            for series in metric["series"]:
                for side in ("against_baseline", "against_exact"):
                    for found in (series[side] or {"crossings": []})["crossings"]:
                        yield i, metric["metric"], series["name"], side, found


def told(found: dict[str, Any], axis: str, picture: bool = False) -> str:
    """A crossing as the tables, or the labels of pictures, write it, from the JSON's numbers alone."""
    sign, ends = {"above": ">", "below": "<"}[found["direction"]], (found["low"], found["high"])
    word, unit = {"above": "from", "below": "up to"}[found["direction"]], UNITS[axis]
    if found["bracket"]:
        low, high = (f"{end**0.5:.0f}x{end**0.5:.0f}" if axis == "image_size" else str(end) for end in ends)
        return f"{sign}{low}…{high}" if picture else f"{word} somewhere between {low} and {high} {unit}"
    if picture:
        return f"{sign}{AXES[axis].place(found['at'])}"
    low, high = (AXES[axis].size(end) for end in ends)
    return f"{word} {AXES[axis].place(found['at'])} {unit}" + (f" [{low}, {high}]" if low != high else "")


def cells(summary: Summary) -> dict[tuple[int, str, str, str], str]:
    """(panel, title, series, column) → text of the crossover tables."""
    return {
        (i, table.title, row[0].text, name): cell.text
        for i, part in enumerate(blocks.parts(summary))
        for table in part.text_tables
        for row in table.rows
        for name, cell in zip(table.columns, row, strict=True)
    }


def missing_from_tables(summary: Summary, shown: Summary) -> list[str]:
    """Crossings of one summary that the tables of another do not tell."""
    missing, texts = [], cells(shown)
    for i, metric, series, side, found in crossings(summary):
        axis = summary.panels[i].panel.axis
        column = f"cheaper than {summary.baseline if side == 'against_baseline' else metrics()[metric].best_exact}"
        title = f"Crossover of {metrics()[metric].title.lower()}"
        if metric == "flops":  # beside the wall time's, against the baseline alone
            title, column = "Crossover of wall time", "by FLOPs"
        if (metric, side) != ("flops", "against_exact"):
            text = texts.get((i, title, series, column), "")
            missing += [] if told(found, axis) in re.split(JOINED, text) else [f"{series} {metric}: {found} in {text}"]
    return missing


def missing_from_pictures(summary: Summary, families: dict[str, str], shown: Summary) -> list[str]:
    """The same for the marks and labels of the pictures by family."""
    missing, every = [], list(crossings(summary))
    pictures = {each.stem: each for each in drawings(shown, families) if each.stem.endswith("-families")}
    stems = _graphs.stems([(report.panel.axis, report.panel.fixed) for report in shown.panels])
    for i, (stem, report) in enumerate(zip(stems, shown.panels, strict=True)):
        for table in report.tables:
            axes = picture_of(pictures[f"{stem}-{table.quantity.name}-families"], AS_IT_NEEDS).axes
            labels = {t.get_text() for a in axes for t in a.texts if isinstance(t, Annotation)}
            marks = [
                (line.get_marker(), float(x[0]))  # type: ignore[arg-type]
                for a in axes
                for line in a.lines
                if len(x := line.get_xdata()) == 1  # type: ignore[arg-type]
            ]
            for panel, metric, series, side, found in every:
                if (panel, metric) != (i, table.quantity.name):
                    continue
                sign, mark = {"against_baseline": ("○", "o"), "against_exact": ("◇", "D")}[side]
                head = f"{sign} {told(found, report.panel.axis, picture=True)}"
                named = [t for t in labels if t.split("  ")[0].removesuffix(" oom") == series and head in t.split("  ")]
                marked = found["bracket"] or any(
                    mark == shape and math.isclose(x, found["at"], rel_tol=1e-9) for shape, x in marks
                )
                missing += [] if named and marked else [f"{series} {metric} {side}: {found}"]
    return missing


@pytest.mark.parametrize("name", RUNS)
def test_tables_and_pictures_tell_the_crossings_of_the_json(name: str) -> None:
    run, summary = stored(name)
    assert len(list(crossings(summary))) > 20
    assert missing_from_tables(summary, summary) == []
    assert missing_from_pictures(summary, run.environment["families"], summary) == []


@pytest.mark.parametrize("name", RUNS)
def test_no_interval_is_broken_over_lines_at_eighty_columns(name: str) -> None:
    file = io.StringIO()
    write(stored(name)[1], Console(file=file, width=80))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    intervals = [line for line in lines if "[" in line or "]" in line]
    assert len(intervals) > 10
    assert all(line.count("[") == line.count("]") for line in intervals)


def test_a_view_that_moved_its_crossings_is_found() -> None:
    """The negative control: 10 % further."""
    run, summary = stored("cpu-channels")

    def moved(found: Crossover | None) -> Crossover | None:
        if found is None:
            return None
        ends = [(c, c.at and 1.1 * c.at, 1.1 * (c.low or 1), 1.1 * (c.high or 1)) for c in found.crossings]
        return replace(found, crossings=tuple(replace(c, at=at, low=low, high=high) for c, at, low, high in ends))

    reports = tuple(
        replace(
            s,
            tables=tuple(
                replace(t, lines=tuple(replace(x, against_baseline=moved(x.against_baseline)) for x in t.lines))
                for t in s.tables
            ),
        )
        for s in summary.panels
    )
    other = replace(summary, panels=reports)
    baseline = [c for c in crossings(summary) if c[3] == "against_baseline"]
    assert len(missing_from_tables(summary, other)) == len(baseline)
    assert len(missing_from_pictures(summary, run.environment["families"], other)) == len(baseline)
