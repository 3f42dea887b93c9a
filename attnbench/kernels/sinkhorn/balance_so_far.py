"""Balancing in the causal form: row i is divided by its sum over j ≤ i, entry ij by column j's sum over rows j … i.

In logarithms a round is a = X − u, u_i = log Σ_{j ≤ i} exp X_ij, and X' = a − c, c_ij = log Σ_{j ≤ i' ≤ i} exp a_i'j.
Backward, from the gradient g' of X': of a it is g'_ij − exp(X'_ij) G_ij with the recurrence from the last row up
G_ij = g'_ij + exp(c_ij − c_(i+1)j) G_(i+1)j, whose factors are at most 1. Of X it is that of a, less exp(a_ij) times
the sum of that of a over row i.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_total_kernel(
    x,  # [heads, M, M]
    total,  # out [heads, M]: u
    size,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """One program per tile of rows and head, in that order."""
    tiles = tl.cdiv(size, BLOCK_I)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    first = tl.program_id(0) % tiles * BLOCK_I
    rows = first + tl.arange(0, BLOCK_I)
    x += head * size * size
    largest = tl.full([BLOCK_I], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_I], tl.float32)
    for start in range(0, tl.minimum(first + BLOCK_I, size), BLOCK_J):
        columns = start + tl.arange(0, BLOCK_J)
        entry = _entries(x, rows, columns, size, float("-inf"))
        highest = tl.maximum(largest, tl.max(entry, axis=1))
        base = tl.where(highest == float("-inf"), 0.0, highest)
        weight = weight * tl.exp(largest - base) + tl.sum(tl.exp(entry - base[:, None]), axis=1)
        largest = highest
    tl.store(total + head * size + rows, largest + tl.log(weight), mask=rows < size)


@triton.jit
def column_scan_kernel(
    x,  # [heads, M, M]
    total,  # [heads, M]: u
    balanced,  # out [heads, M, M]: X', where j ≤ i
    s,  # out [heads, M, M + 1], LAST: exp X', and 0 where j > i
    size,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    LAST: tl.constexpr,
):
    """One program per tile of M + 1 columns and head, in that order."""
    tiles = tl.cdiv(size + 1, BLOCK_J)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    columns = tl.program_id(0) % tiles * BLOCK_J + tl.arange(0, BLOCK_J)
    x += head * size * size
    balanced += head * size * size
    s += head * size * (size + 1)
    above = tl.full([BLOCK_J], float("-inf"), tl.float32)  # c of the row before
    for start in range(0, size, BLOCK_I):
        rows = start + tl.arange(0, BLOCK_I)
        row_total = tl.load(total + head * size + rows, mask=rows < size, other=0.0)
        entry = _entries(x, rows, columns, size, float("-inf")) - row_total[:, None]
        highest = tl.maximum(above, tl.max(entry, axis=0))
        base = tl.where(highest == float("-inf"), 0.0, highest)[None, :]
        sums = tl.cumsum(tl.exp(entry - base), axis=0) + tl.exp(above[None, :] - base)
        so_far = tl.log(tl.maximum(sums, 1.1754944e-38)) + base
        result = entry - so_far
        at = rows.to(tl.int64)[:, None] * size + columns[None, :]
        inside = (rows < size)[:, None] & (columns < size)[None, :]
        visible = columns[None, :] <= rows[:, None]
        tl.store(balanced + at, result, mask=inside & visible)
        if LAST:
            at = rows.to(tl.int64)[:, None] * (size + 1) + columns[None, :]
            wider = (rows < size)[:, None] & (columns <= size)[None, :]
            tl.store(s + at, tl.where(visible & inside, tl.exp(result), 0.0), mask=wider)
        last = tl.where((rows == start + BLOCK_I - 1)[:, None], so_far, 0.0)
        above = tl.where(columns < start + BLOCK_I, tl.sum(last, axis=0), float("-inf"))


@triton.jit
def column_gradient_kernel(
    x,  # [heads, M, M]
    total,  # [heads, M]: u
    balanced,  # [heads, M, M]: X'
    gradient,  # [heads, M, M], in and out, where j ≤ i: of X', then of a
    size,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """One program per tile of columns and head, in that order; rows from the last up."""
    tiles = tl.cdiv(size, BLOCK_J)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    first = tl.program_id(0) % tiles * BLOCK_J
    columns = first + tl.arange(0, BLOCK_J)
    x += head * size * size
    balanced += head * size * size
    gradient += head * size * size
    total += head * size
    below = tl.zeros([BLOCK_J], tl.float32)  # G of the row after
    for step in range(tl.cdiv(size, BLOCK_I) - first // BLOCK_I):
        start = (tl.cdiv(size, BLOCK_I) - 1 - step) * BLOCK_I
        rows = start + tl.arange(0, BLOCK_I)
        result = _entries(balanced, rows, columns, size, float("-inf"))
        so_far = _so_far(x, total, balanced, rows, columns, size)
        next_so_far = _so_far(x, total, balanced, rows + 1, columns, size)
        entry = _entries(gradient, rows, columns, size, 0.0)
        visible = columns[None, :] <= rows[:, None]
        shrink = tl.where(visible & (rows + 1 < size)[:, None], tl.exp(so_far - next_so_far), 0.0)
        product, inner = tl.associative_scan((shrink, entry), 0, _chained, reverse=True)
        sums = inner + product * below[None, :]
        at = rows.to(tl.int64)[:, None] * size + columns[None, :]
        inside = (rows < size)[:, None] & (columns < size)[None, :]
        tl.store(gradient + at, entry - tl.exp(result) * sums, mask=inside & visible)
        below = tl.sum(tl.where((rows == start)[:, None], sums, 0.0), axis=0)


@triton.jit
def row_gradient_kernel(
    x,  # [heads, M, M]
    total,  # [heads, M]: u
    gradient,  # [heads, M, M], in and out, where j ≤ i: of a, then of X
    size,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    FIRST: tl.constexpr,
):
    """One program per tile of rows and head, in that order. FIRST: entries with j > i are set to 0."""
    tiles = tl.cdiv(size, BLOCK_I)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    first = tl.program_id(0) % tiles * BLOCK_I
    rows = first + tl.arange(0, BLOCK_I)
    x += head * size * size
    gradient += head * size * size
    sums = tl.zeros([BLOCK_I], tl.float32)
    end = tl.minimum(first + BLOCK_I, size)
    for start in range(0, end, BLOCK_J):
        sums += tl.sum(_entries(gradient, rows, start + tl.arange(0, BLOCK_J), size, 0.0), axis=1)
    row_total = tl.load(total + head * size + rows, mask=rows < size, other=0.0)
    if FIRST:
        end = size
    for start in range(0, end, BLOCK_J):
        columns = start + tl.arange(0, BLOCK_J)
        p = tl.exp(_entries(x, rows, columns, size, float("-inf")) - row_total[:, None])
        entry = _entries(gradient, rows, columns, size, 0.0) - p * sums[:, None]
        inside = (rows < size)[:, None] & (columns < size)[None, :]
        if not FIRST:
            inside &= columns[None, :] <= rows[:, None]
        at = rows.to(tl.int64)[:, None] * size + columns[None, :]
        tl.store(gradient + at, entry, mask=inside)


@triton.jit
def _entries(x, rows, columns, size, other):
    """x_ij where j ≤ i and both are inside, else `other`: [rows, columns]."""
    mask = (rows < size)[:, None] & (columns < size)[None, :] & (columns[None, :] <= rows[:, None])
    return tl.load(x + rows.to(tl.int64)[:, None] * size + columns[None, :], mask=mask, other=other)


@triton.jit
def _so_far(x, total, balanced, rows, columns, size):
    """c = X − u − X' where j ≤ i, else −∞."""
    row_total = tl.load(total + rows, mask=rows < size, other=0.0)
    before = _entries(x, rows, columns, size, float("-inf"))
    return before - row_total[:, None] - _entries(balanced, rows, columns, size, 0.0)


@triton.jit
def _chained(later_factor, later_sum, factor, value):
    return later_factor * factor, value + factor * later_sum
