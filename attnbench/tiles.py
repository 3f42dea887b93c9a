"""Attention of every pixel to a window that is shifted at a border, not cut, in time and memory of the window's size.

A map of rows and columns is cut into rectangular tiles. A tile of queries is multiplied with one tile of keys, which
covers the windows of all its queries; keys outside a query's window are masked within that tile. With a dilation δ the
pixels whose coordinates agree modulo δ are a map of their own, and are cut as such. A sequence is a map of one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.grouped import group_of, merged, separated

CUT_OVERHEAD = 12
"""What a tile costs beside its products, in lines of queries along one of two axes: small products are slow."""

LINE_OVERHEAD = 170
"""The same of a map that is one line."""

PIECE_PAIRS = 1 << 20
"""Scores that are computed at a time, at least: they stay in a cache."""

MOST_PIECES = 64
"""Of one call, about."""


@dataclass(frozen=True)
class Axis:
    """How one axis of a map is cut. Positions are those in a residue class: coordinate = position · dilation + class.

    Attributes:
        length: of the axis, in pixels.
        kernel: positions that a query sees, odd.
        dilation: residue classes.
        size: queries of a tile.
        tiles: of the longest class.
        halo: keys of a tile before, and as many after, its queries.
    """

    length: int
    kernel: int
    dilation: int
    size: int
    tiles: int
    halo: int

    @property
    def keys(self) -> int:
        """Keys of a tile."""
        return self.size + 2 * self.halo

    @property
    def padded(self) -> int:
        """Queries of all tiles of all classes."""
        return self.dilation * self.tiles * self.size

    @property
    def pairs(self) -> int:
        """Query-key pairs that are multiplied."""
        return self.padded * self.keys


@lru_cache(maxsize=1024)
def axis(length: int, kernel: int, dilation: int, overhead: int) -> Axis:
    """An axis cut where tiles cost least: tiles · keys · (size + overhead).

    The first and the last query of a class are served by tiles at least (kernel + 1) / 2 long, whose halo then covers
    the shifted windows; the last tile of a shorter class too.
    """
    reach = (kernel - 1) // 2
    longest, shortest = -(-length // dilation), length // dilation
    best = Axis(length, kernel, dilation, longest, 1, 0)
    least = longest * (longest + overhead)
    for size in range(reach + 1, min(longest, 4 * reach + 64 + overhead)):
        tiles = -(-longest // size)
        cost = tiles * (size + 2 * reach) * (size + overhead)
        if shortest - (tiles - 1) * size > reach and cost < least:
            best, least = Axis(length, kernel, dilation, size, tiles, reach), cost
    return best


def cut(height: int, width: int, kernel: int, dilation: int) -> tuple[Axis, Axis]:
    """The axes of a map; of one with a single row the window is one-dimensional."""
    if height == 1:
        return Axis(1, 1, 1, 1, 1, 0), axis(width, kernel, dilation, LINE_OVERHEAD)
    return axis(height, kernel, dilation, CUT_OVERHEAD), axis(width, kernel, dilation, CUT_OVERHEAD)


def attend(q: Tensor, k: Tensor, v: Tensor, axes: tuple[Axis, Axis], bias: Tensor | None = None) -> Tensor:
    """y_i = Σ_j p_ij v_j, p_i = softmax_j(q_iᵀ k_j + bias) over the window of i.

    Args:
        q: [B, H, N, D], already scaled, pixels in row-major order.
        k, v: [B, Hk, N, D].
        axes: of the map, rows first.
        bias: by offset of a key, in steps of the dilation, [H, 2·kernel − 1 of rows, 2·kernel − 1 of columns].
    Returns: [B, H, N, D].
    """
    group = group_of(q, k)
    rows = merged(to_tiles(q, axes), group, 5).flatten(1, 4)  # [B·Hk, tiles, queries·G, D]
    keys, values = (with_halos(x, axes).flatten(1, 4) for x in (k, v))  # [B·Hk, tiles, keys, D]
    hidden = _hidden(axes, q)
    heads, tiles = piece_of(rows.shape[0], rows.shape[1], rows.shape[2] * keys.shape[2])
    added = None if bias is None else merged(bias_of_pairs(bias, axes), group, 1).repeat(q.shape[0], 1, 1).unsqueeze(1)
    y = []
    for first in range(0, rows.shape[0], heads):
        some = slice(first, first + heads)
        q_parts, k_parts, v_parts = (x[some].split(tiles, 1) for x in (rows, keys, values))
        parts = zip(q_parts, k_parts, v_parts, hidden.split(tiles), strict=True)
        of_heads = None if added is None else added[some]
        y.append(_joined([_attend_piece(qs, ks, vs, mask, of_heads) for qs, ks, vs, mask in parts], 1))
    classes = (axes[0].dilation, axes[1].dilation, axes[0].tiles, axes[1].tiles)
    return from_tiles(separated(_joined(y, 0).unflatten(1, classes), group, 5), axes, q)


def piece_of(heads: int, tiles: int, pairs: int) -> tuple[int, int]:
    """How many heads, and tiles of each, are computed at a time: of one head where it has more than enough."""
    most = max(PIECE_PAIRS, heads * tiles * pairs // MOST_PIECES) // pairs
    return (max(1, most // tiles), tiles) if most >= tiles else (1, max(1, most))


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _attend_piece(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, bias: Tensor | None) -> Tensor:
    """q: [heads, tiles, queries·G, D]; k, v: [heads, tiles, keys, D]; hidden: [tiles, queries, keys], 0 or −∞;
    bias: [heads, 1, queries·G, keys]. Returns as q."""
    scores = q @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores.add_(bias)
    if scores.shape[-2] == hidden.shape[-2]:
        scores = scores.add_(hidden)
    else:
        scores.unflatten(-2, (hidden.shape[-2], -1)).add_(hidden.unsqueeze(-2))  # a view
    return scores.softmax(dim=-1) @ v


def _hidden(axes: tuple[Axis, Axis], like: Tensor) -> Tensor:
    """−∞ for the keys of its tile that a query does not see, else 0: [tiles of all classes, queries, keys]."""
    mask = outside(axes, like.device)
    hidden = torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
    return hidden.expand(axes[0].dilation, axes[1].dilation, *mask.shape[2:]).flatten(0, 3)


def to_tiles(x: Tensor, axes: tuple[Axis, Axis]) -> Tensor:
    """[B, H, N, D] → [B·H, classes (2), tiles (2), queries, D]; padded with zeros where sides are not multiples."""
    tall, wide = axes
    x = _padded(x, axes, 0, 0)
    x = x.view(x.shape[0], tall.tiles, tall.size, tall.dilation, wide.tiles, wide.size, wide.dilation, x.shape[-1])
    return x.permute(0, 3, 6, 1, 4, 2, 5, 7).flatten(5, 6)


def from_tiles(y: Tensor, axes: tuple[Axis, Axis], like: Tensor) -> Tensor:
    """The inverse of `to_tiles`: to the shape of `like`, [B, H, N, D]."""
    tall, wide = axes
    y = y.unflatten(5, (tall.size, wide.size)).permute(0, 3, 5, 1, 4, 6, 2, 7)
    y = y.flatten(4, 6).flatten(1, 3)  # [B·H, height, width, D], padded
    return y[:, : tall.length, : wide.length].reshape(*like.shape[:3], y.shape[-1])


def with_halos(x: Tensor, axes: tuple[Axis, Axis]) -> Tensor:
    """The keys of every tile: [B, Hk, N, D] → [B·Hk, classes (2), tiles (2), keys, D]."""
    tall, wide = axes
    x = _padded(x, axes, tall.halo, wide.halo)
    x = x.unflatten(2, (-1, wide.dilation)).unflatten(1, (-1, tall.dilation))  # [B·Hk, y, class, x, class, D]
    x = x.unfold(1, tall.keys, tall.size).unfold(3, wide.keys, wide.size)  # [B·Hk, Ty, class, Tx, class, D, ky, kx]
    return x.permute(0, 2, 4, 1, 3, 6, 7, 5).flatten(5, 6).contiguous()  # or a product would copy each transposed


def _padded(x: Tensor, axes: tuple[Axis, Axis], above: int, left: int) -> Tensor:
    """[B, H, N, D] → [B·H, height, width, D] of whole tiles, with so many positions more on each side."""
    tall, wide = axes
    x = x.flatten(0, 1).unflatten(1, (tall.length, wide.length))
    above, left = above * tall.dilation, left * wide.dilation
    missing = (0, 0, left, wide.padded - wide.length + left, above, tall.padded - tall.length + above)
    return pad(x, missing) if any(missing) else x


def outside(axes: tuple[Axis, Axis], device: torch.device) -> Tensor:
    """Which keys of its tile a query does not see: bool [classes (2), tiles (2), queries, keys]."""
    rows, columns = (outside_along(each, device) for each in axes)
    rows, columns = rows[:, None, :, None, :, None, :, None], columns[None, :, None, :, None, :, None, :]
    return (rows | columns).flatten(6, 7).flatten(4, 5)


def outside_along(axis: Axis, device: torch.device) -> Tensor:
    """The same along one axis: bool [classes, tiles, queries, keys]; of one class where all are alike.

    A padded query sees the last window of its class, so that no row is empty.
    """
    residue = torch.arange(axis.dilation if axis.length % axis.dilation else 1, device=device).view(-1, 1, 1, 1)
    first = torch.arange(axis.tiles, device=device).view(-1, 1, 1) * axis.size
    query = first + torch.arange(axis.size, device=device).view(-1, 1)
    key = first + torch.arange(-axis.halo, axis.size + axis.halo, device=device)
    start = window_start(query, class_members(axis, residue), axis.kernel)
    return (key < start) | (key >= start + axis.kernel)


def window_start(query: Tensor, members: Tensor, kernel: int) -> Tensor:
    """The first position that a query sees, among so many members of its class."""
    return (query - (kernel - 1) // 2).clamp(min=0).clamp(max=members - kernel)


def class_members(axis: Axis, residue: Tensor) -> Tensor:
    """Pixels along the axis whose coordinates have a residue: as many as its shape has."""
    return (axis.length - 1 - residue) // axis.dilation + 1


def bias_of_pairs(bias: Tensor, axes: tuple[Axis, Axis]) -> Tensor:
    """The bias of every pair of a tile, the same in all tiles: [H, 2·kernel − 1 (2)] → [H, queries, keys]."""
    tall, wide = axes
    rows, columns = _offsets(tall, bias.device), _offsets(wide, bias.device)  # [queries, keys] along each axis
    index = rows[:, None, :, None] * bias.shape[2] + columns[None, :, None, :]
    return bias.flatten(1).index_select(1, index.flatten()).view(-1, tall.size * wide.size, tall.keys * wide.keys)


def _offsets(axis: Axis, device: torch.device) -> Tensor:
    """Of a key from its query, from 0 on; those of no window are any."""
    query = torch.arange(axis.size, device=device).view(-1, 1)
    key = torch.arange(-axis.halo, axis.size + axis.halo, device=device)
    return (key - query + axis.kernel - 1).clamp_(0, 2 * axis.kernel - 2)
