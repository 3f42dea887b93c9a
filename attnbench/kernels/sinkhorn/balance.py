"""Balancing a matrix by its potentials: log S_ij = X_ij − u_i − v_j; X is read and never rewritten."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def line_total_kernel(
    x,  # [heads, M, M]
    potential,  # [heads, M], of what runs along the lines
    total,  # out [heads, M]: log Σ_j exp(x_ij − potential_j) of line i
    size,
    line_stride,
    along_stride,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """One program per tile of lines (rows, or columns with the strides exchanged) and head, in that order."""
    tiles = tl.cdiv(size, BLOCK_I)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    lines = tl.program_id(0) % tiles * BLOCK_I + tl.arange(0, BLOCK_I)
    inside = lines < size
    x += head * size * size
    potential += head * size
    largest = tl.full([BLOCK_I], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_I], tl.float32)
    for first in range(0, size, BLOCK_J):
        along = first + tl.arange(0, BLOCK_J)
        mask = inside[:, None] & (along < size)[None, :]
        at = lines.to(tl.int64)[:, None] * line_stride + along.to(tl.int64)[None, :] * along_stride
        entry = tl.load(x + at, mask=mask, other=float("-inf"))
        entry -= tl.load(potential + along, mask=along < size, other=0.0)[None, :]
        highest = tl.maximum(largest, tl.max(entry, axis=1))
        base = tl.where(highest == float("-inf"), 0.0, highest)
        weight = weight * tl.exp(largest - base) + tl.sum(tl.exp(entry - base[:, None]), axis=1)
        largest = highest
    tl.store(total + head * size + lines, largest + tl.log(weight), mask=inside)


@triton.jit
def line_gradient_kernel(
    x,  # [heads, M, M]
    line_potential,  # [heads, M], potential of the lines
    other,  # [heads, M], potential of what runs along them
    along_gradient,  # [heads, M], gradient of what runs along them
    gradient,  # [heads, M], in and out: −Σ_j along_gradient_j exp(x_ij − line_potential_i − other_j) is added to line i
    size,
    line_stride,
    along_stride,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """One program per tile of lines (rows, or columns with the strides exchanged) and head, in that order."""
    tiles = tl.cdiv(size, BLOCK_I)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    lines = tl.program_id(0) % tiles * BLOCK_I + tl.arange(0, BLOCK_I)
    inside = lines < size
    x += head * size * size
    other += head * size
    along_gradient += head * size
    base = tl.load(line_potential + head * size + lines, mask=inside, other=0.0)
    sums = tl.load(gradient + head * size + lines, mask=inside, other=0.0)
    for first in range(0, size, BLOCK_J):
        along = first + tl.arange(0, BLOCK_J)
        mask = inside[:, None] & (along < size)[None, :]
        at = lines.to(tl.int64)[:, None] * line_stride + along.to(tl.int64)[None, :] * along_stride
        entry = tl.load(x + at, mask=mask, other=float("-inf")) - base[:, None]
        entry -= tl.load(other + along, mask=along < size, other=0.0)[None, :]
        sums -= tl.sum(tl.exp(entry) * tl.load(along_gradient + along, mask=along < size, other=0.0)[None, :], axis=1)
    tl.store(gradient + head * size + lines, sums, mask=inside)


@triton.jit
def matrix_kernel(
    x,  # [heads, M, M]
    u,  # [heads, M]
    v,  # [heads, M]
    s,  # out [heads, rows, M]: exp(x_ij − u_i − v_j)
    size,
    rows,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """One program per tile of columns, tile of rows and head, in that order."""
    tiles_j = tl.cdiv(size, BLOCK_J)
    tiles_i = tl.cdiv(rows, BLOCK_I)
    index = tl.program_id(0)
    head = (index // (tiles_j * tiles_i)).to(tl.int64)
    i = index // tiles_j % tiles_i * BLOCK_I + tl.arange(0, BLOCK_I)
    j = index % tiles_j * BLOCK_J + tl.arange(0, BLOCK_J)
    mask = (i < rows)[:, None] & (j < size)[None, :]
    at = i.to(tl.int64)[:, None] * size + j[None, :]
    entry = tl.load(x + head * size * size + at, mask=mask, other=0.0)
    entry -= tl.load(u + head * size + i, mask=i < rows, other=0.0)[:, None]
    entry -= tl.load(v + head * size + j, mask=j < size, other=0.0)[None, :]
    tl.store(s + head * rows * size + at, tl.exp(entry).to(s.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["heads"])  # a head of one is a number to Triton, which has no `to`
def matrix_gradient_kernel(
    x,  # [heads, M, M]
    weighted,  # [heads, rows, M]: dS ∘ S
    u,  # [T, heads, M]
    v,  # [T + 1, heads, M]
    du,  # [T, heads, M]
    dv,  # [T + 1, heads, M]
    dx,  # out [heads, M, M]
    heads,
    size,
    rows,
    iterations,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """One program per tile of columns, tile of rows and head, in that order: every step's share in one pass."""
    tiles_j = tl.cdiv(size, BLOCK_J)
    tiles_i = tl.cdiv(size, BLOCK_I)
    index = tl.program_id(0)
    head = (index // (tiles_j * tiles_i)).to(tl.int64)
    i = index // tiles_j % tiles_i * BLOCK_I + tl.arange(0, BLOCK_I)
    j = index % tiles_j * BLOCK_J + tl.arange(0, BLOCK_J)
    inside_i = i < size
    inside_j = j < size
    mask = inside_i[:, None] & inside_j[None, :]
    at = i.to(tl.int64)[:, None] * size + j[None, :]
    entry = tl.load(x + head * size * size + at, mask=mask, other=0.0)
    total = tl.load(weighted + head * rows * size + at, mask=mask & (i < rows)[:, None], other=0.0)
    for step in range(iterations):
        line = (step * heads + head) * size
        after = line + heads.to(tl.int64) * size
        by_row = entry - tl.load(u + line + i, mask=inside_i, other=0.0)[:, None]
        before_j = tl.load(v + line + j, mask=inside_j, other=0.0)
        after_j = tl.load(v + after + j, mask=inside_j, other=0.0)
        total += tl.load(du + line + i, mask=inside_i, other=0.0)[:, None] * tl.exp(by_row - before_j[None, :])
        total += tl.load(dv + after + j, mask=inside_j, other=0.0)[None, :] * tl.exp(by_row - after_j[None, :])
    tl.store(dx + head * size * size + at, total, mask=mask)
