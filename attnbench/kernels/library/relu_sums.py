"""y_i = Σ_j relu(a_i + b_j) g_j in O(N log N + N·D): sorted by b, the positive terms are the first so many.

With b sorted from the largest down, relu(a_i + b_j) = a_i + b_j for the first r_i keys and 0 for the others, so
y_i = a_i Σ_{j < r_i} g_j + Σ_{j < r_i} b_j g_j: two prefix sums, looked up at r_i. Exact but for rounding; plain torch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK = 256
"""Tokens whose sums are run serially; chunks and columns run side by side."""


def relu_sums(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """a, b: [B, H, N]; g: [B, H, N, D]. Returns [B, H, N, D] in g's dtype; half precisions are summed in float32."""
    dtype = torch.promote_types(g.dtype, torch.float32)
    falling, order = (-b.to(dtype)).sort(dim=-1)  # −b from the smallest up
    values = g.to(dtype).gather(2, order.unsqueeze(-1).expand_as(g))
    sums = prefix_sums(torch.cat((values, -falling.unsqueeze(-1) * values), dim=-1))  # [B, H, N + 1, 2·D]
    a = a.to(dtype)
    bounds = falling.detach().contiguous()
    positive = torch.searchsorted(bounds, a.detach().contiguous()).unsqueeze(-1)  # r_i: how many −b_j < a_i
    plain, weighted = sums.gather(2, positive.expand(-1, -1, -1, sums.shape[-1])).chunk(2, dim=-1)
    return (a.unsqueeze(-1) * plain + weighted).to(g.dtype)


def prefix_sums(x: Tensor) -> Tensor:
    """[B, H, N, D] → [B, H, N + 1, D]: the sum of the first 0, 1, … N rows."""
    n = x.shape[2]
    chunks = -(-n // CHUNK)
    cut = pad(x, (0, 0, 0, chunks * CHUNK - n)).unflatten(2, (chunks, CHUNK))
    inside = cut.cumsum(dim=3)
    before = pad(inside[:, :, :-1, -1].cumsum(dim=2), (0, 0, 1, 0))  # [B, H, chunks, D]
    return pad((inside + before.unsqueeze(3)).flatten(2, 3)[:, :, :n], (0, 0, 1, 0))
