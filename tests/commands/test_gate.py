"""The gate end to end, in a repository of a user's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from attnbench import noise
from attnbench.__main__ import app
from attnbench.checkout import checkouts
from attnbench.errors import BadInput
from attnbench.gating import TURNS

EXAMPLE = Path(__file__).parents[2] / "examples" / "own-operator"
SUITE = """name: own
operators_from: [operators/decayed.py]
operators: [{decayed: {half_life: [8]}}, identity]
impls: [reference]
sweep: [{seq_len: [64, 128, 256]}]
problem: {heads: 2, channels: 16}
measure: {rounds: 2, min_samples: 5, max_samples: 20, max_time: 10ms}
gate: {wall_time: 5%, peak_memory: 0%}
"""
MASK = "\n    mask = torch.ones(n, n, device=q.device)  # noqa: F841\n    short = -n % width"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return example(tmp_path / "repository", SUITE)


def example(root: Path, suite: str) -> Path:
    """The example repository with a suite of one's own, committed."""
    shutil.copytree(EXAMPLE, root)
    (root / "own.yaml").write_text(suite)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "one")
    return root


def git(root: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(["git", "-C", str(root), *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout


def attnbench(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "attnbench", *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=environment)


def only(text: str) -> dict[str, Any]:
    (found,) = json.loads(text)["comparisons"]
    return dict(found)


def plant(root: Path) -> None:
    file = root / "operators" / "decayed.py"
    text = file.read_text()
    assert "\n    short = -n % width" in text
    file.write_text(text.replace("\n    short = -n % width", MASK))


def test_a_lost_complexity_is_found_by_tier_0_and_an_unchanged_tree_passes(repository: Path) -> None:
    same = attnbench(repository, "gate", "own.yaml", "--base", "HEAD", "--tier", "0", "--format", "json", "--out", "r0")
    assert same.returncode == 0, same.stderr
    assert only(same.stdout)["measured"] == 6
    stored = attnbench(repository, "gate", "own.yaml", "--against", "r0/head", "--format", "json", "--out", "r1")
    assert stored.returncode == 0, stored.stderr

    plant(repository)
    worse = attnbench(
        repository, "gate", "own.yaml", "--base", "HEAD", "--tier", "0", "--format", "json", "--out", "r2",
        "--report", "summary.md", "--junit", "junit.xml",
    )  # fmt: skip
    assert worse.returncode == 1, worse.stderr
    found = only(worse.stdout)
    failing = {(f["name"].split()[0], f["metric"]) for f in found["findings"] if f["regression"]}
    assert ("decayed", "peak_memory") in failing
    assert not any(name == "identity" for name, _ in failing)
    assert json.loads((repository / "r2" / "gate.json").read_text()) == json.loads(worse.stdout)
    assert "MORE" in (repository / "summary.md").read_text()
    suite = ElementTree.parse(repository / "junit.xml").getroot()
    assert int(suite.attrib["failures"]) == sum(f["regression"] for f in found["findings"])
    assert git(repository, "worktree", "list").count("\n") == 1


def test_time_is_measured_though_tier_0_fails_and_an_added_operation_is_named(repository: Path) -> None:
    one = SUITE.replace("64, 128, 256", "64").replace(", identity", "").replace("10ms", "1ms")
    (repository / "own.yaml").write_text(one)
    git(repository, "commit", "--quiet", "--all", "--message", "two")
    file = repository / "operators" / "decayed.py"
    file.write_text(
        file.read_text().replace("\n    short =", "\n    q, _held = q.clone(), torch.ones(2**18)\n    short =")
    )
    words = ("gate", "own.yaml", "--base", "HEAD", "--pairs", "2", "--out", "r", "--report", "summary.md")
    done = attnbench(repository, *words)
    assert "operations" in done.stdout, done.stderr
    assert "aten.clone 0 → 1" in done.stdout
    assert done.returncode == 1, done.stdout
    document = only((repository / "r" / "gate.json").read_text())
    assert {f["metric"] for f in document["findings"] if f["regression"]} >= {"peak_memory"}
    assert "operations" not in {f["metric"] for f in document["findings"] if f["regression"]}
    assert [f["name"] for f in document["findings"] if f["metric"] == "wall_time"] == ["decayed fwd n64 h2 c16"]
    assert "aten.clone 0 → 1" in (repository / "summary.md").read_text()


def test_what_a_change_drops_from_the_suite_is_gone_and_what_it_adds_is_new(repository: Path) -> None:
    (repository / "operators" / "fresh.py").write_text((repository / "operators" / "decayed.py").read_text())
    suite = SUITE.replace("[operators/decayed.py]", "[operators/fresh.py]").replace(
        "{decayed: {half_life: [8]}}", "fresh"
    )
    (repository / "own.yaml").write_text(suite.replace("wall_time: 5%", "wall_time: 50%"))
    plant(repository)  # what is dropped may have become dearer
    git(repository, "add", "--all")
    done = attnbench(repository, "gate", "own.yaml", "--base", "HEAD", "--tier", "0", "--out", "r", "--junit", "j.xml")
    assert done.returncode == 3, done.stderr
    assert "gone: 3 cells: decayed (3)" in done.stdout
    assert "new: 3 cells: fresh (3)" in done.stdout
    assert "3 cells of r/base gone" in done.stdout
    assert "note: the suite's threshold of wall_time: 5.0% → 50.0%" in done.stdout
    found = only((repository / "r" / "gate.json").read_text())
    assert found["measured"] == 3
    assert {f["metric"] for f in found["findings"]} & {"status"} == set()
    assert "KeyError" not in done.stdout + done.stderr
    skipped = ElementTree.parse(repository / "j.xml").getroot().findall(".//testcase[@classname='missing']/skipped")
    assert len(skipped) == 3
    part = attnbench(
        repository, "gate", "own.yaml", "--base", "HEAD", "--tier", "0", "--operator", "identity", "--out", "p"
    )
    assert part.returncode == 0, part.stdout


def test_a_parameter_that_a_change_adds_makes_no_other_cell(repository: Path) -> None:
    file = repository / "operators" / "decayed.py"
    text = file.read_text()
    added = text.replace("params={", 'params={"offset": Param(0, "no tokens between", minimum=0), ')
    file.write_text(added)
    assert added != text
    done = attnbench(repository, "gate", "own.yaml", "--base", "HEAD", "--tier", "0", "--format", "json", "--out", "r")
    assert done.returncode == 0, done.stderr
    found = only(done.stdout)
    assert (found["measured"], found["missing"], found["new"]) == (6, [], [])


@pytest.mark.slow
def test_time_is_measured_in_turns_and_a_planted_slow_down_fails(repository: Path) -> None:
    file = repository / "operators" / "decayed.py"
    text = file.read_text().replace(
        "\n    short = -n % width",
        "\n    torch.linalg.inv(torch.eye(160, dtype=torch.float64))\n    short = -n % width",
    )
    file.write_text(text)
    words = ("gate", "own.yaml", "--base", "HEAD", "--pairs", "3", "--format", "json", "--out", "r")
    slower = attnbench(repository, *words, "--fail-on", "wall_time:50%,peak_memory:9999%,flops:0%")
    found = only(slower.stdout) if slower.stdout else {}
    timed = [f for f in found.get("findings", ()) if f["metric"] == "wall_time"]
    assert {f["name"].split()[0] for f in timed} == {"decayed", "identity"}, slower.stderr
    assert all(f["ratio"] > 2 for f in timed if f["name"].startswith("decayed fwd n64"))
    assert slower.returncode == 1, (found["decision"], found["notes"])
    assert {f["name"].split()[0] for f in timed if f["regression"]} == {"decayed"}
    assert "confirmed" in next(f["reason"] for f in timed if f["regression"])
    visits = [json.loads(line) for line in (repository / "r" / "head" / "visits.jsonl").read_text().splitlines()]
    assert len({visit["process"] for visit in visits if visit["round"]}) == 6  # 3 pairs, and 3 that confirm
    first = [visit for visit in visits if 1 <= visit["round"] <= TURNS]
    assert len({visit["process"] for visit in first}) == 1
    assert {visit["key"]: TURNS for visit in first} == Counter(visit["key"] for visit in first)
    explained = attnbench(repository, "compare", "r/base", "r/head", "--explain", "decayed.reference")
    assert "round 3" in explained.stdout


def test_calibrate_stores_a_noise_floor_that_the_gate_of_this_machine_takes(repository: Path) -> None:
    small = SUITE.replace("{decayed: {half_life: [8]}}, identity", "identity").replace("64, 128, 256", "64, 128")
    (repository / "own.yaml").write_text(small)
    done = attnbench(repository, "calibrate", "own.yaml", "--pairs", "3", "--format", "json")
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout)
    assert [cell["threshold"] for cell in cells] == [0.05, 0.05]
    assert all(cell["noise"] > 0 and cell["visible"] > 0.025 for cell in cells)
    assert [cell["seen"] for cell in cells] == [cell["visible"] <= cell["threshold"] * 1.0001 for cell in cells]
    path = repository / "results" / "noise" / "own.json"
    stored = json.loads(path.read_text())
    assert stored["own"] == {cell["cell"]: cell["noise"] for cell in cells}
    found = noise.read(path)
    assert noise.floor_for(path, dict(found.machine), asked=True)[1].startswith("noise floor from 3 pairs")
    with pytest.raises(BadInput, match="of another machine"):
        noise.floor_for(path, {**found.machine, "cores": 999}, asked=True)


def test_a_file_written_again_as_it_was_is_no_change(repository: Path) -> None:
    file = repository / "operators" / "decayed.py"
    head = git(repository, "rev-parse", "HEAD").strip()
    for changed in (False, True):
        file.write_text(file.read_text() + "\n" * changed)
        with checkouts(repository / "own.yaml", "HEAD", None) as (base, candidate):
            assert base.revision == head
            assert (candidate.revision != head) == changed
            assert (candidate.root / "operators" / "decayed.py").read_text() == file.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("own.yaml",), "needs --base REV"),
        (("own.yaml", "--base", "HEAD", "--against", "x"), "one of the two"),
        (("own.yaml", "--base", "nowhere"), "--base nowhere: no such revision"),
        (("own.yaml", "--base=--help"), "no such revision"),
        (("none.yaml", "--base", "HEAD"), "none.yaml does not exist"),
        (("own.yaml", "--against", "nothing"), "nothing: no such folder"),
        (("own.yaml", "--base", "HEAD", "--fail-on", "wal_time:5%"), "did you mean 'wall_time'"),
        (("own.yaml", "--base", "HEAD", "--fail-on", "wall_time:5"), "--fail-on wall_time: '5'; allowed: a percentage"),
        (("own.yaml", "--base", "HEAD", "--noise", "none.json"), "none.json"),
    ],
)
def test_bad_usage_is_a_sentence_and_exit_code_2(
    repository: Path, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: what is raised as BadInput ends so, as other tests here show."""
    monkeypatch.chdir(repository)
    done = CliRunner().invoke(app, ["gate", *words])
    assert isinstance(done.exception, BadInput), done.exception
    assert message in str(done.exception)


def test_what_git_does_not_know_and_what_does_not_load_are_told(repository: Path) -> None:
    (repository / "operators" / "new.py").write_text("OPERATOR = 3\n")
    (repository / "own.yaml").write_text(
        SUITE.replace("[operators/decayed.py]", "[operators/decayed.py, operators/new.py]")
    )
    done = attnbench(repository, "gate", "own.yaml", "--base", "HEAD")
    assert done.returncode == 2
    assert "git does not know operators/new.py" in done.stderr
    (repository / "own.yaml").write_text(SUITE)
    (repository / "operators" / "decayed.py").write_text("import math\nmath.nothing\n")
    done = attnbench(repository, "gate", "own.yaml", "--base", "HEAD", "--tier", "0")
    assert done.returncode == 2
    assert "decayed.py, line 2 (math.nothing): AttributeError" in done.stderr
    assert "Traceback" not in done.stderr


def test_outside_a_repository_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("operators: [identity]\nsweep: [{seq_len: 8}]\n")
    done = attnbench(tmp_path, "gate", "own.yaml", "--base", "HEAD")
    assert done.returncode == 2
    assert "git repository" in done.stderr
