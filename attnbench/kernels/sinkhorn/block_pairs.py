"""Blocks of tokens that attend to two blocks of keys: their own, and one that was sorted to them."""

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.sorted_chunks.device import load_tokens, products


@triton.jit
def store_rows(x, rows, mask, head_dim, tile, BLOCK_D: tl.constexpr):
    """A tile as these rows of a dense head."""
    columns = tl.arange(0, BLOCK_D)
    at = x + rows.to(tl.int64)[:, None] * head_dim + columns[None, :]
    tl.store(at, tile.to(x.dtype.element_ty), mask=mask[:, None] & (columns < head_dim)[None, :])


@triton.jit
def logits(s, places_q, places_k, mask_k, CAUSAL: tl.constexpr):
    """s, −inf where the query does not see the key: [queries, keys]."""
    visible = tl.broadcast_to(mask_k[None, :], s.shape)
    if CAUSAL:
        visible &= places_k[None, :] <= places_q[:, None]
    return tl.where(visible, s, float("-inf"))


@triton.jit
def attended(s, values, largest, total, answer, PRECISION: tl.constexpr):
    """One more tile of keys: the running maximum, sum and weighted values, rescaled."""
    highest = tl.maximum(largest, tl.max(s, axis=1))
    base = tl.where(highest == float("-inf"), 0.0, highest)
    p = tl.exp(s - base[:, None])
    shrink = tl.exp(largest - base)
    answer = tl.dot(p.to(values.dtype), values, answer * shrink[:, None], input_precision=PRECISION)
    return highest, total * shrink + tl.sum(p, axis=1), answer


@triton.jit
def attend_kernel(
    q,  # [B, H, N, D], strides q_b, q_h, q_n, 1
    k,  # [B, H, N, D], strides k_b, k_h, k_n, 1
    v,  # [B, H, N, D], strides v_b, v_h, v_n, 1
    sorted_k,  # [B·H, made·b, D]
    sorted_v,  # [B·H, made·b, D]
    y,  # out [B·H, N, D]
    total,  # out [B·H, N]: log-sum-exp
    heads,
    seq_len,
    block,
    head_dim,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    scale,
    CAUSAL: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of a block, block and head, in that order. Causal: block 0 has no sorted block."""
    tiles = tl.cdiv(block, BLOCK)
    blocks = tl.cdiv(seq_len, block)
    index = tl.program_id(0)
    number = index // tiles % blocks
    head = (index // (tiles * blocks)).to(tl.int64)
    begin = number * block
    end = tl.minimum(begin + block, seq_len)
    sorted_rows = blocks
    from_sorted = begin
    if CAUSAL:
        sorted_rows = blocks - 1
        from_sorted = begin - block
    q += head // heads * q_b + head % heads * q_h
    k += head // heads * k_b + head % heads * k_h
    v += head // heads * v_b + head % heads * v_h
    sorted_k += head * sorted_rows * block * head_dim
    sorted_v += head * sorted_rows * block * head_dim

    places = begin + index % tiles * BLOCK + tl.arange(0, BLOCK)
    mask = places < end
    rows = load_tokens(q, places, mask, q_n, head_dim, BLOCK_D)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK], tl.float32)
    answer = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for first in range(begin, end, BLOCK):
        places_k = first + tl.arange(0, BLOCK)
        keys = load_tokens(k, places_k, places_k < end, k_n, head_dim, BLOCK_D)
        values = load_tokens(v, places_k, places_k < end, v_n, head_dim, BLOCK_D)
        s = products(
            rows, keys, q, places, mask, q_n, k, places_k, places_k < end, k_n,
            head_dim, BLOCK_D, WIDTH, PRECISION,
        )  # fmt: skip
        s = logits(s * scale, places, places_k, places_k < end, CAUSAL)
        largest, weight, answer = attended(s, values, largest, weight, answer, PRECISION)
    if from_sorted >= 0:
        for first in range(from_sorted, from_sorted + block, BLOCK):
            places_k = first + tl.arange(0, BLOCK)
            mask_k = places_k < from_sorted + block
            keys = load_tokens(sorted_k, places_k, mask_k, head_dim, head_dim, BLOCK_D)
            values = load_tokens(sorted_v, places_k, mask_k, head_dim, head_dim, BLOCK_D)
            s = products(
                rows, keys, q, places, mask, q_n, sorted_k, places_k, mask_k, head_dim,
                head_dim, BLOCK_D, WIDTH, PRECISION,
            )  # fmt: skip
            s = logits(s * scale, places, places_k, mask_k, False)
            largest, weight, answer = attended(s, values, largest, weight, answer, PRECISION)
    store_rows(y + head * seq_len * head_dim, places, mask, head_dim, answer / weight[:, None], BLOCK_D)
    tl.store(total + head * seq_len + places, largest + tl.log(weight), mask=mask)


@triton.jit
def query_gradient_kernel(
    q,  # [B, H, N, D], strides q_b, q_h, q_n, 1
    k,  # [B, H, N, D], strides k_b, k_h, k_n, 1
    v,  # [B, H, N, D], strides v_b, v_h, v_n, 1
    sorted_k,  # [B·H, made·b, D]
    sorted_v,  # [B·H, made·b, D]
    y,  # [B·H, N, D]
    dy,  # [B, H, N, D], strides g_b, g_h, g_n, 1
    total,  # [B·H, N]
    agreement,  # out [B·H, N]: y·dy
    dq,  # out [B·H, N, D]
    heads,
    seq_len,
    block,
    head_dim,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    g_b,
    g_h,
    g_n,
    scale,
    CAUSAL: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of a block, block and head, in that order."""
    tiles = tl.cdiv(block, BLOCK)
    blocks = tl.cdiv(seq_len, block)
    index = tl.program_id(0)
    number = index // tiles % blocks
    head = (index // (tiles * blocks)).to(tl.int64)
    begin = number * block
    end = tl.minimum(begin + block, seq_len)
    sorted_rows = blocks
    from_sorted = begin
    if CAUSAL:
        sorted_rows = blocks - 1
        from_sorted = begin - block
    q += head // heads * q_b + head % heads * q_h
    k += head // heads * k_b + head % heads * k_h
    v += head // heads * v_b + head % heads * v_h
    dy += head // heads * g_b + head % heads * g_h
    sorted_k += head * sorted_rows * block * head_dim
    sorted_v += head * sorted_rows * block * head_dim

    places = begin + index % tiles * BLOCK + tl.arange(0, BLOCK)
    mask = places < end
    cotangents = load_tokens(dy, places, mask, g_n, head_dim, BLOCK_D)
    outputs = load_tokens(y + head * seq_len * head_dim, places, mask, head_dim, head_dim, BLOCK_D)
    agreed = tl.sum(cotangents.to(tl.float32) * outputs.to(tl.float32), axis=1)
    tl.store(agreement + head * seq_len + places, agreed, mask=mask)
    z = tl.load(total + head * seq_len + places, mask=mask, other=float("inf"))
    rows = load_tokens(q, places, mask, q_n, head_dim, BLOCK_D)
    d_rows = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for first in range(begin, end, BLOCK):
        places_k = first + tl.arange(0, BLOCK)
        keys = load_tokens(k, places_k, places_k < end, k_n, head_dim, BLOCK_D)
        values = load_tokens(v, places_k, places_k < end, v_n, head_dim, BLOCK_D)
        s = products(
            rows, keys, q, places, mask, q_n, k, places_k, places_k < end, k_n,
            head_dim, BLOCK_D, WIDTH, PRECISION,
        )  # fmt: skip
        p = tl.exp(logits(s * scale, places, places_k, places_k < end, CAUSAL) - z[:, None])
        dp = products(
            cotangents, values, dy, places, mask, g_n, v, places_k, places_k < end, v_n,
            head_dim, BLOCK_D, WIDTH, PRECISION,
        )  # fmt: skip
        ds = p * (dp - agreed[:, None])
        d_rows = tl.dot(ds.to(keys.dtype), keys, d_rows, input_precision=PRECISION)
    if from_sorted >= 0:
        for first in range(from_sorted, from_sorted + block, BLOCK):
            places_k = first + tl.arange(0, BLOCK)
            mask_k = places_k < from_sorted + block
            keys = load_tokens(sorted_k, places_k, mask_k, head_dim, head_dim, BLOCK_D)
            values = load_tokens(sorted_v, places_k, mask_k, head_dim, head_dim, BLOCK_D)
            s = products(
                rows, keys, q, places, mask, q_n, sorted_k, places_k, mask_k, head_dim,
                head_dim, BLOCK_D, WIDTH, PRECISION,
            )  # fmt: skip
            p = tl.exp(logits(s * scale, places, places_k, mask_k, False) - z[:, None])
            dp = products(
                cotangents, values, dy, places, mask, g_n, sorted_v, places_k, mask_k, head_dim,
                head_dim, BLOCK_D, WIDTH, PRECISION,
            )  # fmt: skip
            ds = p * (dp - agreed[:, None])
            d_rows = tl.dot(ds.to(keys.dtype), keys, d_rows, input_precision=PRECISION)
    store_rows(dq + head * seq_len * head_dim, places, mask, head_dim, d_rows * scale, BLOCK_D)


@triton.jit
def key_gradient_kernel(
    q,  # [B, H, N, D], strides q_b, q_h, q_n, 1
    k,  # SORTED: [B·H, made·b, D], else [B, H, N, D]; strides k_b, k_h, k_n, 1
    v,  # like k; strides v_b, v_h, v_n, 1
    dy,  # [B, H, N, D], strides g_b, g_h, g_n, 1
    total,  # [B·H, N]
    agreement,  # [B·H, N]
    dk,  # out, like k, dense
    dv,  # out, like v, dense
    heads,
    seq_len,
    block,
    head_dim,
    q_b,
    q_h,
    q_n,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    g_b,
    g_h,
    g_n,
    scale,
    CAUSAL: tl.constexpr,
    SORTED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of a block of keys, block and head, in that order: the own blocks', or the sorted ones'."""
    tiles = tl.cdiv(block, BLOCK)
    blocks = tl.cdiv(seq_len, block)
    length = seq_len
    shift = 0
    if SORTED:
        if CAUSAL:
            shift = block
        blocks -= shift // block
        length = blocks * block
    index = tl.program_id(0)
    begin = index // tiles % blocks * block
    head = (index // (tiles * blocks)).to(tl.int64)
    q += head // heads * q_b + head % heads * q_h
    k += head // heads * k_b + head % heads * k_h
    v += head // heads * v_b + head % heads * v_h
    dy += head // heads * g_b + head % heads * g_h

    places = begin + index % tiles * BLOCK + tl.arange(0, BLOCK)
    mask = places < tl.minimum(begin + block, length)
    keys = load_tokens(k, places, mask, k_n, head_dim, BLOCK_D)
    values = load_tokens(v, places, mask, v_n, head_dim, BLOCK_D)
    d_keys = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    d_values = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    end = tl.minimum(begin + shift + block, seq_len)
    for first in range(begin + shift, end, BLOCK):
        places_q = first + tl.arange(0, BLOCK)
        mask_q = places_q < end
        rows = load_tokens(q, places_q, mask_q, q_n, head_dim, BLOCK_D)
        cotangents = load_tokens(dy, places_q, mask_q, g_n, head_dim, BLOCK_D)
        z = tl.load(total + head * seq_len + places_q, mask=mask_q, other=float("inf"))
        agreed = tl.load(agreement + head * seq_len + places_q, mask=mask_q, other=0.0)
        s = products(
            rows, keys, q, places_q, mask_q, q_n, k, places, mask, k_n,
            head_dim, BLOCK_D, WIDTH, PRECISION,
        )  # fmt: skip
        s = logits(s * scale, places_q, places, mask, CAUSAL and not SORTED)
        p = tl.exp(s - z[:, None])
        d_values = tl.dot(tl.trans(p.to(cotangents.dtype)), cotangents, d_values, input_precision=PRECISION)
        dp = products(
            cotangents, values, dy, places_q, mask_q, g_n, v, places, mask, v_n,
            head_dim, BLOCK_D, WIDTH, PRECISION,
        )  # fmt: skip
        ds = p * (dp - agreed[:, None])
        d_keys = tl.dot(tl.trans(ds.to(rows.dtype)), rows, d_keys, input_precision=PRECISION)
    store_rows(dk + head * length * head_dim, places, mask, head_dim, d_keys * scale, BLOCK_D)
    store_rows(dv + head * length * head_dim, places, mask, head_dim, d_values, BLOCK_D)
