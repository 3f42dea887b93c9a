"""Windows that are shifted at a border, of pixels or of tokens, as FlexAttention block masks.

Tokens are put into tiles of TILE neighbours, of 8 rows and 16 columns on a map, so that a tile of queries sees few
tiles of keys. Those at the end of a side are filled up with zeros; pixels of one residue class follow each other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnbench.kernels.flex.windows import TILE, attend, block_mask
from attnbench.tiles import Axis, class_members, from_tiles, to_tiles, window_start

ROWS = 8
"""Of a tile of a map."""


def cut(height: int, width: int, kernel: int, dilation: int) -> tuple[Axis, Axis]:
    """The axes of a map in tiles of TILE pixels, without halos."""
    if height == 1:
        return Axis(1, 1, 1, 1, 1, 0), _axis(width, kernel, dilation, TILE)
    return _axis(height, kernel, dilation, ROWS), _axis(width, kernel, dilation, TILE // ROWS)


def _axis(length: int, kernel: int, dilation: int, size: int) -> Axis:
    return Axis(length, kernel, dilation, size, -(-length // (dilation * size)), 0)


def positions(axes: tuple[Axis, Axis]) -> int:
    """Tokens with those that fill up tiles."""
    return axes[0].padded * axes[1].padded


def neighborhood(q: Tensor, k: Tensor, v: Tensor, axes: tuple[Axis, Axis], bias: Tensor | None = None) -> Tensor:
    """`attnbench.tiles.attend` with unscaled q, by FlexAttention. axes: of `cut`."""
    tall, wide = axes
    q_tiles, k_tiles, v_tiles = (to_tiles(x, axes).flatten(1, 5).unflatten(0, x.shape[:2]) for x in (q, k, v))
    score_mod = None if bias is None else with_bias(bias, axes)
    y = attend(q_tiles, k_tiles, v_tiles, neighborhood_mask(axes, q.device), score_mod)  # [B, H, positions, D]
    grid = (tall.dilation, wide.dilation, tall.tiles, wide.tiles, TILE)
    return from_tiles(y.flatten(0, 1).unflatten(1, grid), axes, q)


class Place(NamedTuple):
    """Residue class and position along one axis."""

    residue: Tensor
    position: Tensor


def places(index: Tensor, axes: tuple[Axis, Axis]) -> tuple[Place, Place]:
    """Of tokens in the order of `to_tiles`: along the rows and along the columns."""
    tall, wide = axes
    tile, pixel = index // TILE, index % TILE
    column = tile % wide.tiles * wide.size + pixel % wide.size
    row = tile // wide.tiles % tall.tiles * tall.size + pixel // wide.size
    residue = tile // (wide.tiles * tall.tiles)
    return Place(residue // wide.dilation, row), Place(residue % wide.dilation, column)


def _inside(axis: Axis, query: Place, key: Place) -> Tensor:
    """Whether a query sees a key, along one axis."""
    start = window_start(query.position, class_members(axis, query.residue), axis.kernel)
    return (query.residue == key.residue) & (key.position >= start) & (key.position < start + axis.kernel)


def with_bias(bias: Tensor, axes: tuple[Axis, Axis]) -> Callable[..., Tensor]:
    """Adds to a score the bias of its offset. bias: [H, 2·kernel − 1 of rows, 2·kernel − 1 of columns]."""

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        offsets = (
            (key.position - query.position + axis.kernel - 1).clamp(0, 2 * axis.kernel - 2)  # outside: any
            for axis, query, key in zip(axes, places(i, axes), places(j, axes), strict=True)
        )
        return score + bias[(h, *offsets)]

    return score_mod


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # the same mask serves calls under autograd
def neighborhood_mask(axes: tuple[Axis, Axis], device: torch.device) -> Any:
    """The mask of `neighborhood`."""
    count = positions(axes)
    tall, wide = (_tiles_along(axis, device) for axis in axes)
    some, every = (
        rows[:, None, :, None, :, None, :, None] & columns[None, :, None, :, None, :, None, :]
        for rows, columns in zip(tall, wide, strict=True)
    )  # [classes (2), tiles (2), classes (2), tiles (2)], of queries and of keys
    shape = (1, count // TILE, count // TILE)

    def allowed(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        rows, columns = (
            _inside(axis, query, key) for axis, query, key in zip(axes, places(i, axes), places(j, axes), strict=True)
        )
        return rows & columns

    return block_mask(some.reshape(shape), every.reshape(shape), allowed, count, count)


def _tiles_along(axis: Axis, device: torch.device) -> tuple[Tensor, Tensor]:
    """Whether a tile of queries sees any, and only, keys of a tile, along an axis: [classes, tiles, classes, tiles]."""
    residue = torch.arange(axis.dilation, device=device).view(-1, 1, 1, 1)
    first = torch.arange(axis.tiles, device=device) * axis.size
    last = first + axis.size - 1
    members = class_members(axis, residue)
    start, end = (window_start(position.view(-1, 1, 1), members, axis.kernel) for position in (first, last))
    mine = residue == torch.arange(axis.dilation, device=device).view(-1, 1)
    some = mine & (first < end + axis.kernel) & (last >= start)
    return some, mine & (first >= end) & (last < start + axis.kernel)
