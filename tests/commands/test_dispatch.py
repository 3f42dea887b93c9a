from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from attnbench.__main__ import app
from attnbench.errors import BadInput
from tests import stored
from tests.analysis.runs import Law

SIZES = (256, 512, 1024, 2048)
LAWS: Mapping[str, Law] = {"softmax": lambda n: 1e-9 * n**2, "local": lambda n: 8e-7 * n}


def folder(path: Path, laws: Mapping[str, Law] = LAWS, noise: float = 0.002) -> Path:
    """A run of three rounds that differ by a share of `noise`, of each series in its own order."""
    visits = []
    for number, (name, law) in enumerate(laws.items()):
        for n in SIZES:
            cell = stored.cell(name, seq_len=n)
            visits.append(stored.visit(cell))
            rounds = ((1, 2, 3), (2, 3, 1))[number % 2]
            visits += [stored.timed(cell, r, law(n) * (1 + noise * (k + n % 7 % 3))) for k, r in enumerate(rounds)]
    return stored.folder(path, visits)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("dispatch") / "run")


def dispatch(*words: object) -> Result:
    return CliRunner().invoke(app, ["dispatch", *map(str, words)], env={"COLUMNS": "80"})


def test_the_table_fits_a_terminal_and_names_threshold_undecided_and_regret(run: Path) -> None:
    done = dispatch(run)
    assert (done.exit_code, done.exception) == (0, None)
    assert all(len(line) <= 80 for line in done.output.splitlines())
    narrow = CliRunner().invoke(app, ["dispatch", str(run)], env={"COLUMNS": "60"}).output
    assert all(len(line) <= 60 for line in narrow.splitlines())
    for text in (
        "local instead of softmax: from ",
        ": softmax",
        "on average",
        "within 5% of the fastest at 2 of 2",
    ):
        assert text in done.output


def test_the_option_says_what_is_taken_inside(run: Path) -> None:
    def takes(*words: str) -> list[str]:
        panel = json.loads(dispatch(run, "--format", "json", *words).output)["panels"][0]
        return [each["take"] for each in panel["ranges"] if each["undecided"]]

    assert takes() == takes("--undecided", "cheapest") == ["softmax", "local"]
    assert takes("--undecided", "baseline") == ["softmax"]
    refused = dispatch(run, "--undecided", "nothing")
    assert (refused.exit_code, "baseline, cheapest" in refused.output) == (2, True)


def test_nothing_decided_is_3(tmp_path: Path) -> None:
    alike = folder(tmp_path / "alike", {"softmax": lambda n: 1e-6 * n, "local": lambda n: 1e-6 * n}, noise=0.3)
    done = dispatch(alike)
    assert done.exit_code == 3
    row = done.output.splitlines()[4]
    assert {"softmax", "local"} <= set(row.split())


def test_bad_input_is_a_paragraph(run: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    for words, message in (
        ((tmp_path / "none",), "not a run folder"),
        ((run, "--operator", "nosuch"), "It has local, softmax. Give one of them"),
        ((run, "--baseline", "nosuch"), "Give one of them"),
        ((folder(tmp_path / "alone", {"softmax": LAWS["softmax"]}),), "Give a run of several operators"),
        ((run, run), "Leave one of the runs out"),
        ((stored.folder(tmp_path / "nothing", []),), "nothing was measured in this run"),
    ):
        done = dispatch(*words)
        assert isinstance(done.exception, BadInput)
        assert message in str(done.exception)
        assert "\n" not in str(done.exception)
    assert dispatch().exit_code == 2


def test_it_imports_no_torch(run: Path) -> None:
    code = (
        "import atexit, sys; sys.argv = ['attnbench', 'dispatch', sys.argv[1], '--format', 'python']\n"
        "atexit.register(lambda: print('torch' in sys.modules, 'scipy' in sys.modules, file=sys.stderr))\n"
        "from attnbench.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "False False\n")
    assert "def choose(" in done.stdout
