"""identity: the values, as they are."""

from __future__ import annotations

import pytest
import torch

from attnbench.measure.worker.fake_memory import predict
from attnbench.operator import Cost
from attnbench.problem import MODES, Mode, Problem
from tests.operators.small import close, small

PROBLEM = Problem(7, 6, 2, batch=2)


def test_returns_the_values_without_a_copy() -> None:
    case = small("identity", PROBLEM)
    assert torch.equal(case.output(), case.tensors["v"])
    assert case.output().data_ptr() == case.tensors["v"].data_ptr()
    assert not torch.equal(case.output(), small("identity", PROBLEM, seed=1).tensors["v"])


@pytest.mark.parametrize("mode", MODES)
def test_costs_nothing(mode: Mode) -> None:
    case = small("identity", PROBLEM)
    assert case.cost(mode) == Cost(flops=0, reference_flops=0, elementwise=0, bytes_required=0)
    assert small("softmax", PROBLEM).cost(mode).flops > 0
    assert predict(case.form, PROBLEM, case.params, mode).peak_bytes == 0


def test_gradient_is_the_cotangent() -> None:
    case = small("identity", PROBLEM)
    cotangent = torch.randn(2, 2, 7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(case.gradients()["v"], cotangent)


def test_the_layer_is_two_projections() -> None:
    case = small("identity", PROBLEM, scope="layer")
    x, w_v, w_o = (case.tensors[name] for name in ("x", "w_v", "w_o"))
    assert close(case.output(), x @ w_v @ w_o)
    assert not close(case.output(), x @ w_v)
    assert case.cost().flops == 2 * 2 * 2 * 7 * 6 * 6
