from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor

from attnbench.operators.kernelized import _contraction
from attnbench.operators.kernelized.linear_transformer import cost, make_inputs, reference
from attnbench.problem import Problem
from tests.operators.kernelized.dense import drawn, gradients, same, sizes, unhurried, weighted_mean


def dense(problem: Problem, q: Tensor, k: Tensor, v: Tensor, epsilon: float = 1e-6, first: int = 0) -> Tensor:
    fq, fk = (torch.where(x > 0, x + 1, x.exp()) for x in (q, k))
    return weighted_mean(torch.einsum("bhim,bhjm->bhij", fq, fk), v, problem.causal, epsilon, first)


@given(sizes)
@unhurried
def test_is_the_mean_over_all_pairs(size: dict[str, int]) -> None:
    problem, inputs = drawn(make_inputs, {}, size)
    assert same(reference(problem, {}, **inputs.data), dense(problem, **inputs.data))


@given(sizes)
@unhurried
def test_gradients_are_those_of_the_dense_form(size: dict[str, int]) -> None:
    problem, inputs = drawn(make_inputs, {}, size)
    tensors = inputs.data.values()
    ours = gradients(lambda q, k, v: reference(problem, {}, q, k, v), *tensors)
    theirs = gradients(lambda q, k, v: dense(problem, q, k, v), *tensors)
    assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("causal", [False, True])
def test_these_comparisons_see_a_wrong_form(causal: bool) -> None:
    size = {"tokens": 37, "head_dim": 5, "heads": 2, "batch": 2, "seed": 3}
    problem, inputs = drawn(make_inputs, {}, size, causal)
    right = reference(problem, {}, **inputs.data)
    q, k, v = inputs.data.values()
    assert not same(right, dense(problem, k, q, v))
    assert not same(right, dense(problem, q, k, k))
    assert not same(right, dense(problem, q, k, v, epsilon=1e-3))
    if causal:
        assert not same(right, dense(problem, q, k, v, first=1))


def test_full_form_forgets_the_order_of_keys() -> None:
    size = {"tokens": 41, "head_dim": 6, "heads": 2, "batch": 1, "seed": 0}
    order = torch.randperm(41)
    for causal, kept in ((False, True), (True, False)):
        problem, inputs = drawn(make_inputs, {}, size, causal)
        q, k, v = inputs.data.values()
        shuffled = reference(problem, {}, q, k[:, :, order], v[:, :, order])
        assert same(reference(problem, {}, q, k, v), shuffled) == kept


def test_last_causal_token_sees_what_the_full_form_sees() -> None:
    size = {"tokens": 53, "head_dim": 4, "heads": 1, "batch": 2, "seed": 5}
    causal, inputs = drawn(make_inputs, {}, size, True)
    full, _ = drawn(make_inputs, {}, size, False)
    last = reference(full, {}, **inputs.data)[:, :, -1]
    assert same(reference(causal, {}, **inputs.data)[:, :, -1], last)
    assert not same(reference(causal, {}, **inputs.data)[:, :, -2], last)


@pytest.mark.parametrize("tokens", [15, 16, 17, 32, 33])
def test_chunk_boundaries_do_not_matter(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"tokens": tokens, "head_dim": 4, "heads": 1, "batch": 1, "seed": 1}
    problem, inputs = drawn(make_inputs, {}, size, True)
    outputs = []
    for length in (1, 16, 64):
        monkeypatch.setattr(_contraction, "chunk", lambda d, length=length: length)
        outputs.append(reference(problem, {}, **inputs.data))
    assert same(outputs[0], outputs[1])
    assert same(outputs[1], outputs[2])


@pytest.mark.parametrize("causal", [False, True])
def test_flops_are_the_products_of_the_recurrence(causal: bool) -> None:
    problem = Problem(7, 12, 2, 3, causal=causal)
    multiply_adds = 0
    for _ in range(problem.batch * problem.heads):
        for _ in range(problem.seq_len):
            multiply_adds += 6 * 6  # S += φ(k) vᵀ
            multiply_adds += 6 * 6 + 6  # φ(q)ᵀ S and φ(q)ᵀ z
    assert cost(problem, {}, "fwd").flops == 2 * multiply_adds
    assert cost(problem, {}, "fwd_bwd").flops == 3 * 2 * multiply_adds


@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
def test_causal_reference_wastes_at_most_what_is_stated(head_dim: int) -> None:
    problem = Problem(4096, head_dim, causal=True)
    waste = cost(problem, {}, "fwd").reference_flops / cost(problem, {}, "fwd").flops
    assert 1 < waste <= 2 + 1 / (2 * head_dim + 1)


def test_float16_holds_more_tokens_than_its_range() -> None:
    problem = Problem(1 << 16, 4, dtype="float16")
    q = torch.ones(1, 1, 1 << 16, 4, dtype=torch.float16)
    assert (q.float() + 1).sum(dim=2).max() > 65504
    assert reference(problem, {}, q, q, q).sub(1).abs().max() < 1e-3
