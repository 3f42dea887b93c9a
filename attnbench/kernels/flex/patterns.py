"""Block masks for FlexAttention beyond windows: random and global blocks, summaries, distant class members."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.kernels.flex.windows import TILE, band, block_mask, spans, tiles


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def block_rows(blocks: Tensor, n: int, size: int) -> Any:
    """BigBird's rows: three blocks around the diagonal, the first and the last block both ways, and `blocks`.

    blocks: [H, M − 2, r], the random ones of rows 1 … M − 2; size: tokens of a block, dividing 128 or a multiple of it.
    Kept for the tensor given, not for its values: choices are made once.
    """
    m = -(-n // size)
    heads, _, count = blocks.shape
    row = torch.arange(m, device=blocks.device)
    seen = (row[:, None] - row).abs() <= 1
    seen[[0, -1]] = True
    seen[:, [0, -1]] = True
    seen = seen.repeat(heads, 1, 1)  # [H, M, M]
    if count:
        seen[:, 1:-1].scatter_(-1, blocks, True)

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        query, key = i // size, j // size
        back = query - key
        ends = (query == 0) | (query == m - 1) | (key == 0) | (key == m - 1)
        found = ends | ((back <= 1) & (back >= -1))
        inner = (query - 1).clamp(0, max(0, m - 3))
        for x in range(count):
            found = found | (blocks[h, inner, x] == key)
        return found

    some, every = _tiles_of_blocks(seen, n, size)
    return block_mask(some, every, allowed, n, n)


def _tiles_of_blocks(seen: Tensor, n: int, size: int) -> tuple[Tensor, Tensor]:
    """[H, M, M] → whether each tile has any, and only, blocks that are seen: [H, tiles, tiles], twice."""
    count = tiles(n)
    if size >= TILE:
        per = size // TILE
        seen = seen.repeat_interleave(per, 1).repeat_interleave(per, 2)[:, :count, :count]
        return seen, seen
    per = TILE // size
    missing = count * per - seen.shape[-1]
    grid = pad(seen, (0, missing, 0, missing)).view(-1, count, per, count, per)
    return grid.any(dim=4).any(dim=2), grid.all(dim=4).all(dim=2)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def summaries(n: int, size: int, width: int, count: int, own: bool, causal: bool, device: torch.device) -> Any:
    """Fixed attention. Keys: `count` summary positions, and with `own` (from `own_start` on) all tokens after them.

    Without `own` the pattern is causal: a query sees the summary positions up to itself. With `own` it sees those of
    other blocks (causal: of earlier ones) and its own block (causal: up to itself).
    """
    start = own_start(count) if own else count
    keys = start + (n if own else 0)
    query, key = spans(n, 0, device), spans(keys, 1, device)
    low, high = key.low // width, key.high // width  # blocks of the summaries in a tile
    if own:
        some = (low < query.high // size) | (not causal)
        every = (high < query.low // size) | (not causal and (low > query.high // size))
    else:
        some = low * size + size - width + key.low % width <= query.high
        every = high * size + size - width + key.high % width <= query.low
    some, every = some & (key.low < count), every & (key.high < count)
    if own:
        first, last = key.low - start, key.high - start
        near = (first // size <= query.high // size) & (last // size >= query.low // size) & (key.high >= start)
        inside = (first // size == query.high // size) & (last // size == query.low // size) & (key.low >= start)
        if causal:
            near, inside = near & (first <= query.high), inside & (last <= query.low)
        some, every = some | near, every | inside

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        block, token = j // width, j - start
        if not own:
            return block * size + size - width + j % width <= i
        far = (j < count) & ((block < i // size) if causal else (block != i // size))
        mine = (j >= start) & (token // size == i // size)
        return far | (mine & (token <= i) if causal else mine)

    return block_mask(some[None], every[None], allowed, n, keys)


def own_start(count: int) -> int:
    """Where the tokens stand behind `count` summary positions: at the next tile."""
    return tiles(count) * TILE


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def distant(n: int, classes: int, causal: bool, device: torch.device) -> Any:
    """Within residue classes of `classes`: all members but the token itself and its neighbours in the class."""
    length = -(-n // classes)
    query, key = spans(length, 0, device), spans(length, 1, device)
    earlier = band(query, key, length, -2)
    later = band(query, key, -2, length)
    some, every = earlier if causal else (earlier[0] | later[0], earlier[1] | later[1])
    every = every & ((key.high + 1) * classes <= n)

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        back = i - j
        apart = (back >= 2) if causal else ((back >= 2) | (back <= -2))
        return apart & (j * classes + h < n)

    return block_mask(some[None], every[None], allowed, length, length)
