"""The gradient of the stabiliser of the keys of exp: one number for each head, at the argument that is the largest."""

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.kernelized.features import NOWHERE, load_rows


@triton.jit
def largest_kernel(
    k,  # [B, H, N, D], strides k_b, k_h, k_n, 1
    omega,  # [m, D]
    state,  # [B·H, m, D]; its gradient likewise
    dstate,
    normaliser,  # [B·H, m]; its gradient likewise
    dnormaliser,
    totals,  # [B·H, D]: Σ values
    maxima,  # [splits, B·H, m]: the largest arguments of a split
    places,  # [splits, B·H, m]: the first token of the block of each
    dk,  # in and out [B, H, N, D], strides d_b, d_h, d_n, 1
    heads,
    seq_len,
    features,
    head_dim,
    splits,
    k_b,
    k_h,
    k_n,
    d_b,
    d_h,
    d_n,
    scale,
    epsilon,
    BLOCK_N: tl.constexpr,  # of `accumulate_kernel`
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Subtracts lift · ∂a/∂k at the key whose argument a is the largest of its head. One program per head.

    lift = ⟨dS, S − ε Σv⟩ + ⟨dz, z − ε N⟩, what all arguments of the head get, since ε is not scaled by the maximum.
    """
    head = tl.program_id(0).to(tl.int64)
    all_heads = tl.num_programs(0).to(tl.int64)
    k += head // heads * k_b + head % heads * k_h
    dk += head // heads * d_b + head % heads * d_h
    channels = tl.arange(0, BLOCK_D)
    channel_mask = channels < head_dim

    total = epsilon * tl.load(totals + head * head_dim + channels, mask=channel_mask, other=0.0)
    products = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    shares = tl.zeros([BLOCK_M], tl.float32)
    for first in range(0, features, BLOCK_M):
        columns = first + tl.arange(0, BLOCK_M)
        column_mask = columns < features
        row = head * features + columns
        s = load_rows(state, row, column_mask, head_dim, 0, head_dim, BLOCK_D)
        ds = load_rows(dstate, row, column_mask, head_dim, 0, head_dim, BLOCK_D)
        products += ds * (s - total[None, :])
        z = tl.load(normaliser + row, mask=column_mask, other=0.0)
        shares += tl.load(dnormaliser + row, mask=column_mask, other=0.0) * (z - epsilon * seq_len)
    lift = tl.sum(tl.sum(products, axis=1), axis=0) + tl.sum(shares, axis=0)

    highest = tl.full([BLOCK_S, 64], float("-inf"), tl.float32)
    position = tl.full([BLOCK_S, 64], NOWHERE, tl.int32)  # split · m + feature
    for first_s in range(0, splits, BLOCK_S):
        split = first_s + tl.arange(0, BLOCK_S)
        for first in range(0, features, 64):
            columns = first + tl.arange(0, 64)
            mask = (split < splits)[:, None] & (columns < features)[None, :]
            offsets = (split * all_heads + head)[:, None] * features + columns[None, :]
            value = tl.load(maxima + offsets, mask=mask, other=float("-inf"))
            position = tl.where(value > highest, split[:, None] * features + columns[None, :], position)
            highest = tl.maximum(highest, value)
    top = tl.max(tl.max(highest, axis=1), axis=0)
    best = tl.min(tl.min(tl.where(highest == top, position, NOWHERE), axis=1), axis=0)
    feature = best % features
    start = tl.load(places + (best // features * all_heads + head) * features + feature)

    direction = scale * tl.load(omega + feature * head_dim + channels, mask=channel_mask, other=0.0).to(tl.float32)
    within = tl.arange(0, BLOCK_N)
    rows = start.to(tl.int64) + within
    keys = load_rows(k, rows, rows < seq_len, k_n, 0, head_dim, BLOCK_D).to(tl.float32)
    arguments = tl.sum(keys * direction[None, :], axis=1) - scale * scale * 0.5 * tl.sum(keys * keys, axis=1)
    arguments = tl.where(rows < seq_len, arguments, float("-inf"))
    at = tl.min(tl.where(arguments == tl.max(arguments, axis=0), within, BLOCK_N), axis=0)
    slope = direction - scale * scale * tl.sum(tl.where((within == at)[:, None], keys, 0.0), axis=0)
    addresses = dk + (start + at).to(tl.int64) * d_n + channels
    before = tl.load(addresses, mask=channel_mask, other=0.0).to(tl.float32)
    tl.store(addresses, (before - lift * slope).to(dk.dtype.element_ty), mask=channel_mask)
