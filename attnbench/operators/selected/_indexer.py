"""I_ij = Σ_h w_ih relu(q^I_ih · k^I_j), 1 ≤ h ≤ H^I, and of each token i ≥ k the k tokens j ≤ i where it is largest.

The indexer of `dsa`: its choice, its tensors in a core and in a layer, what it costs. All in float32, without gradient.

DeepSeek-AI 2025, "DeepSeek-V3.2", eq. 1, https://arxiv.org/abs/2512.02556
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import layer_norm

from attnbench.cost import product
from attnbench.inputs import normal
from attnbench.masking import hide
from attnbench.operators.selected._choice import never_compiled
from attnbench.problem import Params, Problem
from attnbench.state import appended, causal_pairs

INDEX_ROWS = 512
"""Queries of all index heads that are multiplied with the index keys at a time."""

LENGTHS = 16
"""Tiles of queries are scored with so many lengths of keys: their shapes, which are few, are traced once each."""

ITEM_BYTES = 4
"""Of a number of the indexer, and of a chosen token: float32 and int32."""

NORM_EPSILON = 1e-6

INDEXER = ("w_index_q", "w_index_k", "w_index_weights", "index_scale", "index_shift")
"""The weights of a layer's indexer."""


def all_keeping(queries: int, past: int, top_k: int) -> int:
    """How many of the first queries keep all tokens up to their own."""
    return min(max(top_k - past, 0), queries)


@never_compiled
def select(index_q: Tensor, index_k: Tensor, index_weights: Tensor, top_k: int) -> Tensor:
    """The tokens j ≤ i of largest I_ij, of equal ones the later: int32 [B, R, k], of the R queries i ≥ k, in any order.

    Args:
        index_q: [B, Q, H^I, D^I].
        index_k: [B, N, D^I].
        index_weights: [B, Q, H^I].
        top_k: k.
    """
    b, queries, index_heads, _ = index_q.shape
    past = index_k.shape[1] - queries
    parts = [torch.empty(b, 0, top_k, dtype=torch.int32, device=index_q.device)]
    with torch.no_grad():
        q, k, w = (x.float() for x in (index_q, index_k, index_weights))
        for start, stop, keys in index_tiles(queries, past, top_k, index_heads):
            scores = index_scores(q[:, start:stop], k[:, :keys], w[:, start:stop])  # [B, T, keys]
            first = past + start
            later = torch.ones(stop - start, keys - first, dtype=torch.bool, device=q.device).triu_(1)
            hide(scores[..., first:], later)
            parts.append(largest(scores, top_k))
    return parts[1] if len(parts) == 2 else torch.cat(parts, dim=1)


def index_tiles(queries: int, past: int, top_k: int, index_heads: int) -> Iterator[tuple[int, int, int]]:
    """Of each tile of queries that leave tokens out the first, the one behind the last, and how many keys it takes."""
    n, rows = past + queries, max(1, INDEX_ROWS // index_heads)
    step = -(-n // LENGTHS)
    for start in range(all_keeping(queries, past, top_k), queries, rows):
        stop = min(start + rows, queries)
        yield start, stop, min(n, -(-(past + stop) // step) * step)


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


def index_sizes(problem: Problem, params: Params) -> tuple[int, int]:
    """H^I and D^I."""
    index_heads, index_dim = params["index_heads"], params["index_dim"]
    return (
        max(1, problem.heads // 2) if index_heads == "h/2" else index_heads,
        problem.head_dim if index_dim == "d" else index_dim,
    )


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


def executed_index_pairs(queries: int, past: int, top_k: int, index_heads: int) -> int:
    """Pairs that `select` scores."""
    return sum((stop - start) * keys for start, stop, keys in index_tiles(queries, past, top_k, index_heads))


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


@never_compiled
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


def with_index(x: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the layer with those of the indexer in the place of its weights; as they are without such."""
    weights = {name: tensor for name, tensor in tensors.items() if name in INDEXER}
    rest = {name: tensor for name, tensor in tensors.items() if name not in INDEXER}
    return {**rest, **(indexed(x, **weights) if weights else {})}
