"""Blocks of tokens as one key and one value each, attention to them, and the blocks of tokens that it makes important.

Compressed block c covers the tokens d·c … d·c + l − 1; token i sees it where d·c + l − 1 ≤ i. Block J of the selection
covers l'·J … l'·J + l' − 1. d divides l and l'.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, pad

from attnbench.grouped import folded, unfolded
from attnbench.masking import hide
from attnbench.operators.selected._blocks import filled
from attnbench.operators.selected._choice import largest_blocks, tiles
from attnbench.operators.selected._gather import of_tile
from attnbench.problem import Params

FIXED = 3
"""Blocks that are always selected: the first, a token's own and the one before."""


def ended(tokens: int, params: Params) -> int:
    """Compressed blocks that lie within so many first tokens."""
    return max(0, (tokens - params["length"]) // params["step"] + 1)


def compressed_pairs(first: int, end: int, params: Params) -> int:
    """Compressed blocks that the tokens first … end − 1 see."""
    lengths = (max(0, n + 1 - params["length"]) for n in (first, end))
    before, all_of_them = (filled(0, n, n, params["step"]) for n in lengths)
    return all_of_them - before


def mean(x: Tensor, params: Params) -> Tensor:
    """The mean of each block: [B, Hk, T, D] → [B, Hk, blocks, D]."""
    step, times = params["step"], params["length"] // params["step"]
    blocks = ended(x.shape[-2], params)
    if not blocks:
        return x[..., :0, :]
    sums = x[..., : (blocks - 1 + times) * step, :].unflatten(-2, (-1, step)).sum(dim=-2)
    y = sums[..., :blocks, :]
    for later in range(1, times):
        y = y + sums[..., later : later + blocks, :]
    return y / params["length"]


def mlp(x: Tensor, params: Params, position: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """GELU((x + position) W_in) W_out of each block's tokens, one after the other; the same for all heads.

    Args:
        x: [B, Hk, T, D].
        position: [l, D].
        w_in: [l · D, D].
        w_out: [D, D].
    Returns: [B, Hk, blocks, D].
    """
    length, step = params["length"], params["step"]
    if x.shape[-2] < length:
        windows = x[..., :0, :].unsqueeze(-2).expand(*x.shape[:2], 0, length, x.shape[-1])
    else:
        windows = x.unfold(-2, length, step).transpose(-2, -1)  # [B, Hk, blocks, l, D]
    return gelu((windows + position).flatten(-2) @ w_in) @ w_out


def attend(
    q: Tensor, keys: Tensor, values: Tensor, past: int, params: Params, slots: int = 0
) -> tuple[Tensor, Tensor | None]:
    """Σ_c p_c values_c, p = softmax_c(q_iᵀ keys_c / √D) over the blocks that token i sees, 0 where it sees none.

    Args:
        q: [B, H, Q, D], not scaled, of the tokens past … past + Q − 1.
        keys, values: [B, Hk, blocks, D], in float32 or float64, in which everything is computed.
        slots: n, blocks of the selection that each token chooses by p; 0: none.
    Returns: y, [B, H, Q, D], and the blocks of each token and head of keys, int32 [B, Hk, Q, n].
    """
    b, h, queries, d = q.shape
    parts, choices = [], []
    for first, end in tiles(b * h, queries, d, keys.shape[-2]):
        seen = ended(past + end, params)
        arguments = (q[..., first:end, :], keys[..., :seen, :], values[..., :seen, :], past + first, params, slots)
        y, chosen = of_tile(_attend_tile, *arguments, again=end - first < queries)
        parts.append(y)
        choices += [] if chosen is None else [chosen]
    return torch.cat(parts, dim=-2), torch.cat(choices, dim=-2) if choices else None


def executed(heads: int, queries: int, width: int, past: int, params: Params) -> tuple[int, bool]:
    """Pairs of a query and a block that `attend` multiplies for each head, and whether backward does so again.

    heads: of all samples.
    """
    cut = list(tiles(heads, queries, width, ended(past + queries, params)))
    return sum((end - first) * ended(past + end, params) for first, end in cut), len(cut) > 1


def _attend_tile(
    q: Tensor, keys: Tensor, values: Tensor, first: int, params: Params, slots: int
) -> tuple[Tensor, Tensor | None]:
    """q: [B, H, T, D] of the tokens first … first + T − 1; keys, values: of the blocks that the last of them sees."""
    queries, blocks = q.shape[-2], keys.shape[-2]
    token = torch.arange(first, first + queries, device=q.device).unsqueeze(-1)
    seen = ((token + (1 - params["length"])).div(params["step"], rounding_mode="floor") + 1).clamp_(min=0)  # [T, 1]
    outside = torch.arange(blocks, device=q.device) >= seen
    q = q.to(keys.dtype) * q.shape[-1] ** -0.5
    scores = (folded(q, keys) @ keys.transpose(-2, -1)).unflatten(-2, (-1, queries))  # [B, Hk, G, T, blocks]
    p = hide(scores, outside & (seen > 0)).softmax(dim=-1)
    if first + 1 < params["length"]:
        p = p * (seen > 0)
    y = unfolded(p.flatten(2, 3) @ values, q)
    return y, _chosen(p.detach().float().sum(dim=2), first, params, slots) if slots else None


def _chosen(p: Tensor, first: int, params: Params, slots: int) -> Tensor:
    """The blocks of most importance to the tokens first … first + T − 1: int32 [B, Hk, T, n].

    p: of each compressed block, summed over the heads of a group: [B, Hk, T, blocks].
    """
    end = first + p.shape[-2]
    importance = overlapped(p, params, -(-end // params["select"]))
    own = torch.arange(first, end, device=p.device).div_(params["select"], rounding_mode="floor").unsqueeze(-1)
    block = torch.arange(importance.shape[-1], device=p.device)
    fixed = (block == 0) | (block == own) | (block == own - 1)
    chosen = largest_blocks(importance.masked_fill_(fixed, float("inf")), block <= own, slots)
    return pad(chosen, (0, slots - chosen.shape[-1]), value=-1)


def overlapped(p: Tensor, params: Params, blocks: int) -> Tensor:
    """Σ_c p_c |block c ∩ block J| / d of each block J: […, compressed blocks] → […, blocks]."""
    step, times = params["step"], params["length"] // params["step"]
    parts = params["select"] // step  # of d tokens in block J
    padded = pad(p, (times - 1, parts * blocks - p.shape[-1]))
    covering = padded[..., : parts * blocks].clone()  # Σ_c p_c over the blocks c that cover each part
    for later in range(1, times):
        covering += padded[..., later : later + parts * blocks]
    return covering.unflatten(-1, (blocks, parts)).sum(dim=-1)
