"""compressed: softmax attention to strided convolutions of keys and values, token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.operators.lowrank.compressed import sum_of_floors
from attnbench.problem import Problem
from tests.operators.small import Small, all_close, close, small

sizes = given(n=st.integers(1, 14), factor=st.integers(1, 5), heads=st.integers(1, 3), causal=st.booleans())
each_causality = pytest.mark.parametrize("causal", [False, True])


def case_of(n: int = 11, factor: int = 3, heads: int = 2, causal: bool = False) -> Small:
    return small("compressed", Problem(n, 4 * heads, heads, batch=2, causal=causal), factor=factor)


def loop(case: Small, mistake: str = "") -> Tensor:
    q, k, v = (case.tensors[name] for name in "qkv")
    conv_k, conv_v = case.tensors["conv_k"], case.tensors["conv_v"]
    if mistake == "one convolution":
        conv_v = conv_k
    n, d, factor = case.problem.seq_len, case.problem.head_dim, case.params["factor"]
    y = torch.empty_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            wk, wv = (w[0 if mistake == "first head's" else h].view(factor, d, d) for w in (conv_k, conv_v))
            if mistake == "taps reversed":
                wk = wk.flip(0)
            for i in range(n):
                keys, values = [], []
                if case.problem.causal and mistake != "no first token":
                    keys, values = [k[b, h, 0]], [v[b, h, 0]]
                for first in range(0, n, factor):
                    tokens = [(t, first + t) for t in range(factor) if first + t < n]
                    reach = first + factor - (mistake == "own block")
                    if case.problem.causal and reach > i:
                        continue
                    if mistake == "last block dropped" and first + factor > n:
                        continue
                    keys.append(sum(k[b, h, j] @ wk[t] for t, j in tokens))
                    values.append(sum(v[b, h, j] @ wv[t] for t, j in tokens))
                if keys:
                    logits = torch.stack(keys) @ q[b, h, i] / (1 if mistake == "no scale" else d**0.5)
                    y[b, h, i] = logits.softmax(0) @ torch.stack(values)
    return y


@sizes
@settings(max_examples=40, deadline=None)
def test_equals_the_loop(n: int, factor: int, heads: int, causal: bool) -> None:
    case = case_of(n, factor, heads, causal)
    assert close(case.output(), loop(case))


@pytest.mark.parametrize(
    ("mistake", "causal"),
    [
        ("one convolution", False),
        ("first head's", False),
        ("taps reversed", False),
        ("last block dropped", False),
        ("no scale", False),
        ("own block", True),
        ("no first token", True),
    ],
)
def test_a_mistake_is_noticed(mistake: str, causal: bool) -> None:
    case = case_of(causal=causal)
    assert not close(case.output(), loop(case, mistake))


@each_causality
def test_gradients_equal_the_loop(causal: bool) -> None:
    case = case_of(causal=causal)
    assert all_close(case.gradients(), case.gradients(loop))
    assert not all_close(case.gradients(), case.gradients(lambda c: loop(c, "no scale")))


@given(n=st.integers(1, 14), factor=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_the_cuda_path_is_the_same_map(n: int, factor: int) -> None:
    case = case_of(n, factor)
    assert close(case.impl("cuda"), case.output())
    assert all_close(case.gradients(lambda c: c.impl("cuda")), case.gradients())
    assert n == 1 or not close(case.impl("cuda"), case_of(n, factor + 1).output())


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_causal_cuda_path_is_the_same_map() -> None:
    case = case_of(301, factor=3, causal=True)
    with torch.inference_mode():
        assert close(case.impl("cuda"), case.output())
        assert not close(case.impl("cuda"), case_of(301, factor=3).impl("cuda"))


def test_one_token_at_a_time_and_unchanged_is_softmax() -> None:
    case = case_of(n=7, factor=1)
    ones = {name: torch.eye(4, dtype=torch.float64).expand(2, 4, 4) for name in case.inputs.parameters}
    exact = small("softmax", case.problem).output(**case.inputs.data)
    assert close(case.output(**ones), exact)
    assert not close(case.output(), exact)


def test_equals_the_convolution_of_torch() -> None:
    case = case_of(n=12)

    def convolved(x: Tensor, conv: Tensor) -> Tensor:
        weight = conv.view(2, 3, 4, 4).permute(0, 3, 2, 1).reshape(8, 4, 3)  # [H · out, in, kernel]
        y = torch.nn.functional.conv1d(x.transpose(2, 3).flatten(1, 2), weight, stride=3, groups=2)
        return y.view(2, 2, 4, 4).transpose(2, 3)

    t = case.tensors
    softmax = small("softmax", case.problem)
    keys, values = convolved(t["k"], t["conv_k"]), convolved(t["v"], t["conv_v"])
    assert close(case.output(), softmax.output(q=t["q"], k=keys, v=values))
    assert not close(case.output(), softmax.output(q=t["q"], k=values, v=keys))


@pytest.mark.parametrize("token", [0, 1, 5, 8])
def test_a_token_is_seen_once_its_block_is_over(token: int) -> None:
    case = case_of(n=12, causal=True)
    changed = {name: case.tensors[name].clone() for name in "kv"}
    for x in changed.values():
        x[:, :, token] += 1
    difference = (case.output(**changed) - case.output()).abs().amax(dim=(0, 1, 3))
    first = 0 if token == 0 else token // 3 * 3 + 3
    assert difference.nonzero().flatten().tolist() == list(range(first, 12))


@pytest.mark.parametrize("factor", [1, 3, 4])
def test_continues_wherever_a_block_ends(factor: int) -> None:
    case = case_of(n=11, factor=factor, causal=True)
    rows, state, wrong = loop(case), case.form.state, 0
    assert state is not None
    for query_len in range(1, 11):
        problem = replace(case.problem, query_len=query_len)
        earlier, new = (
            {**case.tensors, **{name: case.tensors[name][:, :, tokens] for name in "qkv"}}
            for tokens in (slice(problem.past), slice(problem.past, None))
        )
        kept = state(problem, case.params, **earlier)
        drawn = case.form.make_inputs(problem, case.params, torch.Generator()).state
        assert [(name, x.shape) for name, x in kept.items()] == [(name, x.shape) for name, x in drawn.items()]
        assert close(case.form.reference(problem, case.params, **{**new, **kept}), rows[:, :, problem.past :])
        kept["k_pending"][:, :, 0] += 1  # read only where its block is completed
        wrong += not close(case.form.reference(problem, case.params, **{**new, **kept}), rows[:, :, problem.past :])
    assert wrong == sum(1 for past in range(1, 11) if 10 // factor > (past - 1) // factor)


@sizes
@settings(max_examples=40, deadline=None)
def test_flops_count_the_required_products(n: int, factor: int, heads: int, causal: bool) -> None:
    case = case_of(n, factor, heads, causal)
    seen = [
        [m for m in range(-(-n // factor)) if not causal or (m + 1) * factor <= i] for i in range(n)
    ]  # blocks by query
    pairs = sum(len(blocks) + causal for blocks in seen)
    used = {block for blocks in seen for block in blocks}
    tokens = sum(1 for j in range(n) if j // factor in used)
    expected = 2 * 2 * heads * (2 * tokens * 4 * 4 + 2 * pairs * 4)
    assert case.cost().flops == expected
    assert case.cost("fwd_bwd").flops == 3 * expected


@pytest.mark.parametrize(("causal", "bound"), [(False, 1.01), (True, 2.0)])
def test_waste_is_bounded(causal: bool, bound: float) -> None:
    cost = case_of(n=1001, causal=causal).cost()
    assert 1 < cost.reference_flops / cost.flops < bound


@given(n=st.integers(1, 60), factor=st.integers(1, 9))
def test_sum_of_floors(n: int, factor: int) -> None:
    assert sum_of_floors(n, factor) == sum(i // factor for i in range(n))
    assert sum_of_floors(n + factor, factor) > sum_of_floors(n, factor)


def test_logits_have_variance_about_one() -> None:
    case = case_of(n=600)
    rows = case.tensors["k"].unflatten(2, (200, 3)).flatten(3)
    keys = torch.einsum("bhmi,hio->bhmo", rows, case.tensors["conv_k"])
    assert 0.5 < (case.tensors["q"] @ keys.transpose(-2, -1) / 2).var() < 2
