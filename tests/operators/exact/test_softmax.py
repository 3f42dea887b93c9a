"""softmax: the baseline, pair by pair."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.problem import Problem, Scope
from attnbench.registry import operators
from tests.operators.pixels import KANETS_MULTIPLY_ADDS, kanets_multiply_adds
from tests.operators.small import Small, all_close, close, small

sizes = given(n=st.integers(1, 9), heads=st.integers(1, 3), causal=st.booleans(), value_map=st.booleans())
each_causality = pytest.mark.parametrize("causal", [False, True])


def case_of(n: int = 7, heads: int = 2, causal: bool = False, value_map: bool = False, scope: Scope = "core") -> Small:
    problem = Problem(n, 5 * heads, heads, batch=2, causal=causal)
    return small("softmax", problem, scope, value_map=value_map)


def loop(case: Small, mistake: str = "") -> Tensor:
    t = case.tensors
    return attend(case, t["q"], t["k"], t["v"], t.get("value_map"), mistake)


def attend(case: Small, q: Tensor, k: Tensor, v: Tensor, value_map: Tensor | None, mistake: str = "") -> Tensor:
    if mistake == "keys as values":
        v = k
    if value_map is not None:
        together = [torch.cat([v[:, h, i] for h in range(v.shape[1])], dim=1) @ value_map for i in range(v.shape[2])]
        v = torch.stack([torch.stack(x.split(v.shape[3], dim=1), dim=1) for x in together], dim=2)
    y = torch.empty_like(q)
    for i in range(q.shape[2]):
        last = q.shape[2] - 1 if not case.problem.causal else i + (mistake == "sees the next token")
        seen = range(min(last + 1, q.shape[2]) - (mistake == "not itself" and i > 0))
        scale = 1.0 if mistake == "no scale" else 1 / math.sqrt(q.shape[3])
        weights = torch.stack([((q[:, :, i] * k[:, :, j]).sum(-1) * scale).exp() for j in seen], dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        y[:, :, i] = sum(weights[..., j, None] * v[:, :, j] for j in seen)
    return y


@sizes
@settings(max_examples=40, deadline=None)
def test_equals_the_loop(n: int, heads: int, causal: bool, value_map: bool) -> None:
    case = case_of(n, heads, causal, value_map)
    assert close(case.output(), loop(case))


@pytest.mark.parametrize("mistake", ["no scale", "keys as values", "sees the next token", "not itself"])
def test_a_mistake_is_noticed(mistake: str) -> None:
    case = case_of(causal=True)
    assert not close(case.output(), loop(case, mistake))


@each_causality
@pytest.mark.parametrize("value_map", [False, True])
def test_gradients_equal_the_loop(causal: bool, value_map: bool) -> None:
    case = case_of(causal=causal, value_map=value_map)
    assert all_close(case.gradients(), case.gradients(loop))
    assert not all_close(case.gradients(), case.gradients(lambda c: loop(c, "no scale")))


@sizes
@settings(max_examples=20, deadline=None)
def test_sdpa_is_the_same_map(n: int, heads: int, causal: bool, value_map: bool) -> None:
    case = case_of(n, heads, causal)
    assert close(case.impl("sdpa"), case.output())
    assert all_close(case.gradients(lambda c: c.impl("sdpa")), case.gradients())
    assert n == 1 or not close(case.impl("sdpa"), case_of(n, heads, not causal).output())


def test_sdpa_says_that_it_has_no_value_map() -> None:
    case = case_of()
    sdpa = case.form.impls["sdpa"]
    assert sdpa.why_not(case.problem, {"value_map": False}, "cpu") is None
    assert "value map" in str(sdpa.why_not(case.problem, {"value_map": True}, "cpu"))


def test_moving_tokens_moves_the_output() -> None:
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    case, causal = case_of(), case_of(causal=True)
    data = {name: x[:, :, order] for name, x in case.inputs.data.items()}
    assert close(case.output(**data), case.output()[:, :, order])
    assert not close(causal.output(**data), causal.output()[:, :, order])


@each_causality
def test_the_layer_projects_and_mixes_heads(causal: bool) -> None:
    case = case_of(causal=causal, scope="layer")
    x, w_o = case.tensors["x"], case.tensors["w_o"]
    q, k, v = ((x @ case.tensors[f"w_{name}"]).unflatten(-1, (2, 5)).transpose(1, 2) for name in "qkv")
    y = attend(case, q, k, v, None).transpose(1, 2).flatten(2) @ w_o
    assert close(case.output(), y)
    assert close(case.impl("sdpa"), y)
    swapped = attend(case, k, q, v, None).transpose(1, 2).flatten(2) @ w_o
    assert not close(case.output(), swapped)
    n, c = 7, 10
    assert case.cost().flops - case_of(causal=causal).cost().flops == 2 * 2 * 4 * n * c * c


def test_costs_are_those_of_the_paper() -> None:
    assert kanets_multiply_adds("softmax") == KANETS_MULTIPLY_ADDS["softmax"]
    assert kanets_multiply_adds("softmax") != KANETS_MULTIPLY_ADDS["softmax_pool"]


@sizes
@settings(max_examples=30, deadline=None)
def test_flops_count_the_required_pairs(n: int, heads: int, causal: bool, value_map: bool) -> None:
    case = case_of(n, heads, causal, value_map)
    c = case.problem.channels
    pairs = sum(1 for i in range(n) for j in range(n) if j <= i or not causal)
    expected = 2 * 2 * (2 * pairs * c + value_map * n * c * c)
    assert case.cost().flops == expected
    assert case.cost("fwd_bwd").flops == 3 * expected
    assert expected <= case.cost().reference_flops <= 2 * expected


def test_it_is_exact_softmax_and_others_are_not() -> None:
    found = operators()
    assert found["softmax"].load().exact({"value_map": False})
    assert not found["softmax_pool"].load().exact({"value_map": False})
