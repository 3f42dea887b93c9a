"""kao_qkv: the means of rows and columns attend to each other; a pixel is the sum of its row's and its column's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.problem import Problem
from tests.operators.pixels import (
    KANETS_MULTIPLY_ADDS,
    attention,
    column_means,
    kanets_multiply_adds,
    row_means,
    with_value_map,
)
from tests.operators.small import Small, all_close, close, small

sizes = given(h=st.integers(1, 5), w=st.integers(1, 6), heads=st.integers(1, 3), value_map=st.booleans())


def case_of(h: int = 3, w: int = 5, heads: int = 2, value_map: bool = False) -> Small:
    return small("kao_qkv", Problem.image(h, w, 4 * heads, heads, batch=2), value_map=value_map)


def loop(case: Small, mistake: str = "") -> Tensor:
    q, k, v = ([*row_means(x), *column_means(x)] for x in (case.tensors[name] for name in ("q", "k", "v")))
    if mistake == "keys as values":
        v = k
    v = with_value_map(case, v)
    scale = 0.5 if mistake == "scaled" else 1.0
    mixed = [attention(case.problem.heads, query, k, v, scale) for query in q]
    h, w = case.tensors["q"].shape[2:]
    of_row, of_column = mixed[:h], mixed[h:]
    if mistake == "columns first":
        of_column, of_row = mixed[:w], mixed[w:]
    if mistake == "rows alone":
        of_column = [torch.zeros_like(x) for x in of_column]
    return torch.stack([torch.stack([row + column for column in of_column], dim=2) for row in of_row], dim=2)


@sizes
@settings(max_examples=30, deadline=None)
def test_equals_the_loop(h: int, w: int, heads: int, value_map: bool) -> None:
    case = case_of(h, w, heads, value_map)
    assert close(case.output(), loop(case))


@pytest.mark.parametrize("mistake", ["keys as values", "columns first", "rows alone", "scaled"])
def test_a_mistake_is_noticed(mistake: str) -> None:
    case = case_of()
    assert not close(case.output(), loop(case, mistake))


@pytest.mark.parametrize("value_map", [False, True])
def test_gradients_equal_the_loop(value_map: bool) -> None:
    case = case_of(value_map=value_map)
    assert all_close(case.gradients(), case.gradients(loop))
    assert not all_close(case.gradients(), case.gradients(lambda c: loop(c, "scaled")))


def test_output_is_a_kronecker_sum() -> None:
    y = case_of().output()
    assert close(y - y[:, :, :1] - y[:, :, :, :1] + y[:, :, :1, :1], torch.zeros_like(y))
    assert not close(y - y[:, :, :1], torch.zeros_like(y))


def test_transposed_maps_give_the_transposed_output() -> None:
    case = case_of()
    turned = small("kao_qkv", Problem.image(5, 3, 8, 2, batch=2))
    maps = {name: x.transpose(2, 3) for name, x in case.tensors.items()}
    assert close(turned.output(**maps), case.output().transpose(2, 3))
    assert not close(turned.output(), case.output().transpose(2, 3))


def test_costs_are_those_of_the_paper() -> None:
    assert kanets_multiply_adds("kao_qkv") == KANETS_MULTIPLY_ADDS["kao_qkv"]
    assert kanets_multiply_adds("kao_qkv") != KANETS_MULTIPLY_ADDS["kao_kv"]


@sizes
@settings(max_examples=30, deadline=None)
def test_flops_count_the_required_pairs(h: int, w: int, heads: int, value_map: bool) -> None:
    case = case_of(h, w, heads, value_map)
    c = case.problem.channels
    pairs = sum(1 for _ in range(h + w) for _ in range(h + w))
    expected = 2 * 2 * (2 * pairs * c + value_map * (h + w) * c * c)
    assert case.cost().flops == expected
    assert case.cost("fwd_bwd").flops == 3 * expected


def test_logits_have_variance_about_one() -> None:
    case = small("kao_qkv", Problem.image(24, 40, 64, 2), seed=3)
    queries, keys = (
        torch.stack(row_means(x) + column_means(x), dim=2)[0, :32] for x in (case.tensors["q"], case.tensors["k"])
    )
    assert 0.5 < (queries.t() @ keys).var() < 2
