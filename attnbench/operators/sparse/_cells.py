"""Softmax attention within rectangular cells of a map: windows of pixels, or whole rows or columns.

A map is [B, H, h, w, D]. Cells of one size are one batch; the queries of a group of heads are rows of the same cell.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.operators._map_attention import sides
from attnbench.problem import Problem

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(q of [B·Hk, cells, G·L, D], k and v of [B·Hk, cells, L, D], bias of [B·Hk, 1, G·L, L] or None) → as q."""


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √D + bias) v, eager. See Attend."""
    scores = (q * q.shape[-1] ** -0.5).flatten(0, 1) @ k.flatten(0, 1).transpose(-2, -1)  # [B·Hk·cells, G·L, L]
    if bias is not None:
        scores = scores.view(*q.shape[:2], *scores.shape[-2:]).add_(bias).flatten(0, 1)
    return (scores.softmax(dim=-1) @ v.flatten(0, 1)).view(*q.shape[:-1], v.shape[-1])


def attend_by_sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same as one SDPA call, the cells in the place of heads. See Attend."""
    mask = None if bias is None else bias.expand(-1, q.shape[1], -1, -1)
    return scaled_dot_product_attention(q, k, v, mask)


def as_map(problem: Problem, x: Tensor) -> Tensor:
    """Tokens in row-major order as a map: [B, H, N, D] → [B, H, h, w, D]."""
    pixels: Tensor = x.unflatten(2, sides(problem))
    return pixels


def to_cells(x: Tensor, group: int, height: int, width: int) -> Tensor:
    """A map that such cells tile, cut into them: [B, H, a·height, b·width, D] → [B·H/group, a·b, group·L, D].

    L = height · width, the pixels of a cell in row-major order. A view of rows of one head a group.
    """
    b, h, rows, columns, d = x.shape
    x = x.reshape(b * h // group, group, rows // height, height, columns // width, width, d)
    return x.permute(0, 2, 4, 1, 3, 5, 6).reshape(x.shape[0], -1, group * height * width, d)


def from_cells(y: Tensor, like: Tensor, group: int, height: int, width: int) -> Tensor:
    """The inverse: [B·H/group, a·b, group·L, D'] → [B, H, a·height, b·width, D']. like: the map of the queries."""
    b, h, rows, columns, _ = like.shape
    y = y.reshape(y.shape[0], rows // height, columns // width, group, height, width, y.shape[-1])
    return y.permute(0, 3, 1, 4, 2, 5, 6).reshape(b, h, rows, columns, y.shape[-1])


def within_cells(
    q: Tensor, k: Tensor, v: Tensor, height: int, width: int, call: Attend = attend, bias: Tensor | None = None
) -> Tensor:
    """Attention within the cells of a map that they tile.

    Args:
        q: [B, H, h, w, D].
        k, v: [B, Hk, h, w, D].
        height, width: of a cell; they divide h and w.
        bias: [Hk, G·L, L], added to the scores.
    Returns: [B, H, h, w, D].
    """
    group = q.shape[1] // k.shape[1]
    added = None if bias is None else bias.repeat(q.shape[0], 1, 1).unsqueeze(1)
    keys, values = (to_cells(x, 1, height, width) for x in (k, v))
    return from_cells(call(to_cells(q, group, height, width), keys, values, added), q, group, height, width)
