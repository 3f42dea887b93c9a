"""strided: every s-th token, against a mask built pair by pair."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.operators.sparse._size import size
from attnbench.registry import operators
from tests.operators.sparse.masked import Case, Sees, attention, close, gradients, mask

sizes = given(
    n=st.integers(1, 140),
    stride=st.integers(1, 20) | st.just("sqrt(n)"),
    reach=st.integers(0, 40) | st.just("all"),
    causal=st.booleans(),
)


def sees(s: int, reach: int | str) -> Sees:
    return lambda i, j: (i - j) % s == 0 and (reach == "all" or abs(i - j) <= int(reach) * s)


def dense(case: Case, shift: int = 0) -> Tensor:
    s = size(case.params["stride"], case.problem.seq_len)
    return attention(*case.qkv, mask(case.problem.seq_len, sees(s + shift, case.params["reach"]), case.problem.causal))


@sizes
@settings(max_examples=40, deadline=None)
def test_equals_the_masked_form(n: int, stride: int | str, reach: int | str, causal: bool) -> None:
    case = Case("strided", n, causal, stride=stride, reach=reach)
    assert close(case.output(), dense(case))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("params", [{"stride": 7}, {"stride": 3, "reach": 4}])
def test_another_stride_or_reach_is_noticed(params: dict[str, Any], causal: bool) -> None:
    case = Case("strided", 101, causal, **params)
    assert not close(case.output(), dense(case, shift=1))
    wider = mask(101, sees(params["stride"], 5), causal)
    assert not close(case.output(), attention(*case.qkv, wider))
    q, k, v = case.qkv
    assert not close(case.output(), attention(q, v, k, mask(101, sees(params["stride"], "all"), causal)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("params", [{"stride": 7}, {"stride": 2, "reach": 9}, {}])
def test_gradients_equal_the_masked_form(params: dict[str, Any], causal: bool) -> None:
    case = Case("strided", 101, causal, **params)
    tensors = [t.requires_grad_() for t in case.qkv]
    ours = gradients(case.output(), tensors)
    for mine, theirs in zip(ours, gradients(dense(case), tensors), strict=True):
        assert mine.isfinite().all()
        assert close(mine, theirs)
    assert not close(ours[0], gradients(dense(case, shift=1), tensors)[0])


@pytest.mark.parametrize("causal", [False, True])
def test_stride_one_is_softmax(causal: bool) -> None:
    softmax = operators()["softmax"].load().forms["core"]
    for stride, same in ((1, True), (2, False)):
        case = Case("strided", 51, causal, stride=stride)
        q, k, v = case.qkv
        assert close(case.output(), softmax.reference(case.problem, {}, q, k, v)) is same


@sizes
@settings(max_examples=40, deadline=None)
def test_flops_count_the_required_pairs(n: int, stride: int | str, reach: int | str, causal: bool) -> None:
    case = Case("strided", n, causal, stride=stride, reach=reach)
    pairs = int(mask(n, sees(size(stride, n), reach), causal).sum())
    assert case.cost().flops == case.required_flops(2 * pairs)
    assert case.cost().reference_flops >= case.cost().flops


@sizes
@settings(max_examples=40, deadline=None)
def test_one_sdpa_call_computes_it(n: int, stride: int | str, reach: int | str, causal: bool) -> None:
    case = Case("strided", n, causal, stride=stride, reach=reach)
    s = size(stride, n)
    reason = case.form.impls["sdpa"].why_not(case.problem, case.params, "cpu")
    limited = reach != "all" and int(reach) < -(-n // s) - 1
    assert (reason is not None) is limited
    if reason is None:
        assert close(case.run_impl("sdpa"), case.output())
        tensors = [t.requires_grad_() for t in case.qkv]
        for ours, theirs in zip(
            gradients(case.run_impl("sdpa"), tensors), gradients(case.output(), tensors), strict=True
        ):
            assert close(ours, theirs)


def test_sdpa_would_be_wrong_where_it_is_refused() -> None:
    case = Case("strided", 60, stride=3, reach=4)
    assert not close(case.run_impl("sdpa"), case.output())


def test_sizes_that_follow_the_sequence() -> None:
    assert [size("sqrt(n)", n) for n in (1, 35, 36, 2**20)] == [1, 6, 6, 1024]
    assert size(64, 35) == 35
