"""axial: softmax along the rows or the columns of a map, against a mask built pair by pair."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.operators.sparse import axial
from attnbench.problem import Problem
from attnbench.registry import operators, resolve
from tests.operators.small import Small, all_close, close
from tests.operators.sparse.maps import Pixel, Sees, case_of, masked, of_layer, output_of_layer, sides_of, visible

SEES: dict[str, Sees] = {"rows": lambda i, j: i[0] == j[0], "columns": lambda i, j: i[1] == j[1]}
each_axis = pytest.mark.parametrize("axis", ["rows", "columns", "sum"])
sizes = given(
    side=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    axis=st.sampled_from(["rows", "columns", "sum"]),
    kv_heads=st.sampled_from([1, 2, 4]),
)


def attended(case: Small, q: Tensor, k: Tensor, v: Tensor, axis: str) -> Tensor:
    wanted = ("rows", "columns") if axis == "sum" else (axis,)
    return sum(masked(q, k, v, visible(sides_of(case), SEES[each])) for each in wanted)


def dense(case: Small, axis: str = "") -> Tensor:
    """axis: "" for the case's."""
    q, k, v = (case.tensors[name] for name in "qkv")
    return attended(case, q, k, v, axis or case.params["axis"])


def union(case: Small) -> Tensor:
    """Another operator: one softmax over row and column together."""
    allowed = visible(sides_of(case), lambda i, j: SEES["rows"](i, j) or SEES["columns"](i, j))
    return masked(*(case.tensors[name] for name in "qkv"), allowed)


def dense_layer(case: Small, order: tuple[str, ...] = ("rows", "columns")) -> Tensor:
    """One layer after the other, each with projections of its own."""
    y = case.tensors["x"]
    for axis in order:
        weights = {f"w_{name}": case.tensors[f"w_{name}_{axis}"] for name in "qkvo"}
        one = replace(case, inputs=replace(case.inputs, data={"x": y}, parameters=weights))
        y = output_of_layer(one, attended(one, *of_layer(one), axis))
    return y


@sizes
@settings(max_examples=40, deadline=None)
def test_equals_the_masked_form(side: Pixel, axis: str, kv_heads: int) -> None:
    case = case_of("axial", side, axis=axis, kv_heads=kv_heads)
    assert close(case.output(), dense(case))
    assert close(case.impl("cuda"), dense(case))


@each_axis
def test_gradients_equal_the_masked_form(axis: str) -> None:
    case = case_of("axial", (5, 7), axis=axis)
    expected = case.gradients(dense)
    assert all_close(case.gradients(), expected)
    assert all_close(case.gradients(lambda c: c.impl("cuda")), expected)
    assert not all_close(case.gradients(union), expected)


@each_axis
def test_the_other_axes_and_one_softmax_over_both_are_noticed(axis: str) -> None:
    case = case_of("axial", (5, 7), axis=axis)
    for other in {"rows", "columns", "sum"} - {axis}:
        assert not close(case.output(), dense(case, other))
    assert not close(case.output(), union(case))


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_one_sdpa_call_is_the_same(axis: str) -> None:
    case = case_of("axial", (5, 7), axis=axis)
    assert close(case.impl("sdpa"), case.output())
    assert not close(case.impl("sdpa"), dense(case, "sum"))


@pytest.mark.parametrize("side", [(5, 7), (1, 4), (4, 1), (1, 1)])
def test_the_layer_has_columns_after_rows(side: Pixel) -> None:
    case = case_of("axial", side, "layer")
    assert close(case.output(), dense_layer(case))
    assert close(case.impl("cuda"), case.output())
    if 1 not in side:
        assert not close(case.output(), dense_layer(case, ("columns", "rows")))
        assert not close(case.output(), dense_layer(case, ("rows",)))


def test_gradients_of_the_layer() -> None:
    case = case_of("axial", (3, 4), "layer")
    expected = case.gradients(dense_layer)
    assert all_close(case.gradients(), expected)
    assert all_close(case.gradients(lambda c: c.impl("cuda")), expected)
    assert not all_close(case.gradients(lambda c: dense_layer(c, ("columns", "rows"))), expected)


@pytest.mark.parametrize(("axis", "in_turn"), [("sum", False), ("rows", True), ("columns", False)])
def test_a_layer_with_one_set_of_projections(axis: str, in_turn: bool) -> None:
    case = case_of("axial", (5, 7), "layer", axis=axis, in_turn=in_turn)
    assert close(case.output(), output_of_layer(case, attended(case, *of_layer(case), axis)))
    other = "rows" if axis == "sum" else "sum"
    assert not close(case.output(), output_of_layer(case, attended(case, *of_layer(case), other)))


def test_a_map_of_one_row_or_column_is_softmax() -> None:
    softmax = operators()["softmax"].load().forms["core"]
    for side, axis, same in (((1, 9), "rows", True), ((9, 1), "columns", True), ((3, 3), "rows", False)):
        case = case_of("axial", side, axis=axis, kv_heads=4)
        q, k, v = (case.tensors[name] for name in "qkv")
        assert close(case.output(), softmax.reference(case.problem, {}, q, k, v)) is same


def test_one_pixel_along_an_axis_returns_the_values() -> None:
    for side, axis, times in (((1, 9), "columns", 1), ((9, 1), "rows", 1), ((1, 1), "sum", 2)):
        case = case_of("axial", side, axis=axis, kv_heads=4)
        assert close(case.output(), times * case.tensors["v"])
        assert not close(case.output(), (times + 1) * case.tensors["v"])


@sizes
@settings(max_examples=30, deadline=None)
def test_flops_count_the_pairs(side: Pixel, axis: str, kv_heads: int) -> None:
    case = case_of("axial", side, axis=axis, kv_heads=kv_heads)
    wanted = ("rows", "columns") if axis == "sum" else (axis,)
    pairs = sum(int(visible(side, SEES[each]).sum()) for each in wanted)
    expected = 2 * 2 * case.problem.batch * case.problem.channels * pairs
    assert case.cost().flops == case.cost().reference_flops == expected
    assert case.cost("fwd_bwd").flops == 3 * expected
    other = case.form.cost(Problem.image(side[0] + 1, side[1], 16, 4, batch=2), case.params, "fwd")
    assert other.flops != expected, "the count sees the height"


def test_the_layer_costs_both_axes_and_eight_projections() -> None:
    case = case_of("axial", (5, 7), "layer", kv_heads=4)
    n, c = 35, 16
    assert case.cost().flops == 2 * 2 * (8 * n * c * c + 2 * n * (5 + 7) * c)
    added = case_of("axial", (5, 7), "layer", kv_heads=4, in_turn=False)
    assert case.cost().flops - added.cost().flops == 2 * 2 * 4 * n * c * c


def test_reasons() -> None:
    impls = axial.CORE.impls
    for axis, reason in (("rows", None), ("columns", None), ("sum", "an SDPA call each: impl cuda")):
        found = impls["sdpa"].why_not(Problem.image(3, 3, 8), {"axis": axis}, "cpu")
        assert found is None if reason is None else reason in (found or "")
    with pytest.raises(ValueError, match="allowed"):
        resolve(operators()["axial"].load(), {"axis": "both"})
