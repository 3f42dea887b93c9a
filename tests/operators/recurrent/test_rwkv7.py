from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attnbench.problem import Problem
from tests.operators.recurrent.token_by_token import recurrence
from tests.operators.small import all_close, close, small

PROBLEM = Problem(77, 24, 4, 2, causal=True)


def by_token(
    q: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, log_decay: Tensor, scale: float = 1.0
) -> Tensor:
    """(Diag(e^g) − (κ ⊙ a) κᵀ) S + k vᵀ."""
    return scale * recurrence(q, k, v, log_decay, b=-kappa * a, a=kappa)[0]


@pytest.mark.parametrize("given", [{}, {"key_dim": 9}, {"key_dim": 1}], ids=str)
def test_is_the_recurrence(given: dict[str, int]) -> None:
    case = small("rwkv7", PROBLEM, **given)
    assert close(case.output(), by_token(**case.tensors))
    assert not close(case.output(), by_token(**case.tensors, scale=0.5))
    swapped = {**case.tensors, "kappa": -case.tensors["kappa"] * case.tensors["a"], "a": 1 / case.tensors["a"]}
    assert given.get("key_dim") == 1 or not close(case.output(), by_token(**swapped))  # what reads and what writes


def test_gradients_are_those_of_the_recurrence() -> None:
    case = small("rwkv7", PROBLEM)
    ours = case.gradients()
    assert ours.keys() == {"q", "k", "v", "kappa", "a", "log_decay"}
    assert all_close(ours, case.gradients(lambda grown: by_token(**grown.tensors)))
    assert not all_close(ours, case.gradients(lambda grown: by_token(**grown.tensors, scale=1.1)))


def test_where_nothing_is_erased_it_is_gated_linear_attention() -> None:
    case, gla = small("rwkv7", PROBLEM), small("gla", PROBLEM, key_dim=6)
    same = {name: case.tensors[name] for name in ("q", "k", "v", "log_decay")}
    nothing = case.output(a=torch.zeros_like(case.tensors["a"]))
    assert close(nothing, gla.output(**same) * 6**0.5)
    assert not close(case.output(), nothing)


def test_decays_are_between_those_of_the_paper() -> None:
    case = small("rwkv7", Problem(512, 64, 4, causal=True))
    g = case.tensors["log_decay"]
    assert -math.exp(-0.5) < g.min() < -0.55 < -0.05 < g.max() < 0
    assert case.tensors["kappa"].norm(dim=-1).sub(1).abs().max() < 1e-6
