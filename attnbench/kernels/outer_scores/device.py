"""Kernels of `outer_scores`. Shapes, contiguous: alpha [B·H, N, a], beta [B·H, N, t], v, y, dy [B·H, N, D].

Key j = τ·a + σ has the score alpha_iσ · beta_iτ. A tile of keys is a range of σ within one τ, so that its scores are a
tile of alpha times a column of beta, in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(pointer, rows, row_mask, width, first, BLOCK: tl.constexpr):
    """Columns first … first + BLOCK of the rows of a [·, width] tensor, 0 outside."""
    columns = first + tl.arange(0, BLOCK)
    mask = row_mask[:, None] & (columns < width)[None, :]
    return tl.load(pointer + rows[:, None] * width + columns[None, :], mask=mask, other=0.0)


@triton.jit
def masked_scores(alpha_tile, beta_column, rows, keys, key_mask, CAUSAL: tl.constexpr):
    """[BLOCK_N, BLOCK_S] in float32, −inf where a query does not see a key."""
    scores = alpha_tile * beta_column[:, None]
    visible = key_mask[None, :]
    if CAUSAL:
        visible = visible & (keys[None, :] <= rows[:, None])
    return tl.where(visible, scores, float("-inf"))


@triton.jit
def attend_outer_kernel(
    alpha,
    beta,
    v,
    y,  # out
    totals,  # out [B·H, N]: log Σ exp
    seq_len,
    width,  # a
    columns,  # t
    head_dim,
    CAUSAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of queries and head. Scores are of the first key's order: the softmax is kept as it goes."""
    tiles = tl.cdiv(seq_len, BLOCK_N)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    first_row = tl.program_id(0) % tiles * BLOCK_N
    rows = (first_row + tl.arange(0, BLOCK_N)).to(tl.int64)
    row_mask = rows < seq_len
    alpha += head * seq_len * width
    beta += head * seq_len * columns
    v += head * seq_len * head_dim
    channels = tl.arange(0, BLOCK_D)

    answer = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    highest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, width, BLOCK_S):
        inside = first + tl.arange(0, BLOCK_S)
        alpha_tile = load_rows(alpha, rows, row_mask, width, first, BLOCK_S).to(tl.float32)
        last = columns
        if CAUSAL:
            last = tl.minimum(columns, tl.maximum(first_row + BLOCK_N - 1 - first + width, 0) // width)
        for column in range(0, last):  # noqa: PIE808
            beta_column = tl.load(beta + rows * columns + column, mask=row_mask, other=0.0).to(tl.float32)
            keys = (column * width + inside).to(tl.int64)
            key_mask = (inside < width) & (keys < seq_len)
            scores = masked_scores(alpha_tile, beta_column, rows, keys, key_mask, CAUSAL)
            raised = tl.maximum(highest, tl.max(scores, axis=1))
            shift = tl.where(raised == float("-inf"), 0.0, raised)
            weights = tl.exp(scores - shift[:, None])
            rescale = tl.exp(highest - shift)
            total = total * rescale + tl.sum(weights, axis=1)
            value = load_rows(v, keys, key_mask, head_dim, 0, BLOCK_D)
            answer = tl.dot(weights.to(value.dtype), value, answer * rescale[:, None], input_precision=PRECISION)
            highest = raised
    answer = answer / total[:, None]
    offsets = (head * seq_len + rows)[:, None] * head_dim + channels[None, :]
    tl.store(y + offsets, answer.to(y.dtype.element_ty), mask=row_mask[:, None] & (channels < head_dim)[None, :])
    tl.store(totals + head * seq_len + rows, highest + tl.log(total), mask=row_mask)


@triton.jit
def outer_score_gradient_kernel(
    alpha,
    beta,
    v,
    dy,
    totals,
    agreements,  # [B·H, N]: y_i · dy_i
    dalpha,  # out
    dbeta,  # out [tiles of a, B·H, N, t] in float32
    seq_len,
    width,
    columns,
    head_dim,
    CAUSAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of queries and head."""
    tiles = tl.cdiv(seq_len, BLOCK_N)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    heads = (tl.num_programs(0) // tiles).to(tl.int64)
    first_row = tl.program_id(0) % tiles * BLOCK_N
    rows = (first_row + tl.arange(0, BLOCK_N)).to(tl.int64)
    row_mask = rows < seq_len
    v += head * seq_len * head_dim
    cotangent = load_rows(dy + head * seq_len * head_dim, rows, row_mask, head_dim, 0, BLOCK_D)
    total = tl.load(totals + head * seq_len + rows, mask=row_mask, other=float("inf"))
    agreement = tl.load(agreements + head * seq_len + rows, mask=row_mask, other=0.0)
    for first in range(0, width, BLOCK_S):
        inside = first + tl.arange(0, BLOCK_S)
        alpha_tile = load_rows(alpha + head * seq_len * width, rows, row_mask, width, first, BLOCK_S).to(tl.float32)
        gradient = tl.zeros([BLOCK_N, BLOCK_S], tl.float32)
        part = (first // BLOCK_S * heads + head) * seq_len
        for column in range(0, columns):  # noqa: PIE808
            beta_column = tl.load(beta + (head * seq_len + rows) * columns + column, mask=row_mask, other=0.0)
            beta_column = beta_column.to(tl.float32)
            keys = (column * width + inside).to(tl.int64)
            key_mask = (inside < width) & (keys < seq_len)
            scores = masked_scores(alpha_tile, beta_column, rows, keys, key_mask, CAUSAL)
            weights = tl.exp(scores - total[:, None])
            value = load_rows(v, keys, key_mask, head_dim, 0, BLOCK_D)
            dweights = tl.dot(cotangent, tl.trans(value), input_precision=PRECISION)
            dscores = weights * (dweights - agreement[:, None])
            gradient += dscores * beta_column[:, None]
            dcolumn = tl.sum(dscores * alpha_tile, axis=1)
            tl.store(dbeta + (part + rows) * columns + column, dcolumn, mask=row_mask)
        offsets = (head * seq_len + rows)[:, None] * width + inside[None, :]
        tl.store(
            dalpha + offsets, gradient.to(dalpha.dtype.element_ty), mask=row_mask[:, None] & (inside < width)[None, :]
        )


@triton.jit
def outer_value_gradient_kernel(
    alpha,
    beta,
    dy,
    totals,
    dv,  # out
    seq_len,
    width,
    columns,
    head_dim,
    CAUSAL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of σ, τ and head, in that order, over all queries (causal: from its first key on)."""
    tiles = tl.cdiv(width, BLOCK_S)
    first = tl.program_id(0) % tiles * BLOCK_S
    column = tl.program_id(0) // tiles % columns
    head = (tl.program_id(0) // (tiles * columns)).to(tl.int64)
    inside = first + tl.arange(0, BLOCK_S)
    keys = (column * width + inside).to(tl.int64)
    key_mask = (inside < width) & (keys < seq_len)
    alpha += head * seq_len * width
    beta += head * seq_len * columns
    dy += head * seq_len * head_dim
    channels = tl.arange(0, BLOCK_D)

    gradient = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    begin = 0
    if CAUSAL:
        begin = (column * width + first) // BLOCK_N * BLOCK_N
    for start in range(begin, seq_len, BLOCK_N):
        rows = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
        row_mask = rows < seq_len
        alpha_tile = load_rows(alpha, rows, row_mask, width, first, BLOCK_S).to(tl.float32)
        beta_column = tl.load(beta + rows * columns + column, mask=row_mask, other=0.0).to(tl.float32)
        total = tl.load(totals + head * seq_len + rows, mask=row_mask, other=float("inf"))
        scores = masked_scores(alpha_tile, beta_column, rows, keys, key_mask, CAUSAL)
        weights = tl.exp(scores - total[:, None])
        cotangent = load_rows(dy, rows, row_mask, head_dim, 0, BLOCK_D)
        gradient = tl.dot(tl.trans(weights.to(cotangent.dtype)), cotangent, gradient, input_precision=PRECISION)
    offsets = (head * seq_len + keys)[:, None] * head_dim + channels[None, :]
    tl.store(dv + offsets, gradient.to(dv.dtype.element_ty), mask=key_mask[:, None] & (channels < head_dim)[None, :])
