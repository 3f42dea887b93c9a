"""Latent attention in both forms against multi-head attention over expanded keys and values, head by head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnbench.kernels.library import sdpa_backends
from attnbench.measure.worker.fake_memory import predict
from attnbench.operators import _latent
from attnbench.operators.exact import mla
from attnbench.problem import Problem
from tests.operators.small import Small, all_close, close, small

FORMS = ("expanded", "absorbed")
PROBLEM = Problem(13, 12, 2, 3, causal=True)
"""D 6, so dc 24 and dr 3."""

each_form = pytest.mark.parametrize("form", FORMS)
each_causality = pytest.mark.parametrize("causal", [False, True])


def by_definition(case: Small, width: int | None = None, unseen: int = 1) -> Tensor:
    """Head after head: keys and values of W c, the rotary part beside, a dense mask, one softmax.

    Args:
        width: what logits are divided by the root of; None: D + dr.
        unseen: from how many tokens after its own on a query sees none; of a causal problem.
    """
    q_n, q_r, c, k_r, w_k, w_v = (case.tensors[name] for name in ("q_n", "q_r", "c", "k_r", "w_k", "w_v"))
    n, heads = case.problem.seq_len, []
    outside = torch.ones(n, n, dtype=torch.bool).triu(unseen) & case.problem.causal
    for h in range(case.problem.heads):
        key = torch.einsum("bnc,dc->bnd", c, w_k[h])
        logits = torch.einsum("bid,bjd->bij", q_n[:, h], key) + torch.einsum("bir,bjr->bij", q_r[:, h], k_r)
        logits = logits / (width or q_n.shape[-1] + q_r.shape[-1]) ** 0.5
        weights = logits.masked_fill(outside, float("-inf")).softmax(dim=-1)
        heads.append(torch.einsum("bij,bjd->bid", weights, torch.einsum("bnc,dc->bnd", c, w_v[h])))
    return torch.stack(heads, dim=1)


@each_form
@each_causality
@pytest.mark.parametrize("sizes", [{}, {"latent_dim": 5, "rope_dim": 7}, {"latent_dim": 1, "rope_dim": 1}])
def test_output_and_gradients_are_the_definition(form: str, causal: bool, sizes: dict[str, Any]) -> None:
    case = small("mla", replace(PROBLEM, causal=causal), form=form, **sizes)
    assert close(case.output(), by_definition(case))
    assert all_close(case.gradients(), case.gradients(by_definition))


@each_form
def test_another_scale_or_one_more_token_is_another_map(form: str) -> None:
    """The popular slip divides absorbed logits by the root of their own width, dc + dr, and another by that of D."""
    case = small("mla", PROBLEM, form=form)
    sizes = _latent.latents_of(case.problem, case.params)
    for width in (sizes.token, sizes.head):
        assert not close(case.output(), by_definition(case, width=width))
    for unseen in (0, 2):
        assert not close(case.output(), by_definition(case, unseen=unseen))


@each_form
@each_causality
@pytest.mark.parametrize("scope", ["core", "layer"])
def test_sdpa_is_the_same_map(form: str, causal: bool, scope: Any) -> None:
    case = small("mla", replace(PROBLEM, causal=causal), scope, form=form)
    assert close(case.impl("sdpa"), case.output())
    assert all_close(case.gradients(lambda grown: grown.impl("sdpa")), case.gradients())


@each_form
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch says why a kernel is refused
@pytest.mark.parametrize("query_len", [13, 3, 1])
def test_sdpa_is_one_call_of_the_fused_kernel_on_a_cpu(form: str, query_len: int) -> None:
    case = small("mla", replace(PROBLEM, query_len=query_len), form=form)
    calls: list[Tensor] = []

    def counted(*arguments: Any) -> Tensor:
        calls.append(sdpa_backends.attention(*arguments))
        return calls[-1]

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        y = mla.with_attention(counted, even_on_cpu=True)(case.problem, case.params, **case.tensors)
        assert close(y, case.impl("sdpa"))
        with pytest.raises(RuntimeError):  # values of their own width
            mla.with_attention(counted)(case.problem, case.params, **case.tensors)
    assert len(calls) == 1


def test_no_key_of_its_own_and_one_latent_of_all_channels_is_softmax_attention() -> None:
    """W_k and W_v that cut a latent of C channels into heads, and a shared key of zeros, at the scale of D."""
    case = small("mla", PROBLEM, latent_dim=2 * PROBLEM.channels)
    d, h = PROBLEM.head_dim, PROBLEM.heads
    eye = torch.eye(2 * h * d, dtype=torch.float64).view(2, h, d, 2 * h * d)
    scale = (_latent.latents_of(case.problem, case.params).key / d) ** 0.5
    k, v = case.tensors["c"].unflatten(-1, (2, h, d)).permute(2, 0, 3, 1, 4)
    softmax = small("softmax", PROBLEM).output(q=case.tensors["q_n"], k=k, v=v)
    no_key = torch.zeros_like(case.tensors["k_r"])
    ours = {form: replace(case, params={**case.params, "form": form}) for form in FORMS}
    for each in ours.values():
        tensors = {"q_n": case.tensors["q_n"] * scale, "w_k": eye[0], "w_v": eye[1]}
        assert close(each.output(k_r=no_key, **tensors), softmax)
        assert close(each.output(k_r=no_key + 1, **tensors), softmax), "one key for all tokens changes no weight"
        assert not close(each.output(**tensors), softmax)
        assert not close(each.output(k_r=no_key, **{**tensors, "q_n": case.tensors["q_n"]}), softmax)


def test_latent_sizes_are_those_of_deepseek_v2() -> None:
    sizes = _latent.latents_of(Problem(1, 128 * 128, 128), small("mla", PROBLEM).params)
    assert (sizes.head, sizes.latent, sizes.shared, sizes.token, sizes.key) == (128, 512, 64, 576, 192)
    assert mla.query_rank(Problem(1, 128 * 128, 128), {"q_rank": "12d"}) == 1536
    assert mla.query_rank(PROBLEM, {"q_rank": "12d"}) == PROBLEM.channels
    assert mla.query_rank(PROBLEM, {"q_rank": 5}) == 5


def deepseek(form: str, query_len: int = 0, n: int = 1024) -> Small:
    """Its sizes with a few heads, of shapes alone."""
    problem = Problem(n, 128 * 4, 4, causal=True, **({"query_len": query_len} if query_len else {}))
    case = small("mla", PROBLEM, form=form)
    return replace(case, problem=problem.with_dtype("bfloat16"))


def test_cost_is_that_of_the_paper_sizes() -> None:
    """Multiply-adds of a pair and head: 128 + 64 + 128 and 2 · 512 + 64; a map of a token and head: 512 · 256."""
    n, h = 1024, 4
    pairs = n * (n + 1) // 2
    assert deepseek("expanded").cost().flops == 2 * h * (320 * pairs + n * 512 * 256)
    assert deepseek("absorbed").cost().flops == 2 * h * (1088 * pairs + n * 512 * 256)
    for query_len in (1, 40):
        pairs = query_len * (n - query_len) + query_len * (query_len + 1) // 2
        expanded, absorbed = (deepseek(form, query_len).cost().flops for form in FORMS)
        assert expanded == 2 * h * (320 * pairs + n * 512 * 256)
        assert absorbed == 2 * h * (1088 * pairs + query_len * 512 * 256)


def test_absorbed_steps_are_cheaper_up_to_170_new_tokens() -> None:
    """In a long cache: where Q · (2 dc − 2 D) < dc · 2 D."""
    for query_len, cheaper in ((1, "absorbed"), (170, "absorbed"), (172, "expanded")):
        assert min(FORMS, key=lambda form: deepseek(form, query_len, 1 << 20).cost().flops) == cheaper


@pytest.mark.parametrize("query_len", [1, 3])
def test_an_absorbed_step_neither_copies_nor_expands_the_cache(query_len: int) -> None:
    problem = Problem(4096, 32, 2, 3, causal=True, query_len=query_len)
    peaks = {}
    for form in FORMS:
        case = small("mla", problem, form=form)
        footprint = predict(case.form, case.problem, case.params, "fwd")
        peaks[form] = footprint.peak_bytes
    assert peaks["absorbed"] < footprint.state_bytes
    assert peaks["expanded"] > footprint.state_bytes, "the check sees no copy"


@each_form
def test_the_state_is_one_latent_of_each_token_whatever_the_heads(form: str) -> None:
    for heads in (1, 4):
        problem = Problem(9, 6 * heads, heads, 2, causal=True)
        assert small("mla", problem, form=form).cost().state_bytes == 2 * 9 * (24 + 3) * 8
    assert small("softmax", Problem(9, 24, 4, 2, causal=True)).cost().state_bytes == 2 * 9 * 2 * 24 * 8
