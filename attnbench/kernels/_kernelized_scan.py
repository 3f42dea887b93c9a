"""The causal scan: chunk after chunk of a segment, with the state of all tokens before it at hand.

Within a chunk all pairs of tokens are scored and those ahead dropped. The features run in tiles of BLOCK_M, and so does
the state: a program reads each tile of its own part of `state`, uses it for the chunk, adds the chunk to it and writes
it back, where it stays in the GPU's cache (m·D numbers do not fit into registers beside the rest at m = 256). A barrier
after each chunk lets all threads see what the others wrote. Where D needs several tiles of value channels, gradients of
the arguments come in parts, one per tile, which add up (they are linear in what a tile brings).
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels._features import arguments, load_rows, plain, plain_slope, sine_and_cosine, token_scalar
from attnbench.kernels._kernelized_tokens import to_token


@triton.jit
def raise_state(
    state, columns, column_mask, first_v, head_dim, narrow, value, s, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr
):
    """Writes back s + φᵀ values. narrow: φ [N, BLOCK_M], value: [N, BLOCK_V], s: the tile of the state as read."""
    channels = first_v + tl.arange(0, BLOCK_V)
    s = tl.dot(tl.trans(narrow), value, s, input_precision=PRECISION)
    mask = column_mask[:, None] & (channels < head_dim)[None, :]
    tl.store(state + columns[:, None] * head_dim + channels[None, :], s, mask=mask)


@triton.jit
def values_of(a, mask, scale, epsilon, FEATURES: tl.constexpr):
    """φ of arguments a from which a stabiliser was subtracted, 0 outside the mask; and its second half (fourier)."""
    second = a
    if FEATURES == "fourier":
        sine, cosine = sine_and_cosine(a)
        phi = sine * scale
        second = tl.where(mask, cosine * scale, 0.0)
    elif FEATURES == "exp":
        phi = tl.exp(tl.where(mask, a, float("-inf"))) + epsilon
    else:
        phi = plain(a, epsilon, FEATURES)
    return tl.where(mask, phi, 0.0), second


@triton.jit
def slope(a, phi, second, dphi, dsecond, mask, epsilon, FEATURES: tl.constexpr):
    """The gradient of the arguments from that of φ and of its second half."""
    if FEATURES == "fourier":
        da = dphi * second - dsecond * phi
    elif FEATURES == "exp":
        da = dphi * (phi - epsilon)
    else:
        da = dphi * plain_slope(a, FEATURES)
    return tl.where(mask, da, 0.0)


@triton.jit
def scan_answer_kernel(
    q,  # [B, H, N, D], as k, v and y with strides of their own, the last 1
    k,
    v,
    omega,  # [m, D]
    state,  # [segments, B·H, M, D]: the state before each segment; afterwards, after it
    normaliser,  # [value tiles, segments, B·H, M]: likewise, for each tile by itself
    y,  # out
    denominators,  # out [B·H, N], where SAVE
    stabilisers,  # out [B·H, N], where SAVE: the largest argument of the query (exp)
    places,  # out [B·H, N], where SAVE: its feature (exp)
    heads,
    seq_len,
    features,
    head_dim,
    segments,
    segment_len,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, y_b, y_h, y_n,
    scale,
    epsilon,
    denominator_epsilon,
    FEATURES: tl.constexpr,
    SAVE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per value tile, segment and head, in that order."""
    tiles_v = tl.cdiv(head_dim, BLOCK_V)
    index = tl.program_id(0)
    tile_v = (index % tiles_v).to(tl.int64)
    first_v = (index % tiles_v) * BLOCK_V
    segment = (index // tiles_v % segments).to(tl.int64)
    head = (index // (tiles_v * segments)).to(tl.int64)
    all_heads = (tl.num_programs(0) // (tiles_v * segments)).to(tl.int64)
    q += head // heads * q_b + head % heads * q_h
    k += head // heads * k_b + head % heads * k_h
    v += head // heads * v_b + head % heads * v_h
    y += head // heads * y_b + head % heads * y_h
    channels = first_v + tl.arange(0, BLOCK_V)
    count = features
    if FEATURES == "fourier":
        count = 2 * features
    state += (segment * all_heads + head) * count * head_dim
    normaliser += ((tile_v * segments + segment) * all_heads + head) * count
    order = tl.arange(0, BLOCK_N)
    seen = order[:, None] >= order[None, :]

    begin = segment * segment_len
    for start in range(begin, tl.minimum(begin + segment_len, seq_len), BLOCK_N):
        rows = start + order.to(tl.int64)
        row_mask = rows < seq_len
        value = load_rows(v, rows, row_mask, v_n, first_v, head_dim, BLOCK_V).to(COMPUTE)
        if FEATURES == "elu":
            q_tile = order.to(tl.float32)
            q_scalar = q_tile
        else:
            q_tile = load_rows(q, rows, row_mask, q_n, 0, head_dim, BLOCK_D)
            q_scalar = token_scalar(q_tile, scale, FEATURES)
        if FEATURES == "elu":
            k_tile = order.to(tl.float32)
            k_scalar = k_tile
        else:
            k_tile = load_rows(k, rows, row_mask, k_n, 0, head_dim, BLOCK_D)
            k_scalar = token_scalar(k_tile, scale, FEATURES)
        scores = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
        n = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
        d = tl.zeros([BLOCK_N], tl.float32)
        highest = tl.full([BLOCK_N], float("-inf"), tl.float32)
        place = tl.zeros([BLOCK_N], tl.int32)
        feature_sum = tl.zeros([BLOCK_N], tl.float32)
        state_sum = tl.zeros([BLOCK_V], tl.float32)
        normaliser_sum = 0.0
        for first in range(0, features, BLOCK_M):
            columns = first + tl.arange(0, BLOCK_M).to(tl.int64)
            column_mask = columns < features
            s = load_rows(state, columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
            z = tl.load(normaliser + columns, mask=column_mask, other=0.0)
            mask = row_mask[:, None] & column_mask[None, :]
            a = arguments(
                q_tile, q_scalar, q, rows, row_mask, q_n, omega, first, features, head_dim, scale,
                FEATURES, False, BLOCK_M, BLOCK_D, PRECISION,
            )  # fmt: skip
            if FEATURES == "exp":
                inside = tl.where(column_mask[None, :], a, float("-inf"))
                top, where = tl.max(inside, axis=1, return_indices=True)
                place = tl.where(top > highest, first + where, place)
                raised = tl.maximum(highest, top)
                rescale = tl.exp(highest - raised)
                scores *= rescale[:, None]
                n *= rescale[:, None]
                d *= rescale
                highest = raised
                fq, fq_cos = values_of(a - highest[:, None], mask, scale, 0.0, FEATURES)  # ε comes at the end
            else:
                fq, fq_cos = values_of(a, mask, scale, epsilon, FEATURES)
            b = arguments(
                k_tile, k_scalar, k, rows, row_mask, k_n, omega, first, features, head_dim, scale,
                FEATURES, True, BLOCK_M, BLOCK_D, PRECISION,
            )  # fmt: skip
            fk, fk_cos = values_of(b, mask, scale, epsilon, FEATURES)
            narrow = fk.to(COMPUTE)
            scores = tl.dot(fq.to(COMPUTE), tl.trans(narrow), scores, input_precision=PRECISION)
            n = tl.dot(fq.to(COMPUTE), s.to(COMPUTE), n, input_precision=PRECISION)
            d += tl.sum(fq * z[None, :], axis=1)
            if FEATURES == "exp":
                feature_sum += tl.sum(fk, axis=1)
                state_sum += tl.sum(s, axis=0)
                normaliser_sum += tl.sum(z, axis=0)
            raise_state(state, columns, column_mask, first_v, head_dim, narrow, value, s, BLOCK_V, PRECISION)
            tl.store(normaliser + columns, z + tl.sum(fk, axis=0), mask=column_mask)
            if FEATURES == "fourier":
                s_cos = load_rows(state, features + columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
                z_cos = tl.load(normaliser + features + columns, mask=column_mask, other=0.0)
                narrow = fk_cos.to(COMPUTE)
                scores = tl.dot(fq_cos.to(COMPUTE), tl.trans(narrow), scores, input_precision=PRECISION)
                n = tl.dot(fq_cos.to(COMPUTE), s_cos.to(COMPUTE), n, input_precision=PRECISION)
                d += tl.sum(fq_cos * z_cos[None, :], axis=1)
                raise_state(
                    state, features + columns, column_mask, first_v, head_dim, narrow, value, s_cos, BLOCK_V, PRECISION
                )
                tl.store(normaliser + features + columns, z_cos + tl.sum(fk_cos, axis=0), mask=column_mask)
        tl.debug_barrier()
        if FEATURES == "exp":
            scores += epsilon * feature_sum[None, :]
            n += epsilon * state_sum[None, :]
            d += epsilon * normaliser_sum
        scores = tl.where(seen, scores, 0.0)
        n = tl.dot(scores.to(COMPUTE), value, n, input_precision=PRECISION)
        d += tl.sum(scores, axis=1) + denominator_epsilon
        inside = row_mask[:, None] & (channels < head_dim)[None, :]
        tl.store(y + rows[:, None] * y_n + channels[None, :], (n / d[:, None]).to(y.dtype.element_ty), mask=inside)
        if SAVE:
            if first_v == 0:
                tl.store(denominators + head * seq_len + rows, d, mask=row_mask)
                if FEATURES == "exp":
                    tl.store(stabilisers + head * seq_len + rows, highest, mask=row_mask)
                    tl.store(places + head * seq_len + rows, place, mask=row_mask)


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
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per value tile, segment and head, in that order."""
    tiles_v = tl.cdiv(head_dim, BLOCK_V)
    index = tl.program_id(0)
    tile_v = (index % tiles_v).to(tl.int64)
    first_v = (index % tiles_v) * BLOCK_V
    segment = (index // tiles_v % segments).to(tl.int64)
    head = (index // (tiles_v * segments)).to(tl.int64)
    all_heads = (tl.num_programs(0) // (tiles_v * segments)).to(tl.int64)
    q += head // heads * q_b + head % heads * q_h
    k += head // heads * k_b + head % heads * k_h
    v += head // heads * v_b + head % heads * v_h
    y += head // heads * y_b + head % heads * y_h
    dy += head // heads * g_b + head % heads * g_h
    dq += tile_v * d_t + head // heads * d_b + head % heads * d_h
    count = features
    if FEATURES == "fourier":
        count = 2 * features
    state += (segment * all_heads + head) * count * head_dim
    normaliser += ((tile_v * segments + segment) * all_heads + head) * count
    order = tl.arange(0, BLOCK_N)
    seen = order[:, None] >= order[None, :]

    begin = segment * segment_len
    for start in range(begin, tl.minimum(begin + segment_len, seq_len), BLOCK_N):
        rows = start + order.to(tl.int64)
        row_mask = rows < seq_len
        there = head * seq_len + rows
        value = load_rows(v, rows, row_mask, v_n, first_v, head_dim, BLOCK_V).to(COMPUTE)
        g = load_rows(dy, rows, row_mask, g_n, first_v, head_dim, BLOCK_V)
        out = load_rows(y, rows, row_mask, y_n, first_v, head_dim, BLOCK_V)
        product = tl.sum(g.to(tl.float32) * out.to(tl.float32), axis=1)
        tl.store(along + tile_v * all_heads * seq_len + there, product, mask=row_mask)
        weight = 1.0 / tl.load(denominators + there, mask=row_mask, other=1.0)
        stabiliser = tl.zeros([BLOCK_N], tl.float32)
        if FEATURES == "exp":
            stabiliser = tl.load(stabilisers + there, mask=row_mask, other=0.0)
        g = g.to(COMPUTE)
        pairs = tl.dot(g, tl.trans(value), input_precision=PRECISION) - product[:, None]
        pairs = tl.where(seen, pairs * weight[:, None], 0.0).to(COMPUTE)
        if FEATURES == "elu":
            q_tile = order.to(tl.float32)
            q_scalar = q_tile
        else:
            q_tile = load_rows(q, rows, row_mask, q_n, 0, head_dim, BLOCK_D)
            q_scalar = token_scalar(q_tile, scale, FEATURES)
        if FEATURES == "elu":
            k_tile = order.to(tl.float32)
            k_scalar = k_tile
        else:
            k_tile = load_rows(k, rows, row_mask, k_n, 0, head_dim, BLOCK_D)
            k_scalar = token_scalar(k_tile, scale, FEATURES)
        dx = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        lift = tl.zeros([BLOCK_N], tl.float32)
        for first in range(0, features, BLOCK_M):
            columns = first + tl.arange(0, BLOCK_M).to(tl.int64)
            column_mask = columns < features
            s = load_rows(state, columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
            z = tl.load(normaliser + columns, mask=column_mask, other=0.0)
            mask = row_mask[:, None] & column_mask[None, :]
            b = arguments(
                k_tile, k_scalar, k, rows, row_mask, k_n, omega, first, features, head_dim, scale,
                FEATURES, True, BLOCK_M, BLOCK_D, PRECISION,
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
                FEATURES, False, BLOCK_M, BLOCK_D, PRECISION,
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
                place = tl.load(places + there, mask=row_mask, other=0).to(tl.int64)
                largest = load_rows(omega, place, row_mask, head_dim, 0, head_dim, BLOCK_D)
                dx -= lift[:, None] * largest.to(tl.float32)
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
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per value tile, segment and head, in that order, from the segment's last chunk to its first."""
    tiles_v = tl.cdiv(head_dim, BLOCK_V)
    index = tl.program_id(0)
    tile_v = (index % tiles_v).to(tl.int64)
    first_v = (index % tiles_v) * BLOCK_V
    segment = (index // tiles_v % segments).to(tl.int64)
    head = (index // (tiles_v * segments)).to(tl.int64)
    all_heads = (tl.num_programs(0) // (tiles_v * segments)).to(tl.int64)
    q += head // heads * q_b + head % heads * q_h
    k += head // heads * k_b + head % heads * k_h
    v += head // heads * v_b + head % heads * v_h
    dy += head // heads * g_b + head % heads * g_h
    dk += tile_v * d_t + head // heads * d_b + head % heads * d_h
    dv += head // heads * w_b + head % heads * w_h
    count = features
    if FEATURES == "fourier":
        count = 2 * features
    state += (segment * all_heads + head) * count * head_dim
    normaliser += ((tile_v * segments + segment) * all_heads + head) * count
    once = tl.where(first_v == 0, 1.0, 0.0)  # what does not depend on the channels is brought by one tile of them
    order = tl.arange(0, BLOCK_N)
    seen = order[:, None] >= order[None, :]

    begin = segment * segment_len
    chunks = tl.cdiv(tl.maximum(tl.minimum(begin + segment_len, seq_len) - begin, 0), BLOCK_N)
    for back in range(chunks):
        rows = begin + (chunks - 1 - back) * BLOCK_N + order.to(tl.int64)
        row_mask = rows < seq_len
        there = head * seq_len + rows
        value = load_rows(v, rows, row_mask, v_n, first_v, head_dim, BLOCK_V).to(COMPUTE)
        weight = tl.load(weights + there, mask=row_mask, other=0.0)
        share = tl.load(shares + there, mask=row_mask, other=0.0)
        stabiliser = tl.zeros([BLOCK_N], tl.float32)
        if FEATURES == "exp":
            stabiliser = tl.load(stabilisers + there, mask=row_mask, other=0.0)
        g = load_rows(dy, rows, row_mask, g_n, first_v, head_dim, BLOCK_V).to(tl.float32) * weight[:, None]
        g = g.to(COMPUTE)
        pairs = tl.dot(g, tl.trans(value), input_precision=PRECISION) + share[:, None] * once
        pairs = tl.trans(tl.where(seen, pairs, 0.0).to(COMPUTE))
        if FEATURES == "elu":
            q_tile = order.to(tl.float32)
            q_scalar = q_tile
        else:
            q_tile = load_rows(q, rows, row_mask, q_n, 0, head_dim, BLOCK_D)
            q_scalar = token_scalar(q_tile, scale, FEATURES)
        if FEATURES == "elu":
            k_tile = order.to(tl.float32)
            k_scalar = k_tile
        else:
            k_tile = load_rows(k, rows, row_mask, k_n, 0, head_dim, BLOCK_D)
            k_scalar = token_scalar(k_tile, scale, FEATURES)
        scores = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
        dvalue = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
        dx = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        total = tl.zeros([BLOCK_N], tl.float32)
        for first in range(0, features, BLOCK_M):
            columns = first + tl.arange(0, BLOCK_M).to(tl.int64)
            column_mask = columns < features
            s = load_rows(state, columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
            z = tl.load(normaliser + columns, mask=column_mask, other=0.0)
            mask = row_mask[:, None] & column_mask[None, :]
            a = arguments(
                q_tile, q_scalar, q, rows, row_mask, q_n, omega, first, features, head_dim, scale,
                FEATURES, False, BLOCK_M, BLOCK_D, PRECISION,
            )  # fmt: skip
            fq, fq_cos = values_of(a - stabiliser[:, None], mask, scale, epsilon, FEATURES)
            b = arguments(
                k_tile, k_scalar, k, rows, row_mask, k_n, omega, first, features, head_dim, scale,
                FEATURES, True, BLOCK_M, BLOCK_D, PRECISION,
            )  # fmt: skip
            fk, fk_cos = values_of(b, mask, scale, epsilon, FEATURES)
            narrow = fq.to(COMPUTE)
            ds = s.to(COMPUTE)
            scores = tl.dot(narrow, tl.trans(fk.to(COMPUTE)), scores, input_precision=PRECISION)
            dvalue = tl.dot(fk.to(COMPUTE), ds, dvalue, input_precision=PRECISION)
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
                scores = tl.dot(narrow, tl.trans(fk_cos.to(COMPUTE)), scores, input_precision=PRECISION)
                dvalue = tl.dot(fk_cos.to(COMPUTE), ds, dvalue, input_precision=PRECISION)
                dcos = tl.dot(value, tl.trans(ds), input_precision=PRECISION) + z_cos[None, :] * once
                dcos = tl.dot(pairs, narrow, dcos, input_precision=PRECISION)
                raise_state(
                    state, features + columns, column_mask, first_v, head_dim, narrow, g, s_cos, BLOCK_V, PRECISION
                )
                tl.store(
                    normaliser + features + columns, z_cos + tl.sum(fq_cos * share[:, None], axis=0), mask=column_mask
                )
            da = slope(b, fk, fk_cos, dphi, dcos, mask, epsilon, FEATURES)
            if FEATURES == "elu":
                tl.store(dk + rows[:, None] * d_n + columns[None, :], da.to(dk.dtype.element_ty), mask=mask)
            else:
                w = load_rows(omega, columns, column_mask, head_dim, 0, head_dim, BLOCK_D)
                dx = tl.dot(da.to(COMPUTE), w.to(COMPUTE), dx, input_precision=PRECISION)
                total += tl.sum(da, axis=1)
        tl.debug_barrier()
        scores = tl.where(seen, scores, 0.0).to(COMPUTE)
        dvalue = tl.dot(tl.trans(scores), g, dvalue, input_precision=PRECISION)
        channels = first_v + tl.arange(0, BLOCK_V)
        inside = row_mask[:, None] & (channels < head_dim)[None, :]
        tl.store(dv + rows[:, None] * w_n + channels[None, :], dvalue.to(dv.dtype.element_ty), mask=inside)
        if FEATURES != "elu":
            dx = to_token(dx, k_tile, k_scalar, scale, FEATURES)
            if FEATURES == "exp":
                dx -= total[:, None] * k_tile.to(tl.float32) * (scale * scale)
            channels = tl.arange(0, BLOCK_D)
            inside = row_mask[:, None] & (channels < head_dim)[None, :]
            tl.store(dk + rows[:, None] * d_n + channels[None, :], dx.to(dk.dtype.element_ty), mask=inside)
