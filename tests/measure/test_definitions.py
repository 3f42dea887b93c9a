"""What lies outside the definitions of operators is refused before a process is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.errors import BadInput
from attnbench.measure import open_run, worker_process
from attnbench.measure.definitions import reason_against
from attnbench.problem import Cell, Problem
from attnbench.registry import operators, resolve


class WentOn(Exception):
    """What comes next was reached."""


def go_on(*given: Any, **named: Any) -> NoReturn:
    raise WentOn


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "start", go_on)
    monkeypatch.setattr(open_run, "_rates", go_on)


def refused(*words: object) -> str:
    result = CliRunner().invoke(app, [*map(str, words), "--device", "cpu"])
    assert isinstance(result.exception, BadInput), result.output
    return str(result.exception)


def test_a_search_outside_the_definition_says_where_it_is_inside(tmp_path: Path) -> None:
    said = refused("crossover", "kao_kv", "performer", "--high", 128, "--out", tmp_path / "run")
    assert said == (
        "kao_kv:reference: defined on image only, not on a sequence: at every size from 64 to 128 along seq_len. "
        "Give --axis image_size."
    )
    assert not (tmp_path / "run").exists()


def test_the_baseline_is_asked_as_well() -> None:
    assert refused("crossover", "softmax", "--baseline", "kao_kv", "--high", 128).startswith(
        "kao_kv:reference: defined"
    )


def test_every_value_of_the_second_axis_is_asked() -> None:
    said = refused("crossover", "linformer", "--causal", "--over", "kv_heads=2,4,8")
    assert said.startswith("linformer:reference: ")
    assert "Leave it out, or change the problem" in said


def test_where_only_the_smallest_sizes_are_outside_a_larger_one_is_named() -> None:
    said = refused("crossover", "neighborhood", "--axis", "image_size", "--low", 3, "--high", 64)
    assert said == (
        "neighborhood:reference: at --low 3: kernel 7 with dilation 1 needs 7 tokens a side; here are 3. "
        "Give --low 8 or more."
    )


def test_a_search_inside_the_definition_goes_on() -> None:
    result = CliRunner().invoke(app, ["crossover", "performer", "--high", "128", "--device", "cpu"])
    assert isinstance(result.exception, WentOn)


def test_a_run_of_which_nothing_is_inside_is_refused(tmp_path: Path) -> None:
    suite = tmp_path / "s.yaml"
    suite.write_text("operators: [kao_kv, lambda_layer]\nsweep: [{seq_len: [64, 128]}]\n")
    said = refused("run", suite, "--out", tmp_path / "run")
    assert (
        "nothing of it can be measured on cpu: kao_kv, lambda_layer: defined on image only, not on a sequence" in said
    )
    suite.write_text("operators: [kao_kv, softmax]\nsweep: [{seq_len: [64, 128]}]\n")
    result = CliRunner().invoke(app, ["run", str(suite), "--out", str(tmp_path / "run"), "--device", "cpu"])
    assert isinstance(result.exception, WentOn)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_step_with_gradients_is_outside_on_every_device(device: str) -> None:
    source = operators()["softmax"]
    step = Cell(
        "softmax", "reference", "core", "fwd_bwd", Problem(64, 8, causal=True, query_len=1), resolve(source.load(), {})
    )
    assert "fwd only" in str(reason_against(source, step, device))
    assert reason_against(source, replace(step, mode="fwd"), device) is None
