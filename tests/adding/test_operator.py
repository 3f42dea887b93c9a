"""Adding an operator, with an impl that has a name of its own, is adding its file: it is listed, run and shown."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.errors import BadInput
from tests.adding.tree import REPOSITORY, attnbench, run_suite, suite_file

PATH = "attnbench/operators/exact/doubled.py"
OPERATOR = '''"""y_i = 2 v_i.

Nobody 2026, "An operator made by a test", https://example.org
"""

from __future__ import annotations

from torch import Generator, Tensor

from attnbench.cost import traffic
from attnbench.inputs import heads
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper
from attnbench.problem import Mode, Params, Problem


def reference(problem: Problem, params: Params, v: Tensor) -> Tensor:
    """v: [B, H, N, D]."""
    return 2 * v


def mine(problem: Problem, params: Params, v: Tensor) -> Tensor:
    """The same by an addition."""
    return v + v


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """v ~ N(0, 1)."""
    return Inputs(heads(problem, generator, "v"))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """No product."""
    size = problem.batch * problem.seq_len * problem.channels
    moved = traffic(problem, mode, read=size, written=size)
    return Cost(flops=0, reference_flops=0, elementwise=size, bytes_required=moved)


MINE = Impl(load=lambda: mine, kernel="my addition", why_not=lambda problem, params, device: None)

OPERATOR = Operator(
    paper=Paper("Nobody", 2026, "An operator made by a test", "https://example.org", "eq. 1"),
    forms={"core": Form(reference, make_inputs, cost, {"mine": MINE})},
    complexity=lambda params: Complexity(time="0", memory="n"),
    pairs=lambda params, causal: "fixed",
    data_dependent=lambda params: False,
)
'''
SUITE = """
operators: [softmax, doubled]
impls: [reference, mine]
sweep: [{seq_len: [16]}]
problem: {heads: 2, channels: 8}
measure: {rounds: 1, crossover_precision: null, min_turns: 2, max_turns: 2}
"""


@pytest.fixture
def tree(operator_and_axis: Path) -> Path:
    return operator_and_axis


def test_one_file_adds_an_operator_and_an_impl_of_a_name_of_its_own(tree: Path, run: Path) -> None:
    listed = attnbench(tree, "list", "operators", "--format", "csv")
    assert listed.returncode == 0, listed.stderr
    (row,) = [row for row in csv.DictReader(io.StringIO(listed.stdout)) if row["name"] == "doubled"]
    assert json.loads(row["impls"]) == {"core": {"reference": None, "mine": None, "compiled": None}}
    stored = (run / "results.csv").read_text(encoding="utf-8")
    rows = {(row["operator"], row["impl"]): row for row in csv.DictReader(io.StringIO(stored))}
    assert set(rows) == {("softmax", "reference"), ("doubled", "reference"), ("doubled", "mine")}
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert float(rows["doubled", "mine"]["wall_time_s"]) > 0
    assert rows["doubled", "mine"]["kernel"] == "my addition"
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    lacking = {name: has for name, has in environment["properties"]["doubled {}"]["causal"].items() if not has}
    assert lacking.keys() == {"exact", "drop_in", "all_pairs", "decode", "data_dependent"}
    shown = attnbench(tree, "show", str(run))
    assert shown.returncode == 0, shown.stderr
    assert "doubled:mine" in shown.stdout


def test_without_the_file_the_operator_is_refused(tmp_path: Path) -> None:
    run = run_suite(REPOSITORY, SUITE, tmp_path)
    assert run.returncode == 2
    assert "operators[1]: 'doubled' is no operator" in run.stderr
    assert not (tmp_path / "run").exists()


def test_an_impl_that_no_operator_has_is_refused(tmp_path: Path) -> None:
    text = SUITE.replace("softmax, doubled", "softmax, identity")
    done = CliRunner().invoke(app, ["run", suite_file(tmp_path, text), "--device", "cpu", "--dry-run"])
    assert isinstance(done.exception, BadInput)
    with pytest.raises(BadInput, match=r"impls\[1\]: no operator of the suite has 'mine'; allowed: reference, sdpa, "):
        raise done.exception
