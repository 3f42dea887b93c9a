"""What a run knows of a problem: measured, between two of its sizes, and nothing beyond them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from attnbench.analysis.interpolation import Place, Timing, place_of, unlike
from attnbench.analysis.metric_values import quantity
from attnbench.analysis.run import Run
from attnbench.problem import Problem
from tests.analysis.runs import Law, cell, laws, run_of, sequence, visits_of

SIZES = (128, 256, 512, 1024, 2048)
LAWS: dict[str, Law] = {"softmax": lambda n: 1e-8 * n**2, "local": lambda n: 2e-6 * n}


def place(run: Run, problem: Problem) -> Place:
    time = quantity(run, "wall_time")
    found = place_of(run, problem, "fwd", "core", time)
    assert found is not None
    return found


def timing(run: Run, name: str, n: int) -> Timing:
    return place(run, sequence(n)).timings[name]


def test_a_measured_size_has_the_level_of_its_rounds() -> None:
    run = laws(SIZES, LAWS)
    levels = quantity(run, "wall_time").levels
    found = timing(run, "softmax", 512)
    assert found.is_measured
    assert found.level == levels[found.points[0].key]


@pytest.mark.parametrize("n", [300, 700, 1500])
def test_a_power_of_the_size_is_interpolated_exactly(n: int) -> None:
    found = timing(laws(SIZES, LAWS, process=1e-9, own=1e-9), "softmax", n)
    assert not found.is_measured
    assert found.seconds == pytest.approx(1e-8 * n**2, rel=1e-6)
    low, high = found.interval or (math.nan, math.nan)
    assert low < found.seconds < high


@pytest.mark.parametrize("n", [100, 4096])
def test_nothing_is_known_beyond_the_sizes(n: int) -> None:
    assert not place(laws(SIZES, LAWS), sequence(n)).timings


def test_nothing_is_known_between_a_size_that_ran_and_one_that_failed() -> None:
    run = laws(SIZES, LAWS, statuses={("softmax", 2048): "oom"})
    assert set(place(run, sequence(1500)).timings) == {"local"}
    assert set(place(run, sequence(700)).timings) == {"softmax", "local"}


def test_a_curve_that_bends_is_known_less_well() -> None:
    bent = LAWS | {"bent": lambda n: 1e-3 * (1 + 3 * (n == 512))}
    run = laws(SIZES, bent, own=0.001)
    widths = {name: timing(run, name, 700).level.own_half_width for name in bent}
    assert widths["bent"] > 3 * widths["local"]
    assert timing(run, "bent", 512).level.own_half_width < widths["bent"] / 3, "a measured size does not"


def test_from_one_round_or_between_two_sizes_there_is_no_interval() -> None:
    assert timing(laws(SIZES, LAWS, rounds=1), "softmax", 700).interval is None
    assert timing(laws((512, 1024), LAWS), "softmax", 700).interval is None
    assert timing(laws((512, 1024), LAWS), "softmax", 512).interval is not None


def batches(*numbers: int) -> Run:
    cells: list[Any] = [(cell(name, replace(sequence(512), batch=b)), 1e-4 * b, {}) for name in LAWS for b in numbers]
    return run_of(visits_of(cells))


def test_another_axis_is_interpolated_along_as_well() -> None:
    found = place(batches(1, 4, 16), replace(sequence(512), batch=8))
    assert found.panel.axis == "batch"
    assert found.timings["local"].seconds == pytest.approx(8e-4, rel=0.2)


@pytest.mark.parametrize(
    "problem",
    [sequence(512, heads=8), replace(sequence(512), causal=True), replace(sequence(512), channels=512)],
    ids=["heads", "causal", "a head_dim of more than the run's channels"],
)
def test_a_problem_that_differs_otherwise_has_no_time(problem: Problem) -> None:
    run = laws(SIZES, LAWS)
    found = place_of(run, problem, "fwd", "core", quantity(run, "wall_time"))
    assert found is None or not found.timings
    assert "size" not in unlike(run, problem, "fwd", "core")


def test_what_a_problem_differs_in_is_named() -> None:
    run = laws(SIZES, LAWS)
    assert unlike(run, replace(sequence(512), batch=4), "fwd", "core") == {"batch": ("4", "1")}
    assert unlike(run, sequence(4096), "fwd", "core") == {"size": ("4096 tokens", "128 tokens to 2048 tokens")}
    assert unlike(run, sequence(512), "fwd_bwd", "core") == {"mode": ("fwd_bwd", "fwd")}
    assert set(unlike(run, replace(sequence(512), dtype="bfloat16", causal=True), "fwd", "core")) == {"dtype", "form"}


def test_exact_figures_are_interpolated_alike() -> None:
    run = laws(SIZES, LAWS)
    found = timing(run, "softmax", 362)
    values = {found.points[0].key: 100.0, found.points[1].key: 400.0}
    assert found.figure(values) == pytest.approx(100 * 4**found.share)
    assert found.figure({}) is None
