"""Damaged suites and run folders: never a traceback, never a wrong number shown as right. A sample of `make soak`."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attnbench import suite as suites
from attnbench.__main__ import app
from attnbench.errors import BadInput
from attnbench.record import VISITS, Run, Sample, read_run
from tests.mutations import damaged_folder, read_or_refuse, suite_bytes, wrong_numbers
from tests.stored import cell, folder, timed, visit

LONGEST_S = 5.0
"""What one suite may take to be refused, on a loaded machine."""


@pytest.mark.parametrize("seed", range(100))
def test_a_damaged_suite_is_read_or_refused_in_words(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "mutated.yaml"
    path.write_bytes(suite_bytes(random.Random(seed)))
    begun = time.monotonic()
    try:
        suites.load(str(path))
    except BadInput as error:
        said = str(error)
        assert "mutated.yaml" in said
        assert len(said) < 20_000
    assert time.monotonic() - begun < LONGEST_S


def test_a_suite_of_100_mb_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    begun = time.monotonic()
    with pytest.raises(BadInput, match=r"large\.yaml"):
        suites.load(str(path))
    assert time.monotonic() - begun < LONGEST_S


def small_run(path: Path) -> Run:
    """Two series of three sizes, three rounds, samples."""
    cells = [cell(name, seq_len=n) for name in ("softmax", "linformer") for n in (64, 128, 256)]
    scouts = [visit(c, metrics={"flops": 10**6, "peak_memory_bytes": 2**20}, operations={"aten.mm": 1}) for c in cells]
    rounds = [timed(c, r, 1e-3 * (1 + r / 100) * c.problem.seq_len) for r in (1, 2, 3) for c in cells]
    samples = [Sample(v.key, v.round, v.process, i, "wall", v.metrics["wall_time_s"]) for v in rounds for i in range(5)]
    text = (
        "name: made\noperators: [softmax, linformer]\nimpls: [reference]\n"
        "sweep: [{seq_len: [64, 128, 256]}]\nproblem: {heads: 4, channels: 32}\n"
    )
    made = folder(path, [*scouts, *rounds], samples)
    (made / "suite.yaml").write_text(text)
    return read_run(made)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return small_run(tmp_path_factory.mktemp("original") / "run")


@pytest.mark.parametrize("seed", range(100))
def test_a_damaged_run_is_read_right_or_refused_in_words(seed: int, tmp_path: Path, original: Run) -> None:
    damaged_folder(random.Random(seed), original.folder, tmp_path / "run")
    run = read_or_refuse(tmp_path / "run")
    if run is not None:
        assert wrong_numbers(run, original) == []
    commands = [["show", str(tmp_path / "run")], ["compare", str(original.folder), str(tmp_path / "run")]]
    done = CliRunner().invoke(app, commands[seed % 2])
    assert done.exception is None or isinstance(done.exception, (SystemExit, BadInput)), done.exception


def test_a_changed_number_would_be_noticed(tmp_path: Path, original: Run) -> None:
    """The negative control of the test above."""
    damaged_folder(random.Random(0), original.folder, tmp_path / "run")
    for name in ("visits.jsonl", "samples.csv", "environment.json", "suite.yaml"):
        (tmp_path / "run" / name).write_bytes((original.folder / name).read_bytes())
    path = tmp_path / "run" / VISITS
    path.write_text(path.read_text().replace('"flops":1000000', '"flops":2000000', 1))
    run = read_or_refuse(tmp_path / "run")
    assert run is not None
    assert len(wrong_numbers(run, original)) == 1
