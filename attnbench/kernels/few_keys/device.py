"""The kernels of few_keys: outputs, gradients of the queries, and gradients of keys and values over splits of queries.

Log-sum-exps are to the base 2, as are the exponents: scale_log2 is scale · log₂ e. q_d and the other last strides are
1, or the tokens' stride is (a map, [B, C, h·w]). A tile's first row is an int64 offset, places within it are int32: 256
columns reach 2³¹ elements at a column stride of 8 million.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(pointer, count, row_stride, column_stride, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The first ROWS rows from `pointer`, of which `count` exist, and columns 0 … BLOCK; 0 outside: [ROWS, BLOCK]."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    return tl.load(pointer + rows[:, None] * row_stride + columns[None, :] * column_stride, mask=mask, other=0.0)


@triton.jit
def store_tile(pointer, x, count, row_stride, column_stride, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The same places, written."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    places = pointer + rows[:, None] * row_stride + columns[None, :] * column_stride
    tl.store(places, x.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def few_keys_forward_kernel(
    q,  # [B, H, N, D], strides q_b, q_h, q_n, q_d
    k,  # [B·H, M, D]
    v,  # [B·H, M, D]
    y,  # out [B, H, N, D], strides y_b, y_h, y_n, y_d
    lse,  # out [B·H, N], where SAVE
    heads,
    seq_len,
    keys,
    head_dim,
    q_b,
    q_h,
    q_n,
    q_d,
    y_b,
    y_h,
    y_n,
    y_d,
    scale_log2,
    SAVE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per block of queries and head, in that order."""
    blocks = tl.cdiv(seq_len, BLOCK_N)
    index = tl.program_id(0)
    head = (index // blocks).to(tl.int64)
    first_row = (index % blocks) * BLOCK_N
    rows = first_row + tl.arange(0, BLOCK_N)
    rows_left = seq_len - first_row
    q += head // heads * q_b + head % heads * q_h + first_row.to(tl.int64) * q_n
    y += head // heads * y_b + head % heads * y_h + first_row.to(tl.int64) * y_n
    k += head * keys * head_dim
    v += head * keys * head_dim

    queries = load_tile(q, rows_left, q_n, q_d, head_dim, BLOCK_N, BLOCK_D).to(COMPUTE)
    total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    weight = tl.zeros([BLOCK_N], tl.float32)
    highest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    for first in range(0, keys, BLOCK_M):
        columns = first + tl.arange(0, BLOCK_M)
        tile = load_tile(k + first * head_dim, keys - first, head_dim, 1, head_dim, BLOCK_M, BLOCK_D).to(COMPUTE)
        scores = tl.dot(queries, tl.trans(tile), input_precision=PRECISION) * scale_log2
        scores = tl.where((columns < keys)[None, :], scores, float("-inf"))
        raised = tl.maximum(highest, tl.max(scores, axis=1))
        rescale = tl.exp2(highest - raised)
        p = tl.exp2(scores - raised[:, None])
        tile = load_tile(v + first * head_dim, keys - first, head_dim, 1, head_dim, BLOCK_M, BLOCK_D).to(COMPUTE)
        total = tl.dot(p.to(COMPUTE), tile, total * rescale[:, None], input_precision=PRECISION)
        weight = weight * rescale + tl.sum(p, axis=1)
        highest = raised
    store_tile(y, total / weight[:, None], rows_left, y_n, y_d, head_dim, BLOCK_N, BLOCK_D)
    if SAVE:
        tl.store(lse + head * seq_len + rows, highest + tl.log2(weight), mask=rows < seq_len)


@triton.jit
def few_keys_query_gradient_kernel(
    q,  # [B, H, N, D], strides q_b, q_h, q_n, q_d
    k,  # [B·H, M, D]
    v,  # [B·H, M, D]
    y,  # [B, H, N, D], strides y_b, y_h, y_n, y_d
    dy,  # [B, H, N, D], strides g_b, g_h, g_n, g_d
    lse,  # [B·H, N]
    dq,  # out [B, H, N, D], strides d_b, d_h, d_n, d_d
    delta,  # out [B·H, N]: y·dy
    heads,
    seq_len,
    keys,
    head_dim,
    q_b,
    q_h,
    q_n,
    q_d,
    y_b,
    y_h,
    y_n,
    y_d,
    g_b,
    g_h,
    g_n,
    g_d,
    d_b,
    d_h,
    d_n,
    d_d,
    scale,
    scale_log2,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per block of queries and head, in that order."""
    blocks = tl.cdiv(seq_len, BLOCK_N)
    index = tl.program_id(0)
    head = (index // blocks).to(tl.int64)
    first_row = (index % blocks) * BLOCK_N
    rows = first_row + tl.arange(0, BLOCK_N)
    rows_left = seq_len - first_row
    q += head // heads * q_b + head % heads * q_h + first_row.to(tl.int64) * q_n
    y += head // heads * y_b + head % heads * y_h + first_row.to(tl.int64) * y_n
    dy += head // heads * g_b + head % heads * g_h + first_row.to(tl.int64) * g_n
    dq += head // heads * d_b + head % heads * d_h + first_row.to(tl.int64) * d_n
    k += head * keys * head_dim
    v += head * keys * head_dim

    g = load_tile(dy, rows_left, g_n, g_d, head_dim, BLOCK_N, BLOCK_D)
    out = load_tile(y, rows_left, y_n, y_d, head_dim, BLOCK_N, BLOCK_D)
    along = tl.sum(g.to(tl.float32) * out.to(tl.float32), axis=1)
    tl.store(delta + head * seq_len + rows, along, mask=rows < seq_len)
    level = tl.load(lse + head * seq_len + rows, mask=rows < seq_len, other=0.0)
    queries = load_tile(q, rows_left, q_n, q_d, head_dim, BLOCK_N, BLOCK_D).to(COMPUTE)
    total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for first in range(0, keys, BLOCK_M):
        columns = first + tl.arange(0, BLOCK_M)
        tile = load_tile(v + first * head_dim, keys - first, head_dim, 1, head_dim, BLOCK_M, BLOCK_D).to(COMPUTE)
        dp = tl.dot(g.to(COMPUTE), tl.trans(tile), input_precision=PRECISION)
        tile = load_tile(k + first * head_dim, keys - first, head_dim, 1, head_dim, BLOCK_M, BLOCK_D).to(COMPUTE)
        scores = tl.dot(queries, tl.trans(tile), input_precision=PRECISION) * scale_log2
        scores = tl.where((columns < keys)[None, :], scores, float("-inf"))
        ds = tl.exp2(scores - level[:, None]) * (dp - along[:, None])
        total = tl.dot(ds.to(COMPUTE), tile, total, input_precision=PRECISION)
    store_tile(dq, total * scale, rows_left, d_n, d_d, head_dim, BLOCK_N, BLOCK_D)


@triton.jit
def few_keys_key_gradient_kernel(
    q,  # [B, H, N, D], strides q_b, q_h, q_n, q_d
    k,  # [B·H, M, D]
    v,  # [B·H, M, D]
    dy,  # [B, H, N, D], strides g_b, g_h, g_n, g_d
    lse,  # [B·H, N]
    delta,  # [B·H, N]
    dk,  # out [splits, B·H, M, D]: what the queries of one split add
    dv,  # out, the same
    heads,
    seq_len,
    keys,
    head_dim,
    splits,
    split_len,  # queries of a split, a multiple of BLOCK_N
    q_b,
    q_h,
    q_n,
    q_d,
    g_b,
    g_h,
    g_n,
    g_d,
    scale,
    scale_log2,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of keys, split of the queries and head, in that order."""
    tiles = tl.cdiv(keys, BLOCK_M)
    index = tl.program_id(0)
    split = index // tiles % splits
    head = (index // (tiles * splits)).to(tl.int64)
    first_key = (index % tiles) * BLOCK_M
    q += head // heads * q_b + head % heads * q_h
    dy += head // heads * g_b + head % heads * g_h
    tile_start = (head * keys + first_key) * head_dim
    all_heads = (tl.num_programs(0) // (tiles * splits)).to(tl.int64) * keys * head_dim
    dk += split.to(tl.int64) * all_heads + tile_start
    dv += split.to(tl.int64) * all_heads + tile_start
    lse += head * seq_len
    delta += head * seq_len

    count = keys - first_key
    own_keys = load_tile(k + tile_start, count, head_dim, 1, head_dim, BLOCK_M, BLOCK_D).to(COMPUTE)
    own_values = load_tile(v + tile_start, count, head_dim, 1, head_dim, BLOCK_M, BLOCK_D).to(COMPUTE)
    total_k = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total_v = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    begin = split.to(tl.int64) * split_len
    end = tl.minimum(begin + split_len, seq_len)
    q += begin * q_n
    dy += begin * g_n
    for first in range(begin, end, BLOCK_N):
        rows = first + tl.arange(0, BLOCK_N)
        rows_left = seq_len - first
        queries = load_tile(q, rows_left, q_n, q_d, head_dim, BLOCK_N, BLOCK_D).to(COMPUTE)
        g = load_tile(dy, rows_left, g_n, g_d, head_dim, BLOCK_N, BLOCK_D).to(COMPUTE)
        level = tl.load(lse + rows, mask=rows < seq_len, other=float("inf"))
        along = tl.load(delta + rows, mask=rows < seq_len, other=0.0)
        scores = tl.dot(own_keys, tl.trans(queries), input_precision=PRECISION) * scale_log2
        p = tl.exp2(scores - level[None, :])  # [M, N]: left operands as they come; of keys beyond the last not stored
        total_v = tl.dot(p.to(COMPUTE), g, total_v, input_precision=PRECISION)
        dp = tl.dot(own_values, tl.trans(g), input_precision=PRECISION)
        ds = p * (dp - along[None, :])
        total_k = tl.dot(ds.to(COMPUTE), queries, total_k, input_precision=PRECISION)
        q += BLOCK_N * q_n
        dy += BLOCK_N * g_n
    store_tile(dk, total_k * scale, count, head_dim, 1, head_dim, BLOCK_M, BLOCK_D)
    store_tile(dv, total_v, count, head_dim, 1, head_dim, BLOCK_M, BLOCK_D)
