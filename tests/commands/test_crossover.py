from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.analysis.run import read_run
from attnbench.errors import BadInput
from attnbench.measure import open_run
from attnbench.measure.stored_search import write_request
from attnbench.plan import suite as suites
from attnbench.plan.search_request import SearchRequest, suite_text
from attnbench.store.records import SUITE
from tests.running import lean, without_forecast, without_rates
from tests.stored import folder


def crossover(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(lean("crossover", *map(str, arguments)), capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_a_small_search_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process; its workers are processes of their own."""
    without_rates(monkeypatch)
    without_forecast(monkeypatch)
    path = tmp_path / "run"
    sizes = ("--low", 16, "--high", 256, "--precision", "100%", "--channels", 64, "--heads", 4, "--over", "batch=1,2")
    words = map(str, ("linear_transformer", *sizes, "--device", "cpu", "--out", path, "--format", "json"))
    done = CliRunner().invoke(app, ["crossover", *words])
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["series"], row["value"]) for row in rows] == [("linear_transformer:reference", n) for n in ("1", "2")]
    assert "nothing" not in {row["kind"] for row in rows}
    assert {row["run"] for row in rows} == {str(path)}
    run = read_run(path)
    for row in rows:
        assert set(run.visits["seq_len"][run.visits["batch"] == int(row["value"])]) >= set(row["sizes"])
        assert all(str(size) in run.suite_text for size in row["sizes"])
    again = CliRunner().invoke(app, ["crossover", "--resume", str(path), "--format", "json"])
    assert json.loads(again.stdout) == rows
    assert len(read_run(path).visits) == len(run.visits)


@pytest.fixture
def searched(tmp_path: Path) -> Path:
    """The folder of a search that was killed before its first visit."""
    asked = SearchRequest(("performer",), "softmax", "seq_len", 64, 128, 0.1, "wall_time_s")
    path = folder(tmp_path / "searched", [])
    shape = {"batch": 1, "heads": 4, "channels": 32, "dtype": "float32", "causal": False}
    (path / SUITE).write_text(suite_text(asked, shape, 64, "fwd", "core", [], []))
    write_request(asked, path)
    return path


def test_a_search_goes_on_with_what_it_was_asked_and_no_run_takes_it_for_a_suite(searched: Path) -> None:
    done = crossover("--resume", searched, "rfa", "--low", 32, "--format", "json")
    assert done.returncode == 2
    assert "Leave out --low, OP." in " ".join(done.stderr.split())
    run = [sys.executable, "-m", "attnbench", "run", "--resume", str(searched)]
    refused = subprocess.run(run, capture_output=True, text=True, timeout=600)
    assert refused.returncode == 2
    assert "attnbench crossover --resume" in " ".join(refused.stderr.split())


def test_a_run_of_a_suite_is_no_search(tmp_path: Path) -> None:
    done = crossover("--resume", folder(tmp_path / "run", []))
    assert done.returncode == 2
    assert "it has no search.json" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["performer", "--low", "512", "--high", "64"], "allowed: 0 < low < high"),
        (["performer", "--precision", "often"], "allowed: a percentage"),
        (["performr"], "performr"),
        (["performer", "--param", "nothing=3"], "none of performer, softmax has it"),
        (["performer", "--param", "m"], "allowed: key=value"),
        (["linformer", "--param", "k=010"], "k = '010'; allowed: a whole number"),
        (["linformer", "--param", "k=["], "--param k: '[' is not one plain value"),
        (["linformer", "--param", "k=!!python/object/apply:os.system [ls]"], "is not one plain value"),
        (["linformer", "--param", "k=&a 8"], "--param k: '&a 8' is not one plain value"),
        (["linformer", "--param", "k=*a"], "--param k: '*a' is not one plain value"),
        (["performer", "--low", "010"], "010"),
        (["performer:cuda:none"], "cuda:none"),
        (["performer:sdpa"], "performer has no impl sdpa"),
        (["softmax"], "only the baseline"),
        (["performer", "--over", "batch=4"], "a border needs two or more"),
        (["performer", "--over", "batch=1,2", "--batch", "2"], "--batch 2: it is varied, by --over"),
        (["performer", "--over", "query_len=1,4096", "--causal"], "query_len 4096"),
        (["performer", "--axis", "channels", "--over", "heads=3,8", "--low", "64"], "64 is not divisible by heads 3"),
        (["performer", "--channels", "100", "--heads", "8"], "100"),
    ],
)
def test_bad_usage_is_told_before_anything_is_measured(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["crossover", *arguments, "--device", "cpu", "--out", str(tmp_path / "run")])
    refused = isinstance(done.exception, BadInput)  # else by the command line's own reader
    assert refused or done.exit_code == 2, done.exception
    assert message in (str(done.exception) if refused else done.stderr)
    assert not (tmp_path / "run").exists()


def test_a_search_goes_on_with_the_same_code_only(searched: Path) -> None:
    suite = suites.from_text((searched / SUITE).read_text(), "a test", searched)
    found = open_run.plan_of(suite, "cpu")[1]
    found["code"]["files"]["attnbench/measure/worker/correctness.py"] = "0" * 12
    (searched / "environment.json").write_text(json.dumps(found))
    done = CliRunner().invoke(app, ["crossover", "--resume", str(searched)])
    assert isinstance(done.exception, BadInput)
    assert "since the run was begun attnbench/measure/worker/correctness.py has changed (000000000000 → " in str(
        done.exception
    )
