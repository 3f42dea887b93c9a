"""The gradients of the causal scan: of the queries, and of keys and values, a block of tokens at a time.

Blocks, chunks and states are those of `scan`; the sums over the queries after a chunk (`chunk_states_kernel`) are the
states of the keys' gradients. Where D needs several tiles of value channels, gradients of the arguments come in parts,
one per tile, which add up (they are linear in what a tile brings).
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.kernelized.features import arguments, feature_count, in_units, load_rows, rows_once, unit_of
from attnbench.kernels.kernelized.gradients import to_token
from attnbench.kernels.kernelized.scan import (
    block_of,
    normaliser_tile,
    scored,
    slope,
    state_tile,
    token,
    values_of,
)


@triton.jit
def chunk_query_gradient_kernel(
    q,  # [B, H, N, D], as k, v, y and dy with strides of their own, the last 1
    k,
    v,
    omega,  # [m, D]
    states,  # [chunks, B·H, M, D]: the state before each chunk, of its segment's tokens
    normalisers,  # [chunks, B·H, M]
    segment_states,  # [segments, B·H, M, D]: the state before each segment
    segment_normalisers,  # [segments, B·H, M]
    y,
    dy,
    denominators,  # [B·H, N]
    stabilisers,  # [B·H, N]
    places,  # [B·H, N]
    dq,  # out [value tiles, B, H, N, D], strides d_t, d_b, d_h, d_n, 1: parts to be added up
    weights,  # out [B·H, N]: 1/δ
    shares,  # out [value tiles, B·H, N]: parts of −(y·dy)/δ
    heads,
    seq_len,
    features,
    head_dim,
    segment_chunks,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, y_b, y_h, y_n, g_b, g_h, g_n, d_t, d_b, d_h, d_n,
    scale,
    epsilon,
    FEATURES: tl.constexpr,
    CHUNK: tl.constexpr,
    EVEN: tl.constexpr,  # whether BLOCK_M divides the features
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per value tile, block of queries and head, in that order."""
    tile_v, block, head, all_heads = block_of(seq_len, head_dim, BLOCK_N, BLOCK_V)
    first_v = tile_v * BLOCK_V
    q += head // heads * q_b + head % heads * q_h
    k += head // heads * k_b + head % heads * k_h
    v += head // heads * v_b + head % heads * v_h
    y += head // heads * y_b + head % heads * y_h
    dy += head // heads * g_b + head % heads * g_h
    dq += tile_v.to(tl.int64) * d_t + head // heads * d_b + head % heads * d_h
    rows = block.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < seq_len
    unit = unit_of(scale, FEATURES, COMPUTE)
    offsets = head * seq_len + rows
    chunk = block // (CHUNK // BLOCK_N)
    count = feature_count(features, FEATURES)
    row = (chunk * all_heads + head) * count
    segment_row = (chunk // segment_chunks * all_heads + head) * count

    g = load_rows(dy, rows, row_mask, g_n, first_v, head_dim, BLOCK_V).to(tl.float32)
    out = load_rows(y, rows, row_mask, y_n, first_v, head_dim, BLOCK_V).to(tl.float32)
    weight = 1.0 / tl.load(denominators + offsets, mask=row_mask, other=1.0)
    share = -tl.sum(g * out, axis=1) * weight
    tl.store(shares + tile_v * all_heads * seq_len + offsets, share, mask=row_mask)
    if first_v == 0:
        tl.store(weights + offsets, weight, mask=row_mask)
    g = (g * weight[:, None]).to(COMPUTE)
    stabiliser = tl.zeros([BLOCK_N], tl.float32)
    if FEATURES == "exp":
        stabiliser = in_units(tl.load(stabilisers + offsets, mask=row_mask, other=0.0), COMPUTE)
    value = load_rows(v, rows, row_mask, v_n, first_v, head_dim, BLOCK_V).to(COMPUTE)
    pairs = tl.dot(g, tl.trans(value), input_precision=PRECISION) + share[:, None]
    pairs = tl.where(rows[:, None] >= rows[None, :], pairs, 0.0).to(COMPUTE)
    q_tile, q_scalar = token(q, rows, row_mask, q_n, head_dim, scale, FEATURES, BLOCK_D, COMPUTE)
    k_tile, k_scalar = token(k, rows, row_mask, k_n, head_dim, scale, FEATURES, BLOCK_D, COMPUTE)
    dx = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    lift = tl.zeros([BLOCK_N], tl.float32)
    for first in tl.range(0, features, BLOCK_M):
        columns = first + tl.arange(0, BLOCK_M)
        column_mask = columns < features
        w = rows_once(omega, columns.to(tl.int64), column_mask, head_dim, FEATURES, BLOCK_D, WIDTH)
        s = state_tile(states, segment_states, row, segment_row, columns, column_mask, head_dim, first_v, BLOCK_V)
        z = normaliser_tile(normalisers, segment_normalisers, row, segment_row, columns, column_mask)
        dphi = tl.dot(g, tl.trans(s.to(COMPUTE)), input_precision=PRECISION) + share[:, None] * z[None, :]
        b = arguments(
            k_tile, k_scalar, k, rows, row_mask, k_n, omega, first, features, head_dim, unit,
            FEATURES, True, BLOCK_M, BLOCK_D, PRECISION, WIDTH, w,
        )  # fmt: skip
        fk, fk_cos = values_of(b, column_mask, epsilon, FEATURES, EVEN, COMPUTE)
        dphi = tl.dot(pairs, fk.to(COMPUTE), dphi, input_precision=PRECISION)
        dcos = dphi
        if FEATURES == "fourier":
            s = state_tile(
                states, segment_states, row + features, segment_row + features, columns, column_mask, head_dim, first_v,
                BLOCK_V,
            )  # fmt: skip
            z = normaliser_tile(
                normalisers, segment_normalisers, row + features, segment_row + features, columns, column_mask
            )
            dcos = tl.dot(g, tl.trans(s.to(COMPUTE)), input_precision=PRECISION) + share[:, None] * z[None, :]
            dcos = tl.dot(pairs, fk_cos.to(COMPUTE), dcos, input_precision=PRECISION)
        if CHUNK > BLOCK_N:
            for before in tl.range(block - block % (CHUNK // BLOCK_N), block):
                others = before * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
                other_mask = others < seq_len
                other_value = load_rows(v, others, other_mask, v_n, first_v, head_dim, BLOCK_V).to(COMPUTE)
                other_pairs = tl.dot(g, tl.trans(other_value), input_precision=PRECISION) + share[:, None]
                other_pairs = other_pairs.to(COMPUTE)
                other, other_scalar = token(k, others, other_mask, k_n, head_dim, scale, FEATURES, BLOCK_D, COMPUTE)
                b = arguments(
                    other, other_scalar, k, others, other_mask, k_n, omega, first, features, head_dim, unit,
                    FEATURES, True, BLOCK_M, BLOCK_D, PRECISION, WIDTH, w,
                )  # fmt: skip
                fk, fk_cos = values_of(b, column_mask, epsilon, FEATURES, EVEN, COMPUTE)
                dphi = tl.dot(other_pairs, fk.to(COMPUTE), dphi, input_precision=PRECISION)
                if FEATURES == "fourier":
                    dcos = tl.dot(other_pairs, fk_cos.to(COMPUTE), dcos, input_precision=PRECISION)
        a = arguments(
            q_tile, q_scalar, q, rows, row_mask, q_n, omega, first, features, head_dim, unit,
            FEATURES, False, BLOCK_M, BLOCK_D, PRECISION, WIDTH, w,
        )  # fmt: skip
        a -= stabiliser[:, None]
        fq, fq_cos = values_of(a, column_mask, epsilon, FEATURES, EVEN, COMPUTE)
        da = slope(a, fq, fq_cos, dphi, dcos, column_mask, epsilon, FEATURES, EVEN, COMPUTE)
        if FEATURES == "elu":
            mask = row_mask[:, None] & column_mask[None, :]
            tl.store(dq + rows[:, None] * d_n + columns[None, :], da.to(dq.dtype.element_ty), mask=mask)
        else:
            if WIDTH != 0:
                w = load_rows(omega, columns.to(tl.int64), column_mask, head_dim, 0, head_dim, BLOCK_D)
            dx = tl.dot(da.to(COMPUTE), w.to(COMPUTE), dx, input_precision=PRECISION)
            lift += tl.sum(da, axis=1)
    if FEATURES != "elu":
        if FEATURES == "exp":  # the largest argument is subtracted from all, so it gets back what all of them got
            place = tl.load(places + offsets, mask=row_mask, other=0).to(tl.int64)
            largest = load_rows(omega, place, row_mask, head_dim, 0, head_dim, BLOCK_D)
            dx -= lift[:, None] * largest.to(tl.float32)
        q_tile = load_rows(q, rows, row_mask, q_n, 0, head_dim, BLOCK_D)  # again: it would stay in registers
        dx = to_token(dx, q_tile, q_scalar, scale, FEATURES)
        channels = tl.arange(0, BLOCK_D)
        inside = row_mask[:, None] & (channels < head_dim)[None, :]
        tl.store(dq + rows[:, None] * d_n + channels[None, :], dx.to(dq.dtype.element_ty), mask=inside)


@triton.jit
def chunk_key_gradient_kernel(
    q,  # [B, H, N, D], as k, v and dy with strides of their own, the last 1
    k,
    v,
    omega,  # [m, D]
    states,  # [chunks, B·H, M, D]: Σ φ(q_i) dy_iᵀ / δ_i over the segment's tokens after each chunk
    normalisers,  # [chunks, B·H, M]: Σ φ(q_i) shares_i likewise
    segment_states,  # [segments, B·H, M, D]: the same over the tokens after each segment
    segment_normalisers,  # [segments, B·H, M]
    dy,
    weights,  # [B·H, N]: 1/δ
    shares,  # [B·H, N]: −(y·dy)/δ
    stabilisers,  # [B·H, N]
    dk,  # out [value tiles, B, H, N, D], strides d_t, d_b, d_h, d_n, 1: parts to be added up
    dv,  # out [B, H, N, D], strides w_b, w_h, w_n, 1
    heads,
    seq_len,
    features,
    head_dim,
    segment_chunks,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, g_b, g_h, g_n, d_t, d_b, d_h, d_n, w_b, w_h, w_n,
    scale,
    epsilon,
    FEATURES: tl.constexpr,
    CHUNK: tl.constexpr,
    EVEN: tl.constexpr,  # whether BLOCK_M divides the features
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    WIDTH: tl.constexpr,
    TURNS: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per value tile, block of keys and head, in that order.

    TURNS: 1; or 2 where the sums of dv and dk do not fit together: a loop over the features for each.
    """
    tile_v, block, head, all_heads = block_of(seq_len, head_dim, BLOCK_N, BLOCK_V)
    first_v = tile_v * BLOCK_V
    q += head // heads * q_b + head % heads * q_h
    k += head // heads * k_b + head % heads * k_h
    v += head // heads * v_b + head % heads * v_h
    dy += head // heads * g_b + head % heads * g_h
    dk += tile_v.to(tl.int64) * d_t + head // heads * d_b + head % heads * d_h
    dv += head // heads * w_b + head % heads * w_h
    once = tl.where(first_v == 0, 1.0, 0.0)  # what does not depend on the channels is brought by one tile of them
    rows = block.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < seq_len
    unit = unit_of(scale, FEATURES, COMPUTE)
    chunk = block // (CHUNK // BLOCK_N)
    count = feature_count(features, FEATURES)
    row = (chunk * all_heads + head) * count
    segment_row = (chunk // segment_chunks * all_heads + head) * count
    last = (chunk + 1) * (CHUNK // BLOCK_N)  # the first block of the next chunk

    value = load_rows(v, rows, row_mask, v_n, first_v, head_dim, BLOCK_V).to(COMPUTE)
    k_tile, k_scalar = token(k, rows, row_mask, k_n, head_dim, scale, FEATURES, BLOCK_D, COMPUTE)
    dvalue = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    if CHUNK > BLOCK_N:
        for after in tl.range(block + 1, last):
            others = after * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
            other_mask = others < seq_len
            g, share, stabiliser = cotangent(
                dy, weights, shares, stabilisers, others, other_mask, head * seq_len, g_n, first_v, head_dim,
                FEATURES, BLOCK_V, COMPUTE,
            )  # fmt: skip
            q_tile, q_scalar = token(q, others, other_mask, q_n, head_dim, scale, FEATURES, BLOCK_D, COMPUTE)
            scores = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
            for first in tl.range(0, features, BLOCK_M, disable_licm=True):
                scores = scored(
                    scores, q_tile, q_scalar, q, others, other_mask, q_n, stabiliser, k_tile, k_scalar, k, rows,
                    row_mask, k_n, omega, first, features, head_dim, scale, epsilon,
                    FEATURES, EVEN, BLOCK_M, BLOCK_D, WIDTH, COMPUTE, PRECISION,
                )  # fmt: skip
            dvalue = tl.dot(tl.trans(scores.to(COMPUTE)), g, dvalue, input_precision=PRECISION)

    g, share, stabiliser = cotangent(
        dy, weights, shares, stabilisers, rows, row_mask, head * seq_len, g_n, first_v, head_dim,
        FEATURES, BLOCK_V, COMPUTE,
    )  # fmt: skip
    q_tile, q_scalar = token(q, rows, row_mask, q_n, head_dim, scale, FEATURES, BLOCK_D, COMPUTE)
    for turn in tl.static_range(TURNS):
        if turn == 0:
            scores = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
        if turn == TURNS - 1:
            pairs = tl.dot(g, tl.trans(value), input_precision=PRECISION) + share[:, None] * once
            pairs = tl.trans(tl.where(rows[:, None] >= rows[None, :], pairs, 0.0).to(COMPUTE))
            dx = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
            total = tl.zeros([BLOCK_N], tl.float32)
        for first in tl.range(0, features, BLOCK_M, disable_licm=True):
            columns = first + tl.arange(0, BLOCK_M)
            column_mask = columns < features
            w = rows_once(omega, columns.to(tl.int64), column_mask, head_dim, FEATURES, BLOCK_D, WIDTH)
            a = arguments(
                q_tile, q_scalar, q, rows, row_mask, q_n, omega, first, features, head_dim, unit,
                FEATURES, False, BLOCK_M, BLOCK_D, PRECISION, WIDTH, w,
            )  # fmt: skip
            fq, fq_cos = values_of(a - stabiliser[:, None], column_mask, epsilon, FEATURES, EVEN, COMPUTE)
            b = arguments(
                k_tile, k_scalar, k, rows, row_mask, k_n, omega, first, features, head_dim, unit,
                FEATURES, True, BLOCK_M, BLOCK_D, PRECISION, WIDTH, w,
            )  # fmt: skip
            fk, fk_cos = values_of(b, column_mask, epsilon, FEATURES, EVEN, COMPUTE)
            narrow = fq.to(COMPUTE)
            s = state_tile(
                states, segment_states, row, segment_row, columns, column_mask, head_dim, first_v, BLOCK_V
            ).to(COMPUTE)  # fmt: skip
            if turn == 0:
                scores = tl.dot(narrow, tl.trans(fk.to(COMPUTE)), scores, input_precision=PRECISION)
                dvalue = tl.dot(fk.to(COMPUTE), s, dvalue, input_precision=PRECISION)
            if turn == TURNS - 1:
                z = normaliser_tile(normalisers, segment_normalisers, row, segment_row, columns, column_mask)
                dphi = tl.dot(value, tl.trans(s), input_precision=PRECISION) + z[None, :] * once
                dphi = tl.dot(pairs, narrow, dphi, input_precision=PRECISION)
                dcos = dphi
            if FEATURES == "fourier":
                narrow = fq_cos.to(COMPUTE)
                s = state_tile(
                    states, segment_states, row + features, segment_row + features, columns, column_mask, head_dim,
                    first_v, BLOCK_V,
                ).to(COMPUTE)  # fmt: skip
                if turn == 0:
                    scores = tl.dot(narrow, tl.trans(fk_cos.to(COMPUTE)), scores, input_precision=PRECISION)
                    dvalue = tl.dot(fk_cos.to(COMPUTE), s, dvalue, input_precision=PRECISION)
                if turn == TURNS - 1:
                    z = normaliser_tile(
                        normalisers, segment_normalisers, row + features, segment_row + features, columns, column_mask
                    )
                    dcos = tl.dot(value, tl.trans(s), input_precision=PRECISION) + z[None, :] * once
                    dcos = tl.dot(pairs, narrow, dcos, input_precision=PRECISION)
            if turn == TURNS - 1:
                if CHUNK > BLOCK_N:
                    for after in tl.range(block + 1, last):
                        others = after * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
                        other_mask = others < seq_len
                        other_g, other_share, other_stabiliser = cotangent(
                            dy, weights, shares, stabilisers, others, other_mask, head * seq_len, g_n, first_v,
                            head_dim, FEATURES, BLOCK_V, COMPUTE,
                        )  # fmt: skip
                        other_pairs = tl.dot(other_g, tl.trans(value), input_precision=PRECISION)
                        other_pairs = tl.trans((other_pairs + other_share[:, None] * once).to(COMPUTE))
                        other, other_scalar = token(
                            q, others, other_mask, q_n, head_dim, scale, FEATURES, BLOCK_D, COMPUTE
                        )
                        a = arguments(
                            other, other_scalar, q, others, other_mask, q_n, omega, first, features, head_dim, unit,
                            FEATURES, False, BLOCK_M, BLOCK_D, PRECISION, WIDTH, w,
                        )  # fmt: skip
                        fq, fq_cos = values_of(
                            a - other_stabiliser[:, None], column_mask, epsilon, FEATURES, EVEN, COMPUTE
                        )
                        dphi = tl.dot(other_pairs, fq.to(COMPUTE), dphi, input_precision=PRECISION)
                        if FEATURES == "fourier":
                            dcos = tl.dot(other_pairs, fq_cos.to(COMPUTE), dcos, input_precision=PRECISION)
                da = slope(b, fk, fk_cos, dphi, dcos, column_mask, epsilon, FEATURES, EVEN, COMPUTE)
                if FEATURES == "elu":
                    mask = row_mask[:, None] & column_mask[None, :]
                    tl.store(dk + rows[:, None] * d_n + columns[None, :], da.to(dk.dtype.element_ty), mask=mask)
                else:
                    if WIDTH != 0:
                        w = load_rows(omega, columns.to(tl.int64), column_mask, head_dim, 0, head_dim, BLOCK_D)
                    dx = tl.dot(da.to(COMPUTE), w.to(COMPUTE), dx, input_precision=PRECISION)
                    total += tl.sum(da, axis=1)
        if turn == 0:
            scores = tl.where(rows[:, None] >= rows[None, :], scores, 0.0).to(COMPUTE)
            dvalue = tl.dot(tl.trans(scores), g, dvalue, input_precision=PRECISION)
            channels = first_v + tl.arange(0, BLOCK_V)
            inside = row_mask[:, None] & (channels < head_dim)[None, :]
            tl.store(dv + rows[:, None] * w_n + channels[None, :], dvalue.to(dv.dtype.element_ty), mask=inside)
    if FEATURES != "elu":
        k_tile = load_rows(k, rows, row_mask, k_n, 0, head_dim, BLOCK_D)  # again: it would stay in registers
        dx = to_token(dx, k_tile, k_scalar, scale, FEATURES)
        if FEATURES == "exp":
            dx -= total[:, None] * k_tile.to(tl.float32) * (scale * scale)
        channels = tl.arange(0, BLOCK_D)
        inside = row_mask[:, None] & (channels < head_dim)[None, :]
        tl.store(dk + rows[:, None] * d_n + channels[None, :], dx.to(dk.dtype.element_ty), mask=inside)


@triton.jit
def cotangent(
    dy, weights, shares, stabilisers, rows, row_mask, before, row_stride, first_v, head_dim,
    FEATURES: tl.constexpr, BLOCK_V: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """dy / δ [N, BLOCK_V], −(y·dy)/δ and the stabiliser `in_units`. before: of the head's first query in `weights`."""
    weight = tl.load(weights + before + rows, mask=row_mask, other=0.0)
    share = tl.load(shares + before + rows, mask=row_mask, other=0.0)
    stabiliser = tl.zeros_like(share)
    if FEATURES == "exp":
        stabiliser = in_units(tl.load(stabilisers + before + rows, mask=row_mask, other=0.0), COMPUTE)
    g = load_rows(dy, rows, row_mask, row_stride, first_v, head_dim, BLOCK_V).to(tl.float32) * weight[:, None]
    return g.to(COMPUTE), share, stabiliser
