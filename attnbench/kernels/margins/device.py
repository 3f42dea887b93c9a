"""Row sums, column sums and outer sums of maps: see `launch`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def margins_kernel(
    x,  # [P, h, w]
    rows,  # out [P, h], stride r_p between planes
    columns,  # out [P, bands, w], strides c_p and c_band
    height,
    width,
    r_p,
    c_p,
    c_band,
    row_scale,
    column_scale,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One program per band of rows and plane, in that order."""
    bands = tl.cdiv(height, BLOCK_H)
    index = tl.program_id(0)
    plane = (index // bands).to(tl.int64)
    band = (index % bands).to(tl.int64)
    i = band * BLOCK_H + tl.arange(0, BLOCK_H)
    x += plane * height * width
    columns += plane * c_p + band * c_band
    of_row = tl.zeros([BLOCK_H], tl.float32)
    for first in range(0, width, BLOCK_W):
        j = first + tl.arange(0, BLOCK_W)
        mask = (i < height)[:, None] & (j < width)[None, :]
        tile = tl.load(x + i[:, None] * width + j[None, :], mask=mask, other=0.0).to(tl.float32)
        of_row += tl.sum(tile, axis=1)
        of_column = tl.sum(tile, axis=0) * column_scale
        tl.store(columns + j, of_column.to(columns.dtype.element_ty), mask=j < width)
    tl.store(rows + plane * r_p + i, (of_row * row_scale).to(rows.dtype.element_ty), mask=i < height)


@triton.jit
def outer_sum_kernel(
    margins,  # [P, h + w]
    y,  # out [P, h, w]
    height,
    width,
    row_scale,
    column_scale,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One program per band of rows and plane, in that order."""
    bands = tl.cdiv(height, BLOCK_H)
    index = tl.program_id(0)
    plane = (index // bands).to(tl.int64)
    i = (index % bands).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)
    margins += plane * (height + width)
    y += plane * height * width
    of_row = tl.load(margins + i, mask=i < height, other=0.0).to(tl.float32) * row_scale
    for first in range(0, width, BLOCK_W):
        j = first + tl.arange(0, BLOCK_W)
        of_column = tl.load(margins + height + j, mask=j < width, other=0.0).to(tl.float32) * column_scale
        mask = (i < height)[:, None] & (j < width)[None, :]
        tile = of_row[:, None] + of_column[None, :]
        tl.store(y + i[:, None] * width + j[None, :], tile.to(y.dtype.element_ty), mask=mask)
