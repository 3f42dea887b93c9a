"""softmax_pool: keys and values are the means of 2×2 windows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.problem import Problem
from tests.operators.pixels import KANETS_MULTIPLY_ADDS, attention, kanets_multiply_adds, over_pixels, with_value_map
from tests.operators.small import Small, all_close, close, small

sizes = given(h=st.integers(1, 5), w=st.integers(1, 6), heads=st.integers(1, 3), value_map=st.booleans())


def case_of(h: int = 3, w: int = 5, heads: int = 2, value_map: bool = False) -> Small:
    return small("softmax_pool", Problem.image(h, w, 4 * heads, heads, batch=2), value_map=value_map)


def windows(x: Tensor, cut: bool = False) -> list[Tensor]:
    """The mean of each 2×2 window of [B, C, h, w], in raster order; cut: only of whole ones."""
    h, w = x.shape[2:]
    found = []
    for i in range(0, h, 2):
        for j in range(0, w, 2):
            inside = [x[:, :, a, b] for a in (i, i + 1) for b in (j, j + 1) if a < h and b < w]
            if len(inside) == 4 or not cut:
                found.append(sum(inside) / len(inside))
    return found


def loop(case: Small, mistake: str = "") -> Tensor:
    q, k, v = (case.tensors[name] for name in ("q", "k", "v"))
    keys = windows(k, cut=mistake == "cut")
    values = with_value_map(case, windows(k if mistake == "keys as values" else v, cut=mistake == "cut"))
    scale = 0.5 if mistake == "scaled" else 1.0
    return over_pixels(q, lambda pixel: attention(case.problem.heads, pixel, keys, values, scale))


@sizes
@settings(max_examples=30, deadline=None)
def test_equals_the_loop(h: int, w: int, heads: int, value_map: bool) -> None:
    case = case_of(h, w, heads, value_map)
    assert close(case.output(), loop(case))


@pytest.mark.parametrize("mistake", ["keys as values", "cut", "scaled"])
def test_a_mistake_is_noticed(mistake: str) -> None:
    case = case_of()
    assert not close(case.output(), loop(case, mistake))


@pytest.mark.parametrize("value_map", [False, True])
def test_gradients_equal_the_loop(value_map: bool) -> None:
    case = case_of(value_map=value_map)
    assert all_close(case.gradients(), case.gradients(loop))
    assert not all_close(case.gradients(), case.gradients(lambda c: loop(c, "scaled")))


@sizes
@settings(max_examples=15, deadline=None)
def test_the_cuda_path_is_the_same_map(h: int, w: int, heads: int, value_map: bool) -> None:
    case = case_of(h, w, heads, value_map)
    assert close(case.impl("cuda"), case.output())
    assert all_close(case.gradients(lambda c: c.impl("cuda")), case.gradients())
    assert not close(case.impl("cuda"), 2 * case.output())


def test_maps_constant_in_every_window_give_softmax() -> None:
    """Four equal keys weigh what one does: softmax over all pixels, with the scale put back."""
    case = case_of(4, 6)
    k, v = (case.tensors[name][:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3) for name in "kv")
    heads = {"q": case.tensors["q"], "k": k, "v": v}
    softmax = small("softmax", Problem(24, 8, 2, batch=2))
    q, k, v = (x.view(2, 2, 4, 24).transpose(2, 3) for x in heads.values())
    exact = softmax.output(q=q * 4**0.5, k=k, v=v).transpose(2, 3).reshape(2, 8, 4, 6)
    assert close(case.output(**heads), exact)
    assert not close(case.output(), exact)


def test_costs_are_those_of_the_paper() -> None:
    assert kanets_multiply_adds("softmax_pool") == KANETS_MULTIPLY_ADDS["softmax_pool"]
    assert kanets_multiply_adds("softmax_pool") != KANETS_MULTIPLY_ADDS["softmax"]


@sizes
@settings(max_examples=30, deadline=None)
def test_flops_count_the_required_pairs(h: int, w: int, heads: int, value_map: bool) -> None:
    case = case_of(h, w, heads, value_map)
    c, m = case.problem.channels, len(windows(case.tensors["k"]))
    expected = 2 * 2 * (2 * h * w * m * c + value_map * m * c * c)
    assert case.cost().flops == expected
    assert case.cost("fwd_bwd").flops == 3 * expected


def test_logits_have_variance_about_one() -> None:
    case = small("softmax_pool", Problem.image(24, 40, 64, 2), seed=3)
    means = torch.stack(windows(case.tensors["k"]), dim=2)[0, :32]  # [D, M] of the first head
    assert 0.8 < (case.tensors["q"][0, :32].flatten(1).t() @ means).var() < 1.25
