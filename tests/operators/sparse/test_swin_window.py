"""swin_window: softmax within the M × M cells of a map, against a mask built pair by pair."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.measure.worker.fake_memory import predict
from attnbench.operators.sparse.swin_window import IMPLS
from attnbench.problem import Problem
from attnbench.registry import operators, outside_definition, resolve
from tests.operators.small import Small, all_close, close
from tests.operators.sparse.maps import Pixel, Sees, case_of, masked, of_layer, output_of_layer, sides_of, visible

SIDES = [(7, 10), (13, 4), (1, 1), (9, 9)]
shifts = pytest.mark.parametrize("shift", ["none", "half"])
sizes = given(
    side=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    window=st.integers(1, 13),
    shift=st.sampled_from(["none", "half"]),
    kv_heads=st.sampled_from([1, 2, 4]),
)


def shift_of(side: int, window: int, shift: str) -> int:
    return window // 2 if shift == "half" and side > window else 0


def cell_of(position: int, side: int, window: int, shift: str, mistake: int = 0) -> int:
    """The definition; mistake: added to the shift."""
    s = shift_of(side, window, shift)
    return (position + window - s - mistake) // window if s else (position + mistake) // window


def one_cell(side: Pixel, window: int, shift: str, mistake: int = 0) -> Sees:
    def sees(i: Pixel, j: Pixel) -> bool:
        cells = [
            [cell_of(x, length, window, shift, mistake) for x, length in zip(p, side, strict=True)] for p in (i, j)
        ]
        return cells[0] == cells[1]

    return sees


def dense(case: Small, mistake: int = 0) -> Tensor:
    sees = one_cell(sides_of(case), case.params["window"], case.params["shift"], mistake)
    q, k, v = (case.tensors[name] for name in "qkv")
    return masked(q, k, v, visible(sides_of(case), sees))


def dense_layer(case: Small, transposed: bool = False) -> Tensor:
    """The bias of a pair looked up by its offset, row by row of the table; transposed: of the opposite offset."""
    side, m = sides_of(case), case.params["window"]
    allowed = visible(side, one_cell(side, m, case.params["shift"]))
    pixels = list(itertools.product(range(side[0]), range(side[1])))
    n = len(pixels)
    bias = torch.zeros(case.problem.heads, n, n, dtype=torch.float64)
    for (i, query), (j, key) in itertools.product(enumerate(pixels), enumerate(pixels)):
        if allowed[i, j]:
            y, x = (key[a] - query[a] if transposed else query[a] - key[a] for a in (0, 1))
            bias[:, i, j] = case.tensors["bias_table"][(y + m - 1) * (2 * m - 1) + x + m - 1]
    return output_of_layer(case, masked(*of_layer(case), allowed, bias))


@sizes
@settings(max_examples=40, deadline=None)
def test_equals_the_masked_form(side: Pixel, window: int, shift: str, kv_heads: int) -> None:
    case = case_of("swin_window", side, window=window, shift=shift, kv_heads=kv_heads)
    assert close(case.output(), dense(case))
    assert close(case.impl("cuda"), dense(case))


@shifts
def test_gradients_equal_the_masked_form(shift: str) -> None:
    case = case_of("swin_window", (7, 10), window=4, shift=shift)
    expected = case.gradients(dense)
    assert all_close(case.gradients(), expected)
    assert all_close(case.gradients(lambda c: c.impl("cuda")), expected)
    assert not all_close(case.gradients(lambda c: dense(c, 1)), expected)


@shifts
def test_a_border_off_by_one_and_the_other_shift_are_noticed(shift: str) -> None:
    case = case_of("swin_window", (7, 10), window=4, shift=shift)
    assert not close(case.output(), dense(case, 1))
    other = case_of("swin_window", (7, 10), window=4, shift="none" if shift == "half" else "half")
    assert not close(case.output(), other.output(**case.tensors))


@shifts
@pytest.mark.parametrize("side", SIDES)
def test_the_layer_adds_a_bias_for_each_offset(side: Pixel, shift: str) -> None:
    case = case_of("swin_window", side, "layer", window=4, shift=shift)
    assert close(case.output(), dense_layer(case))
    assert close(case.impl("cuda"), case.output())
    if case.problem.seq_len > 1:
        assert not close(case.output(), dense_layer(case, transposed=True))
        assert not close(case.output(), case.output(bias_table=0 * case.tensors["bias_table"]))


@shifts
def test_gradients_of_the_layer(shift: str) -> None:
    case = case_of("swin_window", (6, 5), "layer", window=4, shift=shift)
    expected = case.gradients(dense_layer)
    assert all_close(case.gradients(), expected)
    assert all_close(case.gradients(lambda c: c.impl("cuda")), expected)
    assert not all_close(case.gradients(lambda c: dense_layer(c, transposed=True)), expected)


def rolled(case: Small, shift: int, padded: bool = False, hidden: float = float("-inf")) -> Tensor:
    """As the authors' code: pad to multiples of M, roll by −shift, M × M windows, regions masked, roll back.

    Args:
        padded: the padding, zeros, is attended to, as there.
        hidden: what is added to the scores of another region, which is −100 there.
    """
    (h, w), m = sides_of(case), case.params["window"]
    tall, wide = h + -h % m, w + -w % m

    def windows(x: Tensor) -> Tensor:
        x = torch.nn.functional.pad(x.unflatten(2, (h, w)), (0, 0, 0, wide - w, 0, tall - h))
        x = x.roll((-shift, -shift), (2, 3)).unflatten(3, (-1, m)).unflatten(2, (-1, m))
        return x.transpose(3, 4).flatten(4, 5).flatten(2, 3)  # [B, H, windows, M², D]

    region = torch.zeros(1, 1, tall, wide, 1)
    slices = (slice(0, -m), slice(-m, -shift), slice(-shift, None)) if shift else (slice(None),)
    for number, (rows, columns) in enumerate(itertools.product(slices, slices)):
        region[:, :, rows, columns] = number
    region = region.unflatten(3, (-1, m)).unflatten(2, (-1, m)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    q, k, v = (windows(case.tensors[name].repeat_interleave(4 // case.tensors[name].shape[1], 1)) for name in "qkv")
    scores = q @ k.transpose(-2, -1) * case.problem.head_dim**-0.5
    scores = scores + torch.where(region == region.transpose(-2, -1), 0.0, hidden)
    if not padded:
        there = windows(torch.ones(1, 1, h * w, 1, dtype=torch.bool))
        scores = scores.masked_fill(~there.transpose(-2, -1), float("-inf")).nan_to_num(neginf=-1e300)
    y = (scores.softmax(-1) @ v).unflatten(2, (tall // m, -1)).unflatten(4, (m, m)).transpose(3, 4)
    y = y.flatten(4, 5).flatten(2, 3).roll((shift, shift), (2, 3))
    return y[:, :, :h, :w].flatten(2, 3)


def test_equals_the_roll_of_the_authors_where_sides_are_multiples() -> None:
    for shift, s in (("none", 0), ("half", 2)):
        case = case_of("swin_window", (12, 8), window=4, shift=shift)
        assert close(case.output(), rolled(case, s))
        assert not close(case.output(), rolled(case, s + 1))
    assert torch.allclose(case.output(), rolled(case, 2, hidden=-100.0)), "−100 hides them as well, almost"


def test_padding_that_is_attended_to_is_another_map() -> None:
    """Where sides are no multiples of M: the authors' zeros take part in the softmax of the cells at the border."""
    case = case_of("swin_window", (9, 10), window=4)
    assert close(case.output(), rolled(case, 0))
    assert not close(case.output(), rolled(case, 0, padded=True))


@shifts
def test_a_window_as_large_as_the_map_is_softmax(shift: str) -> None:
    softmax = operators()["softmax"].load().forms["core"]
    for window, same in ((7, True), (9, True), (6, False)):
        case = case_of("swin_window", (5, 7), window=window, shift=shift, kv_heads=4)
        q, k, v = (case.tensors[name] for name in "qkv")
        assert close(case.output(), softmax.reference(case.problem, {}, q, k, v)) is same


def test_a_window_of_one_pixel_returns_the_values() -> None:
    case = case_of("swin_window", (5, 7), window=1, kv_heads=4, shift="half")
    assert close(case.output(), case.tensors["v"])
    assert not close(case_of("swin_window", (5, 7), window=2, kv_heads=4).output(**case.tensors), case.tensors["v"])


@sizes
@settings(max_examples=30, deadline=None)
def test_flops_count_the_pairs_of_cells(side: Pixel, window: int, shift: str, kv_heads: int) -> None:
    case = case_of("swin_window", side, window=window, shift=shift, kv_heads=kv_heads)
    pairs = int(visible(side, one_cell(side, window, shift)).sum())
    expected = 2 * 2 * case.problem.batch * case.problem.channels * pairs
    assert case.cost().flops == case.cost().reference_flops == expected
    assert case.cost("fwd_bwd").flops == 3 * expected
    longer = case.form.cost(Problem.image(side[0] + 1, side[1], 16, 4, batch=2), case.params, "fwd")
    assert longer.flops != expected, "the count sees the height"


def test_memory_is_linear_and_far_below_dense() -> None:
    form = operators()["swin_window"].load().forms["core"]
    problems = [Problem.image(side, 1024, 64, 2) for side in (64, 128)]
    small_, large = (predict(form, p, {"window": 7, "shift": "half"}, "fwd_bwd").peak_bytes for p in problems)
    assert large / small_ == pytest.approx(2, rel=0.05)
    softmax = operators()["softmax"].load().forms["core"]
    assert predict(softmax, Problem(64 * 1024, 64, 2), {}, "fwd_bwd").peak_bytes > 100 * small_


@pytest.mark.parametrize(
    ("side", "shift", "sdpa", "cuda"),
    [
        ((14, 21), "none", None, None),
        ((5, 7), "half", None, None),
        ((14, 21), "half", "cells of 9 shapes", None),
        ((14, 22), "none", "cells of 2 shapes", None),
        ((7000, 7000), "none", "1000x1000 cells are more than the 65535", "1000x1000 cells are more than the 65535"),
    ],
)
def test_reasons(side: Pixel, shift: str, sdpa: str | None, cuda: str | None) -> None:
    problem, params = Problem.image(*side, 64, 2), {"window": 7, "shift": shift}
    for name, words in (("sdpa", sdpa), ("cuda", cuda)):
        reason = IMPLS[name].why_not(problem, params, "cuda")
        assert reason is None if words is None else words in (reason or "")


def test_what_is_outside_the_definition() -> None:
    operator = operators()["swin_window"].load()
    params = resolve(operator, {})
    assert "sequence" in (outside_definition(operator, Problem(9, 8), params, "core") or "")
    causal = Problem.image(3, 3, 8, causal=True)
    assert "before and after" in (outside_definition(operator, causal, params, "core") or "")
    for wrong in ({"window": 0}, {"shift": "whole"}):
        with pytest.raises(ValueError, match="allowed"):
            resolve(operator, wrong)
