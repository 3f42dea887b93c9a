"""y_i = Σ_j p_ij v_j, p_i = softmax_j(q_iᵀ k_j / √D) over the tokens j ≤ i of i's own block and of k − 1 before it.

Block J holds the tokens J·b … J·b + b − 1. Of the blocks before its own, ⌊i/b⌋ of them, each head of token i sees those
k − 1 with the largest gate q_iᵀ mean_{j in J} k_j, all where there are fewer. Its own block counts as one of the k. The
gate passes no gradient. With `selection: inside` the call computes it, in float32 whatever the working dtype is, so
that every dtype has the same blocks; with `selection: given` the blocks are computed once with the inputs.

Lu et al. 2025, "MoBA: Mixture of Block Attention for Long-Context LLMs", eq. 4–8, https://arxiv.org/abs/2502.13189
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from attnbench.cost import product, traffic
from attnbench.grouped import folded, unfolded
from attnbench.inputs import heads
from attnbench.kernels.library import fla_selected
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Call, Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.selected import _blocks
from attnbench.operators.selected._choice import (
    SELECTION,
    largest_blocks,
    never_compiled,
    not_in_a_layer,
    tiles_of_queries,
)
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import projected
from attnbench.state import appended, cache_bytes, caches, drawn_caches

Attend = Callable[[Problem, Params, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(problem, params, q [B, H, Q, D], k and v [B, Hk, N, D], blocks of each query) → [B, H, Q, D]."""


def with_attention(attend: Attend) -> Call:
    """The map around an attention over the tokens of chosen blocks."""

    def call(
        problem: Problem,
        params: Params,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        chosen: Tensor | None = None,
        k_cache: Tensor | None = None,
        v_cache: Tensor | None = None,
        means_cache: Tensor | None = None,
    ) -> Tensor:
        """Of the new tokens.

        Args:
            q: [B, H, Q, D].
            k, v: [B, Hk, Q, D].
            chosen: int32 [B, H, Q, n], the blocks of each query; None: they are chosen here.
            k_cache, v_cache: [B, Hk, N, D], where Q < N.
            means_cache: [B, Hk, ⌊(N − Q) / b⌋ + Q, D], float32: of the keys of each block of the tokens before, and
                room for others.

        Returns: [B, H, Q, D].
        """
        k, v = appended(k_cache, k), appended(v_cache, v)
        if chosen is None:
            means = block_means(k, params["block"], problem.past, means_cache)
            chosen = choose(q, means, params["block"], slots(problem, params), problem.past)
        return attend(problem, params, q, k, v, chosen)

    return call


def attend(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor) -> Tensor:
    """Products of the queries that have chosen a block with it, see `_blocks`."""
    return _blocks.attend(q * problem.head_dim**-0.5, k, v, chosen, block_of(problem, params))


reference = with_attention(attend)


def block_of(problem: Problem, params: Params) -> int:
    """Tokens that a block has: b, or all N where there are fewer."""
    return min(params["block"], problem.seq_len)


def slots(problem: Problem, params: Params) -> int:
    """n: k, or one more than the blocks that have ended."""
    return min(params["top_k"], 1 + problem.seq_len // params["block"])


def block_means(k: Tensor, block: int, past: int = 0, means_cache: Tensor | None = None) -> Tensor:
    """Means of the keys of each block that has ended, float32: [B, Hk, N, D] → [B, Hk, ⌊N/b⌋, D].

    means_cache: those of the blocks that ended before the token `past`, in the first ⌊past/b⌋ rows; the new ones are
        written to the next.
    """
    known = past // block
    ended = k.shape[-2] // block
    new = k[..., known * block : ended * block, :].detach().float().unflatten(-2, (ended - known, block)).mean(dim=-2)
    if means_cache is None:
        return new
    means_cache[..., known:ended, :] = new
    return means_cache[..., :ended, :].float()


@never_compiled
def choose(q: Tensor, means: Tensor, block: int, slots: int, past: int = 0) -> Tensor:
    """The own block, then those of the largest gates: int32 [B, H, Q, n]; −1 where there are fewer.

    Args:
        q: [B, H, Q, D].
        means: [B, Hk, blocks, D], float32, of blocks that have ended.
        slots: n.
        past: tokens before the first query.
    """
    parts = []
    for first, end in tiles_of_queries(q, means.shape[-2]):
        own = torch.arange(past + first, past + end, device=q.device).div_(block, rounding_mode="floor")
        rows = q[..., first:end, :].detach().float()
        gate = unfolded(folded(rows, means) @ means.transpose(-2, -1), rows)  # [B, H, T, blocks]
        before = torch.arange(means.shape[-2], device=q.device) < own.unsqueeze(-1)
        others = largest_blocks(gate, before, slots - 1)
        parts.append(torch.cat((own.int().view(-1, 1).expand(*rows.shape[:2], -1, 1), others), dim=-1))
    return torch.cat(parts, dim=-2)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the logits have variance 1; the blocks that they choose, where these are given."""
    data = heads(problem, generator, "q", "k", "v")
    held = drawn_caches(problem, generator, data["k"], data["v"])
    k = held.get("k_cache", data["k"])
    if params["selection"] == "inside":
        means = _means_state(problem, params, k)
        if means:  # filled, so that a call leaves its inputs as they were drawn
            block_means(k, params["block"], problem.past, means["means_cache"])
        return Inputs(data, state={**held, **means})
    return Inputs(data, choices=own_choices(problem, params, data["q"], k), state=held)


def own_choices(problem: Problem, params: Params, q: Tensor, k: Tensor) -> dict[str, Tensor]:
    """The blocks that queries choose. k: of all tokens."""
    block = params["block"]
    return {"chosen": choose(q, block_means(k, block), block, slots(problem, params), problem.past)}


def _means_state(problem: Problem, params: Params, k: Tensor) -> dict[str, Tensor]:
    """The means before the new tokens, and room. k: of the tokens before, and perhaps others."""
    if not problem.past:
        return {}
    means = block_means(k[..., : problem.past, :], params["block"])
    return {"means_cache": pad(means, (0, 0, 0, problem.query_len))}


def state(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor | None = None
) -> dict[str, Tensor]:
    """All keys and values; where blocks are chosen in the call, the mean of the keys of each block that has ended."""
    means = _means_state(problem, params, k) if params["selection"] == "inside" else {}
    return {**caches(problem, k, v), **means}


def gate_pairs(problem: Problem, params: Params) -> int:
    """Gates of the definition: Σ_i ⌊i/b⌋, of the new tokens."""
    block = params["block"]

    def of_tokens(n: int) -> int:
        blocks, rest = divmod(n, block)
        return block * blocks * (blocks - 1) // 2 + rest * blocks

    return of_tokens(problem.seq_len) - of_tokens(problem.past)


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference multiplies blocks whole, and pads chunks of queries; every gate, also those of later blocks.

    Where it goes tile by tile, backward computes both products again.
    """
    b, h, n, q, d = problem.batch, problem.heads, problem.seq_len, problem.query_len, problem.head_dim
    block, top_k = params["block"], params["top_k"]
    pairs = _blocks.seen_pairs(problem.past, n, top_k, block)
    size, kv_size = b * q * problem.channels, b * q * problem.kv_channels
    inside = params["selection"] == "inside"
    gates = product(b * h * gate_pairs(problem, params) * d, mode, gradients=0) if inside else 0  # [1, D] × [D, ⌊i/b⌋]
    executed_gates = product(b * h * q * (n // block) * d, mode, gradients=0) if inside else 0  # [Q, D] × [D, ⌊N/b⌋]
    executed = b * h * d * _blocks.executed(problem, h, slots(problem, params), block_of(problem, params), mode)
    read = min(problem.past, top_k * block)  # what one new token sees; the others may see the same
    means = 4 * b * problem.kv_channels * (problem.past // block) if inside else 0
    chosen = 0 if inside else 4 * b * h * q * slots(problem, params)
    return Cost(
        flops=2 * product(b * h * pairs * d, mode) + gates,  # q kᵀ and p v over the pairs
        reference_flops=executed + executed_gates,
        elementwise=4 * b * h * pairs * (1 if mode == "fwd" else 2),  # max, subtract, exp, divide
        bytes_required=traffic(
            problem,
            mode,
            read=size + 2 * kv_size,
            written=size + (2 * kv_size if problem.past else 0),
            constant=2 * b * read * problem.kv_channels + -(-(chosen + means) // problem.item_bytes),
        ),
        state_bytes=cache_bytes(problem, n) + (4 * b * problem.kv_channels * (n // block) if inside else 0),
    )


def _cuda() -> Call:
    def library(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, chosen: Tensor) -> Tensor:
        return fla_selected.moba(q, k, v, chosen, params["block"])

    return with_attention(library)


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return fla_selected.why_not_moba(problem, params["block"])


CUDA = Impl(_cuda, "float32 torch choice, flash-linear-attention: moba", _cuda_why_not, grouped=True)
CORE = Form(reference, make_inputs, cost, {"cuda": CUDA}, state)
LAYER = projected(CORE)


def _layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """The layer's inputs, with the choices of its own queries and keys."""
    inputs = LAYER.make_inputs(problem, params, generator)
    x = inputs.data["x"]
    q, k = ((x @ inputs.parameters[w]).unflatten(-1, (-1, problem.head_dim)).transpose(1, 2) for w in ("w_q", "w_k"))
    cache = inputs.state.get("k_cache")
    k = k if cache is None else appended(cache.clone(), k)
    return replace(inputs, choices=own_choices(problem, params, q, k))


OPERATOR = Operator(
    paper=Paper(
        "Lu et al.",
        2025,
        "MoBA: Mixture of Block Attention for Long-Context LLMs",
        "https://arxiv.org/abs/2502.13189",
        "eq. 4-8",
    ),
    forms=with_graph({"core": CORE, "layer": replace(LAYER, make_inputs=_layer_inputs)}, "cuda"),
    complexity=lambda params: Complexity(time="n^2" if params["selection"] == "inside" else "n", memory="n"),
    params={
        "block": Param(512, "b, tokens of a block", minimum=1),
        "top_k": Param(3, "k, blocks that a token sees, its own among them", minimum=1),
        "selection": SELECTION,
    },
    domains=("sequence",),
    full="a token's own block is the last one that it sees",
    grouped=True,
    continues=True,
    pairs=lambda params, causal: "chosen",
    approaches=lambda params: "top_k",
    why_not=lambda problem, params, scope: not_in_a_layer(params, scope),
    notes="the gates are n^2/b products; in a layer blocks are given (selection: given)",
)
