"""The lambda convolution: y_n = (λᶜ + Σ_m E_(m−n) v_mᵀ)ᵀ q_n, without lambdas in memory (backward: with them).

Forward (`apply_kernel`) is a product: a program holds the lambdas of a tile of value channels, rows and columns,
[BLOCK_V·BLOCK_Y, |k|·BLOCK_X], multiplies windows of v's rows, shifted by one after the other of E's, with that row of
E as a band matrix (`bands_kernel` makes them, once), and applies the result to every head's query. The bands multiply
(BLOCK_X + r − 1)/r as often as needed, and v is copied once, with zeros around the map, so that windows need no masks.
To a library a convolution from u = 1 channel to |k| = 16, |v| times over, is memory traffic; here v is read from cache.

Backward keeps the lambdas of the forward in the working dtype. `lambda_gradient_kernel` makes dλ, dq and what the
content lambdas get, at the speed of memory. `embedding_gradient_kernel` multiplies dλ with v's windows, which is the
product of forward transposed, by splits of all pixels; the bands' gradient is then summed along the bands.
`value_gradient_kernel` multiplies dλ with E, spread to the rows and columns around a tile of pixels, so that a product
has 128 columns (`block_bands_kernel`), and `overlap_kernel` adds tiles where they overlap. No atomics: results repeat
bit by bit.

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
    bands_kernel,
    block_bands_kernel,
    border_kernel,
    embedding_gradient_kernel,
    lambda_gradient_kernel,
    overlap_kernel,
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

COPY_BLOCK = 1024
"""Elements of a program of the kernels that copy."""

BAND_SIZES = ("BLOCK_X", "BLOCK_K", "BLOCK_S", "CHUNKS", "WARPS")
"""Of the tiles of `apply_kernel`, what their band matrices depend on."""

BLOCK_BAND_SIZES = ("BLOCK_R", "BLOCK_S", "CHUNKS", "WARPS")
"""Of the tiles of `value_gradient_kernel`, what their band matrices depend on."""

ROWS = 64
"""Rows of a map in a step of `embedding_gradient_kernel`."""

OVERLAP_BLOCK = 256
"""Pixels of a program of `overlap_kernel`."""

OVERLAP_WARPS = 2

PROGRAMS = 132
"""About how many programs the pixels are split into for dE: one for each of 132 multiprocessors."""


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
        side = e.shape[-1]
        y = torch.empty(b, heads, values, height, width, dtype=v.dtype, device=v.device)
        tiles = apply_tiles(keys, values, side, v.dtype)
        sizes = tiles.constexprs
        programs = triton.cdiv(width, sizes["BLOCK_X"]) * triton.cdiv(height, sizes["BLOCK_Y"])
        programs *= triton.cdiv(values, sizes["BLOCK_V"]) * b
        saved = programs, *(sizes[name] for name in ("BLOCK_V", "BLOCK_Y", "BLOCK_K", "BLOCK_X"))
        lambdas = torch.empty(saved, dtype=v.dtype, device=v.device) if save else y
        bordered, bands = bordered_values(v, side, tiles), row_bands(e, tiles)
        apply_kernel[(programs,)](
            q, bordered, bands, content, lambdas, y, heads, keys, values, depth, height, width, side,
            *bordered.shape[-2:], bands[0].numel() // 4, SAVE=save, PRECISION=precision(v.dtype), **tiles.options,
        )  # fmt: skip
        if save:
            ctx.save_for_backward(q, bordered, e, lambdas)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, bordered, e, lambdas = ctx.saved_tensors
        keys, width = q.shape[2], q.shape[-1]
        dlambdas, dq, dcontent = lambda_gradients(q, lambdas, dy.contiguous())
        de = embedding_gradients(dlambdas, bordered, keys, width, e.shape[-1])
        return dq, value_gradients(dlambdas, e, width), de, dcontent, None


def bordered_values(v: Tensor, side: int, tiles: Tiles) -> Tensor:
    """v with the zeros around the map that any tile's windows reach, rows of a multiple of 16 elements."""
    height, width = v.shape[-2:]
    sizes, border = tiles.constexprs, side // 2
    rows = max(ROWS, sizes["BLOCK_Y"])
    bottom = triton.cdiv(height, rows) * rows + border - height
    last = (triton.cdiv(width, sizes["BLOCK_X"]) - 1) * sizes["BLOCK_X"]
    pitch = triton.cdiv(last + sizes["CHUNKS"] * sizes["BLOCK_S"], 16) * 16
    shape = *v.shape[:3], border + height + bottom, pitch
    bordered = torch.empty(shape, dtype=v.dtype, device=v.device)
    blocks = triton.cdiv(shape[-2] * pitch, COPY_BLOCK)
    border_kernel[(blocks * v.shape[:3].numel(),)](v, bordered, height, width, *shape[-2:], border, BLOCK=COPY_BLOCK)
    return bordered


def row_bands(e: Tensor, tiles: Tiles) -> Tensor:
    """The band matrices of all rows of E, [pieces, BLOCK_K, BLOCK_X, BLOCK_S]: a piece per layer, row and chunk."""
    keys, depth, side = e.shape[:3]
    sizes = {name: tiles.constexprs[name] for name in BAND_SIZES}
    shape = depth * side * sizes["CHUNKS"], sizes["BLOCK_K"], sizes["BLOCK_X"], sizes["BLOCK_S"]
    bands = torch.empty(shape, dtype=e.dtype, device=e.device)
    bands_kernel[(triton.cdiv(bands.numel(), COPY_BLOCK),)](
        e, bands, bands.numel(), keys, depth, side, BLOCK=COPY_BLOCK, **sizes
    )
    return bands


def lambda_gradients(q: Tensor, lambdas: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dλ [B, |v|, height, tiles, BLOCK_K, BLOCK_X]; dq; and the gradient of the content lambdas, [B, |v|, |k|].

    Heads go in blocks, a launch each. Where there are several, dλ is added up in float32.
    """
    b, heads, keys, height, width = q.shape
    values = dy.shape[2]
    lines_v, lines_y, block_k, block_x = lambdas.shape[1:]
    tiles_x = triton.cdiv(width, block_x)
    tiles = lambda_gradient_tiles(heads, values, q.dtype)
    blocks = range(0, heads, tiles.constexprs["BLOCK_H"])
    shape = b, values, height, tiles_x, block_k, block_x
    dlambdas = torch.empty(shape, dtype=q.dtype if len(blocks) == 1 else torch.float32, device=q.device)
    dq = torch.empty_like(q)
    sums = torch.empty(b, height * tiles_x, values, block_k, dtype=torch.float32, device=q.device)
    for first in blocks:
        lambda_gradient_kernel[(height * tiles_x * b,)](
            q, lambdas, dy, dlambdas, dq, sums, first, heads, keys, values, height, width, ADD=first > 0,
            BLOCK_K=block_k, BLOCK_X=block_x, LINES_V=lines_v, LINES_Y=lines_y, **tiles.options,
        )  # fmt: skip
    return dlambdas.to(q.dtype), dq, sums.sum(dim=1)[..., :keys].to(q.dtype)


def value_gradients(dlambdas: Tensor, e: Tensor, width: int) -> Tensor:
    """dv [B, |v|, u, height, width]."""
    b, values, height, tiles_x, block_k, block_x = dlambdas.shape
    keys, depth, side = e.shape[:3]
    tiles = value_gradient_tiles(block_x, values, side, e.dtype)
    sizes = {"BLOCK_K": block_k, "BLOCK_X": block_x}
    band_sizes = {**sizes, **{name: tiles.constexprs[name] for name in BLOCK_BAND_SIZES}}
    lines, block_s, chunks = (band_sizes[name] for name in BLOCK_BAND_SIZES[:3])
    bands = torch.empty(
        depth * chunks, side + lines - 1, lines, block_s, block_k, block_x, dtype=e.dtype, device=e.device
    )
    block_bands_kernel[(triton.cdiv(bands.numel(), COPY_BLOCK),)](
        e, bands, bands.numel(), keys, depth, side, BLOCK=COPY_BLOCK, **band_sizes
    )
    block_v, rows = tiles.constexprs["BLOCK_V"], tiles.constexprs["BLOCK_Y"] * lines
    programs = tiles_x * triton.cdiv(height, rows) * triton.cdiv(values, block_v) * depth * chunks * b
    parts = torch.empty(programs, block_v, rows, block_s, dtype=torch.float32, device=e.device)
    value_gradient_kernel[(programs,)](
        dlambdas, bands, parts, values, depth, height, width, side,
        PRECISION=precision(e.dtype), **sizes, **tiles.options,
    )  # fmt: skip
    dv = torch.empty(b, values, depth, height, width, dtype=e.dtype, device=e.device)
    overlap_kernel[(triton.cdiv(width, OVERLAP_BLOCK) * b * values * depth * height,)](
        parts, dv, values, depth, height, width, side, BLOCK_V=block_v, ROWS=rows, BLOCK_X=block_x, BLOCK_S=block_s,
        CHUNKS=chunks, BLOCK=OVERLAP_BLOCK, num_warps=OVERLAP_WARPS,
    )  # fmt: skip
    return dv


def embedding_gradients(dlambdas: Tensor, bordered: Tensor, keys: int, width: int, side: int) -> Tensor:
    """dE [|k|, u, r, r]: the gradient of the bands, then the sum of what each element of E is spread to."""
    b, values, height, tiles_x, block_k, block_x = dlambdas.shape
    depth, rows, pitch = bordered.shape[2:]
    tiles = embedding_gradient_tiles(block_x, side, bordered.dtype)
    sizes = tiles.constexprs
    block_p, window = sizes["BLOCK_P"], sizes["CHUNKS"] * sizes["BLOCK_S"]
    groups = triton.cdiv(depth * side * sizes["CHUNKS"], block_p)
    count = b * values * tiles_x * triton.cdiv(height, sizes["BLOCK_Y"])
    split_len = triton.cdiv(count, max(1, min(count, PROGRAMS // groups)))
    shape = triton.cdiv(count, split_len), block_k, block_x, groups * block_p * sizes["BLOCK_S"]
    parts = torch.empty(shape, dtype=torch.float32, device=bordered.device)
    embedding_gradient_kernel[(groups * shape[0],)](
        bordered, dlambdas, parts, b * values, groups * block_p, depth, height, width, side, rows, pitch // 4,
        split_len, BLOCK_K=block_k, BLOCK_X=block_x, PRECISION=precision(bordered.dtype), **tiles.options,
    )  # fmt: skip
    split, key, x, _ = parts.stride()
    # Element (row, column) of E lies at place column + x of the window of that row, for every pixel x of a tile.
    spread = parts.as_strided((keys, depth, side, side, *shape[::2]), (key, side * window, window, 1, split, x + 1))
    return spread.sum(dim=(-2, -1)).to(bordered.dtype)


def apply_tiles(keys: int, values: int, side: int, dtype: torch.dtype, capability: int | None = None) -> Tiles:
    """Of `apply_kernel`: 128 columns, and so few lines that a multiprocessor has two programs, of which one multiplies
    while the other applies its lambdas.

    Args:
        capability: here and below as in `operands_in_registers`.
    """
    block_k = padded(keys)
    lines, warps = 64 if dtype == torch.float32 else 128, 8 if operands_in_registers(capability) else 4
    block_v = min(triton.next_power_of_2(values), lines // 8)
    block_x = 128 // block_k
    sizes = {"BLOCK_V": block_v, "BLOCK_Y": lines // block_v, "BLOCK_X": block_x, "BLOCK_K": block_k}
    windows = _windows(block_x, side)
    through_registers = dtype != torch.float32 and windows["BLOCK_S"] == 32
    return Tiles({**sizes, **windows, "WARPS": warps if through_registers else 0}, warps, 3)


def _windows(block_x: int, side: int) -> dict[str, int]:
    """How the columns that a tile of BLOCK_X pixels reaches are cut: CHUNKS of BLOCK_S."""
    window = block_x + side - 1
    block_s = 16 if window <= 16 else 32
    return {"BLOCK_S": block_s, "CHUNKS": triton.cdiv(window, block_s)}


def lambda_gradient_tiles(heads: int, values: int, dtype: torch.dtype) -> Tiles:
    """Of `lambda_gradient_kernel`. Few warps, so that a thread has several keys for each value of dy that it reads."""
    block_v = min(triton.next_power_of_2(values), 4 if dtype == torch.float32 else 8)
    return Tiles({"BLOCK_H": min(triton.next_power_of_2(heads), 8), "BLOCK_V": block_v, "STAGES": 3}, 2)


def value_gradient_tiles(
    block_x: int, values: int, side: int, dtype: torch.dtype, capability: int | None = None
) -> Tiles:
    """Of `value_gradient_kernel` and `block_bands_kernel`: 128 columns, and as many lines as registers hold sums of.

    Operands go through shared memory: on an H100 that takes 251 µs at 256 × 256 pixels, through registers 337 µs.
    """
    if dtype == torch.float32:
        lines, warps = 64, 8 if operands_in_registers(capability) else 4
    else:
        lines, warps = 128 if operands_in_registers(capability) else 256, 8
    windows = _windows(block_x, side)
    rows = 128 // windows["BLOCK_S"]
    block_y = max(lines // 64, lines // triton.next_power_of_2(values))
    sizes = {"BLOCK_V": lines // block_y, "BLOCK_Y": block_y, "BLOCK_R": rows}
    return Tiles({**sizes, **windows, "BLOCK_I": 32, "WARPS": 0}, warps, 3)


def embedding_gradient_tiles(block_x: int, side: int, dtype: torch.dtype, capability: int | None = None) -> Tiles:
    """Of `embedding_gradient_kernel`."""
    windows = _windows(block_x, side)
    columns = 128 if dtype == torch.float32 or operands_in_registers(capability) else 256
    rows = 32 if dtype == torch.float32 else ROWS
    return Tiles({"BLOCK_Y": rows, "BLOCK_P": columns // windows["BLOCK_S"], **windows}, 8, 3)


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
    keys, heads, capability = 16, 8, capabilities[0]
    names = ("q", "v", "bordered", "e", "bands", "content", "lambdas", "y", "dy", "dlambdas", "dq", "dv")
    types = {**dict.fromkeys(names, POINTER[dtype]), "parts": "*fp32", "sums": "*fp32"}
    products = {"PRECISION": compute}
    convolution = apply_tiles(keys, values, side, dtype, capability)
    tile = {name: convolution.constexprs[name] for name in ("BLOCK_K", "BLOCK_X")}
    block_x = tile["BLOCK_X"]
    value = value_gradient_tiles(block_x, values, side, dtype, capability)
    embedding = embedding_gradient_tiles(block_x, side, dtype, capability)
    band_sizes = {name: convolution.constexprs[name] for name in BAND_SIZES}
    block_band_sizes = {name: value.constexprs[name] for name in BLOCK_BAND_SIZES}
    blocks = value.constexprs
    lines = {"LINES_V": convolution.constexprs["BLOCK_V"], "LINES_Y": convolution.constexprs["BLOCK_Y"]}
    overlap = {**{name: blocks[name] for name in ("BLOCK_V", "BLOCK_S", "CHUNKS")}, "BLOCK_X": block_x}
    overlap["ROWS"] = blocks["BLOCK_Y"] * blocks["BLOCK_R"]
    launches: list[tuple[Any, dict[str, Any], Tiles]] = [
        (border_kernel, {"BLOCK": COPY_BLOCK}, Tiles({}, 4)),
        (bands_kernel, {"BLOCK": COPY_BLOCK}, Tiles(band_sizes, 4)),
        (apply_kernel, {"SAVE": True, **products}, convolution),
        (apply_kernel, {"SAVE": False, **products}, convolution),
        (lambda_gradient_kernel, {"ADD": False, **tile, **lines}, lambda_gradient_tiles(heads, values, dtype)),
        (block_bands_kernel, {"BLOCK": COPY_BLOCK, **tile}, Tiles(block_band_sizes, 4)),
        (value_gradient_kernel, {**products, **tile}, value),
        (overlap_kernel, {**overlap, "BLOCK": OVERLAP_BLOCK}, Tiles({}, OVERLAP_WARPS)),
        (embedding_gradient_kernel, {**products, **tile}, embedding),
    ]
    name = f"v={values} r={side} {named(dtype, compute)}"
    for kernel, settings, tiles in launches:
        label = name + (" saving" if settings.get("SAVE") else "")
        sample = values == 64 and side == 23 and dtype == torch.bfloat16 and settings.get("SAVE") is not False
        yield Configuration(
            kernel, signature(kernel, types), {**tiles.constexprs, **settings}, tiles.warps, tiles.stages, label,
            sample and capability != 80, ("keys", "values", "height", "width", "pitch"), capabilities,
        )  # fmt: skip
