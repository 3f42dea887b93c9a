"""Softmax attention within rectangular cells of a map: windows of pixels, or whole rows or columns.

A map is [B, H, h, w, D]. Cells of one size are one batch; the queries of a group of heads are rows of the same cell.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.grouped import group_of
from attnbench.operators._map_attention import sides
from attnbench.problem import Problem

Within = Callable[[Tensor, Tensor, Tensor, int, int, Tensor | None], Tensor]
"""(q of [B, H, h, w, D], k and v of [B, Hk, h, w, D], height and width of a cell, which divide h and w, bias of
[Hk, G·L, L], added to the scores, or None) → as q."""


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
    """The inverse, of cells alone or after their heads: [… group·L, D'] → [B, H, a·height, b·width, D'].

    like: the map of the queries.
    """
    b, h, rows, columns, _ = like.shape
    y = y.reshape(b * h // group, rows // height, columns // width, group, height, width, y.shape[-1])
    return y.permute(0, 3, 1, 4, 2, 5, 6).reshape(b, h, rows, columns, y.shape[-1])


def within_cells(q: Tensor, k: Tensor, v: Tensor, height: int, width: int, bias: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √D + bias) v of each cell, eager. See Within."""
    group = group_of(q, k)
    scores = torch.baddbmm(  # [B·Hk·cells, G·L, L]; beta = 0: nothing is read of the first tensor
        q.new_zeros(1),
        to_cells(q, group, height, width).flatten(0, 1),
        to_cells(k, 1, height, width).flatten(0, 1).transpose(-2, -1),
        beta=0,
        alpha=q.shape[-1] ** -0.5,
    )
    if bias is not None:
        scores.view(q.shape[0], bias.shape[0], -1, *bias.shape[1:]).add_(bias.unsqueeze(1))
    y = scores.softmax(dim=-1) @ to_cells(v, 1, height, width).flatten(0, 1)
    return from_cells(y, q, group, height, width)


def within_cells_by_sdpa(
    q: Tensor, k: Tensor, v: Tensor, height: int, width: int, bias: Tensor | None = None
) -> Tensor:
    """The same as one SDPA call, the cells in the place of heads. See Within."""
    group = group_of(q, k)
    queries, keys, values = (to_cells(x, n, height, width) for x, n in ((q, group), (k, 1), (v, 1)))
    mask = None if bias is None else bias.repeat(q.shape[0], 1, 1).unsqueeze(1).expand(-1, queries.shape[1], -1, -1)
    return from_cells(scaled_dot_product_attention(queries, keys, values, mask), q, group, height, width)
