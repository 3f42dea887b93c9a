"""What each query gets from the sums over all keys.

A program takes a block of queries and runs through the features a tile at a time. The stabiliser of a query, the
largest of its own arguments, is found on the way (the accumulator is rescaled when it rises), so that ε, which it does
not scale, is added at the end with the sums over all features. Of exp it is found among the products ω x, to which the
scale, which is positive, is applied with it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.kernelized.features import (
    arguments,
    exponent_of,
    feature_count,
    in_units,
    load_rows,
    plain,
    power,
    sine_and_cosine,
    token_scalar,
)


@triton.jit
def sum_of_parts(column_sums, head, sum_parts, first_v, head_dim, BLOCK_V: tl.constexpr):
    """The sum over the features of a head's state: [BLOCK_V]."""
    channels = first_v + tl.arange(0, BLOCK_V)
    tile = tl.zeros([16, BLOCK_V], tl.float32)
    for first in range(0, sum_parts, 16):
        part = first + tl.arange(0, 16)
        mask = (part < sum_parts)[:, None] & (channels < head_dim)[None, :]
        tile += tl.load(
            column_sums + (head * sum_parts + part)[:, None] * head_dim + channels[None, :], mask=mask, other=0.0
        )
    return tl.sum(tile, axis=0)


@triton.jit
def answer_kernel(
    q,  # [B, H, N, D], strides q_b, q_h, q_n, 1
    omega,  # [m, D]
    rounded,  # [B·H, M, D]: the state in the dtype of products
    normaliser,  # [B·H, M]; unused by softmax
    column_sums,  # [B·H, parts, D], exp: Σ over the features of the state, in parts
    y,  # out [B, H, N, D], strides y_b, y_h, y_n, 1
    denominators,  # out [B·H, N], where SAVE: φ(q)ᵀz + ε; softmax: none
    stabilisers,  # out [B·H, N], where SAVE: the largest argument (exp), log Σ exp (softmax)
    heads,
    seq_len,
    features,
    head_dim,
    sum_parts,
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
    EVEN: tl.constexpr,  # whether BLOCK_M divides the features
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
    rounded += head * count * head_dim
    normaliser += head * count

    n = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    z = tl.zeros([BLOCK_N], tl.float32)
    highest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    all_shares = tl.zeros([BLOCK_M], tl.float32)
    unit = in_units(scale, COMPUTE)
    if FEATURES == "elu" or FEATURES == "softmax":
        tile = z
        scalar = z
    else:
        tile = load_rows(q, rows, row_mask, q_n, 0, head_dim, BLOCK_D)
        scalar = token_scalar(tile, scale, FEATURES)
    for first in range(0, features, BLOCK_M):
        columns = first + tl.arange(0, BLOCK_M)
        column_mask = columns < features
        a = arguments(
            tile, scalar, q, rows, row_mask, q_n, omega, first, features, head_dim, 1.0 if FEATURES == "exp" else scale,
            FEATURES, False, BLOCK_M, BLOCK_D, PRECISION, WIDTH,
        )  # fmt: skip
        s = load_rows(rounded, columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
        if FEATURES == "softmax":
            a = in_units(a, COMPUTE)
        else:
            share = tl.load(normaliser + columns, mask=column_mask, other=0.0)
        if FEATURES == "fourier":
            s_cos = load_rows(rounded, features + columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
            share_cos = tl.load(normaliser + features + columns, mask=column_mask, other=0.0)
            phi, cosine = sine_and_cosine(a, tl.bfloat16 == COMPUTE)
            n = tl.dot(cosine.to(COMPUTE), s_cos, n, input_precision=PRECISION)
            z += tl.sum(cosine * share_cos[None, :], axis=1)
        elif FEATURES == "exp" or FEATURES == "softmax":
            if not EVEN:
                a = tl.where(column_mask[None, :], a, float("-inf"))
            raised = tl.maximum(highest, tl.max(a, axis=1))
            if FEATURES == "exp":
                rescale = power((highest - raised) * unit, COMPUTE)
                phi = power(a * unit - (raised * unit)[:, None], COMPUTE)
                all_shares += share
            else:
                rescale = power(highest - raised, COMPUTE)
                phi = power(a - raised[:, None], COMPUTE)
            n *= rescale[:, None]
            z *= rescale
            highest = raised
        else:
            phi = plain(a, epsilon, FEATURES, COMPUTE)
        n = tl.dot(phi.to(COMPUTE), s, n, input_precision=PRECISION)
        if FEATURES == "softmax":
            z += tl.sum(phi, axis=1)
        else:
            z += tl.sum(phi * share[None, :], axis=1)
    if FEATURES == "exp":
        n += epsilon * sum_of_parts(column_sums, head, sum_parts, first_v, head_dim, BLOCK_V)[None, :]
        z += epsilon * tl.sum(all_shares, axis=0)
    z += denominator_epsilon

    channels = first_v + tl.arange(0, BLOCK_V)
    mask = row_mask[:, None] & (channels < head_dim)[None, :]
    tl.store(y + rows[:, None] * y_n + channels[None, :], (n / z[:, None]).to(y.dtype.element_ty), mask=mask)
    if SAVE:
        if first_v == 0:
            offsets = head * seq_len + rows
            if FEATURES == "softmax":
                tl.store(
                    stabilisers + offsets, (highest + exponent_of(z, COMPUTE)) / in_units(1.0, COMPUTE), mask=row_mask
                )
            else:
                tl.store(denominators + offsets, z, mask=row_mask)
            if FEATURES == "exp":
                tl.store(stabilisers + offsets, highest * scale, mask=row_mask)
