"""The example repositories: what they define is right, and their suites are valid."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attnbench.plan.cells import cells
from attnbench.plan.suite import read
from attnbench.problem import Problem, operator_with_impl
from attnbench.properties import forms, properties
from attnbench.registry import operators, resolve
from tests.operators.test_properties import FOUND
from tests.variants import Variant

REPOSITORY = Path(__file__).parents[1]
EXAMPLES = REPOSITORY / "examples"
OWN_OPERATOR, OWN_IMPL = EXAMPLES / "own-operator", EXAMPLES / "own-impl"


@pytest.mark.parametrize("n", [1, 7, 8, 9, 37])
def test_decayed_equals_its_dense_form(n: int) -> None:
    form = operators([str(OWN_OPERATOR / "operators" / "decayed.py")])["decayed"].load().forms["core"]
    problem, params = Problem(n, 8, 2, batch=2, dtype="float64"), {"half_life": 2}
    given = form.make_inputs(problem, params, torch.Generator().manual_seed(0)).tensors()
    behind = torch.arange(n)[:, None] - torch.arange(n)
    weight = torch.where((behind >= 0) & (behind < 8), 2.0 ** (-behind / 2), 0.0)
    scores = (given["q"] @ given["k"].mT / 2).exp() * weight
    expected = scores / scores.sum(-1, keepdim=True) @ given["v"]
    assert torch.allclose(form.reference(problem, params, **given), expected, atol=1e-12)
    wrong = torch.where((behind >= 0) & (behind < 7), 2.0 ** (-behind / 2), 0.0)
    off = (given["q"] @ given["k"].mT / 2).exp() * wrong
    assert n < 8 or not torch.allclose(off / off.sum(-1, keepdim=True) @ given["v"], expected, atol=1e-12)
    pairs = int(((behind >= 0) & (behind < 8)).sum())
    assert form.cost(problem, params, "fwd").flops == 2 * 2 * 2 * 2 * pairs * 4


@pytest.mark.parametrize("n", [1, 255, 256, 257, 600])
def test_the_own_impl_is_softmax(n: int) -> None:
    operator = operators([str(OWN_IMPL / "streamed_softmax.py")])["streamed_softmax"].load()
    form, problem = operator.forms["core"], Problem(n, 8, 2, batch=2, dtype="float64")
    mine = form.impls["mine"]
    tensors = form.make_inputs(problem, {}, torch.Generator().manual_seed(0)).tensors()
    dense = (tensors["q"] @ tensors["k"].mT / 2).softmax(-1) @ tensors["v"]
    assert torch.allclose(mine.load()(problem, {}, **tensors), dense, atol=1e-12)
    without_last = {name: x if name == "q" else x[:, :, :-1] for name, x in tensors.items()}
    assert n == 1 or not torch.allclose(mine.load()(problem, {}, **without_last), dense, atol=1e-12)
    assert mine.why_not(replace(problem, causal=True), {}, "cpu")
    assert mine.why_not(problem, {}, "cpu") is None


@pytest.mark.parametrize("path", [OWN_OPERATOR / "operators" / "decayed.py", OWN_IMPL / "streamed_softmax.py"])
def test_they_state_what_they_can_do(path: Path) -> None:
    operator = operators([str(path)])[path.stem].load()
    variant = Variant(path.stem, operator, resolve(operator, {}), "core")
    for form in forms(operator, variant.params):
        stated = properties(operator, variant.params, form == "causal")
        names = FOUND.keys() - {"drop_in"}  # along half_life, decayed needs too much memory
        assert {name: FOUND[name](variant, form == "causal") for name in names} == {
            name: stated[name] for name in names
        }


@pytest.mark.parametrize(
    ("suite", "series"),
    [
        (OWN_OPERATOR / "gate.yaml", {"softmax", "softmax:sdpa", "identity", "decayed"}),
        (OWN_IMPL / "suite.yaml", {"softmax", "softmax:sdpa", "streamed_softmax", "streamed_softmax:mine"}),
    ],
    ids=["own-operator", "own-impl"],
)
def test_their_suites_are_valid(suite: Path, series: set[str]) -> None:
    assert {operator_with_impl(cell.operator, cell.impl) for cell in cells(read(suite))} == series


@pytest.mark.parametrize("example", [OWN_OPERATOR, OWN_IMPL], ids=["own-operator", "own-impl"])
def test_what_their_commands_write_stays_out_of_the_repository(example: Path, tmp_path: Path) -> None:
    shutil.copytree(example, tmp_path, dirs_exist_ok=True)
    for place in ("results/run", "operators/__pycache__"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "written").touch()
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert "README.md" in listed.stdout
    assert "written" not in listed.stdout


def test_the_impl_of_the_readme_is_softmax_in_a_valid_suite(tmp_path: Path) -> None:
    code, suite = (
        next(block.split("```")[0] for block in (REPOSITORY / "README.md").read_text().split(f"```{language}\n")[1:])
        for language in ("python", "yaml")
    )
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    (tmp_path / "suite.yaml").write_text(suite, encoding="utf-8")
    assert {cell.impl for cell in cells(read(tmp_path / "suite.yaml"))} == {"reference", "sdpa", "mine"}
    operator = operators([str(tmp_path / "mine.py")])["mine"].load()
    form, problem = operator.forms["core"], Problem(37, 8, 2, dtype="float64", causal=True)
    tensors = form.make_inputs(problem, {}, torch.Generator().manual_seed(0)).tensors()
    mine = form.impls["mine"].load()(problem, {}, **tensors)
    assert torch.allclose(mine, form.reference(problem, {}, **tensors), atol=1e-12)
    assert form.impls["mine"].why_not(replace(problem, kv_heads=1), {}, "cpu")
