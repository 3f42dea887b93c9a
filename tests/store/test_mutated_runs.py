"""Mutated run folders through load, show, compare and plot: refused with a message, or shown as the file says.

`make soak` takes thousands of them the same way.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.analysis.run import Run, read_run
from attnbench.errors import BadInput
from attnbench.store.records import VISITS
from tests.mutated import judged
from tests.mutated.judged import judge_folder
from tests.mutated.runs import lines_of, mutated_folder, original_folder

CASES = 60
COMMANDS: tuple[Callable[[str, str], list[str]], ...] = (
    lambda original, mutated: ["plot", mutated, "--format", "svg"],
    lambda original, mutated: ["roofline", mutated],
    lambda original, mutated: ["dispatch", mutated, "--format", "python"],
    lambda original, mutated: ["compare", original, mutated, "--explain", "softmax"],
    lambda original, mutated: ["compare", original, mutated, "--across-machines", "--fail-on", "wall_time:5%"],
    lambda original, mutated: ["show", mutated, "--format", "csv", "--baseline", "softmax:sdpa"],
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(original_folder(tmp_path_factory.mktemp("original") / "run"))


@pytest.mark.parametrize("case", range(CASES))
def test_a_mutated_run_is_refused_or_shown_as_it_says(case: int, tmp_path: Path, original: Run) -> None:
    judge_folder(tmp_path / "run", original, random.Random(f"run {case}"))


@pytest.mark.parametrize("case", range(3 * len(COMMANDS)))
def test_no_command_shows_a_traceback(case: int, tmp_path: Path, original: Run) -> None:
    mutation = mutated_folder(tmp_path / "run", random.Random(f"command {case}"))
    words = COMMANDS[case % len(COMMANDS)](str(original.folder), str(tmp_path / "run"))
    done = CliRunner().invoke(app, words)
    assert done.exception is None or isinstance(done.exception, (SystemExit, BadInput)), (mutation, done.exception)


@pytest.mark.parametrize("case", range(3))
def test_the_real_command_line_says_it_in_a_paragraph(case: int, tmp_path: Path, original: Run) -> None:
    path = original_folder(tmp_path / "run")
    text = (path / VISITS).read_text().splitlines()
    spoilt = [text[0].replace('"flops":', '"flops":-'), text[0][:-1] + ',"round":1}', "[" * 10_000][case]
    (path / VISITS).write_text("\n".join([spoilt, *text[1:]]) + "\n")
    command = [sys.executable, "-m", "attnbench", *(["show"] if case else ["compare", str(original.folder)]), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"attnbench: {path / VISITS}, line 1")
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def _draws(expected: str) -> random.Random:
    """The first draw of which this is expected."""
    from tempfile import TemporaryDirectory

    for case in range(1000):
        with TemporaryDirectory() as folder:
            if mutated_folder(Path(folder) / "run", random.Random(f"control {case}")).expected == expected:
                return random.Random(f"control {case}")
    raise AssertionError(expected)


def test_a_reader_that_accepts_what_is_wrong_would_be_noticed(
    tmp_path: Path, original: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judged, "read_run", lambda folder: original)
    monkeypatch.setattr(judged, "_is_honest", lambda document, folder: None)
    with pytest.raises(AssertionError, match="accepted"):
        judge_folder(tmp_path / "run", original, _draws("refused"))


def test_a_reader_that_refuses_what_is_right_would_be_noticed(
    tmp_path: Path, original: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> Run:
        raise BadInput(f"{folder}: I will not")

    monkeypatch.setattr(judged, "read_run", refuse)
    with pytest.raises(AssertionError, match="refused"):
        judge_folder(tmp_path / "run", original, _draws("same"))


@pytest.mark.parametrize("column", ["flops", "peak_memory_bytes", "wall_time_s"])
def test_a_wrong_number_would_be_noticed(
    column: str, tmp_path: Path, original: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(folder: Path) -> Run:
        objects: list[dict[str, Any]] = [json.loads(line) for line in lines_of(folder)]
        for each in objects:
            for name in each["metrics"]:
                if name.startswith(column.removesuffix("_s")):
                    each["metrics"][name] *= 2
        other = original_folder(tmp_path / "other")
        (other / VISITS).write_text("".join(json.dumps(each) + "\n" for each in objects))
        return read_run(other)

    monkeypatch.setattr(judged, "read_run", twice)
    with pytest.raises(AssertionError, match=r" = .* (not|from) \["):
        judge_folder(tmp_path / "run", original, _draws("same"))


def test_a_lost_visit_would_be_noticed(tmp_path: Path, original: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(folder: Path) -> Run:
        other = original_folder(tmp_path / "other")
        (other / VISITS).write_text("".join(line + "\n" for line in lines_of(folder)[1:] if ".n64." not in line))
        return read_run(other)

    monkeypatch.setattr(judged, "read_run", half)
    with pytest.raises(AssertionError, match="are lost"):
        judge_folder(tmp_path / "run", original, _draws("same"))
