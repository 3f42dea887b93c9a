"""Attention to chosen blocks as a dense mask: what the operators of this family are held against."""

from __future__ import annotations

import torch
from torch import Tensor


def seen(chosen: Tensor, block: int, seq_len: int, *, later: bool = False, empty: int = -1) -> Tensor:
    """Whether a query sees a token: bool [B, S, Q, N], from chosen blocks [B, S, Q, n].

    later: tokens after the query as well; empty: what stands for no block. The queries are the last tokens.
    """
    queries = chosen.shape[-2]
    mask = torch.zeros(*chosen.shape[:3], seq_len, dtype=torch.bool)
    for b, s, i, slot in torch.cartesian_prod(*map(torch.arange, chosen.shape)).tolist():
        j = chosen[b, s, i, slot].item()
        if j != empty:
            mask[b, s, i, j * block : (j + 1) * block] = True
    return mask if later else mask & torch.ones(queries, seq_len, dtype=torch.bool).tril(seq_len - queries)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q kᵀ) v over the tokens of a mask [B, 1 or Hk or H, Q, N]; no scale. q: [B, H, Q, D]."""
    heads = q.shape[1]
    k, v, mask = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v, mask))
    return (q @ k.transpose(-2, -1)).masked_fill(~mask, float("-inf")).softmax(dim=-1) @ v
