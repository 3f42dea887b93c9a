"""FlexAttention over block masks built from the pattern itself, tile by tile, and cached; never from N×N pairs.

torch.nn.attention.flex_attention (Dong et al. 2024, https://arxiv.org/abs/2412.05496) skips empty tiles and applies the
mask only in partial ones. Tiles are 128×128, what every default configuration of its kernels divides; a pattern of
blocks of 64 has smaller ones, all full, and kernels that fit them.
On the CPU the same call runs uncompiled and dense, which checks the mask function and the order of tokens.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.grouped import group_of, merged, separated
from attnbench.problem import Problem
from attnbench.window import class_length, from_classes, to_classes

TILE = 128
MOST_TILES = 2**28  # entries of a block mask: about 1 GiB for each of its index tensors

PADDED = 64
"""What lengths of which gradients may be wrong are rounded up to."""

MOST_PIECES = 32
"""Pieces that queries which all see the same few keys are cut into, where each has a copy of these."""

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def why_not(problem: Problem, queries: int, keys: int, heads: int = 1) -> str | None:
    """The reason FlexAttention cannot run on so many queries and keys with `heads` different masks, or None."""
    if importlib.util.find_spec("triton") is None:
        return "FlexAttention needs Triton: pip install 'attnbench[kernels]'"
    if problem.dtype == "float64":
        return "FlexAttention's kernels have no float64"
    if problem.head_dim < 16:
        return f"FlexAttention needs a head dimension of at least 16, not {problem.head_dim}"
    entries = heads * tiles(queries) * tiles(keys)
    if entries > MOST_TILES:
        return f"its block mask would have {entries} entries; at most {MOST_TILES}"
    return None


def tiles(tokens: int, tile: int = TILE) -> int:
    """Tiles along so many tokens."""
    return -(-tokens // tile)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any, score_mod: Callable[..., Tensor] | None = None) -> Tensor:
    """softmax(q kᵀ / √D) v under a block mask; rows that see nothing are 0. q: [B, H, N, D]; k, v: [B, Hk, M, D].

    score_mod: FlexAttention's: (score, sample, head, query, key) → score.
    """
    tile = TILE if mask is None else mask.BLOCK_SIZE[0]
    options = None if tile == TILE else {"fwd_BLOCK_M": tile, "fwd_BLOCK_N": tile}
    queries, keys = q.shape[2], k.shape[2]
    if lengthened := _lengthened(q, k):
        q, k, v = _padded(lengthened, q, k, v)
        mask = _lengthened_mask(mask, queries, keys, lengthened, q.device)
        score_mod = None if score_mod is None else _within(score_mod, queries, keys)
    y: Tensor = _call(q)(
        q, k, v, score_mod=score_mod, block_mask=mask, enable_gqa=group_of(q, k) > 1, kernel_options=options
    )
    return y[:, :, :queries]


def attend_with_lse(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """As `attend`, and the natural logarithm of the sum of exponentials of each row, −∞ where it sees nothing.

    scale: of q kᵀ; None: 1/√D.
    """
    from torch.nn.attention.flex_attention import AuxRequest

    queries, keys = q.shape[2], k.shape[2]
    if lengthened := _lengthened(q, k):
        q, k, v = _padded(lengthened, q, k, v)
        mask = _lengthened_mask(mask, queries, keys, lengthened, q.device)
    y, aux = _call(q)(
        q, k, v, block_mask=mask, scale=scale, enable_gqa=group_of(q, k) > 1, return_aux=AuxRequest(lse=True)
    )
    return y[:, :, :queries], aux.lse[:, :, :queries]


def wrong_gradients(tokens: int) -> bool:
    """Whether FlexAttention's gradients may be wrong for so many queries or keys.

    On an H100, in torch 2.11, those of 33, 61, 63, 67, 100 and 127 were, of multiples of 8 and of more than a tile not.
    """
    return tokens < TILE and tokens % 8 > 0


def _lengthened(q: Tensor, k: Tensor) -> tuple[int, int] | None:
    """Queries and keys of the call where gradients need more of them; None where they need none."""
    lengths = q.shape[2], k.shape[2]
    if not (_compiles_gradients(q) and any(map(wrong_gradients, lengths))):
        return None
    queries, keys = (-(-length // PADDED) * PADDED if wrong_gradients(length) else length for length in lengths)
    return queries, keys


def _compiles_gradients(q: Tensor) -> bool:
    return q.is_cuda and torch.is_grad_enabled()


def _padded(lengths: tuple[int, int], q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """With zeros after the last token."""
    queries, keys = lengths
    return [pad(x, (0, 0, 0, length - x.shape[2])) for x, length in ((q, queries), (k, keys), (v, keys))]


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _lengthened_mask(mask: Any, queries: int, keys: int, lengths: tuple[int, int], device: torch.device) -> Any:
    """A block mask, or None, of so many queries and keys for more of them, of which the keys are hidden.

    There are as many tiles as before, and one that was cut stays partial.
    """
    from torch.nn.attention.flex_attention import BlockMask

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return j < keys

    if mask is None:
        every = torch.ones(1, tiles(queries), tiles(keys), dtype=torch.bool, device=device)
        return block_mask(every, uncut(keys, device).expand_as(every), allowed, *lengths)
    inside = _within(mask.mask_mod, queries, keys)
    return BlockMask.from_kv_blocks(
        mask.kv_num_blocks,
        mask.kv_indices,
        mask.full_kv_num_blocks,
        mask.full_kv_indices,
        BLOCK_SIZE=mask.BLOCK_SIZE,
        mask_mod=lambda b, h, i, j: inside(b, h, i, j) & (j < keys),
        seq_lengths=lengths,
    )


def _within(mod: Callable[..., Tensor], queries: int, keys: int) -> Callable[..., Tensor]:
    """A mask_mod or score_mod that is asked of no query and no key beyond the last."""

    def call(*arguments: Tensor) -> Tensor:
        *first, i, j = arguments
        return mod(*first, i.clamp(max=queries - 1), j.clamp(max=keys - 1))

    return call


def merge(y: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """Attention over the union of two disjoint sets of keys from the attention over each of them."""
    total = torch.logaddexp(lse, other_lse)
    share, other_share = ((x - total).exp().to(y.dtype).unsqueeze(-1) for x in (lse, other_lse))
    return y * share + other * other_share


def _call(q: Tensor) -> Callable[..., Any]:
    if q.is_cuda:
        return _compiled()
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@cache
def _compiled() -> Callable[..., Any]:
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    # Every pattern and shape is compiled once; beyond dynamo's limit a call would fail, as fullgraph demands.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 1024)
    torch._dynamo.config.accumulated_recompile_limit = max(torch._dynamo.config.accumulated_recompile_limit, 4096)
    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


def block_mask(some: Tensor, all_: Tensor, mask_mod: MaskMod, queries: int, keys: int, tile: int = TILE) -> Any:
    """A BlockMask from tiles. some, all_: [H or 1, query tiles, key tiles], whether any, all pairs are allowed.

    `some` may be true for a tile without a pair, which costs time; `all_` may be false for a full tile, and is ignored
    for a tile that the end of the sequence cuts.
    """
    from torch.nn.attention.flex_attention import BlockMask

    all_ = all_ & uncut(queries, all_.device, tile).transpose(0, 1) & uncut(keys, all_.device, tile)
    partial = some & ~all_
    return BlockMask.from_kv_blocks(
        *_ordered(partial), *_ordered(all_), BLOCK_SIZE=tile, mask_mod=mask_mod, seq_lengths=(queries, keys)
    )


def _ordered(tiles_of_heads: Tensor) -> tuple[Tensor, Tensor]:
    """How many key tiles each query tile has, and their numbers first in its row: [1, H, …], int32."""
    order = tiles_of_heads.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return tiles_of_heads.sum(dim=-1, dtype=torch.int32)[None], order[None]


class Spans(NamedTuple):
    """First and last index of every tile along an axis, the last one cut at the end: [tiles, 1] or [1, tiles]."""

    low: Tensor
    high: Tensor


def spans(tokens: int, axis: int, device: torch.device) -> Spans:
    """The tiles of queries (axis 0) or keys (axis 1)."""
    low = torch.arange(tiles(tokens), device=device) * TILE
    high = (low + TILE - 1).clamp(max=tokens - 1)
    return Spans(low.unsqueeze(1 - axis), high.unsqueeze(1 - axis))


def uncut(tokens: int, device: torch.device, tile: int = TILE) -> Tensor:
    """Whether a tile is not cut by the end of the sequence; only such a tile can be full: [1, tiles]."""
    return (torch.arange(1, tiles(tokens, tile) + 1, device=device) * tile <= tokens)[None]


def band(query: Spans, key: Spans, before: int, after: int) -> tuple[Tensor, Tensor]:
    """Whether a tile has any, and only, pairs with −after ≤ query − key ≤ before."""
    least, most = query.low - key.high, query.high - key.low
    return (least <= before) & (most >= -after), (most <= before) & (least >= -after)


def window(q: Tensor, k: Tensor, v: Tensor, before: int, after: int, classes: int = 1, hubs: int = 0) -> Tensor:
    """`attnbench.window.attend` with unscaled q, by FlexAttention: windows in residue classes, and hubs."""
    n, group = q.shape[-2], group_of(q, k)
    if classes == 1 and hubs and torch.is_grad_enabled():
        k, v = (with_copies(x, x[:, :, :hubs]) for x in (k, v))
        return attend(q, k, v, copied_hubs_mask(n, before, after, hubs, q.device))
    if classes == 1:
        return attend(q, k, v, window_mask(n, before, after, 1, hubs, q.device))
    mask = window_mask(n, before, after, classes, hubs, q.device, group)
    queries = merged(to_classes(q, classes), group, 1)  # [B·Hk, classes·G, N / classes, D]
    keys, values = (to_classes(x, classes) for x in (k, v))  # [B·Hk, classes, N / classes, D]
    if hubs:
        keys, values = (
            torch.cat((x[..., :hubs, :].flatten(0, 1)[:, None].expand(-1, classes, -1, -1), tokens), dim=-2)
            for x, tokens in ((k, keys), (v, values))
        )
    return from_classes(separated(attend(queries, keys, values, mask), group, 1), classes, q)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def copied_hubs_mask(n: int, before: int, after: int, hubs: int, device: torch.device, causal: bool = False) -> Any:
    """The mask of `window` without classes, whose hubs stand in front as copies: `copies_mask`.

    causal: whether a hub is seen by no token before it.
    """
    query, key = spans(n, 0, device), spans(n, 1, device)
    some, every = band(query, key, before, after)

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i - j <= before) & (j - i <= after) & (j >= hubs)

    return copies_mask((some & (key.high >= hubs))[None], (every & (key.low >= hubs))[None], allowed, n, hubs, causal)


def causal_window(
    q: Tensor, k: Tensor, v: Tensor, before: int | None, hubs: int = 0, sink_logit: Tensor | None = None
) -> Tensor:
    """Attention of the last Q of M tokens to the `before` tokens before each, itself, and the hubs up to itself.

    Args:
        q: [B, H, Q, D].
        k, v: [B, Hk, M, D].
        before: None: all.
        hubs: the first of the M tokens, which every later one sees.
        sink_logit: [H], one more logit of a head's rows, in the denominator alone.

    Returns: [B, H, Q, D].
    """
    queries, keys = q.shape[2], k.shape[2]
    before = keys if before is None else before
    if queries == 1 and before >= keys - 1:
        mask = None
    elif hubs and torch.is_grad_enabled() and queries == keys:
        k, v = (with_copies(x, x[:, :, :hubs]) for x in (k, v))
        mask = copied_hubs_mask(keys, before, 0, hubs, q.device, causal=True)
    else:
        mask = causal_mask(queries, keys, before, hubs, q.device)
    if sink_logit is None:
        return attend(q, k, v, mask)
    return without_sink(*attend_with_lse(q, k, v, mask), sink_logit)


def without_sink(y: Tensor, lse: Tensor, sink_logit: Tensor) -> Tensor:
    """Attention with one more logit in each head's denominators: y · σ(lse − s). y: [B, H, Q, D]; lse: [B, H, Q]."""
    share = torch.sigmoid(lse - sink_logit.to(lse.dtype)[:, None])
    return y * share.to(y.dtype).unsqueeze(-1)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def causal_mask(queries: int, keys: int, before: int, hubs: int, device: torch.device) -> Any:
    """The mask of `causal_window`."""
    past = keys - queries
    query, key = spans(queries, 0, device), spans(keys, 1, device)
    query = Spans(query.low + past, query.high + past)
    some, every = band(query, key, before, 0)
    some = some | ((key.low < hubs) & (key.low <= query.high))
    every = every | ((key.high < hubs) & (key.high <= query.low))

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        back = i + past - j
        near = (back <= before) | (j < hubs) if hubs else back <= before
        return near & (back >= 0)

    return block_mask(some[None], every[None], allowed, queries, keys)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # the same mask serves calls under autograd
def window_mask(n: int, before: int, after: int, classes: int, hubs: int, device: torch.device, group: int = 1) -> Any:
    """The mask of `window`. With several classes the hubs stand before the keys of every class.

    group: the rows of queries of each class, which follow one another.
    """
    length = class_length(n, classes)
    offset = hubs if classes > 1 else 0
    query = spans(length, 0, device)
    key = spans(length + offset, 1, device)
    some, all_ = band(query, Spans(key.low - offset, key.high - offset), before, after)
    some &= key.high >= offset
    # In a full tile every class has its tokens, and none of them is a hub.
    all_ &= ((key.low - offset) * classes >= hubs) & ((key.high - offset + 1) * classes <= n)
    if hubs:
        some |= key.low < hubs
        all_ |= key.high < hubs

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        back = i - (j - offset)
        near = (back <= before) & (back >= -after)
        if classes > 1:
            token = (j - offset) * classes + h // group
            near = near & (token >= hubs) & (token < n)
        return (j < hubs) | near if hubs else near

    return block_mask(some[None], all_[None], allowed, length, length + offset)


def with_copies(x: Tensor, hubs: Tensor) -> Tensor:
    """Keys or values of `copies_mask`: copies of the hubs, then the tokens. x: [B, Hk, N, D]; hubs: [B, Hk, g, D]."""
    missing = -hubs.shape[2] % TILE
    copies = pad(hubs, (0, 0, 0, missing)) if missing else hubs
    return torch.cat((copies.repeat(1, 1, _copies(x.shape[2])[0], 1), x), dim=2)


def copies_mask(some: Tensor, every: Tensor, allowed: MaskMod, n: int, hubs: int, causal: bool = False) -> Any:
    """The block mask of tokens that all see `hubs` keys beside others: every piece of the queries its own copy of them.

    Args:
        some, every, allowed: as `block_mask` takes them, of the other keys alone: N queries and N keys.
        n: tokens.
        hubs: keys that all queries see.
        causal: whether they are the first of the N tokens, and seen by none before them.
    """
    count, rows = _copies(n)
    span = tiles(hubs)
    query = torch.arange(tiles(n), device=some.device)[:, None]
    key = torch.arange(count * span, device=some.device)
    mine = (query // rows == key // span).expand(some.shape[0], -1, -1)
    filled = mine & ((key % span + 1) * TILE <= hubs)
    if causal:
        filled = filled & (key % span < query)
    start = count * span * TILE

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        copy = j // (span * TILE)
        token = j - copy * (span * TILE)
        hub = (copy == i // (rows * TILE)) & (token < hubs)
        if causal:
            hub = hub & (token <= i)
        return torch.where(j < start, hub, allowed(b, h, i, (j - start).clamp(min=0)))

    return block_mask(torch.cat((mine, some), -1), torch.cat((filled, every), -1), sees, n, start + n)


def _copies(n: int) -> tuple[int, int]:
    """How many pieces the tiles of N queries are cut into, and the tiles of each."""
    rows = -(-tiles(n) // MOST_PIECES)
    return -(-tiles(n) // rows), rows
