"""Adding an axis is adding its row, and the field of problems that it varies: it is swept, measured, shown with its
crossovers, drawn and searched along."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from tests.adding.tree import REPOSITORY, attnbench, run_suite

PATH = "attnbench/axes.py"
ABOVE = '        Axis("seq_len",'
ROW = '        Axis("depth", "layers of a call", "layers", ("depth",), MAX_BATCH),\n'
FIELD = "    depth: int | None = None\n"
ADDED = ((PATH, ABOVE, ROW), ("attnbench/problem.py", "    query_len: int = Followed()", FIELD))
SUITE = """
operators: [softmax, linear_transformer]
impls: [reference]
sweep: [{seq_len: 16, depth: {from: 1, to: 4, factor: 2}}]
problem: {channels: 16, heads: 2}
measure: {rounds: 1, crossover_precision: null, min_turns: 2, max_turns: 2}
"""


@pytest.fixture
def tree(operator_and_axis: Path) -> Path:
    return operator_and_axis


def test_it_is_swept_and_shown_with_its_crossovers(tree: Path, run: Path) -> None:
    answer = attnbench(tree, "show", str(run), "--axis", "depth").stdout
    assert "\ndepth: " in answer
    shown = attnbench(tree, "show", str(run), "--axis", "depth", "--all")
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["depth", "1", "2", "4", "±"] in lines
    assert ["Crossover", "of", "wall", "time"] in lines
    assert "depth: scope core, fwd, float32, batch 1, heads 2, channels 16, seq_len 16, cpu" in shown.stdout
    csv = attnbench(tree, "show", str(run), "--format", "csv", "--metric", "wall_time")
    assert csv.stdout.splitlines()[1].startswith("depth,core,fwd,float32,False,1,2,,16,seq_len 16,cpu,wall_time,")


def test_it_is_drawn(tree: Path, run: Path) -> None:
    drawn = attnbench(tree, "plot", str(run), "--axis", "depth", "--metric", "wall_time", "--format", "svg")
    assert drawn.returncode == 0, drawn.stderr
    overview = Path(drawn.stdout.split()[0])
    assert overview.name == "depth-wall_time-overview.svg"
    assert ">depth<" in overview.read_text(encoding="utf-8")


def test_a_search_takes_its_name_and_its_bounds(tree: Path) -> None:
    searched = attnbench(tree, "crossover", "rfa", "--axis", "depth", "--low", "1", "--high", "65537")
    assert searched.returncode == 2
    assert "has one mistake" in searched.stderr
    assert "sweep[0].depth[1]: 65537; allowed: a whole number from 1 to 65536" in searched.stderr


def test_without_its_row_it_is_refused(tmp_path: Path) -> None:
    refused = run_suite(REPOSITORY, SUITE, tmp_path)
    assert refused.returncode == 2
    assert "sweep[0].depth: unknown key; allowed: seq_len, image_size, channels" in refused.stderr
    searched = CliRunner().invoke(app, ["crossover", "rfa", "--axis", "depth"])
    assert searched.exit_code == 2
    assert "'depth'; allowed: seq_len, image_size, channels" in " ".join(searched.output.replace("│", "").split())


STORED = """
import sys
from pathlib import Path
from attnbench.analysis.run import read_run
from attnbench.analysis.summary import summarise
from attnbench.outputs import csv
from attnbench.plan.suite import from_text
from attnbench.problem import Cell, columns_of, key_parts
from attnbench.store import journal
from attnbench.store.records import Visit

def problems(sizes, fixed):
    text = f"operators: [softmax]\\nsweep: [{{{sizes}}}]\\nproblem: {{channels: 16, heads: 2{fixed}}}"
    return from_text(text, "a test", Path()).problems()

folder = Path(sys.argv[1])
opened = journal.create(folder, "name: stored", {})
for problem in (*problems("seq_len: [16, 32]", ""), *problems("seq_len: 16, depth: [1, 4]", ""),
                *problems("seq_len: [64, 128]", ", depth: 8")):
    cell = Cell("softmax", "reference", "core", "fwd", problem, {})
    print(cell.key.split(".")[8:-1], key_parts(cell.key).later)
    columns = {name: value for name, value in columns_of(cell).items() if (name, value) != ("depth", None)}
    for number in range(2):
        metrics = dict.fromkeys(("wall_time_s", "wall_time_low_s", "wall_time_high_s"), 1.0) if number else {}
        opened.add(Visit(cell.key, columns, "cpu", number, number, 0, "ok", metrics=metrics))
opened.close()
run = read_run(folder)
header = list(run.results)
print(header[header.index("query_len"):][:3], run.results["depth"].fillna(0).tolist())
for report in summarise(run, ["wall_time"]).panels:
    print(report.panel.title, list(report.panel.sizes))
print(csv.run(summarise(run, ["wall_time"], None, "depth")).splitlines()[0])
"""


def test_problems_with_it_are_stored_beside_those_without(tree: Path, tmp_path: Path) -> None:
    """Swept and fixed, told apart, and shown along its axis."""
    program = [sys.executable, "-c", STORED, str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:6] == [
        "['c16', 'n16'] ()",
        "['c16', 'n32'] ()",
        "['c16', 'n16', 'depth1'] ('depth1',)",
        "['c16', 'n16', 'depth4'] ('depth4',)",
        "['c16', 'n64', 'depth8'] ('depth8',)",
        "['c16', 'n128', 'depth8'] ('depth8',)",
    ]
    assert lines[6] == "['query_len', 'depth', 'cause'] [0, 0, 1, 4, 8, 8]"
    assert lines[7:10] == [
        "seq_len: scope core, fwd, float32, batch 1, heads 2, channels 16, cpu ['16', '32']",
        "seq_len: scope core, fwd, float32, batch 1, heads 2, channels 16, depth 8, cpu ['64', '128']",
        "depth: scope core, fwd, float32, batch 1, heads 2, channels 16, seq_len 16, cpu ['1', '4']",
    ]
    assert lines[10].endswith(",status,reason,kv_heads,query_len,depth")
