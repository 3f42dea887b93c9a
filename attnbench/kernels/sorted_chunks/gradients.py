"""Gradients of `sorted_chunks`: a program takes its tile first as queries, then as keys; rounds are added last."""

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.sorted_chunks.device import (
    LOG2_E,
    inverse_length,
    load_tokens,
    products,
    store_tokens,
    tile_of,
    tokens_of,
    visible,
)


@triton.jit
def agreement_kernel(
    y,  # [B·H, N, D]
    dy,  # [B, H, N, D], strides g_b, g_h, g_n, 1
    agreement,  # out [B·H, N]: y·dy
    heads,
    seq_len,
    head_dim,
    g_b,
    g_h,
    g_n,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program per tile of tokens and head, in that order."""
    head, tokens = tokens_of(seq_len, BLOCK)
    inside = tokens < seq_len
    dy += head // heads * g_b + head % heads * g_h
    a = load_tokens(y + head * seq_len * head_dim, tokens, inside, head_dim, head_dim, BLOCK_D).to(tl.float32)
    b = load_tokens(dy, tokens, inside, g_n, head_dim, BLOCK_D).to(tl.float32)
    tl.store(agreement + head * seq_len + tokens, tl.sum(a * b, axis=1), mask=inside)


@triton.jit
def gradient_kernel(
    qk,  # [B, H, N, D], strides q_b, q_h, q_n, 1
    v,  # [B, H, N, D], strides v_b, v_h, v_n, 1
    dy,  # [B, H, N, D], strides g_b, g_h, g_n, 1
    order,  # [B·H, R, N]
    label,  # [B·H, N, ROUNDS]
    total,  # [B·H, N]
    agreement,  # [B·H, N]
    parts_qk,  # out [B·H, R, N, D]: log₂ e times what each round adds, and what a key has along itself
    parts_v,  # out [B·H, R, N, D]
    along,  # out [B·H, R, N]: q·(what it adds to q as a query), log₂ e times
    heads,
    rounds,
    seq_len,
    chunk,
    head_dim,
    q_b,
    q_h,
    q_n,
    v_b,
    v_h,
    v_n,
    g_b,
    g_h,
    g_n,
    CAUSAL: tl.constexpr,
    CORRECT: tl.constexpr,
    ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of tokens, round and head, in that order: first they are queries, then keys."""
    line, begin, places = tile_of(seq_len, chunk, BLOCK)
    head = line // rounds
    chosen = line % rounds
    qk += head // heads * q_b + head % heads * q_h
    v += head // heads * v_b + head % heads * v_h
    dy += head // heads * g_b + head % heads * g_h
    order += line * seq_len
    label += head * seq_len * ROUNDS
    total += head * seq_len
    agreement += head * seq_len

    end = tl.minimum(begin + chunk, seq_len)
    mask = places < end
    tokens = tl.load(order + places, mask=mask, other=0)
    rows = load_tokens(qk, tokens, mask, q_n, head_dim, BLOCK_D)
    cotangents = load_tokens(dy, tokens, mask, g_n, head_dim, BLOCK_D)
    z = tl.load(total + tokens, mask=mask, other=float("inf"))
    agreed = tl.load(agreement + tokens, mask=mask, other=0.0)
    d_rows = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for first in range(tl.maximum(begin - chunk, 0), end, BLOCK):
        places_k = first + tl.arange(0, BLOCK)
        mask_k = places_k < end
        tokens_k = tl.load(order + places_k, mask=mask_k, other=0)
        k = load_tokens(qk, tokens_k, mask_k, q_n, head_dim, BLOCK_D)
        values = load_tokens(v, tokens_k, mask_k, v_n, head_dim, BLOCK_D)
        scale = inverse_length(k) * LOG2_E
        s = products(
            rows, k, qk, tokens, mask, q_n, qk, tokens_k, mask_k, q_n,
            head_dim, BLOCK_D, WIDTH, PRECISION,
        )  # fmt: skip
        counts = visible(tokens, tokens_k, mask, mask_k, label, chosen, CAUSAL, CORRECT, ROUNDS)
        p = tl.exp2(tl.where(counts, s * scale[None, :] - z[:, None], float("-inf")))
        dp = products(
            cotangents, values, dy, tokens, mask, g_n, v, tokens_k, mask_k, v_n,
            head_dim, BLOCK_D, WIDTH, PRECISION,
        )  # fmt: skip
        ds = p * (dp - agreed[:, None]) * scale[None, :]
        d_rows = tl.dot(ds.to(k.dtype), k, d_rows, input_precision=PRECISION)

    values = load_tokens(v, tokens, mask, v_n, head_dim, BLOCK_D)
    scale = inverse_length(rows) * LOG2_E
    d_unit = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    d_values = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for first in range(begin, tl.minimum(begin + 2 * chunk, seq_len), BLOCK):
        places_q = first + tl.arange(0, BLOCK)
        mask_q = places_q < tl.minimum(begin + 2 * chunk, seq_len)
        tokens_q = tl.load(order + places_q, mask=mask_q, other=0)
        q = load_tokens(qk, tokens_q, mask_q, q_n, head_dim, BLOCK_D)
        cotangents = load_tokens(dy, tokens_q, mask_q, g_n, head_dim, BLOCK_D)
        z = tl.load(total + tokens_q, mask=mask_q, other=float("inf"))
        agreed = tl.load(agreement + tokens_q, mask=mask_q, other=0.0)
        s = products(
            q, rows, qk, tokens_q, mask_q, q_n, qk, tokens, mask, q_n,
            head_dim, BLOCK_D, WIDTH, PRECISION,
        )  # fmt: skip
        counts = visible(tokens_q, tokens, mask_q, mask, label, chosen, CAUSAL, CORRECT, ROUNDS)
        p = tl.exp2(tl.where(counts, s * scale[None, :] - z[:, None], float("-inf")))
        d_values = tl.dot(tl.trans(p.to(cotangents.dtype)), cotangents, d_values, input_precision=PRECISION)
        dp = products(
            cotangents, values, dy, tokens_q, mask_q, g_n, v, tokens, mask, v_n,
            head_dim, BLOCK_D, WIDTH, PRECISION,
        )  # fmt: skip
        ds = p * (dp - agreed[:, None])
        d_unit = tl.dot(tl.trans(ds.to(q.dtype)), q, d_unit, input_precision=PRECISION)

    as_query = tl.sum(d_rows * rows.to(tl.float32), axis=1)
    d_rows += d_unit * scale[:, None]
    store_tokens(d_rows, parts_qk + line * seq_len * head_dim, tokens, mask, head_dim, BLOCK_D)
    store_tokens(d_values, parts_v + line * seq_len * head_dim, tokens, mask, head_dim, BLOCK_D)
    tl.store(along + line * seq_len + tokens, as_query, mask=mask)


@triton.jit
def add_rounds_kernel(
    qk,  # [B, H, N, D], strides q_b, q_h, q_n, 1
    parts_qk,  # [B·H, R, N, D]
    parts_v,  # [B·H, R, N, D]
    along,  # [B·H, R, N]
    dy,  # [B, H, N, D], strides g_b, g_h, g_n, 1
    total,  # [B·H, N]
    dqk,  # out [B·H, N, D]
    dv,  # out [B·H, N, D]
    heads,
    rounds,
    seq_len,
    head_dim,
    q_b,
    q_h,
    q_n,
    g_b,
    g_h,
    g_n,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program per tile of tokens and head, in that order. A token that sees nobody gives dy to its own value.

    A key is normalised, so it has no gradient along itself: what lies along q must be what it has as a query.
    """
    head, tokens = tokens_of(seq_len, BLOCK)
    inside = tokens < seq_len
    alone = tl.load(total + head * seq_len + tokens, mask=inside, other=0.0) == float("inf")
    dy += head // heads * g_b + head % heads * g_h
    qk += head // heads * q_b + head % heads * q_h
    d_values = load_tokens(dy, tokens, inside & alone, g_n, head_dim, BLOCK_D).to(tl.float32)
    d_rows = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    as_query = tl.zeros([BLOCK], tl.float32)
    for chosen in range(rounds):
        first = (head * rounds + chosen) * seq_len
        d_rows += load_tokens(parts_qk + first * head_dim, tokens, inside, head_dim, head_dim, BLOCK_D).to(tl.float32)
        d_values += load_tokens(parts_v + first * head_dim, tokens, inside, head_dim, head_dim, BLOCK_D).to(tl.float32)
        as_query += tl.load(along + first + tokens, mask=inside, other=0.0)
    rows = load_tokens(qk, tokens, inside, q_n, head_dim, BLOCK_D).to(tl.float32)
    inverse = inverse_length(rows)
    unit = rows * inverse[:, None]
    d_rows = (d_rows - unit * (tl.sum(unit * d_rows, axis=1) - as_query * inverse)[:, None]) * (1 / LOG2_E)
    store_tokens(d_rows, dqk + head * seq_len * head_dim, tokens, inside, head_dim, BLOCK_D)
    store_tokens(d_values, dv + head * seq_len * head_dim, tokens, inside, head_dim, BLOCK_D)
