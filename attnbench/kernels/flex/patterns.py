"""Block masks for FlexAttention beyond windows: random and global blocks, summaries, distant class members."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.kernels.flex.windows import TILE, Spans, band, block_mask, copies_mask, spans, tiles


def block_rows(blocks: Tensor, n: int, size: int, copied: int = 0) -> Any:
    """BigBird's rows: three blocks around the diagonal, the first and the last block, and `blocks`.

    Queries of the first and of the last block see what others would in their place: their rows are computed apart.

    Made once for `blocks` as they are now: again after they were written to, for which torch counts a version. Those
    of an inference tensor, which has none, are compared by value.

    Args:
        blocks: [H, M − 2, r], the random blocks of rows 1 … M − 2.
        size: tokens of a block, a divisor or a multiple of 128.
        copied: of the first and last block together, tokens that stand as copies in front (`copies_mask`); 0:
            they are seen in their places.
    """
    version = tuple(blocks.flatten().tolist()) if blocks.is_inference() else blocks._version
    return _block_rows(blocks, version, n, size, copied)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _block_rows(blocks: Tensor, version: object, n: int, size: int, copied: int) -> Any:
    m = -(-n // size)
    heads, _, count = blocks.shape
    row = torch.arange(m, device=blocks.device)
    visible = (row[:, None] - row).abs() <= 1
    visible[:, [0, -1]] = not copied
    visible = visible.repeat(heads, 1, 1)  # [H, M, M]
    drawn = torch.full((heads, m, count), -1, dtype=torch.int32, device=blocks.device)  # of every row; −1: none
    if count:
        visible[:, 1:-1].scatter_(-1, blocks, True)
        drawn[:, 1:-1] = blocks
    bits = size.bit_length() - 1 if size.bit_count() == 1 else None

    def block_of(token: Tensor) -> Tensor:
        return token // size if bits is None else token >> bits

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        query, key = block_of(i), block_of(j)  # of a pair each; a table of blocks would be a load for every pair
        allows = (query - key <= 1) & (key - query <= 1)
        for x in range(count):
            allows = allows | (drawn[h, query, x] == key)
        at_end = (key == 0) | (key == m - 1)
        return (allows & ~at_end) if copied else (allows | at_end)

    tile = TILE if copied else tile_of(size)
    some, every = _tiles_of_blocks(visible, n, size, tile)
    if copied:
        return copies_mask(some, every, allowed, n, copied)
    return block_mask(some, every, allowed, n, n, tile)


def tile_of(size: int) -> int:
    """Tokens of a tile of `block_rows`: those of a block of 64, whose tiles are then all full; with copies TILE, which
    the default kernels of gradients divide. (A search among others takes most of a minute for each shape.)
    """
    return size if size == TILE // 2 else TILE


def _tiles_of_blocks(visible: Tensor, n: int, size: int, tile: int) -> tuple[Tensor, Tensor]:
    """[H, M, M] → whether each tile has any, and only, blocks that are seen: [H, tiles, tiles], twice."""
    count = tiles(n, tile)
    if size >= tile:
        per = size // tile
        visible = visible.repeat_interleave(per, 1).repeat_interleave(per, 2)[:, :count, :count]
        return visible, visible
    per = tile // size
    missing = count * per - visible.shape[-1]
    grid = pad(visible, (0, missing, 0, missing)).view(-1, count, per, count, per)
    return grid.any(dim=4).any(dim=2), grid.all(dim=4).all(dim=2)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def summaries(n: int, size: int, width: int, count: int, with_tokens: bool, causal: bool, device: torch.device) -> Any:
    """Fixed attention to `count` summary positions and, where `with_tokens`, to all tokens behind them.

    Without tokens the pattern is causal: a query sees the summary positions up to itself. With tokens it sees those of
    other blocks (causal: of earlier ones) and its own block (causal: up to itself).

    Args:
        n: tokens.
        size, width: tokens of a block and of its summary.
        count: summary positions.
        with_tokens: whether all tokens follow as keys, from `tokens_start` on.
    """
    start = tokens_start(count) if with_tokens else count
    keys = start + (n if with_tokens else 0)
    query, key = spans(n, 0, device), spans(keys, 1, device)
    low, high = key.low // width, key.high // width  # blocks of the summaries in a tile
    if with_tokens:
        some = (low < query.high // size) | (not causal)
        every = (high < query.low // size) | (not causal and (low > query.high // size))
    else:
        some = low * size + size - width + key.low % width <= query.high
        every = high * size + size - width + key.high % width <= query.low
    some, every = some & (key.low < count), every & (key.high < count)
    if with_tokens:
        first, last = key.low - start, key.high - start
        near = (first // size <= query.high // size) & (last // size >= query.low // size) & (key.high >= start)
        inside = (first // size == query.high // size) & (last // size == query.low // size) & (key.low >= start)
        if causal:
            near, inside = near & (first <= query.high), inside & (last <= query.low)
        some, every = some | near, every | inside

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        block, token = j // width, j - start
        if not with_tokens:
            return block * size + size - width + j % width <= i
        far = (j < count) & ((block < i // size) if causal else (block != i // size))
        mine = (j >= start) & (token // size == i // size)
        return far | (mine & (token <= i) if causal else mine)

    return block_mask(some[None], every[None], allowed, n, keys)


def tokens_start(count: int) -> int:
    """Index of the first token behind `count` summary positions: the next multiple of a tile."""
    return tiles(count) * TILE


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def distant(n: int, classes: int, causal: bool, device: torch.device, group: int = 1) -> Any:
    """Within residue classes of `classes`: all members but the token itself and its neighbours in the class.

    group: the rows of queries of each class, which follow one another.
    """
    length = -(-n // classes)
    query, key = spans(length, 0, device), spans(length, 1, device)
    earlier = band(query, key, length, -2)
    later = band(query, key, -2, length)
    some, every = earlier if causal else (earlier[0] | later[0], earlier[1] | later[1])
    every = every & ((key.high + 1) * classes <= n)

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        back = i - j
        apart = (back >= 2) if causal else ((back >= 2) | (back <= -2))
        return apart & (j * classes + h // group < n)

    return block_mask(some[None], every[None], allowed, length, length)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def other_members(length: int, group: int, device: torch.device) -> Any:
    """Every member of a class of `length` but the token itself.

    group: the rows of queries of the class, which follow one another.
    """
    query, key = spans(group * length, 0, device), spans(length, 1, device)
    every = torch.ones(query.low.shape[0], key.low.shape[1], dtype=torch.bool, device=device)
    for first in range(0, group * length, length):
        every &= ~band(Spans(query.low - first, query.high - first), key, 0, 0)[0]

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i % length != j

    return block_mask(torch.ones_like(every)[None], every[None], allowed, group * length, length)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def every_few_tokens(n: int, keys: int, factor: int, device: torch.device) -> Any:
    """Query i of N sees the keys m with m · factor ≤ i: one more after every `factor` tokens."""
    query, key = spans(n, 0, device), spans(keys, 1, device)

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return j * factor <= i

    some, every = key.low * factor <= query.high, key.high * factor <= query.low
    return block_mask(some[None], every[None], allowed, n, keys)
