"""What each query gets from the sums over all keys.

A program takes a block of queries and runs through the features a tile at a time. The stabiliser of a query, the
largest of its own arguments, is found on the way (the accumulator is rescaled when it rises).
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.kernelized.features import (
    arguments,
    feature_count,
    load_rows,
    plain,
    sine_and_cosine,
    token_scalar,
)


@triton.jit
def answer_kernel(
    q,  # [B, H, N, D], strides q_b, q_h, q_n, 1
    omega,  # [m, D]
    state,  # [B·H, M, D]
    normaliser,  # [B·H, M]; unused by softmax
    y,  # out [B, H, N, D], strides y_b, y_h, y_n, 1
    denominators,  # out [B·H, N], where SAVE: φ(q)ᵀz + ε; softmax: none
    stabilisers,  # out [B·H, N], where SAVE: the largest argument (exp), log Σ exp (softmax)
    places,  # out [B·H, N], where SAVE: the feature of the largest argument (exp)
    heads,
    seq_len,
    features,
    head_dim,
    q_b,
    q_h,
    q_n,
    y_b,
    y_h,
    y_n,
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
):
    """One program per value tile, block of tokens and head, in that order."""
    tiles_v = tl.cdiv(head_dim, BLOCK_V)
    blocks = tl.cdiv(seq_len, BLOCK_N)
    index = tl.program_id(0)
    first_v = (index % tiles_v) * BLOCK_V
    head = (index // (tiles_v * blocks)).to(tl.int64)
    rows = (index // tiles_v % blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < seq_len
    q += head // heads * q_b + head % heads * q_h
    y += head // heads * y_b + head % heads * y_h
    count = feature_count(features, FEATURES)
    state += head * count * head_dim
    normaliser += head * count

    n = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    z = tl.zeros([BLOCK_N], tl.float32)
    highest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    place = tl.zeros([BLOCK_N], tl.int32)
    column_sum = tl.zeros([BLOCK_V], tl.float32)
    normaliser_sum = 0.0
    if FEATURES == "elu" or FEATURES == "softmax":
        tile = z
        scalar = z
    else:
        tile = load_rows(q, rows, row_mask, q_n, 0, head_dim, BLOCK_D)
        scalar = token_scalar(tile, scale, FEATURES)
    for first in range(0, features, BLOCK_M):
        columns = first + tl.arange(0, BLOCK_M).to(tl.int64)
        column_mask = columns < features
        a = arguments(
            tile, scalar, q, rows, row_mask, q_n, omega, first, features, head_dim, scale,
            FEATURES, False, BLOCK_M, BLOCK_D, PRECISION, WIDTH,
        )  # fmt: skip
        s = load_rows(state, columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
        share = tl.load(normaliser + columns, mask=column_mask, other=0.0)
        if FEATURES == "fourier":
            s_cos = load_rows(state, features + columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
            share_cos = tl.load(normaliser + features + columns, mask=column_mask, other=0.0)
            sine, cosine = sine_and_cosine(a)
            cosine *= scale
            n = tl.dot(cosine.to(COMPUTE), s_cos.to(COMPUTE), n, input_precision=PRECISION)
            z += tl.sum(cosine * share_cos[None, :], axis=1)
            phi = sine * scale
        elif FEATURES == "exp" or FEATURES == "softmax":
            inside = tl.where(column_mask[None, :], a, float("-inf"))
            top, position = tl.max(inside, axis=1, return_indices=True)
            place = tl.where(top > highest, first + position, place)
            raised = tl.maximum(highest, top)
            rescale = tl.exp(highest - raised)
            n *= rescale[:, None]
            z *= rescale
            highest = raised
            phi = tl.exp(inside - highest[:, None])
            if FEATURES == "softmax":
                share = tl.full([BLOCK_M], 1.0, tl.float32)
            else:
                column_sum += tl.sum(s, axis=0)
                normaliser_sum += tl.sum(share, axis=0)
        else:
            phi = plain(a, epsilon, FEATURES)
        n = tl.dot(phi.to(COMPUTE), s.to(COMPUTE), n, input_precision=PRECISION)
        z += tl.sum(phi * share[None, :], axis=1)
    if FEATURES == "exp":
        n += epsilon * column_sum[None, :]
        z += epsilon * normaliser_sum
    z += denominator_epsilon

    channels = first_v + tl.arange(0, BLOCK_V)
    mask = row_mask[:, None] & (channels < head_dim)[None, :]
    tl.store(y + rows[:, None] * y_n + channels[None, :], (n / z[:, None]).to(y.dtype.element_ty), mask=mask)
    if SAVE:
        if first_v == 0:
            offsets = head * seq_len + rows
            if FEATURES == "softmax":
                tl.store(stabilisers + offsets, highest + tl.log(z), mask=row_mask)
            else:
                tl.store(denominators + offsets, z, mask=row_mask)
            if FEATURES == "exp":
                tl.store(stabilisers + offsets, highest, mask=row_mask)
                tl.store(places + offsets, place, mask=row_mask)
