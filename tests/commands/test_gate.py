"""The gate end to end, in a repository of a user's own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import Result
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.analysis.compare.findings import Comparison
from attnbench.errors import BadInput
from attnbench.measure import gate
from attnbench.measure.gate_pairs import FEWEST_TURNS
from attnbench.measure.git_worktrees import checkouts
from attnbench.plan import suite as suites
from tests.running import without_forecast

EXAMPLE = Path(__file__).parents[2] / "examples" / "own-operator"
SUITE = """name: own
operators_from: [operators/decayed.py]
operators: [{decayed: {half_life: [8]}}, identity]
impls: [reference]
sweep: [{seq_len: [64, 128, 256]}]
problem: {heads: 2, channels: 16}
measure: {rounds: 2, crossover_precision: null, min_turns: 2, max_turns: 2}
gate: {wall_time: 5%, peak_memory: 0%}
"""
LOADED = "load: 9 processes want this machine's 2 processors. Wait until it is idle."
PLACE = "\n    padding = -n % width"


@dataclass(frozen=True)
class Judged:
    """A repository, the gate that has run in it, and its decision (gate.json)."""

    root: Path
    done: Result
    comparison: dict[str, Any]

    @property
    def failing(self) -> set[tuple[str, str]]:
        """(operator, metric)."""
        return {(f["name"].split()[0], f["metric"]) for f in self.comparison["findings"] if f["regression"]}

    @property
    def timed(self) -> dict[str, dict[str, Any]]:
        """The findings on wall_time by name."""
        return {f["name"]: f for f in self.comparison["findings"] if f["metric"] == "wall_time"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return example(tmp_path / "repository", SUITE)


def example(root: Path, suite: str, *names: str) -> Path:
    """The example repository with a suite of one's own, committed. names: that its operator is there under."""
    shutil.copytree(EXAMPLE, root)
    for name in names:
        shutil.copy(EXAMPLE / "operators" / "decayed.py", root / "operators" / f"{name}.py")
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


def in_this_process(root: Path, *words: str) -> Result:
    """A command without the start of a process; its workers are processes of their own, and nothing is foreseen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        without_forecast(patch)
        return CliRunner().invoke(app, words)


def only(text: str) -> dict[str, Any]:
    (comparison,) = json.loads(text)["comparisons"]
    return dict(comparison)


def insert(root: Path, operator: str, statement: str) -> None:
    """Into the operator's reference."""
    file = root / "operators" / f"{operator}.py"
    text = file.read_text()
    assert PLACE in text
    file.write_text(text.replace(PLACE, f"\n    {statement}{PLACE}"))


def plant(root: Path, operator: str = "decayed") -> None:
    """What grows with N²."""
    insert(root, operator, "mask = torch.ones(n, n, device=q.device)  # noqa: F841")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """A change that slows one operator down, gives it a parameter, adds an operation to another and leaves a third as
    it was; that drops one operator and adds one; in pairs.
    """
    suite = SUITE.replace("identity", "cloning, identity, dropped").replace("64, 128, 256", "64")
    suite = suite.replace(
        "[operators/decayed.py]", "[operators/decayed.py, operators/cloning.py, operators/dropped.py]"
    )
    root = example(tmp_path_factory.mktemp("judged") / "repository", suite, "decayed", "cloning", "dropped")
    (root / "operators" / "fresh.py").write_text((root / "operators" / "decayed.py").read_text())
    (root / "own.yaml").write_text(suite.replace("dropped", "fresh").replace("wall_time: 5%", "wall_time: 50%"))
    plant(root, "dropped")  # which fails nothing
    insert(root, "decayed", "torch.linalg.inv(torch.eye(160, dtype=torch.float64))")
    insert(root, "cloning", "q, _held = q.clone(), torch.ones(2**18)")
    file = root / "operators" / "decayed.py"
    text = file.read_text()
    file.write_text(text.replace("params={", 'params={"offset": Param(0, "no tokens between", minimum=0), '))
    assert file.read_text() != text
    git(root, "add", "--all")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "disturbances", lambda: [LOADED])
        done = in_this_process(
            root, "gate", "own.yaml", "--base", "HEAD", "--pairs", "3", "--out", "r", "--report", "summary.md",
            "--junit", "junit.xml", "--sarif", "gate.sarif",
        )  # fmt: skip
    assert (root / "r" / "gate.json").is_file(), done.stderr
    return Judged(root, done, only((root / "r" / "gate.json").read_text()))


def test_time_is_measured_though_tier_0_fails(judged: Judged) -> None:
    assert judged.done.exit_code == 1, judged.done.stdout
    assert ("cloning", "peak_memory") in judged.failing
    assert {name.split()[0] for name in judged.timed} == {"decayed", "cloning", "identity"}
    assert "cloning fwd n64 h2 c16" in judged.timed
    assert LOADED in judged.comparison["notes"]
    assert git(judged.root, "worktree", "list").count("\n") == 1


def test_an_added_operation_is_named_and_fails_nothing(judged: Judged) -> None:
    assert "operations" in judged.done.stdout
    assert "aten.clone 0 → 1" in judged.done.stdout
    assert "aten.clone 0 → 1" in (judged.root / "summary.md").read_text()
    assert "operations" not in {metric for _, metric in judged.failing}


def test_a_summary_and_a_junit_file_say_what_fails(judged: Judged) -> None:
    assert "MORE" in (judged.root / "summary.md").read_text()
    suite = ElementTree.parse(judged.root / "junit.xml").getroot()
    assert int(suite.attrib["failures"]) == sum(f["regression"] for f in judged.comparison["findings"])


def test_a_file_for_code_scanning_says_what_fails_at_the_operators_file(judged: Judged) -> None:
    (log,) = json.loads((judged.root / "gate.sarif").read_text())["runs"]
    errors = [result for result in log["results"] if result["level"] == "error"]
    assert len(errors) == sum(f["regression"] for f in judged.comparison["findings"]) > 0
    places = {
        result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        for result in errors
        if result["properties"]["metric"] != "kernel"
    }
    assert "operators/cloning.py" in places
    assert log["invocations"][0]["exitCode"] == 1


@pytest.mark.slow
def test_time_is_measured_in_turns_and_a_planted_slow_down_fails(judged: Judged) -> None:
    timed = judged.timed
    assert all(f["ratio"] > 2 for name, f in timed.items() if name.startswith("decayed fwd n64"))
    failing = [f for f in timed.values() if f["regression"]]
    assert "decayed" in {f["name"].split()[0] for f in failing}, judged.comparison["notes"]
    assert ("identity", "wall_time") not in judged.failing
    assert failing[0]["reason"].endswith(" in 3 pairs")
    assert any(note.startswith("3 pairs of processes in ") for note in judged.comparison["notes"])
    visits = [json.loads(line) for line in (judged.root / "r" / "head" / "visits.jsonl").read_text().splitlines()]
    made = [visit for visit in visits if visit["round"] and visit["key"].startswith("decayed")]
    assert [visit["round"] for visit in made] == [1, 2, 3]
    assert len({visit["process"] for visit in made}) == 3
    assert all(visit["samples"] >= FEWEST_TURNS for visit in made)
    explained = in_this_process(judged.root, "compare", "r/base", "r/head", "--explain", "decayed.reference")
    assert "round 3" in explained.stdout


def test_what_a_change_drops_from_the_suite_is_gone_and_what_it_adds_is_new(judged: Judged) -> None:
    """Of what both have, a parameter that the change adds makes no other cell."""
    told = judged.done.stdout
    assert "gone: 1 cell: dropped (1)" in told
    assert "new: 1 cell: fresh (1)" in told
    assert "note: the suite's threshold of wall_time: 5.0% → 50.0%" in told
    assert judged.comparison["measured"] == 3
    assert {f["metric"] for f in judged.comparison["findings"]} & {"status"} == set()
    assert "KeyError" not in told + judged.done.stderr
    root = ElementTree.parse(judged.root / "junit.xml").getroot()
    assert len(root.findall(".//testcase[@classname='missing']/skipped")) == 1


def test_of_the_operators_asked_for_nothing_is_gone_or_new(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--tier", "0", "--operator", "identity", "--format", "json", "--out", "p")
    monkeypatch.setattr(gate, "disturbances", lambda: pytest.fail("exact figures need no quiet machine"))
    part = in_this_process(judged.root, "gate", "own.yaml", "--base", "HEAD", *words)
    assert part.exit_code == 0, part.stderr
    comparison = only(part.stdout)
    assert (comparison["measured"], comparison["missing"], comparison["new"]) == (1, [], [])
    assert json.loads((judged.root / "p" / "gate.json").read_text()) == json.loads(part.stdout)


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
        (("own.yaml", "--base", "HEAD", "--out", "operators"), "--out operators: is not empty. Name a new folder."),
        (("none.yaml", "--base", "HEAD"), "none.yaml does not exist"),
        (("own.yaml", "--against", "nothing"), "nothing: no such folder"),
        (("own.yaml", "--base", "HEAD", "--fail-on", "wal_time:5%"), "did you mean 'wall_time'"),
        (("own.yaml", "--base", "HEAD", "--fail-on", "wall_time:5"), "--fail-on wall_time: '5'; allowed: a percentage"),
    ],
)
def test_bad_usage_is_a_sentence_and_exit_code_2(
    repository: Path, words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: what is raised as BadInput ends so, as other tests here show."""
    monkeypatch.setattr(gate, "expand_both", lambda sides, file, only: ([suites.load(str(file))] * 2, []))
    done = in_this_process(repository, "gate", *words)
    assert isinstance(done.exception, BadInput), done.exception
    assert message in str(done.exception)


def test_a_base_that_a_checkout_in_ci_lacks_is_named(repository: Path, tmp_path: Path) -> None:
    """A checkout of a pull request has no branch of the base's name, or nothing of the base."""
    git(repository, "branch", "trunk")
    (repository / "own.yaml").write_text(SUITE + "\n")
    git(repository, "commit", "--quiet", "--all", "--message", "two")
    branch = git(repository, "branch", "--show-current").strip()
    for name, depth in (("full", ()), ("shallow", ("--depth=1",))):
        git(tmp_path, "clone", "--quiet", "--branch", branch, *depth, repository.as_uri(), name)
    for clone, message in (
        ("full", r"--base trunk: no such revision in .* \(did you mean 'origin/trunk'\?\)\. Give a branch.*fetch it"),
        (
            "shallow",
            r"--base trunk: no such revision in \S+shallow\. This clone has part of the history alone.*--unshallow",
        ),
    ):
        done = in_this_process(tmp_path / clone, "gate", "own.yaml", "--base", "trunk")
        assert isinstance(done.exception, BadInput), done.exception
        assert re.search(message, str(done.exception)), done.exception


def test_a_decision_that_cannot_be_stored_is_printed(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decision = Comparison("base", "head", (), measured=1, gated=True)
    monkeypatch.setattr(gate, "between_revisions", lambda *asked: (decision, Path("/proc/nowhere")))
    done = in_this_process(repository, "gate", "own.yaml", "--base", "HEAD")
    assert "/proc/nowhere: cannot be written" in str(done.exception)
    assert "pass: 1 cell compared, none worse" in done.stdout


def test_an_interrupted_gate_says_that_nothing_is_decided(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*asked: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gate, "between_revisions", interrupted)
    done = in_this_process(repository, "gate", "own.yaml", "--base", "HEAD")
    assert (done.exit_code, done.stdout) == (130, "")
    assert "interrupted: nothing is decided" in done.stderr


def test_what_git_does_not_know_and_what_does_not_load_are_told(repository: Path) -> None:
    (repository / "operators" / "new.py").write_text("OPERATOR = 3\n")
    (repository / "own.yaml").write_text(
        SUITE.replace("[operators/decayed.py]", "[operators/decayed.py, operators/new.py]")
    )
    refused = in_this_process(repository, "gate", "own.yaml", "--base", "HEAD").exception
    assert isinstance(refused, BadInput)
    assert "git does not know operators/new.py" in str(refused)
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
