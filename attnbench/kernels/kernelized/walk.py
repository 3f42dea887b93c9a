"""The causal answer of fourier where a program keeps the state: it walks through the chunks of a segment.

It starts with the state before the segment (the sums of `accumulate_kernel`, added up by `segment_sums_kernel`),
answers a block of queries from it and from the pairs within the block, and adds the block's keys to it. No state is
read again; that before each chunk is written where gradients need it.

All of φ is one tile, made once for a block; its second half are cosines, cos a = sin (a + π/2). It has the features as
rows, of keys and of queries, so that eight warps divide it as they divide the state, and registers suffice.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.kernelized.features import load_rows, sine_and_cosine
from attnbench.kernels.kernelized.scan import store_state
from attnbench.kernels.kernelized.sums import arguments_by_feature


@triton.jit
def walk_kernel(
    q,  # [B, H, N, D], as k, v and y with strides of their own, the last 1
    k,
    v,
    omega,  # [m, D]
    segment_states,  # [segments, B·H, 2m, D]: Σ φ(k_j) v_jᵀ over the tokens before each segment
    segment_normalisers,  # [segments, B·H, 2m]
    states,  # out [chunks, B·H, 2m, D], where SAVE: the same before each chunk
    normalisers,  # out [chunks, B·H, 2m], where SAVE
    y,  # out
    denominators,  # out [B·H, N], where SAVE
    heads,
    seq_len,
    features,
    head_dim,
    segments,
    segment_len,  # a multiple of CHUNK
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, y_b, y_h, y_n,
    scale,
    denominator_epsilon,
    SAVE: tl.constexpr,
    CHUNK: tl.constexpr,  # a multiple of BLOCK_N
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,  # at least m
    BLOCK_D: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per segment and head, in that order."""
    index = tl.program_id(0)
    segment = index % segments
    head = (index // segments).to(tl.int64)
    all_heads = (tl.num_programs(0) // segments).to(tl.int64)
    q += head // heads * q_b + head % heads * q_h
    k += head // heads * k_b + head % heads * k_h
    v += head // heads * v_b + head % heads * v_h
    y += head // heads * y_b + head % heads * y_h
    both = tl.arange(0, 2 * BLOCK_M)
    feature = both % BLOCK_M
    mask = feature < features
    phase = tl.where(mask, both // BLOCK_M * 1.5707963267948966, 0.0)  # the arguments of features outside are 0
    line = feature + both // BLOCK_M * features
    w = load_rows(omega, feature, mask, head_dim, 0, head_dim, BLOCK_D)
    row = (segment * all_heads + head) * 2 * features + line
    s = load_rows(segment_states, row, mask, head_dim, 0, head_dim, BLOCK_D).to(tl.float32)
    z = tl.load(segment_normalisers + row, mask=mask, other=0.0)
    channels = tl.arange(0, BLOCK_D)
    tokens = tl.arange(0, BLOCK_N)
    place = tl.arange(0, 16)[None, :]
    end = tl.minimum((segment + 1) * segment_len, seq_len)
    for block in tl.range(segment * segment_len, end, BLOCK_N, disable_licm=True):
        start, rows = tl.cast(block, tl.int64), tokens.to(tl.int64)
        row_mask = block + tokens < seq_len
        if SAVE:
            if block % CHUNK == 0:
                chunk_row = (block // CHUNK * all_heads + head) * 2 * features
                store_state(states, normalisers, chunk_row, line, mask, head_dim, 0, s, z, BLOCK_D)
        before, high = s.to(COMPUTE), z.to(COMPUTE).to(tl.float32)
        # z in two columns, of which the second has what the first is rounded by: a sum over features is a product.
        z_before = tl.where(place == 0, high[:, None], tl.where(place == 1, (z - high)[:, None], 0.0)).to(COMPUTE)
        value = load_rows(v + start * v_n, rows, row_mask, v_n, 0, head_dim, BLOCK_D).to(COMPUTE)
        a = arguments_by_feature(
            w, omega, both, mask, k + start * k_n, rows, row_mask, k_n, denominators, features, head_dim, scale,
            "fourier", True, BLOCK_N, 2 * BLOCK_M, BLOCK_D, 0, COMPUTE, PRECISION,
        )  # fmt: skip
        fk = sine_and_cosine(a + phase[:, None], tl.bfloat16 == COMPUTE)[0]
        keys = fk.to(COMPUTE)
        s = tl.dot(keys, value, s, input_precision=PRECISION)
        z += tl.sum(fk, axis=1)
        a = arguments_by_feature(
            w, omega, both, mask, q + start * q_n, rows, row_mask, q_n, denominators, features, head_dim, scale,
            "fourier", False, BLOCK_N, 2 * BLOCK_M, BLOCK_D, 0, COMPUTE, PRECISION,
        )  # fmt: skip
        fq = sine_and_cosine(a + phase[:, None], tl.bfloat16 == COMPUTE)[0]
        queries = tl.trans(fq.to(COMPUTE))
        n = tl.dot(queries, before, input_precision=PRECISION)
        d = tl.sum(tl.dot(queries, z_before, input_precision=PRECISION), axis=1)
        scores = tl.dot(queries, keys, input_precision=PRECISION)
        scores = tl.where(tokens[:, None] >= tokens[None, :], scores, 0.0)
        n = tl.dot(scores.to(COMPUTE), value, n, input_precision=PRECISION)
        d += tl.sum(scores, axis=1) + denominator_epsilon
        inside = row_mask[:, None] & (channels < head_dim)[None, :]
        pointers = y + start * y_n + rows[:, None] * y_n + channels[None, :]
        tl.store(pointers, (n / d[:, None]).to(y.dtype.element_ty), mask=inside)
        if SAVE:
            tl.store(denominators + head * seq_len + start + tokens, d, mask=row_mask)
