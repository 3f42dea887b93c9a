"""sliding_window: W keys, its own included, and what a sink adds, against a mask built pair by pair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.kernels.flex import windows as flex
from attnbench.measure.worker.fake_memory import predict
from attnbench.problem import Problem
from attnbench.registry import operators, resolve
from tests.operators.flops import FlopCounter
from tests.operators.small import Small, all_close, close, small
from tests.operators.sparse.masked import Sees, mask
from tests.operators.sparse.test_cuda_paths import by_tiles

SINKS = ("none", "tokens", "logit")
each_sink = pytest.mark.parametrize("sink", SINKS)


def case_of(n: int, w: int, sink: str = "none", g: int = 4, kv_heads: int = 4, query_len: int | None = None) -> Small:
    problem = Problem(n, 16, 4, batch=2, causal=True, kv_heads=kv_heads, query_len=query_len or n)
    return small("sliding_window", problem, window=w, sink=sink, sink_tokens=g)


def sees(w: int, g: int = 0) -> Sees:
    """Whether token i sees token j ≤ i."""
    return lambda i, j: i - j <= w - 1 or j < g


def dense(case: Small, w: int, g: int = 0, mistake: str = "") -> Tensor:
    """Exponentials of all N × N logits, in a sum that a sink logit joins."""
    tensors, d = case.tensors, case.problem.head_dim
    q, k, v = tensors["q"], *(tensors[name].repeat_interleave(case.problem.group, 1) for name in "kv")
    allowed = mask(case.problem.seq_len, sees(w, g), causal=mistake != "later tokens")
    exponentials = (q @ k.mT / d**0.5).exp() * allowed
    sums = exponentials.sum(-1, keepdim=True)
    if "sink_logit" in tensors:
        logit = tensors["sink_logit"][:, None, None]
        logit = {"before the scale": logit / d**0.5, "one for all": logit.mean()}.get(mistake, logit)
        sums = sums + (0 if mistake == "no sink" else logit.exp())
    return exponentials / sums @ v


def expected(case: Small, mistake: str = "") -> Tensor:
    g = case.params["sink_tokens"] if case.params["sink"] == "tokens" else 0
    return dense(case, case.params["window"], g, mistake)


@given(n=st.integers(1, 120), w=st.integers(1, 130), g=st.integers(1, 50), sink=st.sampled_from(SINKS))
@settings(max_examples=50, deadline=None)
def test_equals_the_masked_form(n: int, w: int, g: int, sink: str) -> None:
    case = case_of(n, w, sink, g, kv_heads=2)
    assert close(case.output(), expected(case))


@pytest.mark.parametrize("n", [101, 190])
@each_sink
def test_a_window_or_a_sink_off_by_one_is_noticed(n: int, sink: str) -> None:
    w, g = 9, 3 if sink == "tokens" else 0
    case = case_of(n, w, sink, 3)
    assert close(case.output(), dense(case, w, g))
    for other in ((w - 1, g), (w + 1, g), (w, g + 1)):
        assert not close(case.output(), dense(case, *other))


@pytest.mark.parametrize("mistake", ["before the scale", "one for all", "no sink"])
def test_a_mistaken_sink_logit_is_noticed(mistake: str) -> None:
    case = case_of(70, 9, "logit")
    assert not close(case.output(), expected(case, mistake))


def test_sink_tokens_are_not_seen_before_they_come() -> None:
    case = case_of(101, 9, "tokens", 30)
    assert close(case.output(), expected(case))
    assert not close(case.output(), expected(case, "later tokens"))


@pytest.mark.parametrize(("n", "w", "g"), [(97, 7, 4), (131, 40, 5), (65, 1, 3), (33, 64, 4), (99, 10, 70)])
@each_sink
def test_gradients_equal_the_masked_form(n: int, w: int, g: int, sink: str) -> None:
    case = case_of(n, w, sink, g, kv_heads=2)
    ours = case.gradients()
    assert all_close(ours, case.gradients(expected))
    assert set(ours) == {"q", "k", "v"} | ({"sink_logit"} if sink == "logit" else set())
    other = case.gradients(lambda each: dense(each, w + 1, g if sink == "tokens" else 0))
    assert w >= n or not close(ours["k"], other["k"])


def test_a_sink_logit_is_the_sigmoid_of_the_logsumexp_above_it() -> None:
    case, plain = case_of(101, 9, "logit"), case_of(101, 9)
    logits = case.tensors["q"] @ case.tensors["k"].mT / 2
    lse = logits.masked_fill(~mask(101, sees(9), causal=True), float("-inf")).logsumexp(-1)
    share = torch.sigmoid(lse - case.tensors["sink_logit"][:, None])
    y = plain.output(**{name: case.tensors[name] for name in "qkv"})
    assert close(case.output(), y * share[..., None])
    assert not close(case.output(), y)


def reference_of(name: str, case: Small, **given: Any) -> Tensor:
    operator = operators()[name].load()
    y: Tensor = operator.forms["core"].reference(case.problem, resolve(operator, given), **case.inputs.data)
    return y


@pytest.mark.parametrize(("n", "w"), [(101, 9), (33, 40), (150, 70)])
def test_without_a_sink_it_is_local(n: int, w: int) -> None:
    case = case_of(n, w, kv_heads=2)
    assert close(case.output(), reference_of("local", case, window=w - 1))
    assert w > n or not close(case.output(), reference_of("local", case, window=w))


@pytest.mark.parametrize("sink", ["none", "tokens"])
def test_a_window_as_long_as_the_sequence_is_softmax(sink: str) -> None:
    g = 4 if sink == "tokens" else 0
    for w, same in ((51, True), (51 - g, True), (50 - g, False)):
        case = case_of(51, w, sink)
        assert close(case.output(), reference_of("softmax", case)) is same


def test_a_sink_logit_far_below_all_others_takes_no_weight() -> None:
    case = case_of(51, 60, "logit")
    low = torch.full((4,), -1e4, dtype=torch.float64)
    assert close(case.output(sink_logit=low), reference_of("softmax", case))
    assert close(case.output(sink_logit=-low), torch.zeros(2, 4, 51, 4, dtype=torch.float64))
    assert not close(case.output(), reference_of("softmax", case))


def test_as_many_sink_tokens_as_tokens_are_softmax() -> None:
    for g, same in ((101, True), (92, True), (91, False)):
        case = case_of(101, 9, "tokens", g)
        assert close(case.output(), reference_of("softmax", case)) is same


def tokens_of(case: Small, part: slice) -> dict[str, Tensor]:
    return {name: x[..., part, :].clone() for name, x in case.inputs.data.items()} | case.inputs.parameters


@given(
    n=st.integers(2, 110),
    new=st.integers(1, 109),
    w=st.integers(1, 60),
    g=st.integers(1, 60),
    sink=st.sampled_from(SINKS),
)
@settings(max_examples=80, deadline=None)
def test_the_last_rows_follow_from_the_cache(n: int, new: int, w: int, g: int, sink: str) -> None:
    new = min(new, n - 1)
    full = case_of(n, w, sink, g, kv_heads=2)
    problem = replace(full.problem, query_len=new)
    assert full.form.state is not None
    state = full.form.state(problem, full.params, **tokens_of(full, slice(0, n - new)))
    kept = min(n - new, w - 1 + (g if sink == "tokens" else 0))
    assert state["k_cache"].shape == (2, 2, kept + new, 4)
    y = full.form.reference(problem, full.params, **tokens_of(full, slice(n - new, None)), **state)
    assert close(y, expected(full)[..., n - new :, :])
    assert close(y, full.output()[..., n - new :, :])
    stored = min(n, w - 1 + (g if sink == "tokens" else 0))
    cost = full.form.cost(problem, full.params, "fwd")
    assert cost.state_bytes == 2 * 2 * stored * 8 * 8


def test_a_cache_without_its_sink_tokens_is_noticed() -> None:
    full = case_of(101, 9, "tokens", kv_heads=2)
    problem = replace(full.problem, query_len=3)
    assert full.form.state is not None
    state = full.form.state(problem, full.params, **tokens_of(full, slice(0, 98)))
    new = tokens_of(full, slice(98, None))
    assert close(full.form.reference(problem, full.params, **new, **state), full.output()[..., 98:, :])
    earlier = {**full.inputs.data, "k": full.inputs.data["k"].roll(1, 2)}  # the last of the window is in front
    rolled = full.form.state(problem, full.params, **{name: x[..., :98, :] for name, x in earlier.items()})
    assert not close(full.form.reference(problem, full.params, **new, **rolled), full.output()[..., 98:, :])


@pytest.mark.parametrize("query_len", [1, 5, 40, 130])
@each_sink
def test_flops_count_the_pairs_and_what_torch_counts(sink: str, query_len: int) -> None:
    for n, w, g in ((130, 9, 4), (130, 9, 60), (131, 64, 4)):
        case = case_of(n, w, sink, g, kv_heads=2, query_len=query_len)
        rows = mask(n, sees(w, g if sink == "tokens" else 0), causal=True)[n - query_len :]
        assert case.cost().flops == 4 * int(rows.sum()) * 2 * 16
        with torch.inference_mode(), FlopCounter() as counter:
            case.output()
        assert case.cost().reference_flops == counter.total
        assert query_len > 1 or case.cost().reference_flops == case.cost().flops


@each_sink
def test_a_step_copies_no_keys(sink: str) -> None:
    """Of 4 K tokens kept of 64 K, it holds scores of its heads in memory beside the cache, and nothing of its size."""
    form = operators()["sliding_window"].load().forms["core"]
    params = {"window": 4096, "sink": sink, "sink_tokens": 4}
    problem = Problem(2**16, 512, 8, kv_heads=2, causal=True, query_len=1)
    scores, cache = 8 * 4100 * 4, 2 * 2 * 4100 * 64 * 4
    assert predict(form, problem, params, "fwd").peak_bytes < 4 * scores < cache / 3
    more = replace(problem, query_len=2**15)
    assert predict(form, more, params, "fwd").peak_bytes > cache


@each_sink
def test_memory_is_linear(sink: str) -> None:
    form = operators()["sliding_window"].load().forms["core"]
    params = {"window": 256, "sink": sink, "sink_tokens": 4}
    small, large = (predict(form, Problem(n, 64, 2, causal=True), params, "fwd_bwd").peak_bytes for n in (2**17, 2**18))
    assert large / small == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_sink_logit_in_low_precision_stays_near_float64(dtype: Any) -> None:
    case = case_of(301, 30, "logit")
    low = case.problem.with_dtype(dtype)
    rounded = {name: x.to(getattr(torch, dtype)) for name, x in case.tensors.items()}
    exact = case.output(**{name: x.double() for name, x in rounded.items()})
    y = case.form.reference(low, case.params, **rounded)
    eps = torch.finfo(getattr(torch, dtype)).eps
    assert (y.double() - exact).abs().max() < 4 * eps
    assert (y.double() - exact).abs().max() > eps / 100


def test_impls_without_a_pattern_say_when_they_can() -> None:
    impl = operators()["sliding_window"].load().forms["core"].impls["sdpa"]
    for n, query_len, sink, able in (
        (13, 13, "tokens", True),
        (14, 14, "tokens", False),
        (99, 1, "tokens", True),
        (99, 2, "tokens", False),
        (9, 9, "none", True),
        (10, 10, "none", False),
        (99, 1, "none", True),
        (99, 1, "logit", False),
    ):
        problem = Problem(n, 16, 4, causal=True, query_len=query_len)
        reason = impl.why_not(problem, {"window": 9, "sink": sink, "sink_tokens": 4}, "cpu")
        assert (reason is None) is able, (n, query_len, sink)
        assert able or "SDPA has no" in (reason or "")
        if able:
            case = case_of(n, 9, sink, kv_heads=2, query_len=query_len)
            assert close(case.impl("sdpa"), case.output())


@pytest.mark.parametrize("query_len", [1, 3, 140])
@each_sink
def test_flex_attention_continues_as_the_reference(sink: str, query_len: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_call", lambda q: by_tiles)
    for n, w, g in ((301, 40, 7), (160, 30, 150), (150, 160, 4)):
        case = case_of(n, w, sink, g, kv_heads=2, query_len=query_len)
        assert case.form.impls["cuda"].continues
        assert close(case.impl("cuda"), case.output())
        narrower = replace(case, params={**case.params, "window": w - 1})
        if query_len > 1 and n == 301:
            assert not close(narrower.impl("cuda"), case.output())
