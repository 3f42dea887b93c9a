"""Dense attention between few tokens and many, with the many cut into pieces that are worked on side by side.

A GPU's kernels give every tile of queries to one program, and in the backward pass every tile of keys: a few queries
that see all tokens, or a few keys that all tokens see, would keep a few programs busy and the rest of the GPU waiting.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.grouped import folded, group_of, unfolded
from attnbench.kernels.flex.windows import MOST_PIECES, attend_with_lse

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


def with_rows(y: Tensor, rows: Tensor, start: int) -> Tensor:
    """y with other rows from `start` on, in place where no gradient is to come. y: [B, H, N, D]; rows: [B, H, g, D]."""
    end = start + rows.shape[2]
    if torch.is_grad_enabled():
        return torch.slice_scatter(y, rows, 2, start, end)
    y[:, :, start:end] = rows
    return y
