"""Dense attention between few tokens and many, with the many cut into pieces that are worked on side by side.

A GPU's kernels give every tile of queries to one program, and in the backward pass every tile of keys: a few queries
that see all tokens, or a few keys that all tokens see, would keep a few programs busy and the rest of the GPU waiting.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from attnbench.grouped import folded, group_of, unfolded
from attnbench.kernels.flex.windows import TILE, MaskMod, attend_with_lse, block_mask, tiles

MOST_PIECES = 32
LEAST_TOKENS = 512
"""Of a piece: below it a program has too little to do."""


def pieces(tokens: int) -> int:
    """How many equal pieces so many tokens are cut into: 1 where their number has no divisor that fits."""
    most = min(MOST_PIECES, tokens // LEAST_TOKENS)
    return next((count for count in range(most, 1, -1) if tokens % count == 0), 1)


def few_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √D) v, merged from the pieces of the keys (Dao et al. 2023, "Flash-Decoding").

    Args:
        q: [B, H, g, D].
        k, v: [B, Hk, N, D].
    """
    count = pieces(k.shape[2])
    rows = folded(q, k)  # [B, Hk, G·g, D]
    keys, values = (x.unflatten(2, (count, -1)).flatten(1, 2) for x in (k, v))  # [B, Hk·pieces, N / pieces, D]
    queries = rows.unsqueeze(2).expand(-1, -1, count, -1, -1).flatten(1, 2)
    y, lse = (x.unflatten(1, (-1, count)) for x in attend_with_lse(queries, keys, values, None))
    return unfolded((lse.softmax(dim=2).to(y.dtype).unsqueeze(-1) * y).sum(dim=2), q)


def few_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √D) v; with gradients each piece of the queries has a copy of the keys and values.

    Args:
        q: [B, H, N, D].
        k, v: [B, Hk, g, D].
    """
    count = pieces(q.shape[2]) if torch.is_grad_enabled() else 1
    keys, values = (x.repeat_interleave(group_of(q, k) * count, dim=1) for x in (k, v))  # [B, H·pieces, g, D]
    queries = q.unflatten(2, (count, -1)).flatten(1, 2)
    return scaled_dot_product_attention(queries, keys, values).view(q.shape)


def with_copies(x: Tensor, hubs: Tensor) -> Tensor:
    """Keys or values of `copies_mask`: copies of the hubs, then the tokens. x: [B, Hk, N, D]; hubs: [B, Hk, g, D]."""
    missing = tiles(hubs.shape[2]) * TILE - hubs.shape[2]
    copies = pad(hubs, (0, 0, 0, missing)) if missing else hubs
    return torch.cat((copies.repeat(1, 1, _copies(x.shape[2])[0], 1), x), dim=2)


def copies_mask(some: Tensor, every: Tensor, allowed: MaskMod, n: int, hubs: int) -> Any:
    """The block mask of tokens that all see `hubs` keys beside others: every piece of the queries its own copy of them.

    Args:
        some, every, allowed: as `block_mask` takes them, of the other keys alone: N queries and N keys.
        n: tokens.
        hubs: keys that all queries see.
    """
    count, rows = _copies(n)
    span = tiles(hubs)
    query = torch.arange(tiles(n), device=some.device)[:, None]
    key = torch.arange(count * span, device=some.device)
    mine = (query // rows == key // span).expand(some.shape[0], -1, -1)
    filled = mine & ((key % span + 1) * TILE <= hubs)
    start = count * span * TILE

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        copy = j // (span * TILE)
        hub = (copy == i // (rows * TILE)) & (j - copy * (span * TILE) < hubs)
        return torch.where(j < start, hub, allowed(b, h, i, j - start))

    return block_mask(torch.cat((mine, some), -1), torch.cat((filled, every), -1), sees, n, start + n)


def _copies(n: int) -> tuple[int, int]:
    """How many pieces the tiles of N queries are cut into, and the tiles of each."""
    rows = -(-tiles(n) // MOST_PIECES)
    return -(-tiles(n) // rows), rows
