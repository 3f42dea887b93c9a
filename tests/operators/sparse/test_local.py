"""local: |i − j| ≤ w, against a mask built pair by pair."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.measure.worker.fake_memory import predict
from attnbench.problem import Problem
from attnbench.registry import operators
from attnbench.window import window_pairs, windows
from tests.operators.sparse.masked import Case, Sees, attention, close, gradients, mask

sizes = given(n=st.integers(1, 150), w=st.integers(0, 160), causal=st.booleans())


def sees(w: int) -> Sees:
    return lambda i, j: abs(i - j) <= w


def dense(case: Case, w: int) -> Tensor:
    return attention(*case.qkv, mask(case.problem.seq_len, sees(w), case.problem.causal))


@sizes
@settings(max_examples=40, deadline=None)
def test_equals_the_masked_form(n: int, w: int, causal: bool) -> None:
    case = Case("local", n, causal, window=w)
    assert close(case.output(), dense(case, w))


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_off_by_one_is_noticed(causal: bool) -> None:
    case = Case("local", 101, causal, window=9)
    assert not close(case.output(), dense(case, 8))
    assert not close(case.output(), dense(case, 10))


def test_missing_scale_and_values_for_keys_are_noticed() -> None:
    case = Case("local", 77, window=9)
    q, k, v = case.qkv
    allowed = mask(77, sees(9))
    assert not close(case.output(), attention(q * 2, k, v, allowed))
    assert not close(case.output(), attention(q, v, k, allowed))


@pytest.mark.parametrize(("n", "w"), [(97, 7), (131, 40), (65, 0), (33, 64)])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_equal_the_masked_form(n: int, w: int, causal: bool) -> None:
    case = Case("local", n, causal, window=w)
    tensors = [t.requires_grad_() for t in case.qkv]
    for ours, theirs in zip(gradients(case.output(), tensors), gradients(dense(case, w), tensors), strict=True):
        assert ours.isfinite().all()
        assert close(ours, theirs)
    shifted = gradients(dense(case, w + 1), tensors)
    assert w + 1 >= n or not close(gradients(case.output(), tensors)[0], shifted[0])


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_as_long_as_the_sequence_is_softmax(causal: bool) -> None:
    softmax = operators()["softmax"].load().forms["core"]
    for w, same in ((50, True), (49, False)):
        case = Case("local", 51, causal, window=w)
        q, k, v = case.qkv
        assert close(case.output(), softmax.reference(case.problem, {}, q, k, v)) is same


def test_tokens_outside_the_window_have_no_influence() -> None:
    case = Case("local", 101, window=5)
    before = case.output()
    case.inputs.data["v"][:, :, 50] += 1
    difference = (case.output() - before).abs().amax(dim=(0, 1, 3))
    changed = difference.nonzero().flatten().tolist()
    assert changed == list(range(45, 56))


@sizes
@settings(max_examples=40, deadline=None)
def test_flops_count_the_required_pairs(n: int, w: int, causal: bool) -> None:
    case = Case("local", n, causal, window=w)
    pairs = int(mask(n, sees(w), causal).sum())
    assert case.cost().flops == case.required_flops(2 * pairs)
    assert case.cost("fwd_bwd").flops == 3 * case.cost().flops
    assert case.cost().reference_flops >= case.cost().flops
    assert window_pairs(n + 1, w, w) != pairs, "the count sees the length"


@given(n=st.integers(1, 120), before=st.integers(0, 30), after=st.integers(0, 30), classes=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_pairs_of_residue_classes(n: int, before: int, after: int, classes: int) -> None:
    pairs = mask(n, lambda i, j: (i - j) % classes == 0 and -after * classes <= i - j <= before * classes).sum()
    assert window_pairs(n, before, after, classes) == int(pairs)


@pytest.mark.parametrize(("w", "causal", "bound"), [(64, False, 1.25), (256, False, 1.25), (256, True, 1.5)])
def test_waste_is_bounded(w: int, causal: bool, bound: float) -> None:
    case = Case("local", 2**16, causal, window=w)
    cost = case.cost()
    assert 1 < cost.reference_flops / cost.flops < bound + 0.01


def test_blocks_cover_every_token() -> None:
    for n in (1, 31, 32, 33, 500, 4097):
        cut = windows(n, 64, 64)
        assert (cut.blocks - 1) * cut.block < n <= cut.blocks * cut.block


def test_memory_is_linear_and_far_below_dense() -> None:
    form = operators()["local"].load().forms["core"]
    small, large = (predict(form, Problem(n, 64, 2), {"window": 256}, "fwd_bwd").peak_bytes for n in (2**18, 2**19))
    assert large / small == pytest.approx(2, rel=0.01)
    softmax = operators()["softmax"].load().forms["core"]
    assert predict(softmax, Problem(2**18, 64, 2), {}, "fwd_bwd").peak_bytes > 100 * small


def test_float32_stays_near_float64() -> None:
    case = Case("local", 301, window=30)
    exact = case.output()
    single = case.form.reference(case.problem.with_dtype("float32"), case.params, *(t.float() for t in case.qkv))
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), exact, atol=1e-5)
    assert not torch.equal(single.double(), exact)
