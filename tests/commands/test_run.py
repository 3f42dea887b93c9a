"""attnbench run on the command line: usage, dry run, and a small run through to its tables."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.errors import BadInput
from attnbench.measure import gate, open_run
from attnbench.measure.protocol import RatesRequest, SupportAnswer, WorkerLost
from attnbench.measure.worker_pool import Workers
from attnbench.operator import Cost
from attnbench.outputs._progress import Words, plain
from attnbench.plan import suite as suites
from attnbench.plan import time_budget
from attnbench.plan.settings import Limits, Measure
from attnbench.plan.suite import Suite
from attnbench.progress import Reached, Stage
from tests.running import faulty, plan, without_forecast, without_rates
from tests.stored import CELL, visit
from tests.tiny_suite import TINY

SUITE = TINY


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE)
    return path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "no SUITE was given"),
        (["quick", "--out", "a", "--resume", "b"], "--resume and --out"),
        (["--resume", "nowhere"], "not a run folder"),
        (["nosuch"], "nosuch"),
    ],
)
def test_bad_usage_is_one_paragraph(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["run", *arguments])
    assert isinstance(done.exception, BadInput)
    assert told in str(done.exception)


def test_a_dry_run_lists_and_writes_nothing(tmp_path: Path, suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    suite.write_text(SUITE.replace("[{seq_len: [16, 32]}]", "[{seq_len: [16, 32]}, {image_size: [4]}]"))
    words = ("--operator", "softmax,kao_kv,linformer", "--impl", "reference,cuda", "--budget", "5s", "--device", "cpu")
    done = CliRunner().invoke(app, ["run", str(suite), "--dry-run", "--format", "json", *words])
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)
    skipped = [row for row in rows if row["skipped"]]
    assert {row["impl"].split(":")[0] for row in skipped if row["skipped"] == "needs a CUDA device"} == {"cuda"}
    assert any("image" in row["skipped"] for row in skipped)
    assert all((row["expected_s"] is None) == bool(row["skipped"]) for row in rows)
    assert all(row["expected_s"] > 0 for row in rows if not row["skipped"])
    told = done.stderr.splitlines()
    assert f"{len(rows)} cells, {3 * len(rows)} visits at most; no cell was measured, nothing written" in told
    count = sum(row["skipped"] == "needs a CUDA device" for row in rows)
    assert f"skipped on cpu: {count} cells: needs a CUDA device" in told
    assert told[-1].startswith("expected: about ")
    assert "the budget is 5 s and ends it sooner: small sizes come first (an estimate" in told[-1]
    assert list(tmp_path.iterdir()) == [suite]


def test_without_rates_a_dry_run_says_at_least(monkeypatch: pytest.MonkeyPatch, suite: Path) -> None:
    def ask(workers: Workers, request: Any, timeout: float) -> SupportAnswer:
        if isinstance(request, RatesRequest):
            raise WorkerLost("crashed", "no memory for it")
        return SupportAnswer((("skipped", None),) * len(request.cells))

    monkeypatch.setattr(Workers, "ask", ask)
    told = CliRunner().invoke(app, ["run", str(suite), "--dry-run", "--device", "cpu"]).stderr.splitlines()
    assert told[-1] == f"expected: at least {4 * time_budget.START_S:.0f} s: this machine's rates could not be measured"

    def lost(workers: Workers, request: Any, timeout: float) -> SupportAnswer:
        raise WorkerLost("timeout", "no answer within 120 s")

    monkeypatch.setattr(Workers, "ask", lost)
    told = CliRunner().invoke(app, ["run", str(suite), "--dry-run", "--device", "cpu"]).stderr
    assert "asked what it supports: no answer within 120 s" in told


class Begun(Exception):
    """A run would have begun on this device."""


@pytest.mark.parametrize("verb", ["run", "gate"])
def test_a_suite_for_cuda_goes_to_no_cpu_that_nobody_named(
    verb: str, tmp_path: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def begin(suite: Suite, device: str, *more: object, **options: object) -> None:
        raise Begun(device)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(open_run, "begin", begin)
    monkeypatch.setattr(open_run, "plan_of", begin)
    if verb == "gate":
        monkeypatch.setattr(gate, "machine", lambda device: begin(suites.load(str(suite)), device))
    suite.write_text(SUITE.replace("impls: [reference]", "impls: [reference, cuda, 'cuda:flash']"))
    words = [verb, str(suite), *(("--base", "HEAD") if verb == "gate" else ())]
    monkeypatch.setattr(gate, "checkouts", lambda *given: contextlib.nullcontext((None, None)))
    monkeypatch.setattr(gate, "expand_both", lambda sides, file, only: ([suites.load(str(file))] * 2, []))
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, BadInput), done.exception
    assert str(done.exception).startswith(f"{suite}: impls: cuda, cuda:flash: these need a GPU, and torch ")
    assert "--device cpu skips them and measures all else there" in str(done.exception)
    if verb == "run":
        assert isinstance(CliRunner().invoke(app, [*words, "--dry-run"]).exception, BadInput)
        assert str(CliRunner().invoke(app, [*words, "--impl", "reference"]).exception) == "cpu"
    assert str(CliRunner().invoke(app, [*words, "--device", "cpu"]).exception) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(open_run, "other_users", lambda device: [])
    assert str(CliRunner().invoke(app, words).exception) == "cuda"


@pytest.mark.parametrize(("seconds", "measured"), [(None, True), (600.0, True), (15.0, False)])
def test_a_short_budget_is_not_spent_on_the_rates(
    seconds: float | None, measured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan([faulty("honest", 16)], limits=Limits(budget_s=seconds))
    monkeypatch.setattr(open_run, "plan_of", lambda suite, device, shard: (made, {}))
    monkeypatch.setattr(open_run, "_rates", lambda plan: {"copy_bytes_per_s": 1e9})
    text = SUITE if seconds is None else SUITE.replace("1GiB", f"1GiB, budget: {seconds:g}s")
    begun = open_run.begin(suites.from_text(text, "a test", tmp_path), "cpu", tmp_path / "run")
    begun.journal.close()
    assert bool(begun.environment["rates"]) == measured
    other = suites.from_text(text, "a test", tmp_path)
    without = open_run.begin(other, "cpu", tmp_path / "without", with_rates=False)
    without.journal.close()
    assert not without.environment["rates"]


def test_a_call_is_expected_from_its_operations_and_bytes() -> None:
    rates = {"copy_bytes_per_s": 1e10, "matmul_flops_per_s": {"float32": 1e11}}
    few, many, moved = Cost(10**9, 10**9, 0, 1, 1), Cost(10**9, 4 * 10**9, 0, 1, 1), Cost(1, 1, 0, 10**9, 1)
    of = partial(time_budget.call_s, rates=rates)
    assert of(few, CELL) == pytest.approx(time_budget.CALL_BY_ROOFLINE * 1e-2)
    assert of(many, CELL) == pytest.approx(time_budget.CALL_BY_ROOFLINE * 4e-2)
    assert of(many, replace(CELL, impl="sdpa")) == of(few, CELL), "only the reference executes what it executes"
    assert of(moved, CELL) == pytest.approx(time_budget.CALL_BY_ROOFLINE * 1e-1)
    assert time_budget.call_s(many, CELL, {}) == time_budget.SHORTEST_S
    assert time_budget.check_s(CELL, 0.1) == pytest.approx(time_budget.CHECK_S + time_budget.CHECK_CALLS * 0.1)
    (timed,) = time_budget.timed([(CELL, 0.1)], Measure(min_turns=2, max_turns=9, max_time_s=0.5), "")
    assert timed.turns == 5
    assert timed.visit_s(9) == timed.visit_s(5) == pytest.approx(timed.visit_s(2) + 3 * time_budget.sample_s(0.1))
    (few,) = time_budget.timed([(CELL, 0.1)], Measure(min_turns=2, max_turns=2), "")
    assert timed.visit_s(2) - few.visit_s(2) == pytest.approx(0.1)


def test_a_small_run_ends_with_its_folder_or_has_it_in_the_json(
    tmp_path: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_rates(monkeypatch)
    suite.write_text(SUITE.replace("rounds: 2", "rounds: 1"))
    folder = tmp_path / "run"
    done = CliRunner().invoke(app, ["run", str(suite), "--out", str(folder), "--device", "cpu"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-1] == str(folder)
    assert "linformer" in done.stdout
    assert "visits done" not in done.stdout
    again = CliRunner().invoke(app, ["run", "--resume", str(folder), "--format", "json", "--budget", "3m"])
    assert again.exit_code == 0, "its budget is of this command alone"
    assert "is not the suite that this run measures" in refused("--resume", str(folder), "--rounds", "7")
    assert json.loads(again.stdout)["folder"] == str(folder)
    third = CliRunner().invoke(app, ["run", str(suite), "--out", str(folder)])
    assert "is not empty" in str(third.exception)


OWN = """
import helper_of_the_test
from attnbench.operators.exact.identity import OPERATOR
"""


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["run", *arguments])
    assert isinstance(done.exception, BadInput), done.stderr
    return str(done.exception)


def test_a_run_goes_on_with_the_same_code_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_rates(monkeypatch)
    without_forecast(monkeypatch)
    monkeypatch.syspath_prepend(str(tmp_path))
    own, helper, suite, folder = (tmp_path / n for n in ("own.py", "helper_of_the_test.py", "own.yaml", "run"))
    own.write_text(OWN)
    helper.write_text("")
    suite.write_text(SUITE.replace("[softmax, linformer]", "[softmax, own]\noperators_from: [own.py]"))
    words = (str(suite), "--resume", str(folder), "--device", "cpu")
    done = CliRunner().invoke(app, ["run", str(suite), "--out", str(folder), "--device", "cpu", "--rounds", "1"])
    assert done.exit_code == 0, done.stderr
    words = (*words, "--rounds", "1")
    assert CliRunner().invoke(app, ["run", *words]).exit_code == 0
    helper.write_text("other = 1")
    told = refused(*words)
    assert "since the run was begun helper_of_the_test.py has changed (" in told
    assert "Put it back as it was, or start a new run with --out." in told
    helper.write_text("")
    stored = json.loads((folder / "environment.json").read_text())
    code = stored["code"]
    libraries = {**code["libraries"], "triton": "1.0"}
    for changed, word in (
        ({"code": {**code, "libraries": libraries}}, "triton has changed (1.0 → "),
        ({"allocator": "jemalloc"}, "allocator was jemalloc"),
        ({"python": "3.9.1"}, "python was 3.9.1"),
        ({"code": None}, "has no digests of the code"),
    ):
        (folder / "environment.json").write_text(json.dumps({**stored, **changed}))
        assert word in refused(*words)
    (folder / "environment.json").write_text(json.dumps(stored))
    assert CliRunner().invoke(app, ["run", *words]).exit_code == 0


def test_progress_tells_failures_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    told = plain(sys.stderr)
    told.planned(Stage("check", last=3, most=9), 4, 130.0)
    told.ended(visit(CELL, round=0), 120.0)
    told.planned(Stage("round", 1, 3, 9), 4, 60.0)
    told.ended(visit(CELL, round=1, status="crashed", reason="SIGKILL", warnings=("hot",)), 60.0)
    told.ended(visit(CELL, round=2), 30.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "about 2 min 10 s: check, 4 visits; then 3 timed rounds; up to 6 more where crossovers need them"
    )
    assert lines[1].startswith("crashed: softmax.reference") and lines[1].endswith("SIGKILL")  # noqa: PT018
    assert lines[2].endswith("hot")
    assert len(lines) == 3


def test_progress_shows_the_present(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    monkeypatch.setattr("attnbench.outputs._progress.EVERY_S", 0.0)
    told = plain(sys.stderr)
    told.planned(Stage("round", 2, 3, 9), 4, 3700.0)
    told.reached(Reached(14, 23, 0.05, 0.12))
    told.begun(faulty("honest", 64), 2)
    *_, line = capsys.readouterr().err.replace("1 h 02", "1 h 01").splitlines()
    assert line == (
        "round 2 of 3–9, at least 1 h 01 min left · 0 of 4 visits · faulty:honest fwd 64 tokens · "
        "crossovers: 14 of 23 within ± 5.0%, the widest ± 12%"
    )


def test_a_warning_of_a_series_is_told_once() -> None:
    kept: list[str] = []
    told = Words(lambda line: None, kept.append, lambda: 0.0)
    for round_ in (1, 2):
        for warning in (f"it leaves {round_} threads", "it changes the default dtype"):
            told.ended(replace(visit(CELL, round=round_), warnings=(warning,)), None)
    other = visit(replace(CELL, operator="linformer"), round=1)
    told.ended(replace(other, warnings=("it changes the default dtype",)), None)
    assert [line.rpartition(": ")[2] for line in kept] == [
        "it leaves 1 threads",
        "it changes the default dtype",
        "it changes the default dtype",
    ]


def test_progress_counts_down_and_knows_nothing_of_a_stage_that_says_nothing() -> None:
    now, lines = [100.0], list[str]()
    told = Words(lines.append, lines.append, lambda: now[0])
    assert (told.where(), told.left(), told.share) == ("starting", "", None)
    told.planned(Stage("check", side="base"), 4, 30.0)
    now[0] = 110.0
    assert (told.where(), told.left(), told.share) == ("check of base", "about 20 s left", 10 / 30)
    now[0] = 131.0
    assert told.left() == "ends soon"
    told.planned(Stage("pair", 1, 4, 60), 8, None)
    assert (told.where(), told.left(), told.share) == ("pair 1 of 4–60", "", None)
    told.ended(visit(CELL, round=1), 12.0)
    assert told.left() == "at least 12 s left"
    told.reached(Reached(1, 4))
    assert (
        told.line() == "pair 1 of 4–60, at least 12 s left · 1 of 8 visits · a process starts · decided: 1 of 4 cells"
    )
