"""y_i = Σ_j p_ij v_j, p_i = softmax_j(q_iᵀ k_j / √D) over the k tokens j ≤ i of largest I_ij, the same for all heads.

I_ij = Σ_h w_ih relu(q^I_ih · k^I_j), 1 ≤ h ≤ H^I, of index heads that share one key k^I of each token. Of equal I_ij,
such as the 0 of a key to which every index head is negative, those of the later tokens are kept. A token i < k keeps
all i + 1. A positive factor on I_ij, as (D^I H^I)^{−½} in the authors' layers, chooses the same. y passes no gradient
on to the indexer (the authors train it by another loss), so its tensors are choices. With `selection: inside` the call
computes I_ij, in float32 whatever the working dtype is, so that every dtype keeps the same tokens; with `selection:
given` the chosen tokens are computed once with the inputs.

`over: heads` attends to keys and values of heads; `over: mla` to latents in the absorbed form of `mla`, as the authors
do: queries [W_kᵀ q_n; q_r] over keys [c; k_r], then W_v of the sums of c. Rotary positions are left out, as is what
cancels in I_ij (Hadamard transforms), and the layer's q^I are made from x, not from the latent of queries.

DeepSeek-AI 2025, "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models", eq. 1–2,
https://arxiv.org/abs/2512.02556
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from attnbench.cost import product, traffic
from attnbench.grouped import folded, unfolded
from attnbench.inputs import heads
from attnbench.kernels.library import flash_mla
from attnbench.kernels.library.graphs import with_graph
from attnbench.masking import ahead, hide
from attnbench.operator import Call, Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators._latent import (
    LATENT_DIM,
    ROPE_DIM,
    absorbed_queries,
    drawn_expansions,
    drawn_latent_cache,
    drawn_latents,
    from_latents,
    joined,
    latent_cache,
    latents_of,
)
from attnbench.operators.exact import mla
from attnbench.operators.selected import _gather
from attnbench.operators.selected._indexer import (
    ITEM_BYTES,
    all_keeping,
    drawn_index,
    drawn_index_weights,
    index_cost,
    index_sizes,
    indexed,
    items,
    select,
    with_index,
)
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.projection import projected
from attnbench.state import appended, caches, drawn_caches, with_room

MASKED_ROWS = 128
"""Queries that are multiplied with all keys before them at a time."""

MASKED = 8
"""A row of a tile of masked keys costs so many times less than one of gathered keys, which heads of a group share."""

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, float, int], Tensor]
"""(q [B, H, Q, K], k [B, Hk, N, K], v [B, Hk, N, V], selected, scale, k) → [B, H, Q, V]."""


def with_attention(attend: Attend) -> Call:
    """The map around an attention over the tokens that are kept."""

    def call(
        problem: Problem,
        params: Params,
        selected: Tensor | None = None,
        index_q: Tensor | None = None,
        index_k: Tensor | None = None,
        index_weights: Tensor | None = None,
        index_k_cache: Tensor | None = None,
        **tensors: Tensor,
    ) -> Tensor:
        """Of the new tokens.

        Args:
            selected: int32 [B, R, k], the tokens that the R new tokens i ≥ k keep; None: there is none of these, or
                they are chosen here.
            index_q: q^I, [B, Q, H^I, D^I], float32 as all of the indexer.
            index_k: k^I, [B, Q, D^I].
            index_weights: w, [B, Q, H^I].
            index_k_cache: [B, N, D^I], where Q < N.
            tensors: over heads those of `of_heads`, over latents those of `of_latents`.

        Returns: [B, H, Q, D].
        """
        if index_q is not None and index_k is not None and index_weights is not None:
            selected = select(index_q, appended(index_k_cache, index_k), index_weights, params["top_k"])
        if params["over"] == "heads":
            return attend(*of_heads(**tensors), selected, problem.head_dim**-0.5, params["top_k"])
        y = attend(*of_latents(**tensors), selected, latents_of(problem, params).scale, params["top_k"])
        return from_latents(y, tensors["w_v"])

    return call


def of_heads(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor | None = None, v_cache: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, and keys and values of all tokens. q: [B, H, Q, D]; k, v: [B, Hk, Q, D]; caches: [B, Hk, N, D]."""
    return q, appended(k_cache, k), appended(v_cache, v)


def of_latents(
    q_n: Tensor, q_r: Tensor, c: Tensor, k_r: Tensor, w_k: Tensor, w_v: Tensor, latent_cache: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, absorbed: [B, H, Q, dc + dr], [B, 1, N, dc + dr] and of these the first dc channels; see `mla`."""
    keys = joined(c, k_r, latent_cache).unsqueeze(1)
    return absorbed_queries(q_n, q_r, w_k), keys, keys[..., : c.shape[-1]]


def attend(q: Tensor, k: Tensor, v: Tensor, selected: Tensor | None, scale: float, top_k: int) -> Tensor:
    """The first queries, and those with few more than k keys, are multiplied with all before them, others with k."""
    queries, past = q.shape[-2], k.shape[-2] - q.shape[-2]
    q = q * scale
    all_kept, masked = masked_queries(queries, past, top_k, q.shape[1] // k.shape[1])
    parts = []
    for start, stop in masked_tiles(all_kept, masked):
        chosen = None if start < all_kept else _of_rows(selected, start - all_kept, stop - all_kept)
        arguments = (q[..., start:stop, :], k[..., : past + stop, :], v[..., : past + stop, :], chosen)
        parts.append(_gather.of_tile(_attend_masked, *arguments, again=stop - start < queries))
    if masked < queries:
        chosen = _of_rows(selected, masked - all_kept, queries - all_kept).unsqueeze(1)
        parts.append(_gather.attend(q[..., masked:, :], k, v.contiguous(), chosen))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


reference = with_attention(attend)


def _of_rows(selected: Tensor | None, start: int, stop: int) -> Tensor:
    if selected is None:
        raise ValueError("dsa needs selected, or index_q, index_k and index_weights")
    return selected[:, start:stop]


def masked_queries(queries: int, past: int, top_k: int, group: int) -> tuple[int, int]:
    """How many of the first queries keep all tokens, and how many are multiplied with all. group: H / Hk."""
    all_kept = all_keeping(queries, past, top_k)
    masked = top_k * (1 + min(MASKED, queries) // group) - past
    return all_kept, min(max(masked, all_kept), queries)


def masked_tiles(all_kept: int, masked: int) -> Iterator[tuple[int, int]]:
    """The first query and the one behind the last of each tile, either of queries that keep all or of others."""
    for first, last in ((0, all_kept), (all_kept, masked)):
        for start in range(first, last, MASKED_ROWS):
            yield start, min(start + MASKED_ROWS, last)


def _attend_masked(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor | None) -> Tensor:
    """q: [B, H, T, K] of the last of n tokens; k, v: [B, Hk, n, …]. chosen: [B, T, k], None: all. [B, H, T, V]."""
    queries, keys = q.shape[-2], k.shape[-2]
    if chosen is None:
        outside = ahead(queries, keys, q.device)
    else:
        outside = torch.ones(q.shape[0], 1, 1, queries, keys, dtype=torch.bool, device=q.device)
        outside.scatter_(-1, chosen[:, None, None].long(), False)
    scores = folded(q, k) @ k.transpose(-2, -1)  # [B, Hk, G·T, n]
    hide(scores.unflatten(-2, (-1, queries)), outside)  # a view
    return unfolded(scores.softmax(dim=-1) @ v, q)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """All ~ N(0, 1), the weights of index heads too, W_k and W_v ~ N(0, 1/dc): the logits have variance 1."""
    index, index_cache = drawn_index(problem, params, generator)
    if params["over"] == "heads":
        data, weights = heads(problem, generator, "q", "k", "v"), {}
        cache = drawn_caches(problem, generator, data["k"], data["v"])
    else:
        data, weights = drawn_latents(problem, params, generator), drawn_expansions(problem, params, generator)
        cache = drawn_latent_cache(problem, params, generator, data["c"], data["k_r"])
    return chosen(params, Inputs(data, weights, index, {**cache, **index_cache}))


def chosen(params: Params, inputs: Inputs) -> Inputs:
    """The inputs with what the indexer chooses in the place of its tensors, where the selection is given."""
    if params["selection"] == "inside":
        return inputs
    index_k = inputs.state.get("index_k_cache", inputs.choices["index_k"])
    selected = select(inputs.choices["index_q"], index_k, inputs.choices["index_weights"], params["top_k"])
    state = {name: x for name, x in inputs.state.items() if name != "index_k_cache"}
    return replace(inputs, choices={"selected": selected} if selected.numel() else {}, state=state)


def state(problem: Problem, params: Params, **tensors: Tensor) -> dict[str, Tensor]:
    """All keys and values so far, or latents, and the indexer's keys."""
    index = {"index_k_cache": with_room(problem, tensors["index_k"])} if "index_k" in tensors else {}
    if params["over"] == "heads":
        return {**caches(problem, tensors["k"], tensors["v"]), **index}
    return {**latent_cache(problem, tensors["c"], tensors["k_r"]), **index}


@dataclass(frozen=True)
class Widths:
    """What the tokens are that are attended to.

    Attributes:
        kv_heads: heads of keys.
        key, value: channels of a head of these.
        read: numbers of the new tokens' data, and of W_k and W_v.
        token: numbers that are kept of a token.
        maps: multiply-adds of W_k and W_v.
    """

    kv_heads: int
    key: int
    value: int
    read: int
    token: int
    maps: int


def widths(problem: Problem, params: Params) -> Widths:
    """Of heads, or of latents."""
    rows, d = problem.batch * problem.query_len, problem.head_dim
    if params["over"] == "heads":
        kept = 2 * problem.kv_channels
        return Widths(problem.kv_heads, d, d, rows * (problem.channels + kept), kept, 0)
    sizes, expansions = latents_of(problem, params), 2 * problem.channels * latents_of(problem, params).latent
    read = rows * (problem.heads * sizes.key + sizes.token) + expansions
    return Widths(1, sizes.token, sizes.latent, read, sizes.token, rows * expansions)


def kept_pairs(problem: Problem, params: Params) -> int:
    """Σ min(i + 1, k) over the new tokens i."""

    def of_the_first(tokens: int) -> int:
        few = min(tokens, params["top_k"])
        return few * (few + 1) // 2 + (tokens - few) * params["top_k"]

    return of_the_first(problem.seq_len) - of_the_first(problem.past)


def executed_pairs(problem: Problem, top_k: int, kv_heads: int, width: int) -> tuple[int, int]:
    """Pairs that `attend` multiplies, and those of them of which it computes the logits again in backward.

    Args:
        kv_heads: heads of keys.
        width: of a key and a value.
    """
    queries, past = problem.query_len, problem.past
    all_kept, masked = masked_queries(queries, past, top_k, problem.heads // kv_heads)
    tiles = [((stop - start) * (past + stop), stop - start) for start, stop in masked_tiles(all_kept, masked)]
    gathered = (queries - masked) * top_k
    keys = torch.empty(problem.batch, kv_heads, problem.seq_len, 1, width, device="meta")
    chosen = torch.empty(problem.batch, 1, queries - masked, top_k, device="meta")
    at_once = _gather.tile_queries(keys, keys, keys[..., :0], chosen)
    again = sum(pairs for pairs, rows in tiles if rows < queries) + (gathered if at_once < queries - masked else 0)
    return sum(pairs for pairs, _ in tiles) + gathered, again


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """`flops` has I_ij of all pairs j ≤ i (inside), and attention over the pairs that are kept.

    The reference scores no pair of the tokens i < k, which keep all. With gradients it computes the logits of a tile
    twice, where there is more than one.
    """
    b, h, n, q = problem.batch, problem.heads, problem.seq_len, problem.query_len
    over, index, pairs = widths(problem, params), index_cost(problem, params), kept_pairs(problem, params)
    executed, again = executed_pairs(problem, params["top_k"], over.kv_heads, over.key + over.value)
    # W_kᵀ q_n: [Q, D] × [D, dc], and of the sums of latents: [Q, dc] × [dc, D]; I_ij
    others = product(over.maps, mode)
    cached = b * min(problem.past, params["top_k"]) * over.token  # what one row keeps
    return Cost(
        # q kᵀ and p v over the pairs
        flops=product(b * h * pairs * (over.key + over.value), mode) + others + index.flops,
        reference_flops=product(b * h * executed * (over.key + over.value), mode)
        + (product(b * h * again * over.key, "fwd") if mode == "fwd_bwd" else 0)
        + others
        + index.reference_flops,
        elementwise=4 * b * h * pairs * (1 if mode == "fwd" else 2) + index.elementwise,  # max, subtract, exp, divide
        bytes_required=traffic(
            problem,
            mode,
            read=over.read,
            constant=cached + items(problem, index.read),
            written=b * q * (problem.channels + (over.token if problem.past else 0)) + items(problem, index.written),
        ),
        state_bytes=b * n * over.token * problem.item_bytes + index.kept * ITEM_BYTES,
    )


def _cuda() -> Call:
    def sparse(q: Tensor, k: Tensor, v: Tensor, selected: Tensor | None, scale: float, top_k: int) -> Tensor:
        past = k.shape[-2] - q.shape[-2]
        return flash_mla.attend_to_kept(q, k, v, slots(selected, q.shape[0], q.shape[-2], past, top_k, q.device), scale)

    return with_attention(sparse)


def slots(selected: Tensor | None, batch: int, queries: int, past: int, top_k: int, device: torch.device) -> Tensor:
    """The tokens that each query keeps, as many slots for all, −1 where there is none: int32 [B, Q, min(k, N)]."""
    all_kept, n = all_keeping(queries, past, top_k), past + queries
    token = torch.arange(min(top_k, n), dtype=torch.int32, device=device)
    own = torch.arange(past, past + all_kept, dtype=torch.int32, device=device).view(-1, 1)
    first = torch.where(token > own, -1, token).expand(batch, -1, -1)
    return first if all_kept == queries else torch.cat((first, _of_rows(selected, 0, queries - all_kept)), dim=1)


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    if params["over"] == "heads":
        return "no library has a kernel that gathers single tokens of several heads; FlashMLA's is for over: mla"
    sizes = latents_of(problem, params)
    return flash_mla.why_not_kept(problem, sizes.latent, sizes.shared)


CUDA = Impl(
    _cuda,
    "float32 torch indexer, FlashMLA: sparse prefill",
    _cuda_why_not,
    continues=True,
    why_not_backward=lambda problem, params, device: "FlashMLA's sparse kernel has no backward",
)
CORE = Form(reference, make_inputs, cost, {"cuda": CUDA}, state)
AROUND = projected(CORE)


def in_layer(call: Call) -> Call:
    """The layer around a core, which makes the indexer's tensors from x where they are not given."""
    around_heads, around_latents = projected(replace(CORE, reference=call)).reference, mla.in_layer(call)

    def layer(problem: Problem, params: Params, x: Tensor, **tensors: Tensor) -> Tensor:
        """x: [B, Q, C]. Returns [B, Q, C]."""
        around = around_heads if params["over"] == "heads" else around_latents
        y: Tensor = around(problem, params, x=x, **with_index(x, tensors))
        return y

    return layer


def layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """The indexer's weights, or what is chosen with them; where Q < N its keys before are drawn."""
    if params["over"] == "heads":
        inputs = AROUND.make_inputs(problem, {**params, "selection": "inside"}, generator)
    else:
        inputs = mla.layer_inputs(problem, params, generator)
        inputs = replace(inputs, state={**inputs.state, **drawn_index(problem, params, generator)[1]})
    weights = drawn_index_weights(problem, params, generator)
    if params["selection"] == "inside":
        return replace(inputs, choices=weights)
    return chosen(params, replace(inputs, choices=indexed(inputs.data["x"], **weights)))


def layer_state(problem: Problem, params: Params, x: Tensor, **tensors: Tensor) -> dict[str, Tensor]:
    """All keys and values so far, or latents, and the indexer's keys."""
    tensors = with_index(x, tensors)
    if params["over"] == "heads":
        assert AROUND.state is not None
        return AROUND.state(problem, params, x=x, **tensors)
    return state(problem, params, **mla.core_tensors(problem, x, **tensors))


def layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Inside, the indexer's projections of x take the place of its tensors: [Q, C] × [C, H^I D^I + D^I + H^I]."""
    around = (
        AROUND.cost(problem, params, mode) if params["over"] == "heads" else _latent_layer_cost(problem, params, mode)
    )
    if params["selection"] == "given":
        return around
    tokens, (index_heads, index_dim) = problem.batch * problem.query_len, index_sizes(problem, params)
    columns = index_heads * index_dim + index_dim + index_heads
    projections = product(tokens * problem.channels * columns, "fwd")
    moved = items(problem, problem.channels * columns + 2 * index_dim) - items(problem, tokens * columns)
    return replace(
        around,
        flops=around.flops + projections,
        reference_flops=around.reference_flops + projections,
        bytes_required=around.bytes_required + traffic(problem, mode, read=0, written=0, constant=moved),
    )


def _latent_layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The core's, with the projections of `mla` around it, where x takes the place of the core's data."""
    core, shapes, sizes = cost(problem, params, mode), mla.layer_shapes(problem, params), latents_of(problem, params)
    rows, matrices = problem.batch * problem.query_len, [shape for shape in shapes.values() if len(shape) > 1]
    projections = product(rows * sum(map(math.prod, matrices)), mode)
    in_place = rows * (problem.channels - problem.heads * sizes.key - sizes.token)
    outside = traffic(problem, mode, read=in_place + sum(map(math.prod, shapes.values())), written=0)
    return replace(
        core,
        flops=core.flops + projections,
        reference_flops=core.reference_flops + projections,
        bytes_required=core.bytes_required + outside,
    )


LAYER = Form(
    in_layer(reference),
    layer_inputs,
    layer_cost,
    {"cuda": replace(CUDA, load=lambda: in_layer(_cuda()))},
    layer_state,
)


def why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    """Latents are one for all heads; their norms in the layer."""
    if params["over"] == "heads":
        return None
    if problem.group > 1:
        return f"over: mla has one latent for all heads, not kv_heads {problem.kv_heads}; use over: heads"
    return mla.why_not(problem, params, scope)


OPERATOR = Operator(
    paper=Paper(
        "DeepSeek-AI",
        2025,
        "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models",
        "https://arxiv.org/abs/2512.02556",
        "eq. 1-2",
    ),
    forms=with_graph({"core": CORE, "layer": LAYER}, "cuda"),
    complexity=lambda params: Complexity(time="n^2" if params["selection"] == "inside" else "n", memory="n"),
    params={
        "over": Param("heads", "keys and values of heads, or latents that all heads read (V3.2)", ("heads", "mla")),
        "top_k": Param(2048, "k, the tokens that a query keeps", minimum=1),
        "index_heads": Param("h/2", "H^I, heads of the indexer; h/2: half of heads (V3.2: 64)", ("h/2",), minimum=1),
        "index_dim": Param("d", "D^I, channels of an index head; d: head_dim (V3.2: 128)", ("d",), minimum=1),
        "selection": Param("inside", "tokens chosen in the call, or once with the inputs", ("inside", "given")),
        "latent_dim": replace(LATENT_DIM, meaning="over: mla: channels of the latent"),
        "rope_dim": replace(ROPE_DIM, meaning="over: mla: channels of the key that all heads share"),
        "q_rank": replace(mla.OPERATOR.params["q_rank"], meaning="over: mla, layer: channels of the latent of queries"),
    },
    domains=("sequence",),
    full="the tokens are chosen among those up to the query's own",
    grouped=True,
    continues=True,
    pairs=lambda params, causal: "chosen",
    why_not=why_not,
    notes="plus a selection of the top_k of N scores for each token; the indexer is float32 and has no gradient",
)
