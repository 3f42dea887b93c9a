"""The gradients of each query, key and value, from the sums over all tokens.

A program takes a block of tokens and runs through the features a tile at a time. What is one factor per token (1/δ,
scale) is applied at the end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.kernelized.features import (
    arguments,
    feature_count,
    in_units,
    largest_column,
    load_rows,
    plain,
    plain_slope,
    power,
    row_products,
    rows_once,
    sine_and_cosine,
    token_scalar,
    unit_of,
)


@triton.jit
def query_gradient_kernel(
    q,  # [B, H, N, D], strides q_b, q_h, q_n, 1; dq likewise, contiguous
    omega,  # [m, D]
    rounded,  # [B·H, M, D]: the state in the dtype of products
    normaliser,  # [B·H, M]
    y,  # [B, H, N, D], strides y_b, y_h, y_n, 1
    dy,  # [B, H, N, D], strides g_b, g_h, g_n, 1
    denominators,  # [B·H, N]
    stabilisers,  # [B·H, N]
    dq,  # out [B, H, N, D], strides d_b, d_h, d_n, 1
    weights,  # out [B·H, N]: 1/δ, the factor of dy in the gradient of the state
    shares,  # out [B·H, N]: −(y·dy)/δ, what the token adds to the gradient of the normaliser
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
    g_b,
    g_h,
    g_n,
    d_b,
    d_h,
    d_n,
    scale,
    epsilon,
    FEATURES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN: tl.constexpr,  # whether BLOCK_M divides the features
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per block of tokens and head, in that order."""
    blocks = tl.cdiv(seq_len, BLOCK_N)
    index = tl.program_id(0)
    head = (index // blocks).to(tl.int64)
    rows = (index % blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < seq_len
    q += head // heads * q_b + head % heads * q_h
    y += head // heads * y_b + head % heads * y_h
    dy += head // heads * g_b + head % heads * g_h
    dq += head // heads * d_b + head % heads * d_h
    count = feature_count(features, FEATURES)
    rounded += head * count * head_dim
    normaliser += head * count
    offsets = head * seq_len + rows

    g = load_rows(dy, rows, row_mask, g_n, 0, head_dim, BLOCK_D)
    out = load_rows(y, rows, row_mask, y_n, 0, head_dim, BLOCK_D)
    along = tl.sum(g.to(tl.float32) * out.to(tl.float32), axis=1)  # y·dy
    weight = tl.full([BLOCK_N], 1.0, tl.float32)
    stabiliser = tl.zeros([BLOCK_N], tl.float32)
    if FEATURES == "exp" or FEATURES == "softmax":
        stabiliser = tl.load(stabilisers + offsets, mask=row_mask, other=0.0)
    if FEATURES == "elu" or FEATURES == "softmax":
        tile = along
        scalar = along
    else:
        tile = load_rows(q, rows, row_mask, q_n, 0, head_dim, BLOCK_D)
        scalar = token_scalar(tile, scale, FEATURES)
    if FEATURES != "softmax":
        weight = 1.0 / tl.load(denominators + offsets, mask=row_mask, other=1.0)
        tl.store(weights + offsets, weight, mask=row_mask)
        tl.store(shares + offsets, -along * weight, mask=row_mask)
    dx = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    lift = tl.zeros([BLOCK_N], tl.float32)
    highest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    place = tl.zeros([BLOCK_N], tl.int32)  # the feature of the largest argument (exp)
    unit = unit_of(scale, FEATURES, COMPUTE)
    stabiliser = in_units(stabiliser, COMPUTE)
    for first in range(0, features, BLOCK_M):
        columns = first + tl.arange(0, BLOCK_M)
        column_mask = columns < features
        w = rows_once(omega, columns, column_mask, head_dim, FEATURES, BLOCK_D, WIDTH)
        a = arguments(
            tile, scalar, q, rows, row_mask, q_n, omega, first, features, head_dim, unit,
            FEATURES, False, BLOCK_M, BLOCK_D, PRECISION, WIDTH, w,
        )  # fmt: skip
        dphi = row_products(
            g, dy, rows, row_mask, g_n, rounded, columns, column_mask, head_dim, head_dim,
            BLOCK_M, BLOCK_D, WIDTH, COMPUTE, PRECISION,
        )  # fmt: skip
        if FEATURES == "softmax":
            da = power(in_units(a, COMPUTE) - stabiliser[:, None], COMPUTE) * (dphi - along[:, None])
        else:
            share = tl.load(normaliser + columns, mask=column_mask, other=0.0)
            dphi -= along[:, None] * share[None, :]
            if FEATURES == "fourier":
                share_cos = tl.load(normaliser + features + columns, mask=column_mask, other=0.0)
                dcos = row_products(
                    g, dy, rows, row_mask, g_n, rounded, features + columns, column_mask, head_dim, head_dim,
                    BLOCK_M, BLOCK_D, WIDTH, COMPUTE, PRECISION,
                )  # fmt: skip
                dcos -= along[:, None] * share_cos[None, :]
                sine, cosine = sine_and_cosine(a, tl.bfloat16 == COMPUTE)
                da = dphi * cosine - dcos * sine
            elif FEATURES == "exp":
                if not EVEN:
                    a = tl.where(column_mask[None, :], a, float("-inf"))
                top, position = largest_column(a, columns, column_mask, EVEN, BLOCK_M, COMPUTE)
                place = tl.where(top > highest, position, place)
                highest = tl.maximum(highest, top)
                da = dphi * power(a - stabiliser[:, None], COMPUTE)
                lift += tl.sum(da, axis=1)
            else:
                da = dphi * plain_slope(a, FEATURES, COMPUTE)
                if FEATURES == "elu":
                    da *= weight[:, None]
        if FEATURES == "elu" or FEATURES == "softmax":
            mask = row_mask[:, None] & column_mask[None, :]
            tl.store(dq + rows[:, None] * d_n + columns[None, :], da.to(dq.dtype.element_ty), mask=mask)
        else:
            if WIDTH != 0:
                w = load_rows(omega, columns, column_mask, head_dim, 0, head_dim, BLOCK_D)
            dx = tl.dot(da.to(COMPUTE), w.to(COMPUTE), dx, input_precision=PRECISION)
    if FEATURES == "relu" or FEATURES == "exp" or FEATURES == "fourier":
        if FEATURES == "exp":  # the largest argument is subtracted from all, so it gets back what all of them got
            dx -= lift[:, None] * load_rows(omega, place.to(tl.int64), row_mask, head_dim, 0, head_dim, BLOCK_D).to(
                tl.float32
            )
        if WIDTH != 0:  # recomputed, not stored
            tile = load_rows(q, rows, row_mask, q_n, 0, head_dim, BLOCK_D)
        dx = to_token(dx * weight[:, None], tile, scalar, scale, FEATURES)
        channels = tl.arange(0, BLOCK_D)
        mask = row_mask[:, None] & (channels < head_dim)[None, :]
        tl.store(dq + rows[:, None] * d_n + channels[None, :], dx.to(dq.dtype.element_ty), mask=mask)


@triton.jit
def key_gradient_kernel(
    k,  # [B, H, N, D], strides k_b, k_h, k_n, 1
    v,  # [B, H, N, D], strides v_b, v_h, v_n, 1
    omega,  # [m, D]
    rounded,  # [B·H, M, D]: the gradient of the state in the dtype of products
    dnormaliser,  # [B·H, M]: of the normaliser; softmax: what each column of φ dφ adds up to
    stabilisers,  # of `combine_kernel`: [B·H] (exp) or [B·H, M] (softmax)
    dk,  # out [B, H, N, D], strides d_b, d_h, d_n, 1
    dv,  # out, the same
    heads,
    seq_len,
    features,
    head_dim,
    k_b,
    k_h,
    k_n,
    v_b,
    v_h,
    v_n,
    d_b,
    d_h,
    d_n,
    scale,
    epsilon,
    FEATURES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN: tl.constexpr,  # whether BLOCK_M divides the features
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per block of tokens and head, in that order."""
    blocks = tl.cdiv(seq_len, BLOCK_N)
    index = tl.program_id(0)
    head = (index // blocks).to(tl.int64)
    rows = (index % blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < seq_len
    k += head // heads * k_b + head % heads * k_h
    v += head // heads * v_b + head % heads * v_h
    dk += head // heads * d_b + head % heads * d_h
    dv += head // heads * d_b + head % heads * d_h
    count = feature_count(features, FEATURES)
    rounded += head * count * head_dim
    dnormaliser += head * count

    value = load_rows(v, rows, row_mask, v_n, 0, head_dim, BLOCK_D)
    dx = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dvalue = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    length = tl.zeros([BLOCK_N], tl.float32)
    if FEATURES == "elu" or FEATURES == "softmax":
        tile = length
        scalar = length
    else:
        tile = load_rows(k, rows, row_mask, k_n, 0, head_dim, BLOCK_D)
        scalar = token_scalar(tile, scale, FEATURES)
    unit = unit_of(scale, FEATURES, COMPUTE)
    if FEATURES == "exp":
        scalar = in_units(scalar, COMPUTE) + tl.load(stabilisers + head)
    for first in range(0, features, BLOCK_M):
        columns = first + tl.arange(0, BLOCK_M)
        column_mask = columns < features
        w = rows_once(omega, columns, column_mask, head_dim, FEATURES, BLOCK_D, WIDTH)
        ds = rows_once(rounded, columns, column_mask, head_dim, "", BLOCK_D, WIDTH)
        a = arguments(
            tile, scalar, k, rows, row_mask, k_n, omega, first, features, head_dim, unit,
            FEATURES, True, BLOCK_M, BLOCK_D, PRECISION, WIDTH, w,
        )  # fmt: skip
        dz = tl.load(dnormaliser + columns, mask=column_mask, other=0.0)
        dphi = row_products(
            value, v, rows, row_mask, v_n, rounded, columns, column_mask, head_dim, head_dim,
            BLOCK_M, BLOCK_D, WIDTH, COMPUTE, PRECISION, ds,
        )  # fmt: skip
        if FEATURES == "softmax":
            top = tl.load(stabilisers + head * features + columns, mask=column_mask, other=0.0)
            phi = power(in_units(a, COMPUTE) - top[None, :], COMPUTE)
            da = phi * (dphi - dz[None, :])
        elif FEATURES == "fourier":
            dz_cos = tl.load(dnormaliser + features + columns, mask=column_mask, other=0.0)
            ds_cos = load_rows(rounded, features + columns, column_mask, head_dim, 0, head_dim, BLOCK_D)
            dcos = row_products(
                value, v, rows, row_mask, v_n, rounded, features + columns, column_mask, head_dim, head_dim,
                BLOCK_M, BLOCK_D, WIDTH, COMPUTE, PRECISION, ds_cos,
            )  # fmt: skip
            phi, cosine = sine_and_cosine(a, tl.bfloat16 == COMPUTE)
            da = (dphi + dz[None, :]) * cosine - (dcos + dz_cos[None, :]) * phi
            dvalue = tl.dot(cosine.to(COMPUTE), ds_cos, dvalue, input_precision=PRECISION)
        elif FEATURES == "exp":
            if not EVEN:
                a = tl.where(column_mask[None, :], a, float("-inf"))
            phi = power(a, COMPUTE)
            da = (dphi + dz[None, :]) * phi
            length += tl.sum(da, axis=1)
            phi += epsilon
        else:
            phi = plain(a, epsilon, FEATURES, COMPUTE)
            da = (dphi + dz[None, :]) * plain_slope(a, FEATURES, COMPUTE)
        if WIDTH != 0:
            ds = load_rows(rounded, columns, column_mask, head_dim, 0, head_dim, BLOCK_D)
        dvalue = tl.dot(phi.to(COMPUTE), ds, dvalue, input_precision=PRECISION)
        if FEATURES == "elu" or FEATURES == "softmax":
            mask = row_mask[:, None] & column_mask[None, :]
            tl.store(dk + rows[:, None] * d_n + columns[None, :], da.to(dk.dtype.element_ty), mask=mask)
        else:
            if WIDTH != 0:
                w = load_rows(omega, columns, column_mask, head_dim, 0, head_dim, BLOCK_D)
            dx = tl.dot(da.to(COMPUTE), w.to(COMPUTE), dx, input_precision=PRECISION)
    channels = tl.arange(0, BLOCK_D)
    mask = row_mask[:, None] & (channels < head_dim)[None, :]
    tl.store(dv + rows[:, None] * d_n + channels[None, :], dvalue.to(dv.dtype.element_ty), mask=mask)
    if FEATURES == "relu" or FEATURES == "exp" or FEATURES == "fourier":
        if WIDTH != 0:
            tile = load_rows(k, rows, row_mask, k_n, 0, head_dim, BLOCK_D)
        dx = to_token(dx, tile, scalar, scale, FEATURES)
        if FEATURES == "exp":
            dx -= length[:, None] * tile.to(tl.float32) * (scale * scale)
        tl.store(dk + rows[:, None] * d_n + channels[None, :], dx.to(dk.dtype.element_ty), mask=mask)


@triton.jit
def to_token(dx, x, scalar, scale, FEATURES: tl.constexpr):
    """From Σ_r da_r ω_r to the token's gradient through ω x: times scale; fourier: through x / ‖x‖."""
    if FEATURES == "fourier":
        unit = x.to(tl.float32) * scalar[:, None]
        return (dx - tl.sum(dx * unit, axis=1)[:, None] * unit) * scalar[:, None]
    return dx * scale
