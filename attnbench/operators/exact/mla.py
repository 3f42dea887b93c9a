"""y_i = Σ_j p_ij W_v c_j, p_i = softmax_j((q_n,iᵀ W_k c_j + q_r,iᵀ k_r,j) / √(D + dr)) over all j (causal: 0 ≤ j ≤ i).

Each head has its own q_n of D channels, q_r of dr, W_k and W_v; the latent c and k_r are one for all heads. The forms
are one map in two orders of products:

- expanded: keys [W_k c; k_r] and values W_v c of every head, then attention over D + dr channels;
- absorbed: queries [W_kᵀ q_n; q_r] over the shared keys [c; k_r] of dc + dr channels, then W_v of the sums of c.

What is kept of a token is c and k_r: a step in the expanded form expands all tokens, in the absorbed form none.
Rotary positions, which make q_r and k_r, are left out.

DeepSeek-AI 2024, "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model", eqs. 9 to 19,
https://arxiv.org/abs/2405.04434
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from attnbench.cost import moved_again, product, traffic
from attnbench.inputs import normal, tokens, torch_dtype
from attnbench.kernels.library import flash_infer, flash_mla
from attnbench.kernels.library.flash_attention import PACKAGES, Package
from attnbench.kernels.library.graphs import with_graph
from attnbench.kernels.library.sdpa_backends import attention, forced, why_not_forced
from attnbench.operator import Call, Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators._latent import (
    LATENT_DIM,
    ROPE_DIM,
    absorbed_queries,
    drawn_expansions,
    drawn_latent_cache,
    drawn_latents,
    expanded,
    from_latents,
    joined,
    latent_cache,
    latent_cache_bytes,
    latents_of,
)
from attnbench.operators.exact import _eager as eager
from attnbench.operators.recurrent._layer import rms_norm, too_narrow
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.state import causal_pairs

FORMS = ("expanded", "absorbed")

EXPANDED_WIDTHS = (192, 128)
"""Channels of keys and values, DeepSeek's, of which FlashAttention-3 and 4 have a kernel."""

NORM_EPSILON = 1e-6
"""Of the layer's norms, as in the authors' models."""

Attend = Callable[[Problem, Tensor, Tensor, Tensor, float], Tensor]
"""(problem, q [B, H, Q, K], k [B, H or 1, N, K], v [B, H or 1, N, V], scale) → [B, H, Q, V]."""


def with_attention(attend: Attend, even_on_cpu: bool = False) -> Call:
    """The map in the form that params name, around an attention over keys and values.

    even_on_cpu: whether its values have as many channels as its keys there: zeros more, or those of the shared key.
    """

    def call(
        problem: Problem,
        params: Params,
        q_n: Tensor,
        q_r: Tensor,
        c: Tensor,
        k_r: Tensor,
        w_k: Tensor,
        w_v: Tensor,
        latent_cache: Tensor | None = None,
    ) -> Tensor:
        """Of the new tokens.

        Args:
            q_n, q_r: [B, H, Q, D] and [B, H, Q, dr].
            c, k_r: [B, Q, dc] and [B, Q, dr].
            w_k, w_v: [H, D, dc].
            latent_cache: [c; k_r], [B, N, dc + dr], where Q < N.

        Returns: [B, H, Q, D].
        """
        scale, latents = latents_of(problem, params).scale, joined(c, k_r, latent_cache)
        even = even_on_cpu and q_n.is_cpu
        if params["form"] == "expanded":
            k, v = expanded(latents, w_k, w_v)
            v = pad(v, (0, k.shape[-1] - v.shape[-1])) if even else v
            return attend(problem, torch.cat((q_n, q_r), dim=-1), k, v, scale)[..., : w_v.shape[1]]
        keys = latents.unsqueeze(1)  # [B, 1, N, dc + dr], of which the values are a part
        values = keys if even else keys[..., : c.shape[-1]]
        sums = attend(problem, absorbed_queries(q_n, q_r, w_k), keys, values, scale)
        return from_latents(sums[..., : c.shape[-1]], w_v)

    return call


reference = with_attention(eager.attention)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """Queries, latents and shared keys ~ N(0, 1), W ~ N(0, 1/dc): the logits have variance 1."""
    data = drawn_latents(problem, params, generator)
    weights = drawn_expansions(problem, params, generator)
    cache = drawn_latent_cache(problem, params, generator, data["c"], data["k_r"])
    return Inputs(data, weights, state=cache)


def state(problem: Problem, params: Params, c: Tensor, k_r: Tensor, **others: Tensor) -> dict[str, Tensor]:
    """All latents and shared keys so far."""
    return latent_cache(problem, c, k_r)


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Of the form that params name; a step in the expanded form expands every token of the cache.

    The chip makes what either form expands from the latents, which it reads once.
    """
    b, h, n, q = problem.batch, problem.heads, problem.seq_len, problem.query_len
    sizes = latents_of(problem, params)
    is_expanded = params["form"] == "expanded"
    pairs = causal_pairs(problem) if problem.causal else q * n
    # q kᵀ over D + dr channels and p v over D, or over dc + dr and over dc
    channels = sizes.key + sizes.head if is_expanded else sizes.token + sizes.latent
    # W_k and W_v of every token, [N, dc] × [dc, D]; or of every query, [Q, D] × [D, dc], and output, [Q, dc] × [dc, D]
    maps = product(2 * b * h * (n if is_expanded else q) * sizes.head * sizes.latent, mode)
    new = b * q * (h * sizes.key + sizes.token)
    weights = 2 * h * sizes.head * sizes.latent
    return Cost(
        flops=product(b * h * pairs * channels, mode) + maps,
        reference_flops=product(b * h * q * n * channels, mode) + maps,
        elementwise=4 * b * h * pairs * (1 if mode == "fwd" else 2),  # max, subtract, exp, divide
        bytes_required=traffic(problem, mode, read=new + weights, written=b * q * problem.channels)
        + cache_traffic(problem, params),
        # The gradient of every score of a query has the sum of its y · ∂y.
        bytes_again=moved_again(problem, mode, backward=b * q * problem.channels),
        state_bytes=latent_cache_bytes(problem, params, n) if problem.causal else None,
    )


def cache_traffic(problem: Problem, params: Params) -> int:
    """Bytes of a cache: the tokens before are read, the new ones written; 0 where Q = N."""
    return latent_cache_bytes(problem, params, problem.seq_len) if problem.past else 0


def forced_impl(backend: str) -> Impl:
    """An impl in which one backend of SDPA is forced; torch says which widths and forms that takes."""

    def refusal(problem: Problem, params: Params, device: str, backward: bool) -> str | None:
        sizes, is_expanded = latents_of(problem, params), params["form"] == "expanded"
        key_dim, value_dim = (sizes.key, sizes.head) if is_expanded else (sizes.token, sizes.latent)
        asked = problem.with_sizes(head_dim=key_dim, kv_heads=problem.heads if is_expanded else 1)
        return why_not_forced(backend, asked, device, backward, value_dim)

    forward, backward = (partial(refusal, backward=backward) for backward in (False, True))
    call = with_attention(forced(backend))
    return Impl(lambda: call, f"torch SDPA, {backend} forced", forward, continues=True, why_not_backward=backward)


def expanded_impl(package: Package) -> Impl:
    """An impl by one of FlashAttention's packages, whose scale is that of the keys' width."""

    def reason(problem: Problem, params: Params, device: str) -> str | None:
        sizes = latents_of(problem, params)
        if params["form"] != "expanded" or (sizes.key, sizes.head) != EXPANDED_WIDTHS:
            taken = "form expanded with keys of {} and values of {} channels".format(*EXPANDED_WIDTHS)
            return f"{package.name} takes {taken}, not {params['form']} with {sizes.key} and {sizes.head}"
        return package.why_not(problem.with_sizes(head_dim=sizes.key))

    call = with_attention(lambda problem, q, k, v, scale: package.attend(problem, q, k, v))
    return Impl(lambda: call, package.name, reason, continues=True)


def decoding_impl(kernel: str, attend: Attend, why_not: Callable[[Problem, int, int], str | None]) -> Impl:
    """An impl by a library's kernel of the absorbed form.

    why_not: (problem, dc, dr) → the reason that it cannot run here, or None.
    """

    def reason(problem: Problem, params: Params, device: str) -> str | None:
        sizes = latents_of(problem, params)
        if params["form"] != "absorbed":
            return f"{kernel} is a kernel of form absorbed"
        return why_not(problem, sizes.latent, sizes.shared)

    return Impl(
        lambda: with_attention(attend),
        kernel,
        reason,
        continues=True,
        why_not_backward=lambda problem, params, device: f"{kernel} has no backward",
    )


CORE = Form(
    reference,
    make_inputs,
    cost,
    impls={
        "sdpa": Impl(
            lambda: with_attention(attention, even_on_cpu=True),  # whose fused kernel takes no other values
            "torch SDPA, its own choice of kernel",
            lambda problem, params, device: None,
            continues=True,
        ),
        "cuda:cudnn": forced_impl("cudnn"),
        "cuda:efficient": forced_impl("efficient"),
        **{f"cuda:{name}": expanded_impl(PACKAGES[name]) for name in ("fa3", "fa4")},
        "cuda:flash_mla": decoding_impl(flash_mla.KERNEL, flash_mla.attend, flash_mla.why_not),
        "cuda:flashinfer": decoding_impl(
            flash_infer.LATENT_KERNEL, flash_infer.attend_to_latents, flash_infer.why_not_latents
        ),
    },
    state=state,
)


def layer_shapes(problem: Problem, params: Params) -> dict[str, tuple[int, ...]]:
    """Of the layer's weights beside the core's: from x to c, k_r and the latent of queries, from that to these; w_o."""
    sizes, c, h = latents_of(problem, params), problem.channels, problem.heads
    rank = query_rank(problem, params)
    return {
        "w_down": (c, sizes.token),
        "norm_c": (sizes.latent,),
        "w_q_down": (c, rank),
        "norm_q": (rank,),
        "w_q_up": (rank, h * sizes.key),
        "w_o": (c, c),
    }


def query_rank(problem: Problem, params: Params) -> int:
    """Channels of the latent of queries."""
    rank = params["q_rank"]
    return int(min(12 * problem.head_dim, problem.channels) if rank == "12d" else rank)


def core_tensors(
    problem: Problem,
    x: Tensor,
    w_down: Tensor,
    norm_c: Tensor,
    w_q_down: Tensor,
    norm_q: Tensor,
    w_q_up: Tensor,
    **weights: Tensor,
) -> dict[str, Tensor]:
    """The core's, of x: [B, Q, C]."""
    latent = norm_c.shape[0]
    c, k_r = (x @ w_down).split((latent, w_down.shape[1] - latent), dim=-1)
    queries = rms_norm(x @ w_q_down, norm_q, NORM_EPSILON).to(x.dtype) @ w_q_up
    q = queries.unflatten(-1, (problem.heads, -1)).transpose(1, 2)
    q_n, q_r = q.split((problem.head_dim, q.shape[-1] - problem.head_dim), dim=-1)
    return {"q_n": q_n, "q_r": q_r, "c": rms_norm(c, norm_c, NORM_EPSILON).to(x.dtype), "k_r": k_r, **weights}


def in_layer(call: Call) -> Call:
    """The layer around a core."""

    def layer(problem: Problem, params: Params, x: Tensor, w_o: Tensor, **tensors: Tensor) -> Tensor:
        """x: [B, Q, C]; weights: `layer_shapes` and the core's. Returns [B, Q, C]."""
        y: Tensor = call(problem, params, **core_tensors(problem, x, **tensors))
        return y.transpose(1, 2).flatten(2) @ w_o

    return layer


def layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1), matrices N(0, 1/rows), norms 1."""
    x = tokens(problem, generator, "x")
    weights = {
        name: normal(problem, generator, *shape, scale=shape[0] ** -0.5)
        if len(shape) > 1
        else torch.ones(shape, dtype=torch_dtype(problem), device=generator.device)
        for name, shape in layer_shapes(problem, params).items()
    }
    expansions = drawn_expansions(problem, params, generator)
    core = core_tensors(problem, x["x"], **weights)
    cache = drawn_latent_cache(problem, params, generator, core["c"], core["k_r"])
    return Inputs(x, {**weights, **expansions}, state=cache)


def layer_state(problem: Problem, params: Params, x: Tensor, **weights: Tensor) -> dict[str, Tensor]:
    """All latents and shared keys so far."""
    core = core_tensors(problem, x, **weights)
    return latent_cache(problem, core["c"], core["k_r"])


def layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The core's, with the products of each token and each matrix around it."""
    core, size = cost(problem, params, mode), problem.batch * problem.query_len * problem.channels
    shapes, sizes = layer_shapes(problem, params), latents_of(problem, params)
    matrices = sum(math.prod(shape) for shape in shapes.values() if len(shape) > 1)
    projections = product(problem.batch * problem.query_len * matrices, mode)
    weights = sum(map(math.prod, shapes.values())) + 2 * problem.channels * sizes.latent
    return replace(
        core,
        flops=core.flops + projections,
        reference_flops=core.reference_flops + projections,
        bytes_required=traffic(problem, mode, read=size + weights, written=size) + cache_traffic(problem, params),
    )


def layer_impl(impl: Impl) -> Impl:
    """The layer around an impl of the core."""
    return replace(impl, load=lambda: in_layer(impl.load()))


LAYER = Form(
    in_layer(reference),
    layer_inputs,
    layer_cost,
    impls={name: layer_impl(impl) for name, impl in CORE.impls.items()},
    state=layer_state,
)


def why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    """The layer's norms of the two latents."""
    if scope == "core":
        return None
    narrow = too_narrow("the latent of keys and values", latents_of(problem, params).latent)
    return narrow or too_narrow("the latent of queries", query_rank(problem, params))


OPERATOR = Operator(
    paper=Paper(
        "DeepSeek-AI",
        2024,
        "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model",
        "https://arxiv.org/abs/2405.04434",
        "eqs. 9 to 19",
    ),
    forms=with_graph({"core": CORE, "layer": LAYER}, "sdpa"),
    complexity=lambda params: Complexity(time="n^2", memory="n^2"),
    params={
        "form": Param("expanded", "the order of products: keys of every head, or queries of latents", FORMS),
        "latent_dim": LATENT_DIM,
        "rope_dim": ROPE_DIM,
        "q_rank": Param("12d", "layer: channels of the latent of queries; 12d: at most C", ("12d",), minimum=1),
    },
    grouped="one latent and one shared key stand for the keys and values of all heads",
    continues=True,
    why_not=why_not,
    notes="the cache has one latent of each token for all heads; form absorbed to decode, expanded to prefill",
)
