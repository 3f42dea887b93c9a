"""The lambda convolution: y_n = (λᶜ + Σ_m E_(m−n) v_mᵀ)ᵀ q_n, without lambdas in memory (backward: with them).

Forward (`apply_kernel`) is an implicit product: a program holds the lambdas of a tile of pixels and value channels,
[BLOCK_V·BLOCK_N, |k|], gathers v at all u·r² offsets, BLOCK_J at a time, and applies the result to every head's query.
To a library a convolution from u = 1 channel to |k| = 16, |v| times over, is memory traffic; here v is read from cache.

Backward keeps the lambdas of the forward in the working dtype: `lambda_gradient_kernel` makes dλ and dq, which
`embedding_gradient_kernel` multiplies with v (the product of forward, transposed, by splits of all pixels) and
`value_gradient_kernel` with E, whose rows it spreads into band matrices: a convolution to one channel would leave
tensor cores idle, and the bands multiply (BLOCK_X + r − 1)/r as often as needed. No atomics: results repeat bit by bit.

Precision: products in the working dtype, added up in float32. float32: TF32 where torch allows it for matrix products
(`torch.backends.cuda.matmul.allow_tf32`), else three TF32 products that make up a float32 one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from attnbench.kernels.building import Configuration, signature
from attnbench.kernels.lambda_convolution.device import (
    apply_kernel,
    embedding_gradient_kernel,
    lambda_gradient_kernel,
    value_gradient_kernel,
)
from attnbench.kernels.launching import POINTER, PRECISIONS, Tiles, named, padded, precision

PROGRAMS = 528
"""About how many programs the pixels are split into for dE: four for each of 132 multiprocessors."""


def apply(q: Tensor, v: Tensor, e: Tensor, content: Tensor) -> Tensor:
    """The lambdas of position and content applied to the queries; differentiable in all tensors, once.

    Args:
        q: [B, h, |k|, height, width] on one CUDA device, |k| ≤ 64.
        v: [B, |v|, u, height, width].
        e: [|k|, u, r, r], r odd.
        content: [B, |v|, |k|].
    Returns: [B, h, |v|, height, width].
    """
    save = torch.is_grad_enabled() and any(x.requires_grad for x in (q, v, e, content))
    y: Tensor = _Apply.apply(*(x.contiguous() for x in (q, v, e, content)), save)
    return y


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, v: Tensor, e: Tensor, content: Tensor, save: bool) -> Tensor:
        b, heads, keys, height, width = q.shape
        values, depth = v.shape[1:3]
        y = torch.empty(b, heads, values, height, width, dtype=v.dtype, device=v.device)
        lambdas = torch.empty(b, values, keys, height, width, dtype=v.dtype, device=v.device) if save else y
        tiles = apply_tiles(keys, values, v.dtype)
        count = triton.cdiv(height * width, tiles.constexprs["BLOCK_N"])
        apply_kernel[(count * triton.cdiv(values, tiles.constexprs["BLOCK_V"]) * b,)](
            q, v, e, content, lambdas, y, heads, keys, values, depth, height, width, e.shape[-1],
            SAVE=save, PRECISION=precision(v.dtype), **tiles.options,
        )  # fmt: skip
        if save:
            ctx.save_for_backward(q, v, e, lambdas)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, v, e, lambdas = ctx.saved_tensors
        dlambdas, dq = lambda_gradients(q, lambdas, dy.contiguous())
        dcontent = dlambdas.flatten(3).sum(dim=-1)  # [B, |v|, |k|], added up in float32
        return dq, value_gradients(dlambdas, v, e), embedding_gradients(dlambdas, v, e), dcontent, None


def lambda_gradients(q: Tensor, lambdas: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """dλ, of the lambdas' shape, and dq."""
    b, heads, keys, height, width = q.shape
    values, n = lambdas.shape[1], height * width
    tiles = lambda_gradient_tiles(keys, values)
    parts = triton.cdiv(values, tiles.constexprs["BLOCK_V"])
    dlambdas = torch.empty_like(lambdas)
    dq = torch.empty(parts, *q.shape, dtype=q.dtype if parts == 1 else torch.float32, device=q.device)
    lambda_gradient_kernel[(triton.cdiv(n, tiles.constexprs["BLOCK_N"]) * parts * b,)](
        q, lambdas, dy, dlambdas, dq, heads, keys, values, n, **tiles.options
    )
    return dlambdas, dq.squeeze(0) if parts == 1 else dq.sum(dim=0).to(q.dtype)


def value_gradients(dlambdas: Tensor, v: Tensor, e: Tensor) -> Tensor:
    """dv, of v's shape."""
    b, values, depth, height, width = v.shape
    keys, side = e.shape[0], e.shape[-1]
    dv = torch.empty_like(v)
    tiles = value_gradient_tiles(side, v.dtype)
    sizes = tiles.constexprs
    programs = triton.cdiv(width, sizes["BLOCK_X"]) * triton.cdiv(height, sizes["BLOCK_Y"])
    value_gradient_kernel[(programs * triton.cdiv(values, sizes["BLOCK_V"]) * depth * b,)](
        dlambdas, e, dv, keys, values, depth, height, width, side, PRECISION=precision(v.dtype), **tiles.options
    )
    return dv


def embedding_gradients(dlambdas: Tensor, v: Tensor, e: Tensor) -> Tensor:
    """dE, of E's shape."""
    b, values, depth, height, width = v.shape
    keys, side = e.shape[0], e.shape[-1]
    terms = depth * side * side
    tiles = embedding_gradient_tiles(keys, v.dtype)
    count = b * values * triton.cdiv(height * width, tiles.constexprs["BLOCK_N"])
    columns = triton.cdiv(terms, tiles.constexprs["BLOCK_J"])
    split_len = triton.cdiv(count, max(1, min(count, PROGRAMS // columns)))
    splits = triton.cdiv(count, split_len)
    parts = torch.empty(splits, terms, keys, dtype=torch.float32, device=v.device)
    embedding_gradient_kernel[(columns * splits,)](
        v, dlambdas, parts, count, keys, depth, height, width, side, split_len,
        PRECISION=precision(v.dtype), **tiles.options,
    )  # fmt: skip
    return parts.sum(dim=0).t().reshape(e.shape).to(e.dtype)


def apply_tiles(keys: int, values: int, dtype: torch.dtype) -> Tiles:
    """Of `apply_kernel`: at most 4096 lambdas' elements, 2048 where products are wide."""
    block_k = padded(keys)
    rows = max(32, (2048 if dtype == torch.float32 else 4096) // block_k)
    block_v = min(triton.next_power_of_2(values), rows // 16)
    return Tiles({"BLOCK_N": rows // block_v, "BLOCK_V": block_v, "BLOCK_K": block_k, "BLOCK_J": 32}, 4)


def lambda_gradient_tiles(keys: int, values: int) -> Tiles:
    """Of `lambda_gradient_kernel`."""
    block_k = padded(keys)
    block_v = min(triton.next_power_of_2(values), max(1, 256 // block_k))
    return Tiles({"BLOCK_N": 16, "BLOCK_V": block_v, "BLOCK_K": block_k}, 4)


def value_gradient_tiles(side: int, dtype: torch.dtype) -> Tiles:
    """Of `value_gradient_kernel`."""
    block_x = 16 if dtype == torch.float32 else 32
    return Tiles({"BLOCK_V": 8, "BLOCK_Y": 8, "BLOCK_X": block_x, "BLOCK_S": padded(block_x + side - 1)}, 4)


def embedding_gradient_tiles(keys: int, dtype: torch.dtype) -> Tiles:
    """Of `embedding_gradient_kernel`."""
    block_n, warps = (32, 4) if dtype == torch.float32 else (64, 8)
    return Tiles({"BLOCK_J": 64, "BLOCK_N": block_n, "BLOCK_K": padded(keys)}, warps)


def configurations() -> Iterator[Configuration]:
    """Every default configuration: |k| = 16, r = 7, 23, |v| = 32, 64, 128; bfloat16, float16, float32 (TF32 or not)."""
    for values in (32, 64, 128):
        for side in (7, 23):
            for dtype, compute in PRECISIONS:
                yield from _configurations(values, side, dtype, compute)


def _configurations(values: int, side: int, dtype: torch.dtype, compute: str) -> Iterator[Configuration]:
    keys = 16
    types = dict.fromkeys(("q", "v", "e", "content", "lambdas", "y", "dy", "dlambdas", "dq", "dv"), POINTER[dtype])
    types["parts"] = "*fp32"
    products = {"PRECISION": compute}
    tiles = lambda_gradient_tiles(keys, values)
    several = {"dq": "*fp32"} if tiles.constexprs["BLOCK_V"] < values else {}
    launches: list[tuple[Any, dict[str, Any], Tiles, dict[str, str]]] = [
        (apply_kernel, {"SAVE": True, **products}, apply_tiles(keys, values, dtype), {}),
        (apply_kernel, {"SAVE": False, **products}, apply_tiles(keys, values, dtype), {}),
        (lambda_gradient_kernel, {}, tiles, several),
        (value_gradient_kernel, products, value_gradient_tiles(side, dtype), {}),
        (embedding_gradient_kernel, products, embedding_gradient_tiles(keys, dtype), {}),
    ]
    name = f"v={values} r={side} {named(dtype, compute)}"
    for kernel, settings, kernel_tiles, other in launches:
        label = name + (" saving" if settings.get("SAVE") else "")
        sample = values == 32 and side == 23 and dtype == torch.bfloat16 and settings.get("SAVE") is not False
        constexprs = {**kernel_tiles.constexprs, **settings}
        argument_types = signature(kernel, {**types, **other})
        yield Configuration(kernel, argument_types, constexprs, kernel_tiles.warps, kernel_tiles.stages, label, sample)
