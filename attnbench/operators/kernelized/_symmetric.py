"""Products of each two channels of a token, each once: x_c² · weight, then x_c x_e for c < e, as rows [m, tokens].

Their scalar product is half of (x·y)² where the weight of the squares is √½.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FEW_TOKENS = 16
"""In a chunk, below which a gather of rows takes fewer steps than a product for each channel."""


def squares(x: Tensor, weights: Tensor) -> Tensor:
    """x: […, d, tokens]. weights: of the squares, [d, 1], not differentiated. Returns […, d (d + 1) / 2, tokens]."""
    y: Tensor = _Squares.apply(x, weights)  # type: ignore[no-untyped-call]
    return y


def products(channels: int) -> int:
    """How many they are."""
    return channels * (channels + 1) // 2


class _Squares(torch.autograd.Function):
    """Autograd would keep, and add up, a tensor of all rows for each channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, weights)
        d = x.shape[-2]
        if x.shape[-1] < FEW_TOKENS:
            first, second = torch.triu_indices(d, d, 1, device=x.device)
            later = x.index_select(-2, first) * x.index_select(-2, second)
            return torch.cat((x * x * weights, later), dim=-2)
        y = x.new_empty(*x.shape[:-2], products(d), x.shape[-1])
        torch.mul(x, x * weights, out=y[..., :d, :])
        for c, rows in _places(d):
            torch.mul(x[..., c + 1 :, :], x[..., c : c + 1, :], out=y[..., rows, :])
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        (x, weights), (dy,) = ctx.saved_tensors, cotangents
        d = x.shape[-2]
        dx: Tensor = 2 * weights * x * dy[..., :d, :]
        for c, rows in _places(d):
            dx[..., c + 1 :, :].addcmul_(dy[..., rows, :], x[..., c : c + 1, :])
            dx[..., c, :] += (dy[..., rows, :] * x[..., c + 1 :, :]).sum(dim=-2)
        return dx, None


def _places(d: int) -> list[tuple[int, slice]]:
    """Of each channel c the rows of its products with those after it."""
    places, start = [], d
    for c in range(d - 1):
        places.append((c, slice(start, start + d - 1 - c)))
        start += d - 1 - c
    return places
