"""The lambda convolution: y_n = (λᶜ + Σ_m E_(m−n) v_mᵀ)ᵀ q_n, without lambdas in memory (backward: with them).

Forward (`apply_kernel`) is a product: a program holds the lambdas of a tile of value channels, rows and columns,
[BLOCK_V·BLOCK_Y, |k|·BLOCK_X], multiplies windows of v's rows, shifted by one after the other of E's, with that row of
E as a band matrix (`bands_kernel` makes them, once), and applies the result to every head's query. The bands multiply
(BLOCK_X + r − 1)/r as often as needed, and v is copied once, with zeros around the map, so that windows need no masks.
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
from torch.nn.functional import pad

from attnbench.kernels.building import Configuration, signature
from attnbench.kernels.lambda_convolution.device import (
    apply_kernel,
    bands_kernel,
    embedding_gradient_kernel,
    lambda_gradient_kernel,
    value_gradient_kernel,
)
from attnbench.kernels.launching import (
    CAPABILITIES,
    POINTER,
    PRECISIONS,
    Tiles,
    named,
    operands_in_registers,
    padded,
    precision,
)

BANDS_BLOCK = 1024
"""Elements of a program of `bands_kernel`."""

BAND_SIZES = ("BLOCK_X", "BLOCK_K", "BLOCK_S", "CHUNKS")
"""Of the tiles of `apply_kernel`, what their band matrices depend on."""

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
        side = e.shape[-1]
        tiles = apply_tiles(keys, values, side, v.dtype, save)
        sizes = tiles.constexprs
        padded, bands = padded_values(v, side, tiles), row_bands(e, tiles)
        programs = triton.cdiv(width, sizes["BLOCK_X"]) * triton.cdiv(height, sizes["BLOCK_Y"])
        apply_kernel[(programs * triton.cdiv(values, sizes["BLOCK_V"]) * b,)](
            q, padded, bands, content, lambdas, y, heads, keys, values, depth, height, width, side, *padded.shape[-2:],
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


def padded_values(v: Tensor, side: int, tiles: Tiles) -> Tensor:
    """v with the zeros around the map that any tile's windows reach, rows of a multiple of 16 elements."""
    height, width = v.shape[-2:]
    sizes, border = tiles.constexprs, side // 2
    bottom = triton.cdiv(height, sizes["BLOCK_Y"]) * sizes["BLOCK_Y"] + border - height
    last = (triton.cdiv(width, sizes["BLOCK_X"]) - 1) * sizes["BLOCK_X"]
    pitch = triton.cdiv(last + sizes["CHUNKS"] * sizes["BLOCK_S"], 16) * 16
    return pad(v, (border, pitch - border - width, border, bottom))


def row_bands(e: Tensor, tiles: Tiles) -> Tensor:
    """The band matrices of all rows of E, [pieces, BLOCK_K, BLOCK_X, BLOCK_S]: a piece per layer, row and chunk."""
    keys, depth, side = e.shape[:3]
    sizes = {name: tiles.constexprs[name] for name in BAND_SIZES}
    shape = depth * side * sizes["CHUNKS"], sizes["BLOCK_K"], sizes["BLOCK_X"], sizes["BLOCK_S"]
    bands = torch.empty(shape, dtype=e.dtype, device=e.device)
    bands_kernel[(triton.cdiv(bands.numel(), BANDS_BLOCK),)](
        e, bands, bands.numel(), keys, depth, side, BLOCK=BANDS_BLOCK, **sizes
    )
    return bands


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


def apply_tiles(
    keys: int, values: int, side: int, dtype: torch.dtype, save: bool, capability: int | None = None
) -> Tiles:
    """Of `apply_kernel`: 128 columns, and as many lines as registers hold sums of.

    Args:
        capability: as in `operands_in_registers`.
    """
    block_k = padded(keys)
    block_x = 128 // block_k
    if dtype == torch.float32:
        lines = 64
    else:
        lines = 128 if save or operands_in_registers(capability) else 256
    warps = 4 if lines == 64 and not operands_in_registers(capability) else 8
    block_v = min(triton.next_power_of_2(values), lines // 8)
    window = block_x + side - 1
    block_s = 16 if window <= 16 else 32
    sizes = {"BLOCK_V": block_v, "BLOCK_Y": max(8, 64 // block_v), "BLOCK_X": block_x, "BLOCK_K": block_k}
    return Tiles({**sizes, "BLOCK_S": block_s, "CHUNKS": triton.cdiv(window, block_s)}, warps, 3)


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
                for capabilities in CAPABILITIES:
                    yield from _configurations(values, side, dtype, compute, capabilities)


def _configurations(
    values: int, side: int, dtype: torch.dtype, compute: str, capabilities: tuple[int, ...]
) -> Iterator[Configuration]:
    keys = 16
    names = ("q", "v", "padded", "e", "bands", "content", "lambdas", "y", "dy", "dlambdas", "dq", "dv")
    types = {**dict.fromkeys(names, POINTER[dtype]), "parts": "*fp32"}
    products = {"PRECISION": compute}
    gradient = lambda_gradient_tiles(keys, values)
    several = {"dq": "*fp32"} if gradient.constexprs["BLOCK_V"] < values else {}
    saving, plain = (apply_tiles(keys, values, side, dtype, save, capabilities[0]) for save in (True, False))
    band_sizes = {name: plain.constexprs[name] for name in BAND_SIZES}
    launches: list[tuple[Any, dict[str, Any], Tiles, dict[str, str]]] = [
        (bands_kernel, {"BLOCK": BANDS_BLOCK}, Tiles(band_sizes, 4), {}),
        (apply_kernel, {"SAVE": True, **products}, saving, {}),
        (apply_kernel, {"SAVE": False, **products}, plain, {}),
        (lambda_gradient_kernel, {}, gradient, several),
        (value_gradient_kernel, products, value_gradient_tiles(side, dtype), {}),
        (embedding_gradient_kernel, products, embedding_gradient_tiles(keys, dtype), {}),
    ]
    name = f"v={values} r={side} {named(dtype, compute)}"
    for kernel, settings, tiles, other in launches:
        label = name + (" saving" if settings.get("SAVE") else "")
        sample = values == 64 and side == 23 and dtype == torch.bfloat16 and settings.get("SAVE") is not False
        yield Configuration(
            kernel, signature(kernel, {**types, **other}), {**tiles.constexprs, **settings}, tiles.warps, tiles.stages,
            label, sample and capabilities != (80,), multiples=("pitch",), capabilities=capabilities,
        )  # fmt: skip
