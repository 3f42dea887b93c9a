"""The example repository: its operator is right, and its suite is valid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attnbench.plan.cells import cells
from attnbench.plan.suite import read
from attnbench.problem import Problem
from attnbench.registry import operators

EXAMPLE = Path(__file__).parents[1] / "examples" / "own-operator"


@pytest.mark.parametrize("n", [1, 7, 8, 9, 37])
def test_decayed_equals_its_dense_form(n: int) -> None:
    form = operators([str(EXAMPLE / "operators" / "decayed.py")])["decayed"].load().forms["core"]
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


def test_its_suite_is_valid() -> None:
    assert {cell.operator for cell in cells(read(EXAMPLE / "gate.yaml"))} == {"softmax", "identity", "decayed"}
