"""DeepSeek's sparse attention against a loop over tokens; its choice of tokens, its limits, what its parts cost."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.operators.selected import _gather, _indexer, dsa
from attnbench.problem import Problem
from attnbench.registry import operators, outside_definition, resolve
from attnbench.state import causal_pairs
from tests.operators.flops import FlopCounter
from tests.operators.selected.dense import attention
from tests.operators.small import Small, all_close, close, small

N = 35
INDEX = ("index_q", "index_k", "index_weights")


def drawn(seq_len: int = N, kv_heads: int = 4, batch: int = 2, seed: int = 0, **params: Any) -> Small:
    return small("dsa", Problem(seq_len, 16, 4, batch, causal=True, kv_heads=kv_heads), seed=seed, **params)


def looped(one: Small, mistake: str = "") -> Tensor:
    """Which tokens each query keeps, one score at a time: bool [B, 1, N, N]. `mistake` breaks one point of it."""
    q, k, w = (one.inputs.choices[name].double() for name in ("index_q", "index_k", "index_weights"))
    n, top_k = one.problem.seq_len, one.params["top_k"]
    keep = torch.zeros(one.problem.batch, 1, n, n, dtype=torch.bool)
    for b in range(one.problem.batch):
        for i in range(n):
            products = q[b, i] @ k[b].T  # [H^I, N]
            scores = w[b, i] @ (products if mistake == "no relu" else products.relu())
            if mistake == "no weights":
                scores = products.relu().sum(0)
            sign = -1 if mistake == "earlier of equals" else 1
            line = sorted(range(n if mistake == "later tokens" else i + 1), key=lambda j: (scores[j].item(), sign * j))
            keep[b, 0, i, line[-(top_k - (mistake == "one fewer")) :]] = True
    return keep


def dense(one: Small, keep: Tensor, **changed: Tensor) -> Tensor:
    tensors = {**one.tensors, **changed}
    return attention(tensors["q"] * one.problem.head_dim**-0.5, tensors["k"], tensors["v"], keep)


@pytest.fixture(params=["gathered", "masked", "tiles of 3"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the queries are attended that leave tokens out."""
    monkeypatch.setattr(dsa, "MASKED", 0 if request.param == "gathered" else 100)
    if request.param != "masked":
        monkeypatch.setattr(dsa, "MASKED_ROWS", 3)
        monkeypatch.setattr(_indexer, "INDEX_ROWS", 6)
        monkeypatch.setattr(_gather, "TILE_ELEMENTS", 1)
    return str(request.param)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("top_k", [1, 5, 34, 35, 100])
def test_equals_the_loop_with_gradients(by: str, kv_heads: int, top_k: int) -> None:
    one = drawn(kv_heads=kv_heads, top_k=top_k, index_heads=3, index_dim=5)
    keep = looped(one)
    assert close(one.output(), dense(one, keep))
    assert all_close(one.gradients(), one.gradients(lambda grown: dense(grown, keep)))


@pytest.mark.parametrize("mistake", ["no relu", "no weights", "later tokens", "one fewer"])
def test_the_loop_tells_mistakes(mistake: str) -> None:
    one = drawn(top_k=5)
    assert not torch.allclose(one.output(), dense(one, looped(one, mistake)), rtol=1e-3)


@pytest.mark.parametrize("zero", ["products", "weights", "negative zeros"])
def test_of_equal_scores_the_later_tokens_are_kept(zero: str) -> None:
    """0 where every index head is negative, −0 where the weights are too."""
    one = drawn(top_k=6)
    choices = {name: x.abs() for name, x in one.inputs.choices.items()}
    choices["index_k"] *= -1
    if zero == "weights":
        choices["index_weights"].zero_()
    else:
        choices["index_k"][:, ::9] *= -1  # fewer than are kept
    if zero == "negative zeros":
        choices["index_weights"][:, ::2] *= -1
    one = replace(one, inputs=replace(one.inputs, choices=choices))
    assert close(one.output(), dense(one, looped(one)))
    assert not torch.allclose(one.output(), dense(one, looped(one, "earlier of equals")))


def test_ranks_are_those_of_the_scores() -> None:
    """Of both signs, zeros of both signs, the smallest and the largest numbers, and infinity."""
    tiny, most = torch.finfo(torch.float32).smallest_normal, torch.finfo(torch.float32).max
    line = torch.tensor([-torch.inf, -most, -2.0, -1.0, -tiny, 0.0, tiny, 0.5, 3.0, most])
    order = torch.randperm(len(line), generator=torch.Generator().manual_seed(0))
    for top_k in range(1, len(line) + 1):
        kept = _indexer.largest(line[order].view(1, 1, -1).clone(), top_k)
        assert sorted(order[kept.flatten().long()].tolist()) == list(range(len(line) - top_k, len(line)))
    zeros = torch.tensor([[[0.0, -0.0, 0.0, -0.0]]])
    assert sorted(_indexer.largest(zeros, 2).flatten().tolist()) == [2, 3]


def test_as_many_tokens_as_there_are_is_softmax() -> None:
    one = drawn(kv_heads=2, top_k=N)
    softmax = small("softmax", one.problem)
    expected = softmax.form.reference(softmax.problem, softmax.params, **one.inputs.data)
    assert close(one.output(), expected)
    fewer = drawn(kv_heads=2, top_k=N - 1)
    assert close(fewer.output()[..., : N - 1, :], expected[..., : N - 1, :])
    assert not close(fewer.output(), expected)


def test_the_choice_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    case = small("dsa", Problem(9, 8, 2, causal=True), top_k=3)
    scores, compiled = _indexer.index_scores, []

    def recorded(*tensors: Tensor) -> Tensor:
        compiled.append(torch.compiler.is_compiling())
        return scores(*tensors)

    monkeypatch.setattr(_indexer, "index_scores", recorded)
    names = ("index_q", "index_k", "index_weights")
    for call, inside in ((_indexer.select, False), (inspect.unwrap(_indexer.select), True)):
        torch.compile(lambda *tensors, call=call: call(*tensors, 3) + 1, backend="eager")(*map(case.tensors.get, names))
        assert compiled.pop() is inside


def test_the_choice_is_the_same_in_every_dtype() -> None:
    """The indexer is float32 for all; with its values rounded to bfloat16 other tokens are kept."""
    one = drawn(300, batch=1, top_k=40)
    index = one.inputs.choices
    kept = _indexer.select(**index, top_k=40)
    assert kept.equal(_indexer.select(**{name: x.double() for name, x in index.items()}, top_k=40))
    rounded = _indexer.select(**{name: x.bfloat16() for name, x in index.items()}, top_k=40)
    assert not kept.sort().values.equal(rounded.sort().values)


@pytest.mark.parametrize("scope", ["core", "layer"])
@pytest.mark.parametrize("top_k", [6, 100])
def test_a_given_choice_is_the_same_map(scope: Any, top_k: int) -> None:
    problem = Problem(N, 16, 4, 2, causal=True)
    inside, given = (small("dsa", problem, scope, selection=each, top_k=top_k) for each in ("inside", "given"))
    assert close(inside.output(), given.output())
    assert ("selected" in given.inputs.choices) == (top_k < N)
    if top_k < N:
        others = given.inputs.choices["selected"].flip(0)
        assert not close(inside.output(), given.output(selected=others))


@pytest.mark.parametrize("scope", ["core", "layer"])
@pytest.mark.parametrize("query_len", [1, 4, 30])
def test_the_last_rows_follow_from_the_caches(by: str, scope: Any, query_len: int) -> None:
    """The registry's tests have fewer tokens than are kept."""
    one = small("dsa", Problem(N, 16, 4, 2, causal=True, kv_heads=2), scope, top_k=6)
    step = replace(one.problem, query_len=query_len)

    def of(tokens: slice) -> dict[str, Tensor]:
        data = {name: x[..., tokens, :].clone() for name, x in one.inputs.data.items()}
        return {**one.tensors, **{name: x[:, tokens] for name, x in one.tensors.items() if name in INDEX}, **data}

    assert one.form.state is not None
    state = one.form.state(step, one.params, **of(slice(0, step.past)))
    y = one.form.reference(step, one.params, **of(slice(step.past, None)), **state)
    assert close(y, one.output()[..., step.past :, :])
    for name, x in state.items():
        changed = {**state, name: x.flip(-2)}
        assert not close(one.form.reference(step, one.params, **of(slice(step.past, None)), **changed), y), name


def test_the_layer_scores_its_own_tokens() -> None:
    """q^I, k^I after a LayerNorm, and w, of x; no gradient comes back through them."""
    one = small("dsa", Problem(N, 16, 4, 2, causal=True), "layer", top_k=6)
    core = small("dsa", one.problem, top_k=6)
    t = one.tensors
    k = t["x"] @ t["w_index_k"].double()
    k = (k - k.mean(-1, keepdim=True)) / (k.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    index = {
        "index_q": (t["x"] @ t["w_index_q"].double()).unflatten(-1, (2, 4)),
        "index_k": k,
        "index_weights": t["x"] @ t["w_index_weights"].double(),
    }
    core = replace(core, inputs=replace(core.inputs, choices={name: x.float() for name, x in index.items()}))
    keep = looped(core)

    def layer(grown: Small) -> Tensor:
        t = grown.tensors
        heads = {name: (t["x"] @ t[f"w_{name}"]).unflatten(-1, (4, 4)).transpose(1, 2) for name in "qkv"}
        return dense(core, keep, **heads).transpose(1, 2).flatten(2) @ t["w_o"]

    assert close(one.output(), layer(one))
    assert all_close(one.gradients(), one.gradients(layer))
    assert not close(one.output(w_index_k=one.tensors["w_index_k"].flip(0)), layer(one))


@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
@pytest.mark.parametrize("scope", ["core", "layer"])
@pytest.mark.parametrize("top_k", [1, 6, 30])
def test_flops_are_what_torch_counts_where_tokens_are_left_out(by: str, mode: Any, scope: Any, top_k: int) -> None:
    one = small("dsa", Problem(N, 16, 4, 2, causal=True, kv_heads=2), scope, top_k=top_k)
    with FlopCounter() as counter:
        one.gradients() if mode == "fwd_bwd" else one.output()
    assert counter.total == one.cost(mode).reference_flops


def test_flops_are_those_of_the_pairs() -> None:
    """I_ij of all pairs j ≤ i, H^I (D^I + 1) multiply-adds each, and attention over min(i + 1, k) of them."""
    one = drawn(top_k=6, index_heads=3, index_dim=5)
    scored = sum(i + 1 for i in range(N))
    kept = sum(min(i + 1, 6) for i in range(N))
    assert one.cost().flops == 2 * 2 * (scored * 3 * (5 + 1) + kept * 2 * 16)
    assert one.cost("fwd_bwd").flops == 2 * 2 * (scored * 3 * (5 + 1) + 3 * kept * 2 * 16)
    assert drawn(top_k=6, selection="given").cost().flops == 2 * 2 * kept * 2 * 16


def test_the_indexer_takes_a_quarter_of_what_all_pairs_would() -> None:
    """At V3.2's sizes of 128 heads of 128: the square stays, a quarter of that of q kᵀ and p v."""
    problem = Problem(1 << 20, 128 * 128, 128, dtype="bfloat16", causal=True)
    operator = operators()["dsa"].load()
    params = {name: param.default for name, param in operator.params.items()}
    assert _indexer.index_sizes(problem, params) == (64, 128)
    every_pair = 2 * 128 * (128 + 128) * causal_pairs(problem)
    assert _indexer.index_cost(problem, params).flops / every_pair == pytest.approx(64 * 129 / (128 * 256))


def test_without_a_choice_there_is_an_error() -> None:
    one = drawn(top_k=4, selection="given")
    with pytest.raises(ValueError, match="selected"):
        one.form.reference(one.problem, one.params, **one.inputs.data)


def latents(kept: int, scope: Any = "core", seq_len: int = N, heads: int = 4, **params: Any) -> Small:
    problem = Problem(seq_len, 4 * heads, heads, 2, causal=True)
    return small("dsa", problem, scope, over="mla", top_k=kept, latent_dim=7, rope_dim=3, **params)


def expanded(one: Small, keep: Tensor, width: int = 7) -> Tensor:
    """Keys [W_k c; k_r] and values W_v c of every head, logits over √(D + dr): D 4, dr 3."""
    t = one.tensors
    k = torch.einsum("hdc,bnc->bhnd", t["w_k"], t["c"])
    k = torch.cat((k, t["k_r"].unsqueeze(1).expand(-1, k.shape[1], -1, -1)), dim=-1)
    v = torch.einsum("hdc,bnc->bhnd", t["w_v"], t["c"])
    return attention(torch.cat((t["q_n"], t["q_r"]), dim=-1) * width**-0.5, k, v, keep)


@pytest.mark.parametrize("top_k", [1, 6, 100])
def test_over_latents_it_is_the_expanded_form_with_gradients(by: str, top_k: int) -> None:
    one = latents(top_k)
    keep = looped(one)
    assert close(one.output(), expanded(one, keep))
    assert all_close(one.gradients(), one.gradients(lambda grown: expanded(grown, keep)))
    assert not close(one.output(), expanded(one, keep, width=7 + 3)) or top_k == 1
    if top_k == 6:
        assert not close(one.output(), expanded(one, looped(one, "one fewer")))


@pytest.mark.parametrize("scope", ["core", "layer"])
def test_all_tokens_of_latents_are_mla(scope: Any) -> None:
    one = latents(N, scope, selection="given")
    whole = small("mla", one.problem, scope, form="absorbed", latent_dim=7, rope_dim=3)
    assert close(one.output(), whole.form.reference(one.problem, whole.params, **one.tensors))


@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
@pytest.mark.parametrize("scope", ["core", "layer"])
def test_flops_over_latents_are_what_torch_counts(by: str, mode: Any, scope: Any) -> None:
    one = latents(6, scope)
    with FlopCounter() as counter:
        one.gradients() if mode == "fwd_bwd" else one.output()
    assert counter.total == one.cost(mode).reference_flops


@pytest.mark.parametrize("query_len", [1, 30])
@pytest.mark.parametrize("scope", ["core", "layer"])
def test_the_last_rows_follow_from_the_latents(scope: Any, query_len: int) -> None:
    one = latents(6, scope)
    step = replace(one.problem, query_len=query_len)

    def of(tokens: slice) -> dict[str, Tensor]:
        data = {name: x[..., tokens, :].clone() for name, x in one.inputs.data.items()}
        index = {name: x[:, tokens] for name, x in one.tensors.items() if name in INDEX}
        return {**one.tensors, **index, **data}

    assert one.form.state is not None
    state = one.form.state(step, one.params, **of(slice(0, step.past)))
    assert set(state) == {"latent_cache", "index_k_cache"}
    y = one.form.reference(step, one.params, **of(slice(step.past, None)), **state)
    assert close(y, one.output()[..., step.past :, :])


def test_latents_are_one_for_all_heads() -> None:
    operator = operators()["dsa"].load()
    problem = Problem(N, 16, 4, causal=True, kv_heads=2)
    reason = outside_definition(operator, problem, resolve(operator, {"over": "mla"}), "core")
    assert "kv_heads 2" in str(reason)
    assert outside_definition(operator, problem, resolve(operator, {}), "core") is None


def test_at_the_sizes_of_v3_2_a_kept_pair_takes_1088_multiply_adds_of_each_head() -> None:
    problem = Problem(1 << 17, 128 * 128, 128, causal=True, query_len=1)
    operator = operators()["dsa"].load()
    params = resolve(operator, {"over": "mla"})
    cost = operator.forms["core"].cost(problem, params, "fwd")
    maps = 2 * 128 * 128 * 512
    assert cost.flops == 2 * ((1 << 17) * 64 * (128 + 1) + 2048 * 128 * (2 * 512 + 64) + maps)
    assert cost.state_bytes == (1 << 17) * 4 * (576 + 128)
