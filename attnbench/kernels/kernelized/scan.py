"""The causal scan: chunk after chunk of a segment, with the state of all tokens before it at hand.

Within a chunk all pairs of tokens are scored and those ahead dropped. The features run in tiles of BLOCK_M, and so does
the state: a program reads each tile of its own part of `state`, uses it for the chunk, adds the chunk to it and writes
it back, where it stays in the GPU's cache (m·D numbers do not fit into registers beside the rest at m = 256). A barrier
after each chunk lets all threads see what the others wrote.

Registers are what limits the tiles. So where WIDTH is not 0, ω x is taken from WIDTH channels at a time, loaded again
for every tile of features; and the loops keep LLVM from computing every address and mask once before the first chunk
(`disable_licm`), from where they would stay in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.kernelized.features import (
    arguments,
    feature_count,
    load_rows,
    plain,
    plain_slope,
    sine_and_cosine,
    token_scalar,
)


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
def token(x, rows, row_mask, row_stride, head_dim, scale, FEATURES: tl.constexpr, BLOCK_D: tl.constexpr):
    """What `arguments` needs of the tokens: x [N, BLOCK_D] and `token_scalar` [N]; elu, which needs neither: rows."""
    if FEATURES == "elu":
        return rows, rows
    else:  # noqa: RET505  Triton compiles what follows a return too, and its types differ
        tile = load_rows(x, rows, row_mask, row_stride, 0, head_dim, BLOCK_D)
        return tile, token_scalar(tile, scale, FEATURES)


@triton.jit
def place_of(head_dim, segments, BLOCK_V: tl.constexpr):
    """What a program works on: its value tile, segment and head, and how many heads there are.

    One program per value tile, segment and head, in that order, the first running fastest.
    """
    tiles_v = tl.cdiv(head_dim, BLOCK_V)
    index = tl.program_id(0)
    segment = (index // tiles_v % segments).to(tl.int64)
    head = (index // (tiles_v * segments)).to(tl.int64)
    return (index % tiles_v).to(tl.int64), segment, head, (tl.num_programs(0) // (tiles_v * segments)).to(tl.int64)


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
    channels = first_v + tl.arange(0, BLOCK_V)
    count = feature_count(features, FEATURES)
    state += (segment * all_heads + head) * count * head_dim
    normaliser += ((tile_v * segments + segment) * all_heads + head) * count
    order = tl.arange(0, BLOCK_N)
    visible = order[:, None] >= order[None, :]

    begin = segment * segment_len
    for start in tl.range(begin, tl.minimum(begin + segment_len, seq_len), BLOCK_N, disable_licm=True):
        rows = start + order.to(tl.int64)
        row_mask = rows < seq_len
        value = load_rows(v, rows, row_mask, v_n, first_v, head_dim, BLOCK_V).to(COMPUTE)
        q_tile, q_scalar = token(q, rows, row_mask, q_n, head_dim, scale, FEATURES, BLOCK_D)
        k_tile, k_scalar = token(k, rows, row_mask, k_n, head_dim, scale, FEATURES, BLOCK_D)
        scores = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
        n = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
        d = tl.zeros([BLOCK_N], tl.float32)
        highest = tl.full([BLOCK_N], float("-inf"), tl.float32)
        place = tl.zeros([BLOCK_N], tl.int32)
        feature_sum = tl.zeros([BLOCK_N], tl.float32)
        state_sum = tl.zeros([BLOCK_V], tl.float32)
        normaliser_sum = 0.0
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
            if FEATURES == "exp":
                inside = tl.where(column_mask[None, :], a, float("-inf"))
                top, index = tl.max(inside, axis=1, return_indices=True)
                place = tl.where(top > highest, first + index, place)
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
                FEATURES, True, BLOCK_M, BLOCK_D, PRECISION, WIDTH,
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
        scores = tl.where(visible, scores, 0.0)
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
