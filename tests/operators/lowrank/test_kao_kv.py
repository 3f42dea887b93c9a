"""kao_kv: every pixel attends to the means of rows and columns."""

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
    over_pixels,
    row_means,
    with_value_map,
)
from tests.operators.small import Small, all_close, close, small

sizes = given(h=st.integers(1, 5), w=st.integers(1, 6), heads=st.integers(1, 3), value_map=st.booleans())


def case_of(h: int = 3, w: int = 5, heads: int = 2, value_map: bool = False, seed: int = 0) -> Small:
    return small("kao_kv", Problem.image(h, w, 4 * heads, heads, batch=2), seed=seed, value_map=value_map)


def loop(case: Small, mistake: str = "") -> Tensor:
    q, k, v = (case.tensors[name] for name in ("q", "k", "v"))
    if mistake == "keys as values":
        v = k
    keys = row_means(k) + column_means(k)
    values = row_means(v) + column_means(v)
    if mistake == "columns first":
        values = column_means(v) + row_means(v)
    if mistake == "sums":
        keys = [x * case.problem.seq_len**0.5 for x in keys]
    values = with_value_map(case, values)
    scale = 0.5 if mistake == "scaled" else 1.0
    return over_pixels(q, lambda pixel: attention(case.problem.heads, pixel, keys, values, scale))


@sizes
@settings(max_examples=30, deadline=None)
def test_equals_the_loop(h: int, w: int, heads: int, value_map: bool) -> None:
    case = case_of(h, w, heads, value_map)
    assert close(case.output(), loop(case))


@pytest.mark.parametrize("mistake", ["keys as values", "columns first", "sums", "scaled"])
def test_a_mistake_is_noticed(mistake: str) -> None:
    case = case_of()
    assert not close(case.output(), loop(case, mistake))


@pytest.mark.parametrize("value_map", [False, True])
def test_gradients_equal_the_loop(value_map: bool) -> None:
    case = case_of(value_map=value_map)
    found = case.gradients()
    assert ("value_map" in found) is value_map
    assert all_close(found, case.gradients(loop))
    assert not all_close(found, case.gradients(lambda c: loop(c, "scaled")))


def test_rolling_rows_or_columns_of_all_maps_rolls_the_output() -> None:
    case = case_of()
    for dim in (2, 3):
        rolled = {name: x.roll(1, dim) for name, x in case.tensors.items()}
        assert close(case.output(**rolled), case.output().roll(1, dim))
        assert not close(case.output(**rolled), case.output())


def test_keys_do_not_depend_on_where_in_its_row_and_column_a_pixel_is() -> None:
    """Only marginal means count: k + a table with zero margins gives the same output, any other table does not."""
    case = case_of()
    table = torch.zeros(3, 5, dtype=torch.float64)
    table[:2, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    k = case.tensors["k"]
    assert close(case.output(k=k + table), case.output())
    assert not close(case.output(k=k + table.abs()), case.output())


def test_constant_keys_and_values_give_the_value() -> None:
    case = case_of()
    v = torch.full_like(case.tensors["v"], 3.0)
    assert close(case.output(v=v), v)
    assert not close(case.output(), v)


def test_costs_are_those_of_the_paper() -> None:
    assert kanets_multiply_adds("kao_kv") == KANETS_MULTIPLY_ADDS["kao_kv"]
    assert kanets_multiply_adds("kao_kv") != KANETS_MULTIPLY_ADDS["kao_qkv"]


@sizes
@settings(max_examples=30, deadline=None)
def test_flops_count_the_required_pairs(h: int, w: int, heads: int, value_map: bool) -> None:
    case = case_of(h, w, heads, value_map)
    c = case.problem.channels
    pairs = sum(1 for _ in range(h * w) for _ in range(h + w))
    expected = 2 * 2 * (2 * pairs * c + value_map * (h + w) * c * c)
    assert case.cost().flops == expected
    assert case.cost("fwd_bwd").flops == 3 * expected


def test_logits_have_variance_about_one() -> None:
    case = small("kao_kv", Problem.image(24, 40, 64, 2), seed=3)
    q, k = (case.tensors[name] for name in "qk")
    means = torch.stack(row_means(k) + column_means(k), dim=2)[0, :32]  # [D, M] of the first head
    assert 0.5 < (q[0, :32].flatten(1).t() @ means).var() < 2
