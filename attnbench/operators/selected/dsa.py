"""y_i = Σ_j p_ij v_j, p_i = softmax_j(q_iᵀ k_j / √D) over the k tokens j ≤ i of largest I_ij, the same for all heads.

I_ij = Σ_h w_ih relu(q^I_ih · k^I_j), 1 ≤ h ≤ H^I, of index heads that share one key k^I of each token. Of equal I_ij,
such as the 0 of a key to which every index head is negative, those of the later tokens are kept. A token i < k keeps
all i + 1. A positive factor on I_ij, as (D^I H^I)^{−½} in the layers of the authors, chooses the same. y passes no
gradient on to the indexer (the authors train it by another loss), so its tensors are choices. With `selection: inside`
the call computes I_ij, in float32 whatever the working dtype is, so that every dtype keeps the same tokens; with
`selection: given` the chosen tokens are computed once with the inputs.

DeepSeek-AI 2025, "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models", eq. 1–2,
https://arxiv.org/abs/2512.02556
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import layer_norm
from torch.utils.checkpoint import checkpoint

from attnbench.cost import product, traffic
from attnbench.grouped import folded, unfolded
from attnbench.inputs import heads, normal
from attnbench.masking import ahead, hide
from attnbench.operator import Call, Complexity, Cost, Form, Inputs, Operator, Paper, Param
from attnbench.operators.selected import _gather
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import projected
from attnbench.state import appended, cache_bytes, caches, causal_pairs, drawn_caches, with_room

INDEX_ROWS = 256
"""Queries of all index heads that are multiplied with the index keys at a time."""

MASKED_ROWS = 128
"""Queries that are multiplied with all keys before them at a time."""

MASKED = 8
"""A row of a tile of masked keys costs so many times less than one of gathered keys, which heads of a group share."""

ITEM_BYTES = 4
"""Of a number of the indexer, and of a chosen token: float32 and int32."""

NORM_EPSILON = 1e-6


def reference(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selected: Tensor | None = None,
    index_q: Tensor | None = None,
    index_k: Tensor | None = None,
    index_weights: Tensor | None = None,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
    index_k_cache: Tensor | None = None,
) -> Tensor:
    """The first queries, and those with few more than k keys, are multiplied with all before them, others with k.

    Args:
        q: [B, H, Q, D].
        k, v: [B, Hk, Q, D].
        selected: int32 [B, R, k], the tokens that the R new tokens i ≥ k keep; None: there is none of these, or
            they are chosen here.
        index_q: q^I, [B, Q, H^I, D^I], float32 as all of the indexer.
        index_k: k^I, [B, Q, D^I].
        index_weights: w, [B, Q, H^I].
        k_cache, v_cache: [B, Hk, N, D], where Q < N.
        index_k_cache: [B, N, D^I], where Q < N.

    Returns: [B, H, Q, D].
    """
    k, v = appended(k_cache, k), appended(v_cache, v)
    if index_q is not None and index_k is not None and index_weights is not None:
        selected = select(index_q, appended(index_k_cache, index_k), index_weights, params["top_k"])
    return attend(q * problem.head_dim**-0.5, k, v, selected, params["top_k"])


def attend(q: Tensor, k: Tensor, v: Tensor, selected: Tensor | None, top_k: int) -> Tensor:
    """Softmax attention of each query over the tokens that it keeps.

    Args:
        q: [B, H, Q, K], already scaled.
        k, v: [B, Hk, N, K], [B, Hk, N, V].
        selected: int32 [B, R, k], of the queries i ≥ k.
        top_k: k.
    Returns: [B, H, Q, V].
    """
    queries, past = q.shape[-2], k.shape[-2] - q.shape[-2]
    all_kept, masked = masked_queries(queries, past, top_k, q.shape[1] // k.shape[1])
    parts = []
    for start, stop in masked_tiles(all_kept, masked):
        chosen = None if start < all_kept else _of_rows(selected, start - all_kept, stop - all_kept)
        arguments = (q[..., start:stop, :], k[..., : past + stop, :], v[..., : past + stop, :], chosen)
        if torch.is_grad_enabled() and stop - start < queries:
            parts.append(checkpoint(_attend_masked, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_attend_masked(*arguments))
    if masked < queries:
        chosen = _of_rows(selected, masked - all_kept, queries - all_kept).unsqueeze(1)
        parts.append(_gather.attend(q[..., masked:, :], k, v, chosen))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def _of_rows(selected: Tensor | None, start: int, stop: int) -> Tensor:
    if selected is None:
        raise ValueError("dsa needs selected, or index_q, index_k and index_weights")
    return selected[:, start:stop]


def all_keeping(queries: int, past: int, top_k: int) -> int:
    """How many of the first queries keep all tokens up to their own."""
    return min(max(top_k - past, 0), queries)


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


@torch.compiler.disable  # type: ignore[untyped-decorator]
def select(index_q: Tensor, index_k: Tensor, index_weights: Tensor, top_k: int) -> Tensor:
    """The tokens j ≤ i of largest I_ij, of equal ones the later: int32 [B, R, k], of the R queries i ≥ k, in any order.

    Compiled it would add in another order, and so keep another of two tokens that are nearly equal.

    Args:
        index_q: [B, Q, H^I, D^I].
        index_k: [B, N, D^I].
        index_weights: [B, Q, H^I].
        top_k: k.
    """
    b, queries, index_heads, _ = index_q.shape
    past = index_k.shape[1] - queries
    first, rows = all_keeping(queries, past, top_k), index_rows(index_heads)
    parts = [torch.empty(b, 0, top_k, dtype=torch.int32, device=index_q.device)]
    with torch.no_grad():
        q, k, w = (x.float() for x in (index_q, index_k, index_weights))
        for start in range(first, queries, rows):
            tile = slice(start, min(start + rows, queries))
            scores = index_scores(q[:, tile], k[:, : past + tile.stop], w[:, tile])  # [B, T, past + stop]
            own = tile.stop - start
            hide(scores[..., -own:], ahead(own, own, scores.device))
            parts.append(largest(scores, top_k))
    return parts[1] if len(parts) == 2 else torch.cat(parts, dim=1)


def index_rows(index_heads: int) -> int:
    """Queries that are scored at a time."""
    return max(1, INDEX_ROWS // index_heads)


def index_scores(q: Tensor, k: Tensor, w: Tensor) -> Tensor:
    """I: q [B, T, H^I, D^I], k [B, n, D^I], w [B, T, H^I] → [B, T, n]."""
    b, rows, index_heads, _ = q.shape
    products = (q.flatten(1, 2) @ k.transpose(-2, -1)).relu_()  # [B, T·H^I, n]
    summed = w.reshape(-1, 1, index_heads) @ products.view(b * rows, index_heads, -1)
    return summed.view(b, rows, -1)


def largest(scores: Tensor, top_k: int) -> Tensor:
    """Where the k largest of each row are, of equal ones the later: float32 [B, T, n] → int32 [B, T, k].

    Scores and positions are one whole number each, of which no two are equal.
    """
    bits = scores.add_(0.0).view(torch.int32)  # −0 becomes 0
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # ordered as the scores are
    position = torch.arange(scores.shape[-1], device=scores.device)
    ranked = rising.long().bitwise_left_shift_(32).bitwise_or_(position)
    return ranked.topk(top_k, dim=-1, sorted=False).values.bitwise_and_(0xFFFFFFFF).int()


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """All ~ N(0, 1), the weights of index heads too: the logits have variance 1."""
    data = heads(problem, generator, "q", "k", "v")
    index, cache = drawn_index(problem, params, generator)
    state = {**drawn_caches(problem, generator, data["k"], data["v"]), **cache}
    return _chosen(params, Inputs(data, choices=index, state=state))


def drawn_index(problem: Problem, params: Params, generator: Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The indexer's tensors of the new tokens, and where Q < N the keys of all."""
    b, q = problem.batch, problem.query_len
    index_heads, index_dim = index_sizes(problem, params)
    problem = problem.with_dtype("float32")
    index = {
        "index_q": normal(problem, generator, b, q, index_heads, index_dim),
        "index_k": normal(problem, generator, b, q, index_dim),
        "index_weights": normal(problem, generator, b, q, index_heads),
    }
    if not problem.past:
        return index, {}
    cache = normal(problem, generator, b, problem.seq_len, index_dim)
    return index, {"index_k_cache": appended(cache, index["index_k"])}


def _chosen(params: Params, inputs: Inputs) -> Inputs:
    """The inputs with what the indexer chooses in the place of its tensors, where the selection is given."""
    if params["selection"] == "inside":
        return inputs
    index_k = inputs.state.get("index_k_cache", inputs.choices["index_k"])
    selected = select(inputs.choices["index_q"], index_k, inputs.choices["index_weights"], params["top_k"])
    state = {name: x for name, x in inputs.state.items() if name != "index_k_cache"}
    return replace(inputs, choices={"selected": selected} if selected.numel() else {}, state=state)


def index_sizes(problem: Problem, params: Params) -> tuple[int, int]:
    """H^I and D^I."""
    index_heads, index_dim = params["index_heads"], params["index_dim"]
    return (
        max(1, problem.heads // 2) if index_heads == "h/2" else index_heads,
        problem.head_dim if index_dim == "d" else index_dim,
    )


def state(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index_k: Tensor | None = None,
    **choices: Tensor,
) -> dict[str, Tensor]:
    """All keys and values so far, and the indexer's keys."""
    index = {} if index_k is None else {"index_k_cache": with_room(problem, index_k)}
    return {**caches(problem, k, v), **index}


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


def executed_index_pairs(queries: int, past: int, top_k: int, index_heads: int) -> int:
    """Pairs that `select` scores: those of tiles of the queries that leave tokens out, with all tokens so far."""
    first, rows = all_keeping(queries, past, top_k), index_rows(index_heads)
    tiles, rest = divmod(queries - first, rows)
    whole = rows * (tiles * (past + first) + rows * tiles * (tiles + 1) // 2)
    return whole + rest * (past + queries)


@dataclass(frozen=True)
class IndexCost:
    """What choosing the tokens takes.

    Attributes:
        flops, reference_flops, elementwise: of I_ij, inside.
        read, written: numbers of the indexer's tensors, or of the given choice, each of ITEM_BYTES.
        kept: numbers of the indexer's keys of all N tokens.
    """

    flops: int = 0
    reference_flops: int = 0
    elementwise: int = 0
    read: int = 0
    written: int = 0
    kept: int = 0


def index_cost(problem: Problem, params: Params) -> IndexCost:
    """I_ij of all pairs j ≤ i, [H^I, D^I] × [D^I, i + 1] and [1, H^I] × [H^I, i + 1]; or what a given choice is."""
    b, n, q, past, top_k = problem.batch, problem.seq_len, problem.query_len, problem.past, params["top_k"]
    if params["selection"] == "given":
        return IndexCost(read=b * top_k * (q - all_keeping(q, past, top_k)))
    index_heads, index_dim = index_sizes(problem, params)
    each, pairs = b * index_heads * (index_dim + 1), causal_pairs(problem)
    return IndexCost(
        flops=product(each * pairs, "fwd"),
        reference_flops=product(each * executed_index_pairs(q, past, top_k, index_heads), "fwd"),
        elementwise=b * pairs * (index_heads + 1),  # relu of each head, a comparison
        read=b * (q * index_heads * (index_dim + 1) + n * index_dim),
        written=b * q * index_dim if past else 0,
        kept=b * n * index_dim,
    )


def items(problem: Problem, numbers: int) -> int:
    """Numbers of ITEM_BYTES as elements of the working dtype."""
    return -(-numbers * ITEM_BYTES // problem.item_bytes)


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """`flops` has I_ij of all pairs j ≤ i (inside), and attention over the pairs that are kept.

    The reference scores no pair of the tokens i < k, which keep all. With gradients it computes the logits of a tile
    twice, where there is more than one.
    """
    b, h, d = problem.batch, problem.heads, problem.head_dim
    pairs, index = kept_pairs(problem, params), index_cost(problem, params)
    executed, again = executed_pairs(problem, params["top_k"], problem.kv_heads, 2 * d)
    size, kv_size = b * problem.query_len * problem.channels, b * problem.query_len * problem.kv_channels
    cached = 2 * b * min(problem.past, params["top_k"]) * problem.kv_channels  # what one row keeps
    return Cost(
        flops=2 * product(b * h * pairs * d, mode) + index.flops,  # q kᵀ and p v over the pairs
        reference_flops=2 * product(b * h * executed * d, mode)
        + (product(b * h * again * d, "fwd") if mode == "fwd_bwd" else 0)
        + index.reference_flops,
        elementwise=4 * b * h * pairs * (1 if mode == "fwd" else 2) + index.elementwise,  # max, subtract, exp, divide
        bytes_required=traffic(
            problem,
            mode,
            read=size + 2 * kv_size,
            constant=cached + items(problem, index.read),
            written=size + (2 * kv_size if problem.past else 0) + items(problem, index.written),
        ),
        state_bytes=cache_bytes(problem, problem.seq_len) + index.kept * ITEM_BYTES,
    )


CORE = Form(reference, make_inputs, cost, state=state)
AROUND = projected(CORE)


def index_weights_shapes(problem: Problem, params: Params) -> dict[str, tuple[int, ...]]:
    """Of the layer's indexer."""
    index_heads, index_dim = index_sizes(problem, params)
    c = problem.channels
    return {
        "w_index_q": (c, index_heads * index_dim),
        "w_index_k": (c, index_dim),
        "w_index_weights": (c, index_heads),
        "index_scale": (index_dim,),
        "index_shift": (index_dim,),
    }


def drawn_index_weights(problem: Problem, params: Params, generator: Generator) -> dict[str, Tensor]:
    """Projections ~ N(0, 1/C); the norm's scale is 1 and its shift 0."""
    single = problem.with_dtype("float32")
    weights = {
        name: normal(single, generator, *shape, scale=problem.channels**-0.5)
        for name, shape in index_weights_shapes(problem, params).items()
    }
    weights["index_scale"].fill_(1.0)
    weights["index_shift"].zero_()
    return weights


@torch.compiler.disable  # type: ignore[untyped-decorator]
def indexed(
    x: Tensor,
    w_index_q: Tensor,
    w_index_k: Tensor,
    w_index_weights: Tensor,
    index_scale: Tensor,
    index_shift: Tensor,
) -> dict[str, Tensor]:
    """The indexer's tensors of a layer's input [B, Q, C], in float32: q^I = x W, k^I = LayerNorm(x W), w = x W."""
    with torch.no_grad():
        x, scale, shift = x.float(), index_scale.float(), index_shift.float()
        dim = scale.shape[0]
        return {
            "index_q": (x @ w_index_q.float()).unflatten(-1, (-1, dim)),
            "index_k": layer_norm(x @ w_index_k.float(), (dim,), scale, shift, NORM_EPSILON),
            "index_weights": x @ w_index_weights.float(),
        }


def with_indexer(call: Call) -> Call:
    """A layer that makes the indexer's tensors from x, around one that takes them."""

    def layer(problem: Problem, params: Params, x: Tensor, **tensors: Tensor) -> Tensor:
        y: Tensor = call(problem, params, x=x, **_indexed(x, tensors))
        return y

    return layer


def _indexed(x: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the layer with those of the indexer in the place of its weights; as they are without such."""
    weights = {name: tensor for name, tensor in tensors.items() if name in INDEXER}
    rest = {name: tensor for name, tensor in tensors.items() if name not in INDEXER}
    return {**rest, **(indexed(x, **weights) if weights else {})}


INDEXER = ("w_index_q", "w_index_k", "w_index_weights", "index_scale", "index_shift")


def _layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """The indexer's weights, or what is chosen with them; where Q < N its keys before are drawn."""
    inside = {**params, "selection": "inside"}
    inputs = AROUND.make_inputs(problem, inside, generator)
    weights = drawn_index_weights(problem, params, generator)
    if params["selection"] == "inside":
        return replace(inputs, choices=weights)
    return _chosen(params, replace(inputs, choices=indexed(inputs.data["x"], **weights)))


def _layer_state(problem: Problem, params: Params, x: Tensor, **tensors: Tensor) -> dict[str, Tensor]:
    assert AROUND.state is not None
    return AROUND.state(problem, params, x=x, **_indexed(x, tensors))


def _layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Inside, the indexer's projections of x take the place of its tensors: [Q, C] × [C, H^I D^I + D^I + H^I]."""
    around = AROUND.cost(problem, params, mode)
    if params["selection"] == "given":
        return around
    tokens, (index_heads, index_dim) = problem.batch * problem.query_len, index_sizes(problem, params)
    columns = index_heads * index_dim + index_dim + index_heads
    projections = product(tokens * problem.channels * columns, "fwd")
    weights = problem.channels * columns + 2 * index_dim
    moved = items(problem, weights) - items(problem, tokens * columns)
    return replace(
        around,
        flops=around.flops + projections,
        reference_flops=around.reference_flops + projections,
        bytes_required=around.bytes_required + traffic(problem, mode, read=0, written=0, constant=moved),
    )


LAYER = replace(
    AROUND,
    reference=with_indexer(AROUND.reference),
    make_inputs=_layer_inputs,
    cost=_layer_cost,
    state=_layer_state,
)

OPERATOR = Operator(
    paper=Paper(
        "DeepSeek-AI",
        2025,
        "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models",
        "https://arxiv.org/abs/2512.02556",
        "eq. 1-2",
    ),
    forms={"core": CORE, "layer": LAYER},
    complexity=lambda params: Complexity(time="n^2" if params["selection"] == "inside" else "n", memory="n"),
    params={
        "top_k": Param(2048, "k, the tokens that a query keeps", minimum=1),
        "index_heads": Param("h/2", "H^I, heads of the indexer; h/2: half of heads (V3.2: 64)", ("h/2",), minimum=1),
        "index_dim": Param("d", "D^I, channels of an index head; d: head_dim (V3.2: 128)", ("d",), minimum=1),
        "selection": Param("inside", "tokens chosen in the call, or once with the inputs, given", ("inside", "given")),
    },
    domains=("sequence",),
    full="the tokens are chosen among those up to the query's own",
    grouped=True,
    continues=True,
    pairs=lambda params, causal: "chosen",
    notes="plus a selection of the top_k of N scores for each token; the indexer is float32 and has no gradient",
)
