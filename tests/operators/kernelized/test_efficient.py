from __future__ import annotations

import torch
from hypothesis import given
from torch import Tensor

from attnbench.operators.kernelized.efficient import OPERATOR, cost, make_inputs, reference
from attnbench.problem import Problem
from tests.operators.kernelized.dense import drawn, gradients, same, sizes, unhurried

SIZE = {"tokens": 37, "head_dim": 5, "heads": 2, "batch": 2, "seed": 3}


def dense(q: Tensor, k: Tensor, v: Tensor, over: int = -2) -> Tensor:
    """Through the N×N weights. over: the axis that the keys' softmax runs along."""
    rho = q.exp() / q.exp().sum(dim=-1, keepdim=True)
    kappa = k.exp() / k.exp().sum(dim=over, keepdim=True)
    return torch.einsum("bhim,bhjm->bhij", rho, kappa) @ v


@given(sizes)
@unhurried
def test_is_the_dense_form(size: dict[str, int]) -> None:
    problem, inputs = drawn(make_inputs, {}, size, causal=False)
    assert same(reference(problem, {}, **inputs.data), dense(**inputs.data))


@given(sizes)
@unhurried
def test_gradients_are_those_of_the_dense_form(size: dict[str, int]) -> None:
    problem, inputs = drawn(make_inputs, {}, size, causal=False)
    ours = gradients(lambda q, k, v: reference(problem, {}, q, k, v), *inputs.data.values())
    assert all(same(a, b) for a, b in zip(ours, gradients(dense, *inputs.data.values()), strict=True))


def test_these_comparisons_see_a_wrong_form() -> None:
    problem, inputs = drawn(make_inputs, {}, SIZE, causal=False)
    q, k, v = inputs.data.values()
    right = reference(problem, {}, q, k, v)
    assert not same(right, dense(q, k, v, over=-1))
    assert not same(right, dense(k, q, v))
    assert not same(right, dense(q / 5**0.5, k, v))


def test_weights_of_a_query_add_up_to_one() -> None:
    problem, inputs = drawn(make_inputs, {}, SIZE, causal=False)
    q, k, v = inputs.data.values()
    assert same(reference(problem, {}, q, k, torch.ones_like(v)), torch.ones_like(v))
    assert not same(dense(q, k, torch.ones_like(v), over=-1), torch.ones_like(v))


def test_forgets_the_order_of_keys() -> None:
    problem, inputs = drawn(make_inputs, {}, SIZE, causal=False)
    q, k, v = inputs.data.values()
    order = torch.randperm(37)
    assert same(reference(problem, {}, q, k, v), reference(problem, {}, q, k[:, :, order], v[:, :, order]))
    assert not same(reference(problem, {}, q, k, v), reference(problem, {}, q, k[:, :, order], v))


def test_flops_are_the_products_of_the_definition() -> None:
    problem = Problem(7, 12, 2, 3)
    multiply_adds = 0
    for _ in range(problem.batch * problem.heads):
        for _ in range(problem.seq_len):
            multiply_adds += 6 * 6 + 6 * 6  # κ_j v_jᵀ, and ρ_iᵀ times their sum
    assert cost(problem, {}, "fwd").flops == 2 * multiply_adds
    assert cost(problem, {}, "fwd_bwd").flops == 3 * 2 * multiply_adds


def test_has_no_causal_form() -> None:
    assert "every key" in str(OPERATOR.causal)
