"""What a metric's file declares fits together, and its names stand in no other file but where it is the subject."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace

import pytest

from attnbench.metric import DEFAULT_METRIC, Metric
from attnbench.registry import metrics
from tests.test_rooms import modules

SUBJECTS = {
    "attnbench.metric": "DEFAULT_METRIC: what is gated and searched where no metric is named",
    "attnbench.analysis.roofline": "the bound of the time by the FLOPs and bytes of the definition",
    "attnbench.measure.visit_maker": "what a member of a block needs, by the peak memory of its check",
    "attnbench.measure.estimates": "estimates of FLOPs and memory without a run, in the columns of one",
    "attnbench.measure.device.cpu": "takes the columns of the peak memory",
    "attnbench.measure.device.cuda": "takes the columns of the peak memory",
    "attnbench.analysis.choice": "the error of an estimate of softmax attention, which a choice shows",
    "attnbench.measure.reproduce": "takes those estimates beside a paper's claims",
    "attnbench.measure.timed_claims": "what a paper's claims of time are claims of",
    "attnbench.outputs._listings": "shows those estimates",
    "attnbench.outputs._choice": "shows a choice, with those estimates",
    "attnbench.commands.estimate": "shows those estimates",
}
"""Modules that say a metric's name or column, and why."""


def mistakes(name: str, metric: Metric) -> Iterator[str]:
    columns = {metric.column, *metric.guarded, *metric.added, *metric.csv_later}
    columns |= set(metric.ends) if metric.derived == "interval" else set()
    if metric.executed is not None:
        columns |= {metric.executed.stated, metric.executed.counted, metric.executed.uncounted}
    if metric.curve is not None:
        columns |= {*metric.curve.columns.values(), *metric.curve.beside.values()}
        if metric.curve.columns.get(metric.curve.main) != metric.column:
            yield "the curve's main value is not the figure"
    yield from (f"{column} is not among its columns" for column in sorted(columns - metric.columns.keys()))
    if metric.clock and not metric.timed:
        yield "a clock, but nothing of the timed rounds"
    if metric.exact and metric.timed:
        yield "exact, but of the timed rounds"
    if metric.csv_later and metric.csv_place is None:
        yield "csv_later without a csv_place"
    for other_name, other in metrics().items():
        if other_name != name:
            yield from (f"{column} is {other_name}'s" for column in metric.columns.keys() & other.columns.keys())
            places = {(metric.place, other.place), (metric.csv_place, other.csv_place)}
            if any(a == b is not None for a, b in places) or metric.clock == other.clock != "":
                yield f"the same place or clock as {other_name}"


@pytest.mark.parametrize("name", list(metrics()))
def test_what_a_file_declares_fits_together(name: str) -> None:
    assert list(mistakes(name, metrics()[name])) == []


def test_what_does_not_fit_is_seen() -> None:
    wall, flops = metrics()["wall_time"], metrics()["flops"]
    assert list(mistakes("wall_time", replace(wall, column="wall_s"))) == [
        "wall_high_s is not among its columns",
        "wall_low_s is not among its columns",
        "wall_s is not among its columns",
    ]
    assert list(mistakes("wall_time", replace(wall, derived="check"))) == ["a clock, but nothing of the timed rounds"]
    assert list(mistakes("flops", replace(flops, guarded=("bytes",)))) == ["bytes is not among its columns"]
    assert "the same place or clock as wall_time" in list(mistakes("copied", wall))


def literals(source: str) -> set[str]:
    """The names and figures' columns of metrics that a source has as texts of their own."""
    names = {*metrics(), *(metric.column for metric in metrics().values())}
    return {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)} & names


def test_a_metrics_names_stand_in_its_file_alone() -> None:
    apart = ("attnbench.measure.metrics.", "attnbench.operators.", "attnbench.kernels.")
    names_by_module = {
        module: names
        for module, path in modules().items()
        if not module.startswith(apart) and (names := literals(path.read_text(encoding="utf-8")))
    }
    assert names_by_module.keys() == SUBJECTS.keys(), names_by_module


def test_a_literal_is_seen() -> None:
    assert literals('CLOCKS = ("wall_time", "other")') == {DEFAULT_METRIC}
    assert literals('"""Of wall_time and flops."""\nfloor(flops=1)') == set()
