"""The causal scan: the state before each chunk, written once; then every chunk by itself.

`chunk_states_kernel` runs through the chunks of a segment and writes the sums of the segment's tokens before each; the
sums of whole segments are added up by `segment_sums_kernel`. In `chunk_answer_kernel` each block of queries takes the
state before its chunk, which is the sum of both, scores the pairs within the chunk and drops those ahead. No launch
reads what it writes. The features run in tiles of BLOCK_M. A chunk may have several blocks, where registers allow small
ones only: then those before a query's own are scored one after another, their features computed again.

Where WIDTH is not 0, ω x is taken from WIDTH channels at a time, loaded again for every tile of features.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.kernelized.features import (
    arguments,
    feature_count,
    in_units,
    load_rows,
    plain,
    plain_slope,
    power,
    rows_once,
    sine_and_cosine,
    token_scalar,
    unit_of,
)
from attnbench.kernels.kernelized.sums import arguments_by_feature


@triton.jit
def values_of(
    a, column_mask, epsilon, FEATURES: tl.constexpr, EVEN: tl.constexpr, COMPUTE: tl.constexpr
):  # fmt: skip
    """φ of arguments a (exp: `in_units`) from which a stabiliser was subtracted, and its second half (fourier); 0
    outside the mask. EVEN: nothing is outside.

    Of rows that do not exist it is φ(0): who sums over tokens gives them no weight.
    """
    second = a
    if FEATURES == "fourier":
        phi, second = sine_and_cosine(a, tl.bfloat16 == COMPUTE)
    elif FEATURES == "exp":
        phi = power(a, COMPUTE) + epsilon
    else:
        phi = plain(a, epsilon, FEATURES, COMPUTE)
    if not EVEN:
        phi = tl.where(column_mask[None, :], phi, 0.0)
        second = tl.where(column_mask[None, :], second, 0.0)
    return phi, second


@triton.jit
def slope(
    a, phi, second, dphi, dsecond, column_mask, epsilon, FEATURES: tl.constexpr, EVEN: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """The gradient of the arguments from that of φ and of its second half."""
    if FEATURES == "fourier":
        da = dphi * second - dsecond * phi
    elif FEATURES == "exp":
        da = dphi * (phi - epsilon)
    else:
        da = dphi * plain_slope(a, FEATURES, COMPUTE)
    if not EVEN:
        da = tl.where(column_mask[None, :], da, 0.0)
    return da


@triton.jit
def token(
    x, rows, row_mask, row_stride, head_dim, scale, FEATURES: tl.constexpr, BLOCK_D: tl.constexpr, COMPUTE: tl.constexpr
):  # fmt: skip
    """What `arguments` needs of the tokens: x [N, BLOCK_D] and `token_scalar` [N], of exp `in_units`; elu, which needs
    neither: rows."""
    if FEATURES == "elu":
        return rows, rows
    else:  # noqa: RET505  Triton compiles what follows a return too, and its types differ
        tile = load_rows(x, rows, row_mask, row_stride, 0, head_dim, BLOCK_D)
        scalar = token_scalar(tile, scale, FEATURES)
        if FEATURES == "exp":
            scalar = in_units(scalar, COMPUTE)
        return tile, scalar


@triton.jit
def block_of(seq_len, head_dim, BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr):
    """What a program works on: its value tile, block of tokens and head, and how many heads there are.

    One program per value tile, block and head, in that order, the first running fastest.
    """
    tiles_v = tl.cdiv(head_dim, BLOCK_V)
    blocks = tl.cdiv(seq_len, BLOCK_N)
    index = tl.program_id(0)
    head = (index // (tiles_v * blocks)).to(tl.int64)
    return index % tiles_v, index // tiles_v % blocks, head, (tl.num_programs(0) // (tiles_v * blocks)).to(tl.int64)


@triton.jit
def state_tile(
    states, segment_states, row, segment_row, columns, column_mask, head_dim, first_v, BLOCK_V: tl.constexpr
):
    """The state before (of gradients: after) a chunk, [BLOCK_M, BLOCK_V]: that of its segment and of the others."""
    own = load_rows(states, row + columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
    other = load_rows(segment_states, segment_row + columns, column_mask, head_dim, first_v, head_dim, BLOCK_V)
    return own.to(tl.float32) + other.to(tl.float32)


@triton.jit
def normaliser_tile(normalisers, segment_normalisers, row, segment_row, columns, column_mask):
    """The normaliser likewise, [BLOCK_M]."""
    own = tl.load(normalisers + row + columns, mask=column_mask, other=0.0)
    return own + tl.load(segment_normalisers + segment_row + columns, mask=column_mask, other=0.0)


@triton.jit
def store_state(states, normalisers, row, columns, column_mask, head_dim, first_v, s, z, BLOCK_V: tl.constexpr):
    """Writes s [BLOCK_M, BLOCK_V], and z [BLOCK_M] by one of the value tiles."""
    channels = first_v + tl.arange(0, BLOCK_V)
    mask = column_mask[:, None] & (channels < head_dim)[None, :]
    places = states + (row + columns)[:, None] * head_dim + channels[None, :]
    tl.store(places, s.to(states.dtype.element_ty), mask=mask)
    if first_v == 0:
        tl.store(normalisers + row + columns, z, mask=column_mask)


@triton.jit
def chunk_states_kernel(
    x,  # [B, H, N, D], strides x_b, x_h, x_n, 1: k, or q for the gradients
    values,  # [B, H, N, D], strides v_b, v_h, v_n, 1: v, or dy
    weights,  # [B·H, N], query only: the factor of token i's values
    shares,  # [B·H, N], query only: what token i adds to the normaliser, per feature
    stabilisers,  # [B·H, N], query only: what is subtracted from the arguments (exp)
    omega,  # [m, D]
    states,  # out [chunks, B·H, M, D]: Σ φ(x_i) values_iᵀ over the segment's tokens before the chunk; query: after it
    normalisers,  # out [chunks, B·H, M]: Σ φ(x_i), times the shares for queries
    segment_states,  # out [segments, B·H, M, D]: the same over all tokens of the segment
    segment_normalisers,  # out [segments, B·H, M]
    heads,
    seq_len,
    features,
    head_dim,
    segments,
    segment_chunks,
    x_b, x_h, x_n, v_b, v_h, v_n,
    scale,
    epsilon,
    FEATURES: tl.constexpr,
    KEY: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per value tile, tile of features, segment and head, in that order; φ has the features as rows, as in
    `accumulate_kernel`."""
    tiles_v = tl.cdiv(head_dim, BLOCK_V)
    tiles_m = tl.cdiv(features, BLOCK_M)
    index = tl.program_id(0)
    first_v = (index % tiles_v) * BLOCK_V
    first = (index // tiles_v % tiles_m) * BLOCK_M
    segment = (index // (tiles_v * tiles_m) % segments).to(tl.int64)
    head = (index // (tiles_v * tiles_m * segments)).to(tl.int64)
    all_heads = (tl.num_programs(0) // (tiles_v * tiles_m * segments)).to(tl.int64)
    x += head // heads * x_b + head % heads * x_h
    values += head // heads * v_b + head % heads * v_h
    count = feature_count(features, FEATURES)
    columns = first + tl.arange(0, BLOCK_M)
    column_mask = columns < features
    w = rows_once(omega, columns.to(tl.int64), column_mask, head_dim, FEATURES, BLOCK_D, WIDTH)
    s = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    z = tl.zeros([BLOCK_M], tl.float32)
    if FEATURES == "fourier":
        s_cos = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
        z_cos = tl.zeros([BLOCK_M], tl.float32)

    begin = segment * segment_chunks
    parts = CHUNK // BLOCK_N
    blocks = parts * tl.minimum(segment_chunks, tl.cdiv(seq_len, CHUNK) - begin)
    for turn in tl.range(0, blocks, disable_licm=True):
        block = begin * parts + (turn if KEY else blocks - 1 - turn)
        if turn % parts == 0:
            row = (block // parts * all_heads + head) * count
            store_state(states, normalisers, row, columns, column_mask, head_dim, first_v, s, z, BLOCK_V)
            if FEATURES == "fourier":
                store_state(
                    states, normalisers, row + features, columns, column_mask, head_dim, first_v, s_cos, z_cos, BLOCK_V
                )
        start = block * BLOCK_N
        rows = tl.arange(0, BLOCK_N).to(tl.int64)  # the block's first token is in the pointers: one addition for a load
        row_mask = start + rows < seq_len
        offset = head * seq_len + start
        value = load_rows(values + start * v_n, rows, row_mask, v_n, first_v, head_dim, BLOCK_V).to(COMPUTE)
        a = arguments_by_feature(
            w, omega, columns, column_mask, x + start * x_n, rows, row_mask, x_n, stabilisers + offset,
            features, head_dim, scale, FEATURES, KEY, BLOCK_N, BLOCK_M, BLOCK_D, WIDTH, COMPUTE, PRECISION,
        )  # fmt: skip
        phi, cosine = values_of(a, column_mask, epsilon, FEATURES, True, COMPUTE)
        if KEY:  # of a key that does not exist too, but no state behind it is read
            z += tl.sum(phi, axis=1)
        else:
            share = tl.load(shares + offset + rows, mask=row_mask, other=0.0)[None, :]
            weight = tl.load(weights + offset + rows, mask=row_mask, other=0.0)[None, :]
            z += tl.sum(phi * share, axis=1)
            phi *= weight
        s = tl.dot(phi.to(COMPUTE), value, s, input_precision=PRECISION)
        if FEATURES == "fourier":
            if KEY:
                z_cos += tl.sum(cosine, axis=1)
            else:
                z_cos += tl.sum(cosine * share, axis=1)
                cosine *= weight
            s_cos = tl.dot(cosine.to(COMPUTE), value, s_cos, input_precision=PRECISION)
    row = (segment * all_heads + head) * count
    store_state(segment_states, segment_normalisers, row, columns, column_mask, head_dim, first_v, s, z, BLOCK_V)
    if FEATURES == "fourier":
        store_state(
            segment_states, segment_normalisers, row + features, columns, column_mask, head_dim, first_v, s_cos, z_cos,
            BLOCK_V,
        )  # fmt: skip


@triton.jit
def segment_sums_kernel(
    states,  # [segments, size]: of each segment
    normalisers,  # [segments, size_z]
    summed_states,  # out [segments, size]: the sum of the segments before (REVERSE: after) each
    summed_normalisers,  # out [segments, size_z]
    segments,
    size,
    size_z,
    REVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per BLOCK elements of the state, then of the normaliser."""
    index = tl.program_id(0)
    programs = tl.cdiv(size, BLOCK)
    if index < programs:
        sum_segments(states, summed_states, index * BLOCK, segments, size, REVERSE, BLOCK)
    else:
        sum_segments(normalisers, summed_normalisers, (index - programs) * BLOCK, segments, size_z, REVERSE, BLOCK)


@triton.jit
def sum_segments(x, y, first, segments, size, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """Writes to y [segments, size] the sums of the rows of x before (REVERSE: after) each, for BLOCK of the columns."""
    columns = first + tl.arange(0, BLOCK)
    carry = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, segments, 16):
        order = start + tl.arange(0, 16)
        row, before = order.to(tl.int64), order.to(tl.int64) - 1
        if REVERSE:
            row, before = segments - 1 - row, segments - order.to(tl.int64)
        mask = (order < segments)[:, None] & (columns < size)[None, :]
        places = before[:, None] * size + columns[None, :]
        values = tl.load(x + places, mask=mask & (order > 0)[:, None], other=0.0)
        sums = carry[None, :] + tl.cumsum(values, axis=0)
        tl.store(y + row[:, None] * size + columns[None, :], sums.to(y.dtype.element_ty), mask=mask)
        carry += tl.sum(values, axis=0)


@triton.jit
def chunk_answer_kernel(
    q,  # [B, H, N, D], as k, v and y with strides of their own, the last 1
    k,
    v,
    omega,  # [m, D]
    states,  # [chunks, B·H, M, D]: the state before each chunk, of its segment's tokens
    normalisers,  # [chunks, B·H, M]
    segment_states,  # [segments, B·H, M, D]: the state before each segment
    segment_normalisers,  # [segments, B·H, M]
    y,  # out
    denominators,  # out [B·H, N], where SAVE
    stabilisers,  # out [B·H, N], where SAVE: the largest argument of the query (exp)
    places,  # out [B·H, N], where SAVE: its feature (exp)
    heads,
    seq_len,
    features,
    head_dim,
    segment_chunks,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, y_b, y_h, y_n,
    scale,
    epsilon,
    denominator_epsilon,
    FEATURES: tl.constexpr,
    SAVE: tl.constexpr,
    CHUNK: tl.constexpr,
    EVEN: tl.constexpr,  # whether BLOCK_M divides the features
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per value tile, block of queries and head, in that order."""
    tile_v, block, head, all_heads = block_of(seq_len, head_dim, BLOCK_N, BLOCK_V)
    first_v = tile_v * BLOCK_V
    q += head // heads * q_b + head % heads * q_h
    k += head // heads * k_b + head % heads * k_h
    v += head // heads * v_b + head % heads * v_h
    y += head // heads * y_b + head % heads * y_h
    rows = block.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < seq_len
    unit = unit_of(scale, FEATURES, COMPUTE)
    chunk = block // (CHUNK // BLOCK_N)
    count = feature_count(features, FEATURES)
    row = (chunk * all_heads + head) * count
    segment_row = (chunk // segment_chunks * all_heads + head) * count
    q_tile, q_scalar = token(q, rows, row_mask, q_n, head_dim, scale, FEATURES, BLOCK_D, COMPUTE)
    k_tile, k_scalar = token(k, rows, row_mask, k_n, head_dim, scale, FEATURES, BLOCK_D, COMPUTE)
    value = load_rows(v, rows, row_mask, v_n, first_v, head_dim, BLOCK_V).to(COMPUTE)

    highest = tl.zeros([BLOCK_N], tl.float32)
    if FEATURES == "exp":
        top = tl.full([BLOCK_N, BLOCK_M], float("-inf"), tl.float32)
        place = tl.zeros([BLOCK_N, BLOCK_M], tl.int32)
        for first in tl.range(0, features, BLOCK_M, disable_licm=True):
            columns = first + tl.arange(0, BLOCK_M)
            a = arguments(
                q_tile, q_scalar, q, rows, row_mask, q_n, omega, first, features, head_dim, unit,
                FEATURES, False, BLOCK_M, BLOCK_D, PRECISION, WIDTH,
            )  # fmt: skip
            if not EVEN:
                a = tl.where((columns < features)[None, :], a, float("-inf"))
            if SAVE:
                place = tl.where(a > top, columns[None, :], place)
            top = tl.maximum(top, a)
        highest = tl.max(top, axis=1)
        if SAVE:
            if first_v == 0:
                feature = tl.min(tl.where(top == highest[:, None], place, features), axis=1)
                tl.store(stabilisers + head * seq_len + rows, highest / in_units(1.0, COMPUTE), mask=row_mask)
                tl.store(places + head * seq_len + rows, feature, mask=row_mask)

    n = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    d = tl.zeros([BLOCK_N], tl.float32)
    if CHUNK > BLOCK_N:
        for before in tl.range(block - block % (CHUNK // BLOCK_N), block):
            others = before * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
            other_mask = others < seq_len
            other, other_scalar = token(k, others, other_mask, k_n, head_dim, scale, FEATURES, BLOCK_D, COMPUTE)
            scores = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
            for first in tl.range(0, features, BLOCK_M, disable_licm=True):
                scores = scored(
                    scores, q_tile, q_scalar, q, rows, row_mask, q_n, highest, other, other_scalar, k, others,
                    other_mask, k_n, omega, first, features, head_dim, scale, epsilon,
                    FEATURES, EVEN, BLOCK_M, BLOCK_D, WIDTH, COMPUTE, PRECISION,
                )  # fmt: skip
            other_value = load_rows(v, others, other_mask, v_n, first_v, head_dim, BLOCK_V).to(COMPUTE)
            n = tl.dot(scores.to(COMPUTE), other_value, n, input_precision=PRECISION)
            d += tl.sum(scores, axis=1)

    scores = tl.zeros([BLOCK_N, BLOCK_N], tl.float32)
    for first in tl.range(0, features, BLOCK_M, disable_licm=True):
        columns = first + tl.arange(0, BLOCK_M)
        column_mask = columns < features
        w = rows_once(omega, columns.to(tl.int64), column_mask, head_dim, FEATURES, BLOCK_D, WIDTH)
        a = arguments(
            q_tile, q_scalar, q, rows, row_mask, q_n, omega, first, features, head_dim, unit,
            FEATURES, False, BLOCK_M, BLOCK_D, PRECISION, WIDTH, w,
        )  # fmt: skip
        if FEATURES == "exp":
            a -= highest[:, None]
        fq, fq_cos = values_of(a, column_mask, epsilon, FEATURES, EVEN, COMPUTE)
        z = normaliser_tile(normalisers, segment_normalisers, row, segment_row, columns, column_mask)
        d += tl.sum(fq * z[None, :], axis=1)
        narrow = fq.to(COMPUTE)
        s = state_tile(states, segment_states, row, segment_row, columns, column_mask, head_dim, first_v, BLOCK_V)
        n = tl.dot(narrow, s.to(COMPUTE), n, input_precision=PRECISION)
        b = arguments(
            k_tile, k_scalar, k, rows, row_mask, k_n, omega, first, features, head_dim, unit,
            FEATURES, True, BLOCK_M, BLOCK_D, PRECISION, WIDTH, w,
        )  # fmt: skip
        fk, fk_cos = values_of(b, column_mask, epsilon, FEATURES, EVEN, COMPUTE)
        scores = tl.dot(narrow, tl.trans(fk.to(COMPUTE)), scores, input_precision=PRECISION)
        if FEATURES == "fourier":
            z = normaliser_tile(
                normalisers, segment_normalisers, row + features, segment_row + features, columns, column_mask
            )
            d += tl.sum(fq_cos * z[None, :], axis=1)
            narrow = fq_cos.to(COMPUTE)
            s = state_tile(
                states, segment_states, row + features, segment_row + features, columns, column_mask, head_dim, first_v,
                BLOCK_V,
            )  # fmt: skip
            n = tl.dot(narrow, s.to(COMPUTE), n, input_precision=PRECISION)
            scores = tl.dot(narrow, tl.trans(fk_cos.to(COMPUTE)), scores, input_precision=PRECISION)
    scores = tl.where(rows[:, None] >= rows[None, :], scores, 0.0)
    n = tl.dot(scores.to(COMPUTE), value, n, input_precision=PRECISION)
    d += tl.sum(scores, axis=1) + denominator_epsilon
    channels = first_v + tl.arange(0, BLOCK_V)
    inside = row_mask[:, None] & (channels < head_dim)[None, :]
    tl.store(y + rows[:, None] * y_n + channels[None, :], (n / d[:, None]).to(y.dtype.element_ty), mask=inside)
    if SAVE:
        if first_v == 0:
            tl.store(denominators + head * seq_len + rows, d, mask=row_mask)


@triton.jit
def scored(
    scores, q_tile, q_scalar, q, rows, row_mask, q_n, stabiliser, k_tile, k_scalar, k, others, other_mask, k_n,
    omega, first, features, head_dim, scale, epsilon,
    FEATURES: tl.constexpr, EVEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """scores + φ(q)ᵀφ(k) over the features of a tile, of a block of queries and one of keys: [BLOCK_N, BLOCK_N]."""
    columns = first + tl.arange(0, BLOCK_M)
    column_mask = columns < features
    w = rows_once(omega, columns.to(tl.int64), column_mask, head_dim, FEATURES, BLOCK_D, WIDTH)
    unit = unit_of(scale, FEATURES, COMPUTE)
    a = arguments(
        q_tile, q_scalar, q, rows, row_mask, q_n, omega, first, features, head_dim, unit,
        FEATURES, False, BLOCK_M, BLOCK_D, PRECISION, WIDTH, w,
    )  # fmt: skip
    if FEATURES == "exp":
        a -= stabiliser[:, None]
    fq, fq_cos = values_of(a, column_mask, epsilon, FEATURES, EVEN, COMPUTE)
    b = arguments(
        k_tile, k_scalar, k, others, other_mask, k_n, omega, first, features, head_dim, unit,
        FEATURES, True, BLOCK_M, BLOCK_D, PRECISION, WIDTH, w,
    )  # fmt: skip
    fk, fk_cos = values_of(b, column_mask, epsilon, FEATURES, EVEN, COMPUTE)
    scores = tl.dot(fq.to(COMPUTE), tl.trans(fk.to(COMPUTE)), scores, input_precision=PRECISION)
    if FEATURES == "fourier":
        scores = tl.dot(fq_cos.to(COMPUTE), tl.trans(fk_cos.to(COMPUTE)), scores, input_precision=PRECISION)
    return scores
