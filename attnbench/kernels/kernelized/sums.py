"""Sums over all tokens of φ(x_i) w_iᵀ and φ(x_i) n_i: the key-value sum and its normaliser, and their gradients.

Each program takes one range of the tokens (a split), one tile of features and one tile of value channels, and streams
its range once. Where φ of a key is stabilised by a maximum over keys, a program keeps the maximum of each feature as it
goes and rescales what it has (STABILISED); `combine_kernel` then brings the splits to one maximum and adds them up.
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
def accumulate_kernel(
    x,  # [B, H, N, D], strides x_b, x_h, x_n, 1: k, or q for the gradients
    values,  # [B, H, N, D], strides v_b, v_h, v_n, 1: v, or dy
    weights,  # [B·H, N], query only: the factor of token i's values
    shares,  # [B·H, N], query only: what token i adds to the normaliser, per feature
    stabilisers,  # [B·H, N], query only: what is subtracted from the arguments (exp, softmax)
    omega,  # [m, D]
    state,  # out [splits, B·H, M, D], M = m, or 2m for fourier
    normaliser,  # out [splits, B·H, M]
    maxima,  # out [splits, B·H, M], where STABILISED: the largest argument
    places,  # out [splits, B·H, M], where STABILISED: its token (exp)
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

    columns = first_m + tl.arange(0, BLOCK_M)
    column_mask = columns < features
    s = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    z = tl.zeros([BLOCK_M], tl.float32)
    if FEATURES == "fourier":
        s_cos = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
        z_cos = tl.zeros([BLOCK_M], tl.float32)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    place = tl.zeros([BLOCK_M], tl.int32)
    total = tl.zeros([BLOCK_V], tl.float32)

    begin = split * split_len
    for start in range(begin, tl.minimum(begin + split_len, seq_len), BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N).to(tl.int64)
        row_mask = rows < seq_len
        if FEATURES == "elu" or FEATURES == "softmax":
            tile = z
            scalar = z
        else:
            tile = load_rows(x, rows, row_mask, x_n, 0, head_dim, BLOCK_D)
            scalar = token_scalar(tile, scale, FEATURES)
        a = arguments(
            tile, scalar, x, rows, row_mask, x_n, omega, first_m, features, head_dim, scale,
            FEATURES, KEY, BLOCK_M, BLOCK_D, PRECISION, WIDTH,
        )  # fmt: skip
        value = load_rows(values, rows, row_mask, v_n, first_v, head_dim, BLOCK_V)
        share = tl.full([BLOCK_N], 1.0, tl.float32)
        if KEY:
            if STABILISED:
                inside = tl.where(row_mask[:, None], a, float("-inf"))
                top, position = tl.max(inside, axis=0, return_indices=True)
                place = tl.where(top > highest, (start + position).to(tl.int32), place)
                raised = tl.maximum(highest, top)
                rescale = tl.exp(highest - raised)
                s *= rescale[:, None]
                z *= rescale
                highest = raised
                a -= highest[None, :]
            total += tl.sum(value.to(tl.float32), axis=0)
        else:
            if FEATURES != "softmax":
                weight = tl.load(weights + head * seq_len + rows, mask=row_mask, other=0.0)
                share = tl.load(shares + head * seq_len + rows, mask=row_mask, other=0.0)
                value = value.to(tl.float32) * weight[:, None]
            if FEATURES == "exp" or FEATURES == "softmax":
                a -= tl.load(stabilisers + head * seq_len + rows, mask=row_mask, other=0.0)[:, None]
        mask = row_mask[:, None] & column_mask[None, :]
        if FEATURES == "fourier":
            sine, cosine = sine_and_cosine(a)
            cosine = tl.where(mask, cosine * scale, 0.0)
            s_cos = tl.dot(tl.trans(cosine.to(COMPUTE)), value.to(COMPUTE), s_cos, input_precision=PRECISION)
            z_cos += tl.sum(cosine * share[:, None], axis=0)
            phi = sine * scale
        elif FEATURES == "exp":
            phi = tl.exp(a) + (0.0 if STABILISED else epsilon)
        elif FEATURES == "softmax":
            phi = tl.exp(a)
        else:
            phi = plain(a, epsilon, FEATURES)
        phi = tl.where(mask, phi, 0.0)
        s = tl.dot(tl.trans(phi.to(COMPUTE)), value.to(COMPUTE), s, input_precision=PRECISION)
        z += tl.sum(phi * share[:, None], axis=0)

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
            tl.store(totals + part * head_dim + channels, total, mask=channel_mask)


@triton.jit
def combine_kernel(
    parts,  # [splits, B·H, M, D]
    part_normalisers,  # [splits, B·H, M]
    part_maxima,  # [splits, B·H, M]
    part_totals,  # [splits, B·H, D]
    top,  # the largest argument: [B·H] (exp), [B·H, M] (softmax)
    state,  # out [B·H, M, D]; softmax: with the columns of φ normalised
    normaliser,  # out [B·H, M]; softmax: log Σ exp, so that φ = exp(a − normaliser)
    seq_len,
    features,
    head_dim,
    splits,
    epsilon,
    FEATURES: tl.constexpr,
    STABILISED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One program per value tile, feature tile and head, in that order. features: M, all rows of the state."""
    tiles_v = tl.cdiv(head_dim, BLOCK_V)
    tiles_m = tl.cdiv(features, BLOCK_M)
    index = tl.program_id(0)
    first_v = (index % tiles_v) * BLOCK_V
    first_m = (index // tiles_v % tiles_m) * BLOCK_M
    head = (index // (tiles_v * tiles_m)).to(tl.int64)
    all_heads = (tl.num_programs(0) // (tiles_v * tiles_m)).to(tl.int64)
    columns = first_m + tl.arange(0, BLOCK_M)
    column_mask = columns < features
    channels = first_v + tl.arange(0, BLOCK_V)
    channel_mask = channels < head_dim
    mask = column_mask[:, None] & channel_mask[None, :]

    if STABILISED:
        if FEATURES == "exp":
            highest = tl.load(top + head + columns * 0)
        else:
            highest = tl.load(top + head * features + columns, mask=column_mask, other=0.0)
    s = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    z = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_V], tl.float32)
    for split in range(splits):
        part = split * all_heads + head
        offsets = part * features + columns
        part_s = tl.load(parts + offsets[:, None] * head_dim + channels[None, :], mask=mask, other=0.0)
        part_z = tl.load(part_normalisers + offsets, mask=column_mask, other=0.0)
        if STABILISED:
            factor = tl.exp(tl.load(part_maxima + offsets, mask=column_mask, other=float("-inf")) - highest)
            part_s *= factor[:, None]
            part_z *= factor
            if FEATURES == "exp":
                total += tl.load(part_totals + part * head_dim + channels, mask=channel_mask, other=0.0)
        s += part_s
        z += part_z
    if STABILISED:
        if FEATURES == "exp":
            s += epsilon * total[None, :]
            z += epsilon * seq_len
        else:
            s /= z[:, None]
            z = highest + tl.log(z)
    offsets = head * features + columns
    tl.store(state + offsets[:, None] * head_dim + channels[None, :], s, mask=mask)
    if first_v == 0:
        tl.store(normaliser + offsets, z, mask=column_mask)
