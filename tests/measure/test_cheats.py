"""Impls that give answers without computing them get no number, however they do it; honest ones that keep what is
theirs to keep do. Each goes the way of any cell: checked in one worker process, timed in another.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pandas import DataFrame

from attnbench.measure.worker import answers
from attnbench.measure.worker.prepared_cell import Wrong
from attnbench.problem import MODES, Cell, Mode, Problem
from attnbench.registry import operators
from tests.cheats.cheating import CHEATS, LATER
from tests.measuring import subject
from tests.running import QUICK, measured, plan

SHORT, LONG = Problem(32, 8), Problem(2048, 64)
"""Calls of some 10 µs, which are timed in blocks, and of more than the 100 µs from which each is a sample."""

GRADIENTS_ONLY = ("gradient_by_place", "gradient_by_sample", "nan_in_a_gradient", "later_gradient")
PATCHES = ("patched_clock", "patched_median")
ALSO_LONG = ("by_place", "by_place_and_version", "by_sample", "gradient", "every_second", "in_a_thread", "lazy")
HONEST = ("honest", "packs_parameters", "reference")


def cell(impl: str, mode: Mode, problem: Problem) -> Cell:
    return Cell("cheating", impl, "core", mode, problem, {})


CAUGHT = [
    cell(impl, mode, problem)
    for impl in [*CHEATS, "lazy"]
    for mode in (("fwd_bwd",) if impl in GRADIENTS_ONLY else MODES)
    for problem in ((SHORT, LONG) if impl.removeprefix("later_") in ALSO_LONG else (SHORT,))
    if impl not in PATCHES
]
RIGHT = [cell(impl, mode, problem) for impl in HONEST for mode in MODES for problem in (SHORT, LONG)]
ALONE = [
    cell(impl, "fwd", Problem(2049 + n, 8))
    for n, impl in enumerate(("patched_clock", "honest", "patched_median", "honest"))
]
"""Larger than all others: the check comes to them last, in this order."""


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    folder = tmp_path_factory.mktemp("cheats") / "run"
    enough = replace(QUICK, min_samples=LATER + 8, max_samples=LATER + 8)  # calls for the late ones to begin
    cells = [*CAUGHT, *RIGHT, *ALONE]
    return measured(folder, plan(cells, operators_from=("tests.cheats",), measure=enough)).visits


def name(of: Cell) -> str:
    return f"{of.impl} {of.mode} {of.problem.size}"


@pytest.mark.parametrize("cheat", CAUGHT, ids=name)
def test_a_cheat_is_wrong_and_has_no_time(visits: DataFrame, cheat: Cell) -> None:
    last = visits[visits["key"] == cheat.key].iloc[-1]
    assert (last["status"], last["cause"]) == ("wrong", "wrong"), last["reason"]
    assert not last.get("wall_time_s") > 0
    if cheat.impl.startswith("later_"):
        assert last["round"] == 1, "a check makes too few calls to see it"


@pytest.mark.parametrize("honest", RIGHT, ids=name)
def test_an_honest_impl_is_timed_also_where_it_keeps_its_parameters(visits: DataFrame, honest: Cell) -> None:
    own = visits[visits["key"] == honest.key]
    assert list(own["status"]) == ["ok", "ok"], list(own["reason"])
    assert not any(map(len, own["warnings"]))
    assert own["wall_time_s"].iloc[-1] > 0


def test_what_replaces_the_clock_or_the_statistics_is_wrong_and_alone(visits: DataFrame) -> None:
    check = visits[visits["round"] == 0].set_index("key").loc[[of.key for of in ALONE]]
    assert list(check["status"]) == ["wrong", "ok", "wrong", "ok"]
    assert list(check["cause"]) == ["tampered", "", "tampered", ""]
    assert list(check["process"].diff().iloc[1:]) == [1.0, 0.0, 1.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
def test_work_left_on_another_stream_is_wrong(tmp_path: Path) -> None:
    cells = [cell(impl, "fwd", LONG) for impl in ("on_a_stream", "honest")]
    results = measured(tmp_path / "run", plan(cells, operators_from=("tests.cheats",), device="cuda")).results
    assert dict(zip(results["impl"], results["status"], strict=True)) == {"on_a_stream": "wrong", "honest": "ok"}


@pytest.mark.parametrize("impl", ["by_object", "by_place_and_version", "by_first_value", "every_second"])
def test_where_no_reference_is_affordable_answers_must_follow_all_the_same(impl: str) -> None:
    def whole_visit(impl: str) -> None:
        of = subject("cheating", impl, seq_len=48)
        first = answers.first_answers(of)
        answers.check_after_timing(of, first, None)

    with pytest.raises(Wrong):
        whole_visit(impl)
    whole_visit("honest")


def test_every_cheat_of_the_file_is_tried() -> None:
    impls = operators(("tests.cheats",))["cheating"].load().forms["core"].impls
    assert {*impls, "reference"} == {of.impl for of in [*CAUGHT, *RIGHT]} | {*PATCHES, "on_a_stream"}
