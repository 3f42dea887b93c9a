"""y_i = Σ_j p_ij v_j, p_i = softmax_j(q_iᵀ k_j) over the tokens j ≤ i of the blocks that query i has chosen.

Block J holds the tokens J·b … J·b + b − 1. The keys and values of a tile of queries are gathered at a time, and again
in backward, so that memory is proportional to the sequence and no product has more than the chosen pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from attnbench.grouped import merged, separated
from attnbench.masking import hide

R = TypeVar("R")

TILE_ELEMENTS = 1 << 20
"""Keys and values that are gathered at a time, in elements, at least; where they are fewer, as many as all of them."""


def attend(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block: int = 1) -> Tensor:
    """The queries are the last of the tokens. Time and products are those of Q · n · b pairs of each head.

    Args:
        q: [B, H, Q, K], already scaled.
        k, v: [B, Hk, N, K], [B, Hk, N, V]: of all tokens.
        chosen: int64 [B, S, Q, n], the blocks of each query, none twice, −1 where there is none: S = 1 where all
            heads share a choice, Hk where those of a group do, H where none does. A query has one block or more
            with a token j ≤ i.
        block: b.
    Returns: [B, H, Q, V].
    """
    queries, past = q.shape[-2], k.shape[-2] - q.shape[-2]
    k, v = blocks_of(k, block), blocks_of(v, block)
    tile = tile_queries(q, k, v, chosen)
    parts = []
    for first in range(0, queries, tile):
        rows = slice(first, first + tile)
        arguments = (q[..., rows, :], k, v, chosen[..., rows, :], past + first)
        parts.append(of_tile(_attend_tile, *arguments, again=tile < queries))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def of_tile(call: Callable[..., R], *arguments: Any, again: bool) -> R:
    """What `call` gives for a tile; again: one of several, which is computed again in backward."""
    if again and torch.is_grad_enabled():
        outputs: R = checkpoint(call, *arguments, use_reentrant=False, preserve_rng_state=False)
        return outputs
    return call(*arguments)


def blocks_of(x: Tensor, block: int) -> Tensor:
    """[B, Hk, N, D] → [B, Hk, ⌈N/b⌉, b, D]; the last block is padded with zeros."""
    short = -x.shape[-2] % block
    return (pad(x, (0, 0, 0, short)) if short else x).unflatten(-2, (-1, block))


def tile_queries(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor) -> int:
    """Queries of which the keys and values are gathered at a time. k, v: in blocks."""
    heads = q.shape[0] * max(k.shape[1], chosen.shape[1])
    each = heads * chosen.shape[-1] * k.shape[-2] * (k.shape[-1] + v.shape[-1])
    return max(1, max(TILE_ELEMENTS, k.numel() + v.numel()) // each)


def _attend_tile(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, first: int) -> Tensor:
    """q: [B, H, T, K] of the tokens first … first + T − 1; k, v: in blocks. Returns [B, H, T, V]."""
    block = k.shape[-2]
    sets = max(k.shape[1], chosen.shape[1])  # S' of keys gathered for a query
    rows = merged(q, q.shape[1] // sets, 2, heads=1).unflatten(2, (q.shape[2], -1))  # [B, S', T, H/S', K]
    scores = rows @ gathered(k, chosen).transpose(-2, -1)  # [B, S', T, H/S', n·b]
    scores = hide(scores, _outside(chosen, block, first).unsqueeze(-2))
    y = scores.softmax(dim=-1) @ gathered(v, chosen)  # [B, S', T, H/S', V]
    return separated(y.flatten(2, 3), q.shape[1] // sets, 2, heads=1)


def gathered(x: Tensor, chosen: Tensor) -> Tensor:
    """The tokens of the chosen blocks; those of block 0 where there is none.

    Args:
        x: [B, Hk, blocks, b, D].
        chosen: [B, S, T, n].
    Returns: [B, max(Hk, S), T, n·b, D].
    """
    b, heads, blocks, length, d = x.shape
    repeats = max(1, chosen.shape[1] // heads)  # choices of each head of keys
    start = torch.arange(b * heads, device=x.device).mul_(blocks).view(b, heads, 1, 1).repeat_interleave(repeats, 1)
    index = chosen.clamp(min=0) + start  # [B, max(Hk, S), T, n]
    found = x.reshape(b * heads * blocks, length * d).index_select(0, index.flatten())
    return found.view(*index.shape[:3], -1, d)


def _outside(chosen: Tensor, block: int, first: int) -> Tensor:
    """Whether a query does not see a gathered token: bool [B, S, T, n·b]."""
    query = torch.arange(first, first + chosen.shape[-2], device=chosen.device).view(-1, 1, 1)
    last = query - chosen.unsqueeze(-1) * block  # offset of the query's own token in the block
    offset = torch.arange(block, device=chosen.device)
    return ((offset > last) | (chosen < 0).unsqueeze(-1)).flatten(-2)
