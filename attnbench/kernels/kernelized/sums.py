"""Sums over all tokens of φ(x_i) w_iᵀ and φ(x_i) n_i: the key-value sum and its normaliser, and their gradients.

Each program takes one range of the tokens (a split), one tile of features and one tile of value channels, and streams
its range once. It holds φᵀ with the features as rows, so that φᵀ is made and used in registers and what depends on a
token (its norm, stabiliser, weight) is one factor per column. Where φ of a key is stabilised by a maximum over keys, a
program keeps the maximum of each feature as it goes and rescales what it has (STABILISED); `combine_kernel` then brings
the splits to one maximum and adds them up.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.kernelized.features import (
    exponent_of,
    feature_count,
    in_units,
    load_rows,
    plain,
    power,
    row_products,
    sine_and_cosine,
    token_scalar,
)


@triton.jit
def arguments_by_feature(
    w, omega, columns, column_mask, x, rows, row_mask, x_n, stabilisers, features, head_dim, scale,
    FEATURES: tl.constexpr, KEY: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The arguments of the tokens `rows`, [BLOCK_M, BLOCK_N] in float32. Of exp and softmax: `in_units`; a query's
    stabiliser is subtracted, and a key outside has −∞.

    Args:
        w: the rows `columns` of omega; unused by elu and softmax, and where WIDTH is not 0.
    """
    if FEATURES == "elu" or FEATURES == "softmax":
        mask = row_mask[:, None] & column_mask[None, :]
        pointers = x + rows[:, None] * x_n + columns[None, :]
        a = tl.trans(tl.load(pointers, mask=mask, other=0.0)).to(tl.float32)
        shift = tl.zeros([BLOCK_N], tl.float32)
    else:
        tile = load_rows(x, rows, row_mask, x_n, 0, head_dim, BLOCK_D)
        if WIDTH == 0:
            a = tl.dot(w, tl.trans(tile), input_precision=PRECISION)
        else:
            a = row_products(
                w, omega, columns, column_mask, head_dim, x, rows, row_mask, x_n, head_dim,
                BLOCK_N, BLOCK_D, WIDTH, x.dtype.element_ty, PRECISION,
            )  # fmt: skip
        if FEATURES == "fourier":
            a *= token_scalar(tile, scale, FEATURES)[None, :]
        elif FEATURES == "exp":
            a *= in_units(scale, COMPUTE)
            if KEY:
                shift = token_scalar(tile, scale, FEATURES)
        else:
            a *= scale
    if FEATURES == "exp" or FEATURES == "softmax":
        if KEY:
            shift = tl.where(row_mask, in_units(shift, COMPUTE), float("inf"))
        else:
            shift = in_units(tl.load(stabilisers + rows, mask=row_mask, other=0.0), COMPUTE)
        if FEATURES == "softmax":
            a = in_units(a, COMPUTE)
        a -= shift[None, :]
    return a


@triton.jit
def accumulate_kernel(
    x,  # [B, H, N, D], strides x_b, x_h, x_n, 1: k, or q for the gradients
    values,  # [B, H, N, D], strides v_b, v_h, v_n, 1: v, or dy
    weights,  # [B·H, N], query only: the factor of token i's values
    shares,  # [B·H, N], query only: what token i adds to the normaliser, per feature
    stabilisers,  # [B·H, N], query only: what is subtracted from the arguments (exp, softmax)
    omega,  # [m, D]
    state,  # out [splits, B·H, M, D], M = m, or 2m for fourier
    normaliser,  # out [splits, B·H, M]
    maxima,  # out [splits, B·H, M], where STABILISED: the largest argument `in_units`
    places,  # out [splits, B·H, M], where STABILISED: the first token of its block (exp)
    totals,  # out [splits, B·H, D], where STABILISED: Σ values (exp)
    heads,
    seq_len,
    features,
    head_dim,
    splits,
    split_len,
    x_b,
    x_h,
    x_n,
    v_b,
    v_h,
    v_n,
    scale,
    epsilon,
    FEATURES: tl.constexpr,
    KEY: tl.constexpr,
    STABILISED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per value tile, feature tile, split and head, in that order, the first running fastest."""
    tiles_v = tl.cdiv(head_dim, BLOCK_V)
    tiles_m = tl.cdiv(features, BLOCK_M)
    index = tl.program_id(0)
    first_v = (index % tiles_v) * BLOCK_V
    first_m = (index // tiles_v % tiles_m) * BLOCK_M
    split = (index // (tiles_v * tiles_m) % splits).to(tl.int64)
    head = (index // (tiles_v * tiles_m * splits)).to(tl.int64)
    all_heads = (tl.num_programs(0) // (tiles_v * tiles_m * splits)).to(tl.int64)
    x += head // heads * x_b + head % heads * x_h
    values += head // heads * v_b + head % heads * v_h
    weights += head * seq_len
    shares += head * seq_len
    stabilisers += head * seq_len

    columns = first_m + tl.arange(0, BLOCK_M)
    column_mask = columns < features
    s = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    z = tl.zeros([BLOCK_M], tl.float32)
    if FEATURES == "fourier":
        s_cos = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
        z_cos = tl.zeros([BLOCK_M], tl.float32)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    place = tl.zeros([BLOCK_M], tl.int32)
    ONES: tl.constexpr = min(BLOCK_M, 64)
    total = tl.zeros([ONES, BLOCK_V], tl.float32)
    if FEATURES == "elu" or FEATURES == "softmax":
        w = z
    else:
        w = load_rows(omega, columns, column_mask, head_dim, 0, head_dim, BLOCK_D)

    begin = tl.minimum(split * split_len, seq_len)
    end = tl.minimum(begin + split_len, seq_len).to(tl.int32)
    for start in range(begin.to(tl.int32), end, BLOCK_N):
        row_mask = start + tl.arange(0, BLOCK_N) < seq_len
        rows = tl.arange(0, BLOCK_N).to(tl.int64)  # the block's first token is in the pointers: one addition for a load
        first = tl.cast(start, tl.int64)
        value = load_rows(values + first * v_n, rows, row_mask, v_n, first_v, head_dim, BLOCK_V).to(COMPUTE)
        if STABILISED and FEATURES == "exp":  # on tensor cores, since a sum over tokens would be one over threads
            # Triton 3.6 interprets no constant of bfloat16.
            ones = tl.full([ONES, BLOCK_N], 1.0 / ONES, tl.float32).to(COMPUTE)
            total = tl.dot(ones, value, total, input_precision=PRECISION)
        a = arguments_by_feature(
            w, omega, columns, column_mask, x + first * x_n, rows, row_mask, x_n, stabilisers + first,
            features, head_dim, scale, FEATURES, KEY, BLOCK_N, BLOCK_M, BLOCK_D, WIDTH, COMPUTE, PRECISION,
        )  # fmt: skip
        if FEATURES != "softmax" and not KEY:
            share = tl.load(shares + first + rows, mask=row_mask, other=0.0)
        else:
            share = tl.where(row_mask, 1.0, 0.0)
        if STABILISED:
            top = tl.max(a, axis=1)
            place = tl.where(top > highest, start, place)
            raised = tl.maximum(highest, top)
            rescale = power(highest - raised, COMPUTE)
            s *= rescale[:, None]
            z *= rescale
            highest = raised
            a -= highest[:, None]
        if FEATURES == "fourier":
            phi, cosine = sine_and_cosine(a, tl.bfloat16 == COMPUTE)
            z_cos += tl.sum(cosine * share[None, :], axis=1)
        elif FEATURES == "exp":
            phi = power(a, COMPUTE)
            if not STABILISED:
                phi += epsilon
        elif FEATURES == "softmax":
            phi = power(a, COMPUTE)
        else:
            phi = plain(a, epsilon, FEATURES, COMPUTE)
        if STABILISED:  # φ of what is outside is 0
            z += tl.sum(phi, axis=1)
        else:
            z += tl.sum(phi * share[None, :], axis=1)
        if FEATURES != "softmax" and not KEY:
            weight = tl.load(weights + first + rows, mask=row_mask, other=0.0)[None, :]
            phi *= weight
            if FEATURES == "fourier":
                cosine *= weight
        s = tl.dot(phi.to(COMPUTE), value, s, input_precision=PRECISION)
        if FEATURES == "fourier":
            s_cos = tl.dot(cosine.to(COMPUTE), value, s_cos, input_precision=PRECISION)

    channels = first_v + tl.arange(0, BLOCK_V)
    channel_mask = channels < head_dim
    mask = column_mask[:, None] & channel_mask[None, :]
    part = split * all_heads + head
    count = feature_count(features, FEATURES)
    offsets = part * count + columns
    tl.store(state + offsets[:, None] * head_dim + channels[None, :], s, mask=mask)
    if FEATURES == "fourier":
        tl.store(state + (offsets + features)[:, None] * head_dim + channels[None, :], s_cos, mask=mask)
    if first_v == 0:
        tl.store(normaliser + offsets, z, mask=column_mask)
        if FEATURES == "fourier":
            tl.store(normaliser + offsets + features, z_cos, mask=column_mask)
        if STABILISED:
            tl.store(maxima + offsets, highest, mask=column_mask)
        if STABILISED and FEATURES == "exp":
            tl.store(places + offsets, place, mask=column_mask)
    if STABILISED and FEATURES == "exp":
        if first_m == 0:
            tl.store(totals + part * head_dim + channels, tl.sum(total, axis=0), mask=channel_mask)


@triton.jit
def highest_argument(
    part_maxima, columns, column_mask, head, all_heads, features, splits,
    FEATURES: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The largest argument · log2 e of each of the features `columns` (softmax), or of all features (exp)."""
    if FEATURES == "softmax":
        top = tl.full(columns.shape, float("-inf"), tl.float32)
        for first_s in range(0, splits, BLOCK_S):
            split = first_s + tl.arange(0, BLOCK_S)
            offsets = (split.to(tl.int64) * all_heads + head)[:, None] * features + columns[None, :]
            mask = (split < splits)[:, None] & column_mask[None, :]
            top = tl.maximum(top, tl.max(tl.load(part_maxima + offsets, mask=mask, other=float("-inf")), axis=0))
        return tl.where(column_mask, top, 0.0)
    else:  # noqa: RET505  Triton compiles what follows a return too
        tile = tl.full([BLOCK_S, 64], float("-inf"), tl.float32)
        for first_s in range(0, splits, BLOCK_S):
            split = first_s + tl.arange(0, BLOCK_S)
            for first in range(0, features, 64):
                every = first + tl.arange(0, 64)
                offsets = (split.to(tl.int64) * all_heads + head)[:, None] * features + every[None, :]
                mask = (split < splits)[:, None] & (every < features)[None, :]
                tile = tl.maximum(tile, tl.load(part_maxima + offsets, mask=mask, other=float("-inf")))
        return tl.max(tl.max(tile, axis=1), axis=0) + tl.zeros(columns.shape, tl.float32)


@triton.jit
def combine_kernel(
    parts,  # [splits, B·H, M, D]
    part_normalisers,  # [splits, B·H, M]
    part_maxima,  # [splits, B·H, M]
    part_totals,  # [splits, B·H, D]
    state,  # out [B·H, M, D]; softmax: with the columns of φ normalised
    rounded,  # out [B·H, M, D]: the same in the dtype of products
    normaliser,  # out [B·H, M]; softmax: log Σ exp `in_units`, so that φ = power(a − normaliser)
    top,  # out [B·H], exp: the largest argument `in_units`
    totals,  # out [B·H, D], exp: Σ values
    column_sums,  # out [B·H, feature tiles, D], exp: Σ over the features of a tile of the state
    seq_len,
    features,
    head_dim,
    splits,
    epsilon,
    FEATURES: tl.constexpr,
    STABILISED: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One program per value tile, feature tile and head, in that order. features: M, all rows of the state."""
    COMPUTE: tl.constexpr = rounded.dtype.element_ty
    tiles_v = tl.cdiv(head_dim, BLOCK_V)
    tiles_m = tl.cdiv(features, BLOCK_M)
    index = tl.program_id(0)
    first_v = (index % tiles_v) * BLOCK_V
    tile_m = index // tiles_v % tiles_m
    head = (index // (tiles_v * tiles_m)).to(tl.int64)
    all_heads = (tl.num_programs(0) // (tiles_v * tiles_m)).to(tl.int64)
    columns = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    column_mask = columns < features
    channels = first_v + tl.arange(0, BLOCK_V)
    channel_mask = channels < head_dim
    mask = column_mask[:, None] & channel_mask[None, :]

    if STABILISED:
        highest = highest_argument(
            part_maxima, columns, column_mask, head, all_heads, features, splits, FEATURES, BLOCK_S
        )
    s = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    z = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_V], tl.float32)
    for first in range(0, splits, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)
        split_mask = split < splits
        part = split.to(tl.int64) * all_heads + head
        offsets = part[:, None] * features + columns[None, :]
        inside = split_mask[:, None] & column_mask[None, :]
        part_s = tl.load(
            parts + offsets[:, :, None] * head_dim + channels[None, None, :],
            mask=inside[:, :, None] & channel_mask[None, None, :],
            other=0.0,
        )
        part_z = tl.load(part_normalisers + offsets, mask=inside, other=0.0)
        if STABILISED:
            maxima = tl.load(part_maxima + offsets, mask=inside, other=float("-inf"))
            factor = power(maxima - highest[None, :], COMPUTE)
            part_s *= factor[:, :, None]
            part_z *= factor
            if FEATURES == "exp":
                part_mask = split_mask[:, None] & channel_mask[None, :]
                addresses = part_totals + part[:, None] * head_dim + channels[None, :]
                total += tl.sum(tl.load(addresses, mask=part_mask, other=0.0), axis=0)
        s += tl.sum(part_s, axis=0)
        z += tl.sum(part_z, axis=0)
    if STABILISED:
        if FEATURES == "exp":
            s += tl.where(mask, epsilon * total[None, :], 0.0)
            z += epsilon * seq_len
            tl.store(
                column_sums + (head * tiles_m + tile_m) * head_dim + channels, tl.sum(s, axis=0), mask=channel_mask
            )
            if tile_m == 0:
                tl.store(totals + head * head_dim + channels, total, mask=channel_mask)
                if first_v == 0:
                    tl.store(top + head, tl.max(highest, axis=0))
        else:
            s /= z[:, None]
            z = highest + exponent_of(z, COMPUTE)
    offsets = head * features + columns
    addresses = offsets[:, None] * head_dim + channels[None, :]
    tl.store(state + addresses, s, mask=mask)
    tl.store(rounded + addresses, s.to(rounded.dtype.element_ty), mask=mask)
    if first_v == 0:
        tl.store(normaliser + offsets, z, mask=column_mask)
