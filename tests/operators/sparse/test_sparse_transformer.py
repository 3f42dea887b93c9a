"""sparse_transformer: both patterns, split and united, against masks built pair by pair."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.operators.sparse import _fixed
from attnbench.operators.sparse._size import size
from attnbench.registry import operators, outside_definition
from tests.operators.sparse.masked import Case, Sees, attention, close, gradients, mask

KINDS = ["strided", "fixed"]
HEADS = ["split", "union"]
sizes = given(
    n=st.integers(1, 120),
    kind=st.sampled_from(KINDS),
    heads=st.sampled_from(HEADS),
    stride=st.integers(1, 30) | st.just("sqrt(n)"),
    summary=st.integers(1, 9),
    causal=st.booleans(),
)


def patterns(kind: str, l: int, c: int) -> tuple[Sees, Sees]:  # noqa: E741
    if kind == "strided":
        return lambda i, j: abs(i - j) <= l, lambda i, j: (i - j) % l == 0
    return lambda i, j: i // l == j // l, lambda i, j: j % l >= l - c


def allowed(case: Case, longer: int = 0, more: int = 0) -> Tensor:
    """[H, N, N] from the definition, with l and c changed by so much."""
    n, params, causal = case.problem.seq_len, case.params, case.problem.causal
    first, second = (
        mask(n, sees, causal)
        for sees in patterns(params["kind"], size(params["stride"], n) + longer, params["summary"] + more)
    )
    h = case.problem.heads
    each = [first] * (h - h // 2) + [second] * (h // 2) if params["heads"] == "split" else [first | second] * h
    return torch.stack(each)


@sizes
@settings(max_examples=120, deadline=None)
def test_equals_the_masked_form(n: int, causal: bool, **given_params: Any) -> None:
    params = {k: v for k, v in given_params.items() if k != "heads"}
    case = sparse(n, causal, given_params["heads"], **params)
    assert close(case.output(), attention(*case.qkv, allowed(case)))


def sparse(n: int, causal: bool, pattern: str, *, head_count: int = 2, **params: Any) -> Case:
    return Case("sparse_transformer", n, causal, heads=head_count, given={"heads": pattern, **params})


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_part_of_the_pattern_is_noticed(kind: str, heads: str, causal: bool) -> None:
    case = sparse(101, causal, heads, kind=kind, stride=9, summary=2)
    q, k, v = case.qkv
    assert not close(case.output(), attention(q, k, v, allowed(case, longer=1)))
    assert not close(case.output(), attention(q, v, k, allowed(case)))
    if kind == "fixed":
        assert not close(case.output(), attention(q, k, v, allowed(case, more=1)))
    if heads == "split":
        assert not close(case.output(), attention(q, k, v, allowed(case).flip(0)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [101, 64])
def test_gradients_equal_the_masked_form(kind: str, heads: str, causal: bool, n: int) -> None:
    case = sparse(n, causal, heads, kind=kind, summary=2)
    tensors = [t.requires_grad_() for t in case.qkv]
    ours = gradients(case.output(), tensors)
    theirs = gradients(expected(case, tensors), tensors)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.isfinite().all()
        assert close(mine, other)
    wrong = gradients(attention(*tensors, allowed(case, longer=1) | torch.eye(n, dtype=torch.bool)), tensors)
    assert not close(ours[2], wrong[2])


def expected(case: Case, tensors: list[Tensor]) -> Tensor:
    """The dense form with a differentiable empty row: such rows see everything and are then set to 0."""
    pairs = allowed(case)
    empty = ~pairs.any(dim=-1, keepdim=True)
    return attention(*tensors, pairs | empty).masked_fill(empty, 0.0)


def test_rows_before_the_first_summary_are_zero() -> None:
    case = sparse(40, True, "split", kind="fixed", stride=10, summary=3)
    rows = case.output()[:, 1].abs().sum(dim=(0, 2))
    assert (rows[:7] == 0).all()
    assert (rows[7:] > 0).all()


def test_limits() -> None:
    """Blocks, windows or summaries that cover everything make it softmax."""
    softmax = operators()["softmax"].load().forms["core"]
    covering: list[dict[str, Any]] = [
        {"kind": "strided", "stride": 33},
        {"kind": "strided", "stride": 1},
        {"kind": "fixed", "stride": 33},
        {"kind": "fixed", "stride": 5, "summary": 5},
    ]
    for params in covering:
        for causal in (False, True):
            case = sparse(33, causal, "union", **params)
            q, k, v = case.qkv
            assert close(case.output(), softmax.reference(case.problem, {}, q, k, v)), params
    case = sparse(33, True, "union", kind="fixed", stride=5, summary=4)
    q, k, v = case.qkv
    assert not close(case.output(), softmax.reference(case.problem, {}, q, k, v))


@sizes
@settings(max_examples=120, deadline=None)
def test_flops_count_the_required_pairs(n: int, causal: bool, **given_params: Any) -> None:
    params = {k: v for k, v in given_params.items() if k != "heads"}
    case = sparse(n, causal, given_params["heads"], **params)
    assert case.cost().flops == case.required_flops(int(allowed(case).sum()))
    assert case.cost().reference_flops >= case.cost().flops


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_output_depends_on_a_later_token(kind: str, heads: str) -> None:
    for causal in (True, False):
        case = sparse(70, causal, heads, kind=kind)
        before = case.output()
        for tensor in case.qkv:
            tensor[:, :, 41:] += 1
        unchanged = torch.equal(case.output()[:, :, :41], before[:, :, :41])
        assert unchanged is causal


def test_summaries_of_a_ragged_sequence() -> None:
    case = sparse(23, True, "union", kind="fixed", stride=5, summary=3)
    cut = _fixed.blocks_of(case.problem, {"block": 5, "summary": 3})
    positions = _fixed.summary_positions(cut, torch.device("cpu"))
    assert positions.tolist() == [j for j in range(23) if j % 5 >= 2]
    assert cut.summaries == len(positions)


def test_split_needs_two_heads() -> None:
    for heads, pattern, fits in ((1, "split", False), (1, "union", True), (2, "split", True)):
        case = sparse(9, True, pattern, head_count=heads)
        assert (outside_definition(case.operator, case.problem, case.params, "core") is None) is fits
