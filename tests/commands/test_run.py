"""attnbench run on the command line: usage, dry run, and a small run through to its tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.errors import BadInput
from attnbench.progress import duration, plain
from tests.running import faulty
from tests.stored import CELL, visit

SUITE = """
name: tiny
operators: [softmax, linformer]
impls: [reference]
sweep: [{seq_len: [16, 32]}]
problem: {heads: 2, channels: 16}
measure: {rounds: 2, max_samples: 8, max_time: 20ms}
limits: {memory: 1GiB}
"""


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
    done = CliRunner().invoke(app, ["run", str(suite), "--dry-run", "--format", "json"])
    assert done.exit_code == 0
    assert len(json.loads(done.stdout)) == 4
    assert list(tmp_path.iterdir()) == [suite]


def test_a_small_run_ends_with_its_folder_or_has_it_in_the_json(tmp_path: Path, suite: Path) -> None:
    folder = tmp_path / "run"
    done = CliRunner().invoke(app, ["run", str(suite), "--out", str(folder), "--device", "cpu"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-1] == str(folder)
    assert "linformer" in done.stdout
    assert "visits done" not in done.stdout
    again = CliRunner().invoke(app, ["run", "--resume", str(folder), "--format", "json"])
    assert again.exit_code == 0
    assert json.loads(again.stdout)["folder"] == str(folder)
    third = CliRunner().invoke(app, ["run", str(suite), "--out", str(folder)])
    assert "something already" in str(third.exception)


OWN = """
import helper_of_the_test
from attnbench.operators.exact.identity import OPERATOR
"""


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["run", *arguments])
    assert isinstance(done.exception, BadInput), done.stderr
    return str(done.exception)


def test_a_run_goes_on_with_the_same_code_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert "Put it back as it was, or start anew with --out." in told
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
    told.planned(4, 130.0)
    told.ended(visit(CELL, round=1, status="crashed", reason="SIGKILL", warnings=("hot",)), 60.0)
    told.ended(visit(CELL, round=2), 30.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "timed rounds: 4 visits, about 2 min 10 s"
    assert lines[1].startswith("crashed: softmax.reference") and lines[1].endswith("SIGKILL")  # noqa: PT018
    assert lines[2].endswith("hot")
    assert len(lines) == 3


def test_progress_shows_the_present(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    monkeypatch.setattr("attnbench.progress.EVERY_S", 0.0)
    told = plain(sys.stderr)
    told.planned(4, 3700.0)
    told.begun(faulty("honest", 64), 2)
    assert "round 2: 0/4 visits done, 1 h 01 min left · faulty honest fwd n64" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (7260, "2 h 01 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
