"""The gradients of the causal scan: of the queries from the first chunk to the last, of keys and values back from it.

Chunks, tiles and the state that a program carries are those of `scan`. Where D needs several tiles of value
channels, gradients of the arguments come in parts, one per tile, which add up (they are linear in what a tile brings).
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.kernelized.features import arguments, feature_count, load_rows
from attnbench.kernels.kernelized.gradients import to_token
from attnbench.kernels.kernelized.scan import place_of, raise_state, slope, token, values_of


@triton.jit
def scan_query_gradient_kernel(
    q,  # [B, H, N, D], as k, v, y and dy with strides of their own, the last 1
    k,
    v,
    omega,  # [m, D]
    state,  # [segments, B·H, M, D]: the state before each segment; afterwards, after it
    normaliser,  # [value tiles, segments, B·H, M]: likewise, for each tile by itself
    y,
    dy,
    denominators,  # [B·H, N]
    stabilisers,  # [B·H, N]
    places,  # [B·H, N]
    dq,  # out [value tiles, B, H, N, D], strides d_t, d_b, d_h, d_n, 1: parts to be added up
    along,  # out [value tiles, B·H, N]: parts of y·dy
    heads,
    seq_len,
    features,
    head_dim,
    segments,
    segment_len,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, y_b, y_h, y_n, g_b, g_h, g_n, d_t, d_b, d_h, d_n,
    scale,
    epsilon,
    FEATURES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per value tile, segment and head, in that order."""
    tile_v, segment, head, all_heads = place_of(head_dim, segments, BLOCK_V)
    first_v = tile_v.to(tl.int32) * BLOCK_V
    q += head // heads * q_b + head % heads * q_h
    k += head // heads * k_b + head % heads * k_h
    v += head // heads * v_b + head % heads * v_h
    y += head // heads * y_b + head % heads * y_h
    dy += head // heads * g_b + head % heads * g_h
    dq += tile_v * d_t + head // heads * d_b + head % heads * d_h
    count = feature_count(features, FEATURES)
    state += (segment * all_heads + head) * count * head_dim
    normaliser += ((tile_v * segments + segment) * all_heads + head) * count
    order = tl.arange(0, BLOCK_N)
    visible = order[:, None] >= order[None, :]

    begin = segment * segment_len
    for start in tl.range(begin, tl.minimum(begin + segment_len, seq_len), BLOCK_N, disable_licm=True):
        rows = start + order.to(tl.int64)
        row_mask = rows < seq_len
        offsets = head * seq_len + rows
        value = load_rows(v, rows, row_mask, v_n, first_v, head_dim, BLOCK_V).to(COMPUTE)
        g = load_rows(dy, rows, row_mask, g_n, first_v, head_dim, BLOCK_V)
        out = load_rows(y, rows, row_mask, y_n, first_v, head_dim, BLOCK_V)
        product = tl.sum(g.to(tl.float32) * out.to(tl.float32), axis=1)
        tl.store(along + tile_v * all_heads * seq_len + offsets, product, mask=row_mask)
        weight = 1.0 / tl.load(denominators + offsets, mask=row_mask, other=1.0)
        stabiliser = tl.zeros([BLOCK_N], tl.float32)
        if FEATURES == "exp":
            stabiliser = tl.load(stabilisers + offsets, mask=row_mask, other=0.0)
        g = g.to(COMPUTE)
        pairs = tl.dot(g, tl.trans(value), input_precision=PRECISION) - product[:, None]
        pairs = tl.where(visible, pairs * weight[:, None], 0.0).to(COMPUTE)
        q_tile, q_scalar = token(q, rows, row_mask, q_n, head_dim, scale, FEATURES, BLOCK_D)
        k_tile, k_scalar = token(k, rows, row_mask, k_n, head_dim, scale, FEATURES, BLOCK_D)
        dx = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        lift = tl.zeros([BLOCK_N], tl.float32)
        for first in tl.range(0, features, BLOCK_M, disable_licm=True):
            columns = first + tl.arange(0, BLOCK_M).to(tl.int64)
            column_mask = columns < features
            s = load_rows(state, columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
            z = tl.load(normaliser + columns, mask=column_mask, other=0.0)
            mask = row_mask[:, None] & column_mask[None, :]
            b = arguments(
                k_tile, k_scalar, k, rows, row_mask, k_n, omega, first, features, head_dim, scale,
                FEATURES, True, BLOCK_M, BLOCK_D, PRECISION, WIDTH,
            )  # fmt: skip
            fk, fk_cos = values_of(b, mask, scale, epsilon, FEATURES)
            narrow = fk.to(COMPUTE)
            dphi = tl.dot(g, tl.trans(s.to(COMPUTE)), input_precision=PRECISION)
            dphi = (dphi - product[:, None] * z[None, :]) * weight[:, None]
            dphi = tl.dot(pairs, narrow, dphi, input_precision=PRECISION)
            raise_state(state, columns, column_mask, first_v, head_dim, narrow, value, s, BLOCK_V, PRECISION)
            tl.store(normaliser + columns, z + tl.sum(fk, axis=0), mask=column_mask)
            dcos = dphi
            if FEATURES == "fourier":
                s_cos = load_rows(state, features + columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
                z_cos = tl.load(normaliser + features + columns, mask=column_mask, other=0.0)
                narrow = fk_cos.to(COMPUTE)
                dcos = tl.dot(g, tl.trans(s_cos.to(COMPUTE)), input_precision=PRECISION)
                dcos = (dcos - product[:, None] * z_cos[None, :]) * weight[:, None]
                dcos = tl.dot(pairs, narrow, dcos, input_precision=PRECISION)
                raise_state(
                    state, features + columns, column_mask, first_v, head_dim, narrow, value, s_cos, BLOCK_V, PRECISION
                )
                tl.store(normaliser + features + columns, z_cos + tl.sum(fk_cos, axis=0), mask=column_mask)
            a = arguments(
                q_tile, q_scalar, q, rows, row_mask, q_n, omega, first, features, head_dim, scale,
                FEATURES, False, BLOCK_M, BLOCK_D, PRECISION, WIDTH,
            )  # fmt: skip
            a -= stabiliser[:, None]
            fq, fq_cos = values_of(a, mask, scale, epsilon, FEATURES)
            da = slope(a, fq, fq_cos, dphi, dcos, mask, epsilon, FEATURES)
            if FEATURES == "elu":
                tl.store(dq + rows[:, None] * d_n + columns[None, :], da.to(dq.dtype.element_ty), mask=mask)
            else:
                w = load_rows(omega, columns, column_mask, head_dim, 0, head_dim, BLOCK_D)
                dx = tl.dot(da.to(COMPUTE), w.to(COMPUTE), dx, input_precision=PRECISION)
                lift += tl.sum(da, axis=1)
        tl.debug_barrier()
        if FEATURES != "elu":
            if FEATURES == "exp":  # the largest argument is subtracted from all, so it gets back what all of them got
                place = tl.load(places + offsets, mask=row_mask, other=0).to(tl.int64)
                largest = load_rows(omega, place, row_mask, head_dim, 0, head_dim, BLOCK_D)
                dx -= lift[:, None] * largest.to(tl.float32)
            if WIDTH != 0:  # recomputed, not stored
                q_tile = load_rows(q, rows, row_mask, q_n, 0, head_dim, BLOCK_D)
            dx = to_token(dx, q_tile, q_scalar, scale, FEATURES)
            channels = tl.arange(0, BLOCK_D)
            inside = row_mask[:, None] & (channels < head_dim)[None, :]
            tl.store(dq + rows[:, None] * d_n + channels[None, :], dx.to(dq.dtype.element_ty), mask=inside)


@triton.jit
def scan_key_gradient_kernel(
    q,  # [B, H, N, D], as k, v and dy with strides of their own, the last 1
    k,
    v,
    omega,  # [m, D]
    state,  # [segments, B·H, M, D]: Σ φ(q_i) dy_iᵀ / δ_i over the tokens after each segment; then from its first on
    normaliser,  # [value tiles, segments, B·H, M]: Σ φ(q_i) shares_i likewise, for each tile by itself
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
    segments,
    segment_len,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, g_b, g_h, g_n, d_t, d_b, d_h, d_n, w_b, w_h, w_n,
    scale,
    epsilon,
    FEATURES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    WIDTH: tl.constexpr,
    TURNS: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per value tile, segment and head, in that order, from the segment's last chunk to its first.

    TURNS: 1; or 2 where the sums of dv and dk do not fit together: a loop over the features for each.
    """
    tile_v, segment, head, all_heads = place_of(head_dim, segments, BLOCK_V)
    first_v = tile_v.to(tl.int32) * BLOCK_V
    q += head // heads * q_b + head % heads * q_h
    k += head // heads * k_b + head % heads * k_h
    v += head // heads * v_b + head % heads * v_h
    dy += head // heads * g_b + head % heads * g_h
    dk += tile_v * d_t + head // heads * d_b + head % heads * d_h
    dv += head // heads * w_b + head % heads * w_h
    count = feature_count(features, FEATURES)
    state += (segment * all_heads + head) * count * head_dim
    normaliser += ((tile_v * segments + segment) * all_heads + head) * count
    once = tl.where(first_v == 0, 1.0, 0.0)  # what does not depend on the channels is brought by one tile of them
    order = tl.arange(0, BLOCK_N)
    visible = order[:, None] >= order[None, :]

    begin = segment * segment_len
    chunks = tl.cdiv(tl.maximum(tl.minimum(begin + segment_len, seq_len) - begin, 0), BLOCK_N)
    for back in tl.range(0, chunks, disable_licm=True):
        rows = begin + (chunks - 1 - back) * BLOCK_N + order.to(tl.int64)
        row_mask = rows < seq_len
        offsets = head * seq_len + rows
        value = load_rows(v, rows, row_mask, v_n, first_v, head_dim, BLOCK_V).to(COMPUTE)
        weight = tl.load(weights + offsets, mask=row_mask, other=0.0)
        share = tl.load(shares + offsets, mask=row_mask, other=0.0)
        stabiliser = tl.zeros([BLOCK_N], tl.float32)
        if FEATURES == "exp":
            stabiliser = tl.load(stabilisers + offsets, mask=row_mask, other=0.0)
        g = load_rows(dy, rows, row_mask, g_n, first_v, head_dim, BLOCK_V).to(tl.float32) * weight[:, None]
        g = g.to(COMPUTE)
        q_tile, q_scalar = token(q, rows, row_mask, q_n, head_dim, scale, FEATURES, BLOCK_D)
        k_tile, k_scalar = token(k, rows, row_mask, k_n, head_dim, scale, FEATURES, BLOCK_D)
        for turn in tl.static_range(TURNS):
            if turn == 0:
                scores = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
                dvalue = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
            if turn == TURNS - 1:
                pairs = tl.dot(g, tl.trans(value), input_precision=PRECISION) + share[:, None] * once
                pairs = tl.trans(tl.where(visible, pairs, 0.0).to(COMPUTE))
                dx = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
                total = tl.zeros([BLOCK_N], tl.float32)
            for first in tl.range(0, features, BLOCK_M, disable_licm=True):
                columns = first + tl.arange(0, BLOCK_M).to(tl.int64)
                column_mask = columns < features
                s = load_rows(state, columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
                z = tl.load(normaliser + columns, mask=column_mask, other=0.0)
                mask = row_mask[:, None] & column_mask[None, :]
                a = arguments(
                    q_tile, q_scalar, q, rows, row_mask, q_n, omega, first, features, head_dim, scale,
                    FEATURES, False, BLOCK_M, BLOCK_D, PRECISION, WIDTH,
                )  # fmt: skip
                fq, fq_cos = values_of(a - stabiliser[:, None], mask, scale, epsilon, FEATURES)
                b = arguments(
                    k_tile, k_scalar, k, rows, row_mask, k_n, omega, first, features, head_dim, scale,
                    FEATURES, True, BLOCK_M, BLOCK_D, PRECISION, WIDTH,
                )  # fmt: skip
                fk, fk_cos = values_of(b, mask, scale, epsilon, FEATURES)
                narrow = fq.to(COMPUTE)
                ds = s.to(COMPUTE)
                if turn == 0:
                    scores = tl.dot(narrow, tl.trans(fk.to(COMPUTE)), scores, input_precision=PRECISION)
                    dvalue = tl.dot(fk.to(COMPUTE), ds, dvalue, input_precision=PRECISION)
                if turn == TURNS - 1:
                    dphi = tl.dot(value, tl.trans(ds), input_precision=PRECISION) + z[None, :] * once
                    dphi = tl.dot(pairs, narrow, dphi, input_precision=PRECISION)
                    raise_state(state, columns, column_mask, first_v, head_dim, narrow, g, s, BLOCK_V, PRECISION)
                    tl.store(normaliser + columns, z + tl.sum(fq * share[:, None], axis=0), mask=column_mask)
                    dcos = dphi
                if FEATURES == "fourier":
                    s_cos = load_rows(state, features + columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
                    z_cos = tl.load(normaliser + features + columns, mask=column_mask, other=0.0)
                    narrow = fq_cos.to(COMPUTE)
                    ds = s_cos.to(COMPUTE)
                    if turn == 0:
                        scores = tl.dot(narrow, tl.trans(fk_cos.to(COMPUTE)), scores, input_precision=PRECISION)
                        dvalue = tl.dot(fk_cos.to(COMPUTE), ds, dvalue, input_precision=PRECISION)
                    if turn == TURNS - 1:
                        dcos = tl.dot(value, tl.trans(ds), input_precision=PRECISION) + z_cos[None, :] * once
                        dcos = tl.dot(pairs, narrow, dcos, input_precision=PRECISION)
                        raise_state(
                            state, features + columns, column_mask, first_v, head_dim, narrow, g, s_cos,
                            BLOCK_V, PRECISION,
                        )  # fmt: skip
                        z_cos += tl.sum(fq_cos * share[:, None], axis=0)
                        tl.store(normaliser + features + columns, z_cos, mask=column_mask)
                if turn == TURNS - 1:
                    da = slope(b, fk, fk_cos, dphi, dcos, mask, epsilon, FEATURES)
                    if FEATURES == "elu":
                        tl.store(dk + rows[:, None] * d_n + columns[None, :], da.to(dk.dtype.element_ty), mask=mask)
                    else:
                        w = load_rows(omega, columns, column_mask, head_dim, 0, head_dim, BLOCK_D)
                        dx = tl.dot(da.to(COMPUTE), w.to(COMPUTE), dx, input_precision=PRECISION)
                        total += tl.sum(da, axis=1)
            if turn == 0:
                scores = tl.where(visible, scores, 0.0).to(COMPUTE)
                dvalue = tl.dot(tl.trans(scores), g, dvalue, input_precision=PRECISION)
                channels = first_v + tl.arange(0, BLOCK_V)
                inside = row_mask[:, None] & (channels < head_dim)[None, :]
                tl.store(dv + rows[:, None] * w_n + channels[None, :], dvalue.to(dv.dtype.element_ty), mask=inside)
        tl.debug_barrier()
        if FEATURES != "elu":
            if WIDTH != 0:  # recomputed, not stored
                k_tile = load_rows(k, rows, row_mask, k_n, 0, head_dim, BLOCK_D)
            dx = to_token(dx, k_tile, k_scalar, scale, FEATURES)
            if FEATURES == "exp":
                dx -= total[:, None] * k_tile.to(tl.float32) * (scale * scale)
            channels = tl.arange(0, BLOCK_D)
            inside = row_mask[:, None] & (channels < head_dim)[None, :]
            tl.store(dk + rows[:, None] * d_n + channels[None, :], dx.to(dk.dtype.element_ty), mask=inside)
