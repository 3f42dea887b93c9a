"""Kernels of `outer_scores`. Shapes, contiguous: alpha [B·H, N, a], v, y, dy [B·H, N, D]; with tokens last, so that a
column is read at once: alpha_t [B·H, a, N], beta_t [B·H, t, N].

Key j = τ·a + σ has the score alpha_iσ · beta_iτ. A tile of keys is a range of σ within one τ, so that its scores are a
tile of alpha times a column of beta, in registers. Only tiles at an edge, or causal ones on the diagonal, are masked.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
"""Scores are kept in units of log 2, so that a weight is one power of two."""


@triton.jit
def load_rows(pointer, rows, row_mask, width, first, BLOCK: tl.constexpr):
    """Columns first … first + BLOCK of the rows of a [·, width] tensor, 0 outside."""
    columns = first + tl.arange(0, BLOCK)
    mask = row_mask[:, None] & (columns < width)[None, :]
    return tl.load(pointer + rows[:, None] * width + columns[None, :], mask=mask, other=0.0)


@triton.jit
def load_column(beta_t, column, rows, row_mask, seq_len):
    """A column of beta for these rows, in float32."""
    return tl.load(beta_t + tl.cast(column, tl.int64) * seq_len + rows, mask=row_mask, other=0.0).to(tl.float32)


@triton.jit
def visible_columns(limit, first, width, seq_len, BLOCK_S: tl.constexpr):
    """Of how many columns the tile's keys are all among the first `limit`."""
    columns = tl.where(limit >= first + BLOCK_S, (limit - first - BLOCK_S) // width + 1, 0)
    return tl.where(first + BLOCK_S <= width, columns, 0)


@triton.jit
def masked(scores, rows, keys, inside, width, seq_len, CAUSAL: tl.constexpr):
    """−inf where a query does not see a key: [queries, keys]."""
    visible = ((inside < width) & (keys < seq_len))[None, :]
    if CAUSAL:
        visible = visible & (keys[None, :] <= rows[:, None])
    return tl.where(visible, scores, float("-inf"))


@triton.jit
def attend_outer_kernel(
    alpha,
    beta_t,
    v,
    y,  # out
    totals,  # out [B·H, N]: log₂ Σ exp
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
    """One program per tile of queries and head. Scores are of the first key's order: the softmax is kept as it goes.

    The highest score of a whole tile is that of its highest or its lowest alpha.
    """
    tiles = tl.cdiv(seq_len, BLOCK_N)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    first_row = tl.program_id(0) % tiles * BLOCK_N
    rows = (first_row + tl.arange(0, BLOCK_N)).to(tl.int64)
    row_mask = rows < seq_len
    alpha += head * seq_len * width
    beta_t += head * seq_len * columns
    v += head * seq_len * head_dim
    limit = seq_len
    if CAUSAL:
        limit = tl.minimum(seq_len, first_row + 1)

    answer = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    highest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, width, BLOCK_S):
        inside = first + tl.arange(0, BLOCK_S)
        alpha_tile = load_rows(alpha, rows, row_mask, width, first, BLOCK_S).to(tl.float32) * LOG2_E
        whole = visible_columns(limit, first, width, seq_len, BLOCK_S)
        top = tl.max(alpha_tile, axis=1)
        bottom = tl.min(alpha_tile, axis=1)
        for column in range(0, whole):  # noqa: PIE808
            beta_column = load_column(beta_t, column, rows, row_mask, seq_len)
            keys = (column * width + inside).to(tl.int64)
            value = load_rows(v, keys, keys < seq_len, head_dim, 0, BLOCK_D)
            raised = tl.maximum(highest, tl.maximum(beta_column * top, beta_column * bottom))
            weights = tl.exp2(alpha_tile * beta_column[:, None] - raised[:, None])
            rescale = tl.exp2(highest - raised)
            total = total * rescale + tl.sum(weights, axis=1)
            answer = tl.dot(weights.to(value.dtype), value, answer * rescale[:, None], input_precision=PRECISION)
            highest = raised
        last = columns
        if CAUSAL:
            last = tl.minimum(columns, tl.maximum(first_row + BLOCK_N - 1 - first + width, 0) // width)
        for column in range(whole, last):
            beta_column = load_column(beta_t, column, rows, row_mask, seq_len)
            keys = (column * width + inside).to(tl.int64)
            scores = alpha_tile * beta_column[:, None]
            scores = masked(scores, rows, keys, inside, width, seq_len, CAUSAL)
            raised = tl.maximum(highest, tl.max(scores, axis=1))
            shift = tl.where(raised == float("-inf"), 0.0, raised)
            weights = tl.exp2(scores - shift[:, None])
            rescale = tl.exp2(highest - shift)
            total = total * rescale + tl.sum(weights, axis=1)
            value = load_rows(v, keys, (inside < width) & (keys < seq_len), head_dim, 0, BLOCK_D)
            answer = tl.dot(weights.to(value.dtype), value, answer * rescale[:, None], input_precision=PRECISION)
            highest = raised
    answer *= (1.0 / total)[:, None]
    channels = tl.arange(0, BLOCK_D)
    offsets = (head * seq_len + rows)[:, None] * head_dim + channels[None, :]
    tl.store(y + offsets, answer.to(y.dtype.element_ty), mask=row_mask[:, None] & (channels < head_dim)[None, :])
    tl.store(totals + head * seq_len + rows, highest + tl.log2(total), mask=row_mask)


@triton.jit
def gradient_of_scores(
    scores, cotangent, value, beta_column, alpha_tile, total, agreement, gradient, PRECISION: tl.constexpr
):
    """With a tile of scores: the gradient of alpha so far and with it, and of the column of beta times log₂ e."""
    weights = tl.exp2(scores - total[:, None])
    dweights = tl.dot(cotangent, tl.trans(value), input_precision=PRECISION)
    dscores = weights * (dweights - agreement[:, None])
    return gradient + dscores * beta_column[:, None], tl.sum(dscores * alpha_tile, axis=1)


@triton.jit
def outer_score_gradient_kernel(
    alpha,
    beta_t,
    v,
    dy,
    totals,
    agreements,  # [B·H, N]: y_i · dy_i
    dalpha,  # out
    dbeta_t,  # out [tiles of a, B·H, t, N] in float32, times log₂ e
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
    beta_t += head * seq_len * columns
    v += head * seq_len * head_dim
    limit = seq_len
    if CAUSAL:
        limit = tl.minimum(seq_len, first_row + 1)
    cotangent = load_rows(dy + head * seq_len * head_dim, rows, row_mask, head_dim, 0, BLOCK_D)
    total = tl.load(totals + head * seq_len + rows, mask=row_mask, other=float("inf"))
    agreement = tl.load(agreements + head * seq_len + rows, mask=row_mask, other=0.0)
    for first in range(0, width, BLOCK_S):
        inside = first + tl.arange(0, BLOCK_S)
        alpha_tile = load_rows(alpha + head * seq_len * width, rows, row_mask, width, first, BLOCK_S).to(tl.float32)
        alpha_tile *= LOG2_E
        gradient = tl.zeros([BLOCK_N, BLOCK_S], tl.float32)
        part = dbeta_t + (first // BLOCK_S * heads + head) * seq_len * columns + rows
        whole = visible_columns(limit, first, width, seq_len, BLOCK_S)
        for column in range(0, whole):  # noqa: PIE808
            beta_column = load_column(beta_t, column, rows, row_mask, seq_len)
            keys = (column * width + inside).to(tl.int64)
            value = load_rows(v, keys, keys < seq_len, head_dim, 0, BLOCK_D)
            gradient, dcolumn = gradient_of_scores(
                alpha_tile * beta_column[:, None], cotangent, value, beta_column, alpha_tile, total, agreement,
                gradient, PRECISION,
            )  # fmt: skip
            tl.store(part + tl.cast(column, tl.int64) * seq_len, dcolumn, mask=row_mask)
        for column in range(whole, columns):
            beta_column = load_column(beta_t, column, rows, row_mask, seq_len)
            keys = (column * width + inside).to(tl.int64)
            value = load_rows(v, keys, (inside < width) & (keys < seq_len), head_dim, 0, BLOCK_D)
            scores = masked(alpha_tile * beta_column[:, None], rows, keys, inside, width, seq_len, CAUSAL)
            gradient, dcolumn = gradient_of_scores(
                scores, cotangent, value, beta_column, alpha_tile, total, agreement, gradient, PRECISION
            )
            tl.store(part + tl.cast(column, tl.int64) * seq_len, dcolumn, mask=row_mask)
        offsets = (head * seq_len + rows)[:, None] * width + inside[None, :]
        tl.store(
            dalpha + offsets, gradient.to(dalpha.dtype.element_ty), mask=row_mask[:, None] & (inside < width)[None, :]
        )


@triton.jit
def value_gradient_of(
    gradient, alpha_tile, beta_t, total, cotangent, rows, row_mask, keys, column, columns, seq_len,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """With a tile of queries: the gradient so far of the values of a column's keys. [keys, D]."""
    beta_column = load_column(beta_t, column, rows, row_mask & (column + tl.zeros_like(rows) < columns), seq_len)
    scores = alpha_tile * beta_column[None, :] - total[None, :]
    if MASKED:
        scores = tl.where(keys[:, None] <= rows[None, :], scores, float("-inf"))
    weights = tl.exp2(scores)
    return tl.dot(weights.to(cotangent.dtype), cotangent, gradient, input_precision=PRECISION)


@triton.jit
def store_values(gradient, dv, keys, key_mask, head_dim, BLOCK_D: tl.constexpr):
    """Rows of these keys of a head."""
    channels = tl.arange(0, BLOCK_D)
    mask = key_mask[:, None] & (channels < head_dim)[None, :]
    tl.store(dv + keys[:, None] * head_dim + channels[None, :], gradient.to(dv.dtype.element_ty), mask=mask)


@triton.jit
def outer_value_gradient_kernel(
    alpha_t,
    beta_t,
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
    TWO: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of σ, τ (two of them where TWO, for which alpha and dy are read once) and head, in that
    order, over all queries (causal: from its first key on)."""
    tiles = tl.cdiv(width, BLOCK_S)
    columns_each = 2 if TWO else 1
    strips = tl.cdiv(columns, columns_each)
    first = tl.program_id(0) % tiles * BLOCK_S
    column = tl.program_id(0) // tiles % strips * columns_each
    head = (tl.program_id(0) // (tiles * strips)).to(tl.int64)
    inside = first + tl.arange(0, BLOCK_S)
    keys = (column * width + inside).to(tl.int64)
    alpha_t += head * seq_len * width
    beta_t += head * seq_len * columns
    dy += head * seq_len * head_dim
    dv += head * seq_len * head_dim
    totals += head * seq_len

    gradient = tl.zeros([BLOCK_S, BLOCK_D], tl.float32)
    gradient_next = gradient
    begin = 0
    whole = 0
    if CAUSAL:
        begin = (column * width + first) // BLOCK_N * BLOCK_N
        whole = tl.cdiv((column + columns_each - 1) * width + first + BLOCK_S, BLOCK_N) * BLOCK_N
        for start in range(begin, tl.minimum(whole, seq_len), BLOCK_N):
            rows = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
            row_mask = rows < seq_len
            alpha_tile = load_rows(alpha_t, inside.to(tl.int64), inside < width, seq_len, start, BLOCK_N)
            alpha_tile = alpha_tile.to(tl.float32) * LOG2_E
            total = tl.load(totals + rows, mask=row_mask, other=float("inf"))
            cotangent = load_rows(dy, rows, row_mask, head_dim, 0, BLOCK_D)
            gradient = value_gradient_of(
                gradient, alpha_tile, beta_t, total, cotangent, rows, row_mask, keys, column, columns, seq_len,
                True, PRECISION,
            )  # fmt: skip
            if TWO:
                gradient_next = value_gradient_of(
                    gradient_next, alpha_tile, beta_t, total, cotangent, rows, row_mask, keys + width, column + 1,
                    columns, seq_len, True, PRECISION,
                )  # fmt: skip
    for start in range(whole, seq_len, BLOCK_N):
        rows = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
        row_mask = rows < seq_len
        alpha_tile = load_rows(alpha_t, inside.to(tl.int64), inside < width, seq_len, start, BLOCK_N)
        alpha_tile = alpha_tile.to(tl.float32) * LOG2_E
        total = tl.load(totals + rows, mask=row_mask, other=float("inf"))
        cotangent = load_rows(dy, rows, row_mask, head_dim, 0, BLOCK_D)
        gradient = value_gradient_of(
            gradient, alpha_tile, beta_t, total, cotangent, rows, row_mask, keys, column, columns, seq_len,
            False, PRECISION,
        )  # fmt: skip
        if TWO:
            gradient_next = value_gradient_of(
                gradient_next, alpha_tile, beta_t, total, cotangent, rows, row_mask, keys, column + 1, columns, seq_len,
                False, PRECISION,
            )  # fmt: skip
    store_values(gradient, dv, keys, (inside < width) & (keys < seq_len), head_dim, BLOCK_D)
    if TWO:
        keys += width
        store_values(gradient_next, dv, keys, (inside < width) & (keys < seq_len), head_dim, BLOCK_D)
