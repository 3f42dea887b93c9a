from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from attnbench.record import read_run


def crossover(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attnbench", "crossover", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250)


@pytest.mark.slow
def test_a_small_search_from_the_command_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    sizes = ("--low", 16, "--high", 1024, "--precision", "60%", "--channels", 64, "--heads", 4)
    done = crossover("linear_transformer", *sizes, "--device", "cpu", "--out", folder, "--format", "json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["series"] == "linear_transformer:reference"
    assert row["kind"] in ("crossing", "always")
    assert row["run"] == str(folder)
    run = read_run(folder)
    assert set(run.visits["seq_len"]) >= set(row["sizes"])
    assert all(str(size) in run.suite_text for size in row["sizes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["performer", "--low", "512", "--high", "64"], "allowed: 0 < low < high"),
        (["performer", "--precision", "often"], "allowed: a percentage"),
        (["performr"], "performr"),
        (["performer", "--param", "nothing=3"], "none of performer, softmax has it"),
        (["performer", "--param", "m"], "allowed: key=value"),
        (["performer:cuda:none"], "cuda:none"),
        (["performer:sdpa"], "performer has no impl sdpa"),
        (["softmax"], "only the baseline"),
        (["performer", "--channels", "100", "--heads", "8"], "100"),
    ],
)
def test_bad_usage_is_told_before_anything_is_measured(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = crossover(*arguments, "--device", "cpu", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
