"""Tests as jobs with a time limit, with a stand-in for the tests of a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock
from xml.etree import ElementTree

import pytest

from tests.gpu_job import LOG, code_digest, last_results, pytest_collection_modifyitems

STAND_IN = """
import os, time
from pathlib import Path
import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.gpu

@pytest.fixture(autouse=True)
def ran(request):
    with (HERE / "ran").open("a") as log:
        log.write(request.node.name + "\\n")

@pytest.mark.later(9)
def test_endless():
    if not (HERE / "released").exists():
        time.sleep(1000)

@pytest.mark.later(2)
@pytest.mark.parametrize("x", [pytest.param(0, marks=pytest.mark.later(1)), 1])
def test_later(x):
    pass

def test_first():
    pass

def test_crashes():
    os._exit(3)

def test_fails():
    assert 1 + 1 == 3

def test_skips():
    pytest.skip("not on this card")

@pytest.mark.alone
def test_alone():
    assert "PYTEST_XDIST_WORKER" not in os.environ

def test_last():
    assert "PYTEST_XDIST_WORKER" in os.environ
"""


def job(folder: Path, limit: int, reserve: int) -> subprocess.CompletedProcess[str]:
    """Two processes that are given so many seconds."""
    words = [folder / "out", folder / "test_stand_in.py", "--on", "a card", "--processes", 2]
    words += ["--limit", limit, "--reserve", reserve]
    command = [sys.executable, "-m", "tests.gpu_job", *map(str, words)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def outcomes(folder: Path) -> dict[str, str]:
    results = last_results(folder / "out" / LOG, "a card")
    return {name.partition("::")[2]: line["outcome"] for name, line in results.items()}


def ran(folder: Path) -> list[str]:
    path = folder / "ran"
    names = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return names


def test_a_job_ends_in_time_and_the_next_does_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "test_stand_in.py").write_text(STAND_IN)
    first = job(tmp_path, limit=108, reserve=100)
    done, begun = outcomes(tmp_path), ran(tmp_path)
    assert (first.returncode, "out of time" in first.stdout) == (1, True), first.stdout + first.stderr
    assert done.keys() <= set(begun) - {"test_endless"}, "how many depends on the machine"
    if done:
        reported = ElementTree.parse(tmp_path / "out" / "junit.xml").iter("testcase")
        assert {case.get("name") for case in reported} >= done.keys() - {"test_crashes"}
    (tmp_path / "released").touch()
    second = job(tmp_path, limit=200, reserve=10)
    results, repeated = outcomes(tmp_path), ran(tmp_path)
    assert (second.returncode, "out of time" in second.stdout) == (1, False), second.stdout + second.stderr
    unlike = {"test_crashes": "failed", "test_fails": "failed", "test_skips": "skipped"}
    assert results == {name: unlike.get(name, "passed") for name in results}
    assert len(results) == 9
    assert set(repeated) == results.keys() - {name for name, outcome in done.items() if outcome == "passed"}
    assert {*os.listdir(tmp_path / "out")} == {LOG, "junit.xml", "junit-alone.xml"}


@dataclass
class Item:
    """As much of pytest's as ordering asks for."""

    path: Path
    name: str
    marks: list[Any]
    user_properties: list[tuple[str, object]] = field(default_factory=list)

    @property
    def nodeid(self) -> str:
        return self.name

    def iter_markers(self, name: str) -> list[Any]:
        return [mark for mark in self.marks if mark.name == name]

    def get_closest_marker(self, name: str) -> Any:
        return next(iter(self.iter_markers(name)), None)


def left(path: Path, passed: dict[str, str]) -> list[str]:
    """Names of the tests that a process would run, in order."""
    later, code = pytest.mark.later, pytest.mark.code
    items: Any = [
        Item(path, "layer", [later(16).mark, later(2).mark]),
        Item(path, "kernel", [later(0).mark, code("attnbench.operators.exact.softmax").mark]),
        Item(path, "dtype", [later(2).mark]),
    ]
    config: Any = SimpleNamespace(workerinput={"job_passed": passed}, option=SimpleNamespace(), hook=MagicMock())
    pytest_collection_modifyitems(config, items)
    return [item.name for item in items]


def test_what_passed_is_left_out_until_its_code_changes(tmp_path: Path) -> None:
    (path := tmp_path / "test_it.py").write_text("one")
    assert left(path, {}) == ["kernel", "dtype", "layer"]
    passed = {"kernel": code_digest(path, "attnbench.operators.exact.softmax"), "dtype": code_digest(path, None)}
    assert left(path, passed) == ["layer"]
    assert left(path, {**passed, "kernel": code_digest(path, "attnbench.operators.exact.non_local")}) == [
        "kernel",
        "layer",
    ]
    (other := tmp_path / "test_other.py").write_text("two")
    assert left(other, passed) == ["kernel", "dtype", "layer"]


def test_results_of_another_card_and_of_a_line_cut_short_do_not_count(tmp_path: Path) -> None:
    lines: list[dict[str, str]] = [
        {"on": "H100"}, {"test": "a", "outcome": "passed"}, {"test": "b", "outcome": "passed"},
        {"on": "H200"}, {"test": "c", "outcome": "passed"},
        {"on": "H100"}, {"test": "b", "outcome": "failed"},
    ]  # fmt: skip
    log = tmp_path / LOG
    log.write_text("\n".join(map(json.dumps, lines)) + '\n{"test": "d", "outc')
    assert {name: line["outcome"] for name, line in last_results(log, "H100").items()} == {"a": "passed", "b": "failed"}
    assert [*last_results(log, "H200")] == ["c"]
    assert last_results(tmp_path / "none", "H100") == {}
