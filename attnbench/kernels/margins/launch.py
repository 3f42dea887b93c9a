"""The margins of a map, its row sums and its column sums in one pass over it, and their adjoint, the outer sum.

margins: [B, C, h, w] → [B, C, h + w], Σ_j x_ij · row_scale, then Σ_i x_ij · column_scale. outer_sum: [B, C, h + w] →
[B, C, h, w], m_i · row_scale + m_{h+j} · column_scale. Each is the gradient of the other. Serves kao_kv and kao_qkv.

Both move every element of the map once and compute little: they are bound by memory. A program takes a band of rows of
one plane and runs over its width; where a plane has several bands, their column sums are added up afterwards, in
float32 as all sums are. Offsets of planes and rows are int64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from attnbench.kernels.building import Configuration, signature
from attnbench.kernels.margins.device import margins_kernel, outer_sum_kernel

TILE = 4096
"""Elements of the map that a program has in registers at once."""

MAX_WIDTH = 256


def margin_means(x: Tensor) -> Tensor:
    """[B, C, h, w] → [B, C, h + w]: the means over the width, then those over the height. Differentiable once."""
    return _Margins.apply(x, 1 / x.shape[3], 1 / x.shape[2])


def outer_sum(margins: Tensor, height: int, width: int) -> Tensor:
    """[B, C, h + w] → [B, C, h, w]: y_ij = m_i + m_{h+j}. Differentiable once."""
    return _OuterSum.apply(margins, height, width, 1.0, 1.0)


class _Margins(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, row_scale: float, column_scale: float) -> Tensor:
        ctx.sides, ctx.scales = x.shape[2:], (row_scale, column_scale)
        return launch_margins(x, row_scale, column_scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dmargins: Tensor) -> tuple[Tensor | None, ...]:
        return launch_outer_sum(dmargins, *ctx.sides, *ctx.scales), None, None


class _OuterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, margins: Tensor, height: int, width: int, row_scale: float, column_scale: float) -> Tensor:
        ctx.scales = row_scale, column_scale
        return launch_outer_sum(margins, height, width, row_scale, column_scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return launch_margins(dy, *ctx.scales), None, None, None, None


def launch_margins(x: Tensor, row_scale: float, column_scale: float) -> Tensor:
    """[B, C, h, w] → [B, C, h + w]."""
    x = x.contiguous()
    b, c, h, w = x.shape
    tile = blocks(h, w)
    bands = triton.cdiv(h, tile["BLOCK_H"])
    out = torch.empty(b * c, h + w, dtype=x.dtype, device=x.device)
    parts = out[:, None, h:]
    if bands > 1:
        parts = torch.empty(b * c, bands, w, dtype=torch.float32, device=x.device)
    margins_kernel[(b * c * bands,)](
        x, out, parts, h, w, out.stride(0), *parts.stride()[:2], row_scale, column_scale, num_warps=4, **tile
    )  # fmt: skip
    if bands > 1:
        out[:, h:] = parts.sum(dim=1)
    return out.view(b, c, h + w)


def launch_outer_sum(margins: Tensor, height: int, width: int, row_scale: float, column_scale: float) -> Tensor:
    """[B, C, h + w] → [B, C, h, w]."""
    margins = margins.contiguous()
    b, c, _ = margins.shape
    y = torch.empty(b, c, height, width, dtype=margins.dtype, device=margins.device)
    tile = blocks(height, width)
    outer_sum_kernel[(b * c * triton.cdiv(height, tile["BLOCK_H"]),)](
        margins, y, height, width, row_scale, column_scale, num_warps=4, **tile
    )  # fmt: skip
    return y


def blocks(height: int, width: int) -> dict[str, int]:
    """BLOCK_H and BLOCK_W: whole rows where they fit, and as many of them as make up a tile."""
    block_w = min(triton.next_power_of_2(width), MAX_WIDTH)
    return {"BLOCK_H": min(triton.next_power_of_2(height), TILE // block_w), "BLOCK_W": block_w}


def configurations() -> Iterator[Configuration]:
    """Sides 14, 56, 224 and 1024 in bfloat16, float16 and float32."""
    for side in (14, 56, 224, 1024):
        for name in ("bf16", "fp16", "fp32"):
            types = {**dict.fromkeys(("x", "rows", "margins", "y"), f"*{name}"), "row_scale": "fp32"}
            tile = blocks(side, side)
            one = triton.cdiv(side, tile["BLOCK_H"]) == 1
            types |= {"columns": f"*{name}" if one else "*fp32", "column_scale": "fp32"}
            for kernel in (margins_kernel, outer_sum_kernel):
                sample = side == 224 and name == "bf16"
                yield Configuration(kernel, signature(kernel, types), tile, 4, 3, f"side={side} {name}", sample)
