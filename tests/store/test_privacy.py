"""Nothing stored says where its user works."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from attnbench.analysis.compare.stored_runs import compare
from attnbench.analysis.run import read_run
from attnbench.measure.open_run import begin
from attnbench.measure.runner import Runner
from attnbench.outputs._comparison import store
from attnbench.plan import suite as suites
from attnbench.store.privacy import without_paths
from tests.running import Silent, without_forecast, without_rates
from tests.stored import CELL, folder, timed, visit

OWN = '''"""y = v, until it is called."""
from attnbench.operators.exact.identity import OPERATOR as identity
from attnbench.operator import Complexity, Form, Operator
core = identity.forms["core"]

def reference(problem, params, v):
    raise FileNotFoundError(2, "No such file or directory", {path!r})

OPERATOR = Operator(
    paper=identity.paper,
    forms={{"core": Form(reference, core.make_inputs, core.cost)}},
    complexity=lambda params: Complexity("1", "n"),
)
'''


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a working directory, in which a command is given."""
    found = tmp_path / "home" / "Jane Doe"
    (found / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(found))
    monkeypatch.chdir(found / "work")
    monkeypatch.setenv("PWD", str(found / "work"))
    return found


def test_a_run_folder_holds_no_absolute_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_rates(monkeypatch)
    without_forecast(monkeypatch)
    own = home / "operators" / "mine.py"
    own.parent.mkdir()
    own.write_text(OWN.format(path=str(home / "private" / "weights.pt")))
    text = f"operators_from: [{str(own)!r}]\noperators: [mine, softmax]\nimpls: [reference]\nsweep: [{{seq_len: 8}}]\n"
    (home / "work" / "s.yaml").write_text(text + "problem: {channels: 8, heads: 1}\nmeasure: {rounds: 1}\n")
    session = begin(suites.load(str(home / "work" / "s.yaml")), "cpu", home / "work" / "run")
    Runner(session.plan, session.journal, Silent()).run()
    session.journal.close()
    stored = {path.name: path.read_text() for path in (home / "work" / "run").iterdir()}
    assert {"suite.yaml", "visits.jsonl", "results.csv", "environment.json"} <= set(stored)
    assert {name for name, text in stored.items() if "Jane" in text or str(home.parent) in text} == set()
    assert "'~/private/weights.pt'" in stored["visits.jsonl"]
    assert "- mine.py\n" in stored["suite.yaml"]
    assert set(read_run(home / "work" / "run").visits["status"]) == {"error", "ok"}


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("no file '{home}/private/x y.pt'", "no file '~/private/x y.pt'"),
        ("{home}/work/operators/mine.py, line 3", "operators/mine.py, line 3"),
        ("in {home}/work or in {home}", "in . or in ~"),
        ("'{home}works/a b.py' and 'c/d'", "'a b.py' and 'c/d'"),
        ("file://{home}/a.py", "file://~/a.py"),
        ("g++ -I/usr/include/x -I{home}/include", "g++ -Ix -I~/include"),
        ("at /opt/pytorch/aten/src/Foo.cpp:12 (/usr/lib/x.so)", "at Foo.cpp:12 (x.so)"),
        ("PATH=/usr/bin:/opt/bin", "PATH=bin:bin"),
        ("see https://github.com/a/b#L3; 1.5 GB/s; a/b; ./a/b; ../a/b; x / y; // a", None),
        ("O(N)/(a/b), wall_time / baseline", None),
    ],
)
def test_paths_are_cut(home: Path, text: str, stored: str | None) -> None:
    given = text.format(home=home)
    assert without_paths(given) == (given if stored is None else stored)


def test_a_directory_that_was_removed_is_no_reason_to_fail(home: Path) -> None:
    os.rmdir(home / "work")
    assert without_paths(f"{home}/x.pt") == "~/x.pt"


def test_a_gates_decision_is_stored_without_its_places(home: Path) -> None:
    one, two = (folder(home / "runs" / name, [visit(), timed(CELL, 1, 1e-3)]) for name in ("one", "two"))
    found = replace(compare(read_run(one), read_run(two)), notes=(f"noise from '{home}/noise.json'",))
    (home / "work" / "gate").mkdir()
    store(home / "work" / "gate", found)
    text = (home / "work" / "gate" / "gate.json").read_text()
    assert str(home.parent) not in text
    (stored,) = json.loads(text)["comparisons"]
    assert (stored["before"], stored["after"]) == ("~/runs/one", "~/runs/two")
    assert stored["notes"] == ["noise from '~/noise.json'"]
