"""Adding an axis is adding its row: it is swept, measured, shown with its crossovers, drawn and searched along."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from tests.adding.tree import REPOSITORY, attnbench, tree_with_line

PATH = "attnbench/axes.py"
ABOVE = '        Axis("channels",'
ROW = '        Axis("batch", "samples of a call", ("batch",), MAX_BATCH),\n'
SUITE = """
operators: [softmax, linear_transformer]
impls: [reference]
sweep: [{seq_len: 16, batch: {from: 1, to: 4, factor: 2}}]
problem: {channels: 16, heads: 2}
measure: {rounds: 1, min_samples: 5, max_samples: 8, max_time: 50ms}
"""


def suite(folder: Path) -> str:
    path = folder / "small.yaml"
    path.write_text(SUITE, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tree_with_line(tmp_path_factory.mktemp("adding"), PATH, ABOVE, ROW)


@pytest.fixture(scope="module")
def run(tree: Path) -> str:
    """A small run of the tree."""
    measured = attnbench(tree, "run", suite(tree), "--out", str(tree / "run"), "--device", "cpu")
    assert measured.returncode == 0, measured.stderr
    return str(tree / "run")


def test_it_is_swept_and_shown_with_its_crossovers(tree: Path, run: str) -> None:
    shown = attnbench(tree, "show", run, "--axis", "batch")
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["batch", "1", "2", "4", "±"] in lines
    assert ["Crossover", "of", "wall", "time"] in lines
    assert "batch: scope core, fwd, float32, heads 2, channels 16, seq_len 16, cpu" in shown.stdout
    csv = attnbench(tree, "show", run, "--format", "csv", "--metric", "wall_time")
    assert csv.stdout.splitlines()[1].startswith("batch,core,fwd,float32,False,,2,,16,seq_len 16,cpu,wall_time,")


def test_it_is_drawn(tree: Path, run: str) -> None:
    drawn = attnbench(tree, "plot", run, "--axis", "batch", "--metric", "wall_time", "--format", "svg")
    assert drawn.returncode == 0, drawn.stderr
    overview = Path(drawn.stdout.split()[0])
    assert overview.name == "batch-fwd-overview.svg"
    assert ">batch<" in overview.read_text(encoding="utf-8")


def test_a_search_takes_its_name_and_its_bounds(tree: Path) -> None:
    searched = attnbench(tree, "crossover", "rfa", "--axis", "batch", "--low", "1", "--high", "65537")
    assert searched.returncode == 2
    assert "has one mistake" in searched.stderr
    assert "sweep[0].batch[1]: 65537; allowed: a whole number from 1 to 65536" in searched.stderr


def test_without_its_row_it_is_refused(tmp_path: Path) -> None:
    refused = attnbench(REPOSITORY, "run", suite(tmp_path), "--out", str(tmp_path / "run"), "--device", "cpu")
    assert refused.returncode == 2
    assert "sweep[0].batch: unknown key; allowed: seq_len, image_size, channels" in refused.stderr
    searched = CliRunner().invoke(app, ["crossover", "rfa", "--axis", "batch"])
    assert searched.exit_code == 2
    assert "'batch' is not one of 'seq_len', 'image_size', 'channels'" in " ".join(
        searched.output.replace("│", "").split()
    )
