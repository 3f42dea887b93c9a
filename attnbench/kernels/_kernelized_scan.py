"""The causal scan: chunk after chunk of a segment, with the state of all tokens before it in registers.

Within a chunk all pairs of tokens are scored and those ahead dropped. A program holds all features of a chunk and a
[BLOCK_M, BLOCK_V] tile of the state; where D needs several tiles, gradients of arguments come in parts, one per tile,
which add up (they are linear in what a tile brings).
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels._features import load_rows, plain, plain_slope, sine_and_cosine


@triton.jit
def all_arguments(
    x, rows, row_mask, row_stride, omega, features, head_dim, scale,
    FEATURES: tl.constexpr, KEY: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The arguments of all features, [N, BLOCK_M], and 1/‖x‖ (fourier), [N]; the products run along slices of D."""
    columns = tl.arange(0, BLOCK_M)
    inverse = tl.zeros([BLOCK_N], tl.float32)
    if FEATURES == "elu":
        a = load_rows(x, rows, row_mask, row_stride, 0, features, BLOCK_M).to(tl.float32)
    else:
        a = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        squares = tl.zeros([BLOCK_N], tl.float32)
        for first in range(0, head_dim, BLOCK_K):
            part = load_rows(x, rows, row_mask, row_stride, first, head_dim, BLOCK_K)
            w = load_rows(omega, columns, columns < features, head_dim, first, head_dim, BLOCK_K)
            a = tl.dot(part, tl.trans(w), a, input_precision=PRECISION)
            wide = part.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
        if FEATURES == "fourier":
            inverse = 1.0 / tl.maximum(tl.sqrt(squares), 1e-12)
            a = a * inverse[:, None]
        else:
            a = a * scale
        if FEATURES == "exp" and KEY:
            a = a - (squares * (scale * scale * 0.5))[:, None]
    return a, inverse


@triton.jit
def values_of(a, mask, scale, epsilon, FEATURES: tl.constexpr, KEY: tl.constexpr):
    """φ of a, 0 outside the mask; its second half (fourier); the place of a query's largest argument (exp)."""
    place = tl.zeros([a.shape[0]], tl.int32)
    second = a
    if FEATURES == "fourier":
        sine, cosine = sine_and_cosine(a)
        phi = sine * scale
        second = tl.where(mask, cosine * scale, 0.0)
    elif FEATURES == "exp":
        if KEY:
            phi = tl.exp(tl.where(mask, a, float("-inf"))) + epsilon
        else:
            inside = tl.where(mask, a, -1e30)
            top, place = tl.max(inside, axis=1, return_indices=True)
            phi = tl.exp(inside - top[:, None]) + epsilon
    else:
        phi = plain(a, epsilon, FEATURES)
    return tl.where(mask, phi, 0.0), second, place


@triton.jit
def store_argument_gradient(
    out, da, a, phi, place, x, rows, row_mask, out_stride, x_stride, omega, inverse, features, head_dim, scale, epsilon,
    FEATURES: tl.constexpr, KEY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The token's gradient from that of its arguments, stored slice by slice of D."""
    columns = tl.arange(0, BLOCK_M)
    if FEATURES == "elu":
        mask = row_mask[:, None] & (columns < features)[None, :]
        tl.store(out + rows[:, None] * out_stride + columns[None, :], da.to(out.dtype.element_ty), mask=mask)
    else:
        total = tl.sum(da, axis=1)
        along = tl.sum(da * a, axis=1)  # fourier: dx·x̂, since a = ω x̂
        for first in range(0, head_dim, BLOCK_K):
            w = load_rows(omega, columns, columns < features, head_dim, first, head_dim, BLOCK_K)
            dx = tl.dot(da.to(COMPUTE), w.to(COMPUTE), input_precision=PRECISION)
            if FEATURES == "fourier":
                unit = (
                    load_rows(x, rows, row_mask, x_stride, first, head_dim, BLOCK_K).to(tl.float32) * inverse[:, None]
                )
                dx = (dx - along[:, None] * unit) * inverse[:, None]
            elif FEATURES == "exp":
                if KEY:
                    part = load_rows(x, rows, row_mask, x_stride, first, head_dim, BLOCK_K).to(tl.float32)
                    dx = dx * scale - total[:, None] * part * (scale * scale)
                else:  # the largest argument is subtracted from all, so it gets back what all of them got
                    largest = load_rows(omega, place.to(tl.int64), row_mask, head_dim, first, head_dim, BLOCK_K)
                    dx = (dx - total[:, None] * largest.to(tl.float32)) * scale
            else:
                dx = dx * scale
            channels = first + tl.arange(0, BLOCK_K)
            mask = row_mask[:, None] & (channels < head_dim)[None, :]
            tl.store(out + rows[:, None] * out_stride + channels[None, :], dx.to(out.dtype.element_ty), mask=mask)


@triton.jit
def slope(a, phi, second, dphi, dsecond, mask, epsilon, scale, FEATURES: tl.constexpr):
    """The gradient of the arguments from that of φ and its second half."""
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
    prefix,  # [segments, B·H, M, D]: the state before each segment
    prefix_normaliser,  # [segments, B·H, M]
    y,  # out
    denominators,  # out [B·H, N], where SAVE
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
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per value tile, segment and head, in that order."""
    tiles_v = tl.cdiv(head_dim, BLOCK_V)
    index = tl.program_id(0)
    first_v = (index % tiles_v) * BLOCK_V
    segment = (index // tiles_v % segments).to(tl.int64)
    head = (index // (tiles_v * segments)).to(tl.int64)
    all_heads = (tl.num_programs(0) // (tiles_v * segments)).to(tl.int64)
    q += head // heads * q_b + head % heads * q_h
    k += head // heads * k_b + head % heads * k_h
    v += head // heads * v_b + head % heads * v_h
    y += head // heads * y_b + head % heads * y_h
    columns = tl.arange(0, BLOCK_M).to(tl.int64)
    column_mask = columns < features
    channels = first_v + tl.arange(0, BLOCK_V)
    count = features
    if FEATURES == "fourier":
        count = 2 * features
    prefix += (segment * all_heads + head) * count * head_dim
    prefix_normaliser += (segment * all_heads + head) * count
    s = load_rows(prefix, columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
    z = tl.load(prefix_normaliser + columns, mask=column_mask, other=0.0)
    if FEATURES == "fourier":
        s_cos = load_rows(prefix, features + columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
        z_cos = tl.load(prefix_normaliser + features + columns, mask=column_mask, other=0.0)
    order = tl.arange(0, BLOCK_N)
    seen = order[:, None] >= order[None, :]

    begin = segment * segment_len
    for start in range(begin, tl.minimum(begin + segment_len, seq_len), BLOCK_N):
        rows = start + order.to(tl.int64)
        row_mask = rows < seq_len
        mask = row_mask[:, None] & column_mask[None, :]
        a, _ = all_arguments(
            q, rows, row_mask, q_n, omega, features, head_dim, scale,
            FEATURES, False, BLOCK_N, BLOCK_M, BLOCK_K, PRECISION,
        )  # fmt: skip
        fq, fq_cos, _ = values_of(a, mask, scale, epsilon, FEATURES, False)
        b, _ = all_arguments(
            k, rows, row_mask, k_n, omega, features, head_dim, scale,
            FEATURES, True, BLOCK_N, BLOCK_M, BLOCK_K, PRECISION,
        )  # fmt: skip
        fk, fk_cos, _ = values_of(b, mask, scale, epsilon, FEATURES, True)
        value = load_rows(v, rows, row_mask, v_n, first_v, head_dim, BLOCK_V).to(COMPUTE)
        narrow = fq.to(COMPUTE)
        scores = tl.dot(narrow, tl.trans(fk.to(COMPUTE)), input_precision=PRECISION)
        n = tl.dot(narrow, s.to(COMPUTE), input_precision=PRECISION)
        d = tl.sum(fq * z[None, :], axis=1)
        if FEATURES == "fourier":
            narrow = fq_cos.to(COMPUTE)
            scores = tl.dot(narrow, tl.trans(fk_cos.to(COMPUTE)), scores, input_precision=PRECISION)
            n = tl.dot(narrow, s_cos.to(COMPUTE), n, input_precision=PRECISION)
            d += tl.sum(fq_cos * z_cos[None, :], axis=1)
            s_cos = tl.dot(tl.trans(fk_cos.to(COMPUTE)), value, s_cos, input_precision=PRECISION)
            z_cos += tl.sum(fk_cos, axis=0)
        scores = tl.where(seen, scores, 0.0)
        n = tl.dot(scores.to(COMPUTE), value, n, input_precision=PRECISION)
        d += tl.sum(scores, axis=1) + denominator_epsilon
        s = tl.dot(tl.trans(fk.to(COMPUTE)), value, s, input_precision=PRECISION)
        z += tl.sum(fk, axis=0)
        inside = row_mask[:, None] & (channels < head_dim)[None, :]
        tl.store(y + rows[:, None] * y_n + channels[None, :], (n / d[:, None]).to(y.dtype.element_ty), mask=inside)
        if SAVE:
            if first_v == 0:
                tl.store(denominators + head * seq_len + rows, d, mask=row_mask)


@triton.jit
def scan_query_gradient_kernel(
    q,  # [B, H, N, D], as k, v, y and dy with strides of their own, the last 1
    k,
    v,
    omega,  # [m, D]
    prefix,  # [segments, B·H, M, D]
    prefix_normaliser,  # [segments, B·H, M]
    y,
    dy,
    denominators,  # [B·H, N]
    dq,  # out [value tiles, B, H, N, D], strides d_t, d_b, d_h, d_n, 1: parts to be added up
    along,  # out [value tiles, B·H, N]: parts of y·dy
    stabilisers,  # out [B·H, N]: the largest argument of the query (exp)
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
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per value tile, segment and head, in that order."""
    tiles_v = tl.cdiv(head_dim, BLOCK_V)
    index = tl.program_id(0)
    tile = (index % tiles_v).to(tl.int64)
    first_v = (index % tiles_v) * BLOCK_V
    segment = (index // tiles_v % segments).to(tl.int64)
    head = (index // (tiles_v * segments)).to(tl.int64)
    all_heads = (tl.num_programs(0) // (tiles_v * segments)).to(tl.int64)
    q += head // heads * q_b + head % heads * q_h
    k += head // heads * k_b + head % heads * k_h
    v += head // heads * v_b + head % heads * v_h
    y += head // heads * y_b + head % heads * y_h
    dy += head // heads * g_b + head % heads * g_h
    dq += tile * d_t + head // heads * d_b + head % heads * d_h
    columns = tl.arange(0, BLOCK_M).to(tl.int64)
    column_mask = columns < features
    count = features
    if FEATURES == "fourier":
        count = 2 * features
    prefix += (segment * all_heads + head) * count * head_dim
    prefix_normaliser += (segment * all_heads + head) * count
    s = load_rows(prefix, columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
    z = tl.load(prefix_normaliser + columns, mask=column_mask, other=0.0)
    if FEATURES == "fourier":
        s_cos = load_rows(prefix, features + columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
        z_cos = tl.load(prefix_normaliser + features + columns, mask=column_mask, other=0.0)
    order = tl.arange(0, BLOCK_N)
    seen = order[:, None] >= order[None, :]

    begin = segment * segment_len
    for start in range(begin, tl.minimum(begin + segment_len, seq_len), BLOCK_N):
        rows = start + order.to(tl.int64)
        row_mask = rows < seq_len
        mask = row_mask[:, None] & column_mask[None, :]
        b, _ = all_arguments(
            k, rows, row_mask, k_n, omega, features, head_dim, scale,
            FEATURES, True, BLOCK_N, BLOCK_M, BLOCK_K, PRECISION,
        )  # fmt: skip
        fk, fk_cos, _ = values_of(b, mask, scale, epsilon, FEATURES, True)
        value = load_rows(v, rows, row_mask, v_n, first_v, head_dim, BLOCK_V).to(COMPUTE)
        g = load_rows(dy, rows, row_mask, g_n, first_v, head_dim, BLOCK_V)
        out = load_rows(y, rows, row_mask, y_n, first_v, head_dim, BLOCK_V)
        product = tl.sum(g.to(tl.float32) * out.to(tl.float32), axis=1)
        there = head * seq_len + rows
        weight = 1.0 / tl.load(denominators + there, mask=row_mask, other=1.0)
        tl.store(along + tile * all_heads * seq_len + there, product, mask=row_mask)
        g = g.to(COMPUTE)
        pairs = tl.dot(g, tl.trans(value), input_precision=PRECISION) - product[:, None]
        pairs = tl.where(seen, pairs * weight[:, None], 0.0).to(COMPUTE)
        dphi = tl.dot(g, tl.trans(s.to(COMPUTE)), input_precision=PRECISION)
        dphi = (dphi - product[:, None] * z[None, :]) * weight[:, None]
        dphi = tl.dot(pairs, fk.to(COMPUTE), dphi, input_precision=PRECISION)
        dcos = dphi
        if FEATURES == "fourier":
            dcos = tl.dot(g, tl.trans(s_cos.to(COMPUTE)), input_precision=PRECISION)
            dcos = (dcos - product[:, None] * z_cos[None, :]) * weight[:, None]
            dcos = tl.dot(pairs, fk_cos.to(COMPUTE), dcos, input_precision=PRECISION)
            s_cos = tl.dot(tl.trans(fk_cos.to(COMPUTE)), value, s_cos, input_precision=PRECISION)
            z_cos += tl.sum(fk_cos, axis=0)
        s = tl.dot(tl.trans(fk.to(COMPUTE)), value, s, input_precision=PRECISION)
        z += tl.sum(fk, axis=0)
        a, inverse = all_arguments(
            q, rows, row_mask, q_n, omega, features, head_dim, scale,
            FEATURES, False, BLOCK_N, BLOCK_M, BLOCK_K, PRECISION,
        )  # fmt: skip
        fq, fq_cos, place = values_of(a, mask, scale, epsilon, FEATURES, False)
        if FEATURES == "exp":
            if first_v == 0:
                top = tl.max(tl.where(column_mask[None, :], a, float("-inf")), axis=1)
                tl.store(stabilisers + there, top, mask=row_mask)
        da = slope(a, fq, fq_cos, dphi, dcos, mask, epsilon, scale, FEATURES)
        store_argument_gradient(
            dq, da, a, fq, place, q, rows, row_mask, d_n, q_n, omega, inverse, features, head_dim, scale, epsilon,
            FEATURES, False, BLOCK_M, BLOCK_K, COMPUTE, PRECISION,
        )  # fmt: skip


@triton.jit
def scan_key_gradient_kernel(
    q,  # [B, H, N, D], as k, v and dy with strides of their own, the last 1
    k,
    v,
    omega,  # [m, D]
    suffix,  # [segments, B·H, M, D]: Σ φ(q_i) dy_iᵀ / δ_i over the tokens after each segment
    suffix_normaliser,  # [segments, B·H, M]: Σ φ(q_i) shares_i
    dy,
    weights,  # [B·H, N]: 1/δ
    shares,  # [B·H, N]: −(y·dy)/δ
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
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per value tile, segment and head, in that order, from the segment's last chunk to its first."""
    tiles_v = tl.cdiv(head_dim, BLOCK_V)
    index = tl.program_id(0)
    tile = (index % tiles_v).to(tl.int64)
    first_v = (index % tiles_v) * BLOCK_V
    segment = (index // tiles_v % segments).to(tl.int64)
    head = (index // (tiles_v * segments)).to(tl.int64)
    all_heads = (tl.num_programs(0) // (tiles_v * segments)).to(tl.int64)
    q += head // heads * q_b + head % heads * q_h
    k += head // heads * k_b + head % heads * k_h
    v += head // heads * v_b + head % heads * v_h
    dy += head // heads * g_b + head % heads * g_h
    dk += tile * d_t + head // heads * d_b + head % heads * d_h
    dv += head // heads * w_b + head % heads * w_h
    columns = tl.arange(0, BLOCK_M).to(tl.int64)
    column_mask = columns < features
    channels = first_v + tl.arange(0, BLOCK_V)
    count = features
    if FEATURES == "fourier":
        count = 2 * features
    suffix += (segment * all_heads + head) * count * head_dim
    suffix_normaliser += (segment * all_heads + head) * count
    first = tl.where(first_v == 0, 1.0, 0.0)  # what does not depend on the channels is brought by one tile
    ds = load_rows(suffix, columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
    dz = tl.load(suffix_normaliser + columns, mask=column_mask, other=0.0) * first
    if FEATURES == "fourier":
        ds_cos = load_rows(suffix, features + columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
        dz_cos = tl.load(suffix_normaliser + features + columns, mask=column_mask, other=0.0) * first
    order = tl.arange(0, BLOCK_N)
    seen = order[:, None] >= order[None, :]

    begin = segment * segment_len
    chunks = tl.cdiv(tl.maximum(tl.minimum(begin + segment_len, seq_len) - begin, 0), BLOCK_N)
    for back in range(chunks):
        rows = begin + (chunks - 1 - back) * BLOCK_N + order.to(tl.int64)
        row_mask = rows < seq_len
        mask = row_mask[:, None] & column_mask[None, :]
        there = head * seq_len + rows
        a, _ = all_arguments(
            q, rows, row_mask, q_n, omega, features, head_dim, scale,
            FEATURES, False, BLOCK_N, BLOCK_M, BLOCK_K, PRECISION,
        )  # fmt: skip
        fq, fq_cos, _ = values_of(a, mask, scale, epsilon, FEATURES, False)
        b, inverse = all_arguments(
            k, rows, row_mask, k_n, omega, features, head_dim, scale,
            FEATURES, True, BLOCK_N, BLOCK_M, BLOCK_K, PRECISION,
        )  # fmt: skip
        fk, fk_cos, place = values_of(b, mask, scale, epsilon, FEATURES, True)
        value = load_rows(v, rows, row_mask, v_n, first_v, head_dim, BLOCK_V).to(COMPUTE)
        weight = tl.load(weights + there, mask=row_mask, other=0.0)
        share = tl.load(shares + there, mask=row_mask, other=0.0) * first
        g = load_rows(dy, rows, row_mask, g_n, first_v, head_dim, BLOCK_V).to(tl.float32) * weight[:, None]
        g = g.to(COMPUTE)

        scores = tl.dot(fq.to(COMPUTE), tl.trans(fk.to(COMPUTE)), input_precision=PRECISION)
        dvalue = tl.dot(fk.to(COMPUTE), ds.to(COMPUTE), input_precision=PRECISION)
        if FEATURES == "fourier":
            scores = tl.dot(fq_cos.to(COMPUTE), tl.trans(fk_cos.to(COMPUTE)), scores, input_precision=PRECISION)
            dvalue = tl.dot(fk_cos.to(COMPUTE), ds_cos.to(COMPUTE), dvalue, input_precision=PRECISION)
        scores = tl.where(seen, scores, 0.0).to(COMPUTE)
        dvalue = tl.dot(tl.trans(scores), g, dvalue, input_precision=PRECISION)
        inside = row_mask[:, None] & (channels < head_dim)[None, :]
        tl.store(dv + rows[:, None] * w_n + channels[None, :], dvalue.to(dv.dtype.element_ty), mask=inside)

        pairs = tl.dot(g, tl.trans(value), input_precision=PRECISION) + share[:, None]
        pairs = tl.trans(tl.where(seen, pairs, 0.0).to(COMPUTE))
        dphi = tl.dot(value, tl.trans(ds.to(COMPUTE)), input_precision=PRECISION) + dz[None, :]
        dphi = tl.dot(pairs, fq.to(COMPUTE), dphi, input_precision=PRECISION)
        dcos = dphi
        if FEATURES == "fourier":
            dcos = tl.dot(value, tl.trans(ds_cos.to(COMPUTE)), input_precision=PRECISION) + dz_cos[None, :]
            dcos = tl.dot(pairs, fq_cos.to(COMPUTE), dcos, input_precision=PRECISION)
            ds_cos = tl.dot(tl.trans(fq_cos.to(COMPUTE)), g, ds_cos, input_precision=PRECISION)
            dz_cos += tl.sum(fq_cos * share[:, None], axis=0)
        ds = tl.dot(tl.trans(fq.to(COMPUTE)), g, ds, input_precision=PRECISION)
        dz += tl.sum(fq * share[:, None], axis=0)
        da = slope(b, fk, fk_cos, dphi, dcos, mask, epsilon, scale, FEATURES)
        store_argument_gradient(
            dk, da, b, fk, place, k, rows, row_mask, d_n, k_n, omega, inverse, features, head_dim, scale, epsilon,
            FEATURES, True, BLOCK_M, BLOCK_K, COMPUTE, PRECISION,
        )  # fmt: skip
