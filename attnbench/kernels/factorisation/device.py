"""Kernels of `factorisation`: an update of the codes, the sums over tokens for the bases, their update, the gradient.

KIND says what an update of the codes is, from p = x · bases, row by row:
start  c = softmax(p), then nmf
nmf    x = relu(x); c ← c p / (c basesᵀbases + ε)
soft   c = softmax(p / (|x| |bases_r| temperature))
ridge  c = p
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tokens(pointer, rows, row_mask, first, width, KIND: tl.constexpr, BLOCK_D: tl.constexpr):
    """Channels first … first + BLOCK_D of the rows, 0 outside, in their own dtype; nmf: relu."""
    columns = first + tl.arange(0, BLOCK_D)
    mask = row_mask[:, None] & (columns < width)[None, :]
    x = tl.load(pointer + rows[:, None] * width + columns[None, :], mask=mask, other=0.0)
    if KIND == "start" or KIND == "nmf":
        x = tl.where(x.to(tl.float32) > 0, x, tl.zeros_like(x))
    return x


@triton.jit
def load_bases(pointer, first, width, rank, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr):
    """Rows first … first + BLOCK_D of a [width, rank] matrix in float32, 0 outside."""
    rows = first + tl.arange(0, BLOCK_D)
    columns = tl.arange(0, BLOCK_R)
    mask = (rows < width)[:, None] & (columns < rank)[None, :]
    return tl.load(pointer + rows[:, None] * rank + columns[None, :], mask=mask, other=0.0)


@triton.jit
def times(x, w, total, PRECISION: tl.constexpr):
    """total + x w, w in float32. bfloat16 x: w as the sum of two bfloat16 numbers, so that 16 bits of it count."""
    if x.dtype == tl.bfloat16:
        high = w.to(tl.bfloat16)
        low = (w - high.to(tl.float32)).to(tl.bfloat16)
        total = tl.dot(x, high, tl.dot(x, low, total))
    else:
        total = tl.dot(x.to(tl.float32), w, total, input_precision=PRECISION)
    return total


@triton.jit
def softmax_rows(scores, column_mask):
    """Over the columns of the mask; 0 outside."""
    scores = tl.where(column_mask[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit
def codes_kernel(
    x,  # [B, N, d]
    bases,  # [B, d, r]: what p is made with
    answers,  # [B, d, r], LAST: what y is made with
    grams,  # [B, r, r], nmf: basesᵀ bases
    codes,  # in and out [B, N, r]; LAST: in
    y,  # out [B, N, d], LAST: c answersᵀ
    seq_len,
    width,
    rank,
    inverse_temperature,
    epsilon,
    KIND: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    OUT_PRECISION: tl.constexpr,
):
    """One program per tile of tokens and sample, the tiles running fastest."""
    tiles = tl.cdiv(seq_len, BLOCK_N)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    rows = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < seq_len
    columns = tl.arange(0, BLOCK_R)
    column_mask = columns < rank
    mask = row_mask[:, None] & column_mask[None, :]
    x += sample * seq_len * width
    codes += sample * seq_len * rank
    bases += sample * width * rank

    projected = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
    squares = tl.zeros([BLOCK_N], tl.float32)
    lengths = tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, width, BLOCK_D):
        tile = load_tokens(x, rows, row_mask, first, width, KIND, BLOCK_D)
        d = load_bases(bases, first, width, rank, BLOCK_D, BLOCK_R)
        projected = times(tile, d, projected, PRECISION)
        if KIND == "soft":
            wide = tile.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
            lengths += tl.sum(d * d, axis=0)

    offsets = rows[:, None] * rank + columns[None, :]
    if KIND == "soft":
        lengths = tl.maximum(tl.sqrt(lengths), epsilon)
        scale = inverse_temperature / tl.maximum(tl.sqrt(squares), epsilon)
        c = softmax_rows(projected * scale[:, None] / lengths[None, :], column_mask)
    elif KIND == "ridge":
        c = projected
    else:
        if KIND == "start":
            c = softmax_rows(projected, column_mask)
        else:
            c = tl.load(codes + offsets, mask=mask, other=0.0)
        gram = load_bases(grams + sample * rank * rank, 0, rank, rank, BLOCK_R, BLOCK_R)
        c = c * projected / (tl.dot(c, gram, input_precision=PRECISION) + epsilon)
    if LAST:
        answers += sample * width * rank
        y += sample * seq_len * width
        for first in range(0, width, BLOCK_D):
            d = load_bases(answers, first, width, rank, BLOCK_D, BLOCK_R)
            out = tl.dot(c, tl.trans(d), input_precision=OUT_PRECISION)
            channels = first + tl.arange(0, BLOCK_D)
            inside = row_mask[:, None] & (channels < width)[None, :]
            tl.store(y + rows[:, None] * width + channels[None, :], out.to(y.dtype.element_ty), mask=inside)
    else:
        tl.store(codes + offsets, c, mask=mask)


@triton.jit
def sums_kernel(
    x,  # [B, N, d]
    codes,  # [B, N, r]
    sums,  # out [splits, B, d, r]: Σ x c
    grams,  # out [splits, B, r, r]: Σ cᵀ c (nmf)
    totals,  # out [splits, B, r]: Σ c (soft)
    seq_len,
    width,
    rank,
    splits,
    split_len,
    KIND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of channels (nmf: one more, for the gram), split of the tokens and sample, in that order."""
    tiles = tl.cdiv(width, BLOCK_D) + (1 if KIND == "nmf" else 0)
    tile_index = tl.program_id(0) % tiles
    split = (tl.program_id(0) // tiles % splits).to(tl.int64)
    sample = (tl.program_id(0) // (tiles * splits)).to(tl.int64)
    part = split * (tl.num_programs(0) // (tiles * splits)) + sample
    x += sample * seq_len * width
    codes += sample * seq_len * rank
    first = tile_index * BLOCK_D
    columns = tl.arange(0, BLOCK_R)
    column_mask = columns < rank
    begin = split * split_len
    end = tl.minimum(begin + split_len, seq_len)

    if first < width:
        total = tl.zeros([BLOCK_D, BLOCK_R], tl.float32)
        share = tl.zeros([BLOCK_R], tl.float32)
        for start in range(begin, end, BLOCK_N):
            rows = start + tl.arange(0, BLOCK_N).to(tl.int64)
            row_mask = rows < end
            tile = load_tokens(x, rows, row_mask, first, width, KIND, BLOCK_D)
            mask = row_mask[:, None] & column_mask[None, :]
            c = tl.load(codes + rows[:, None] * rank + columns[None, :], mask=mask, other=0.0)
            total = times(tl.trans(tile), c, total, PRECISION)
            share += tl.sum(c, axis=0)
        channels = first + tl.arange(0, BLOCK_D)
        offsets = (part * width + channels)[:, None] * rank + columns[None, :]
        tl.store(sums + offsets, total, mask=(channels < width)[:, None] & column_mask[None, :])
        if KIND == "soft":
            if first == 0:
                tl.store(totals + part * rank + columns, share, mask=column_mask)
    elif KIND == "nmf":
        gram = tl.zeros([BLOCK_R, BLOCK_R], tl.float32)
        for start in range(begin, end, BLOCK_N):
            rows = start + tl.arange(0, BLOCK_N).to(tl.int64)
            mask = (rows < end)[:, None] & column_mask[None, :]
            c = tl.load(codes + rows[:, None] * rank + columns[None, :], mask=mask, other=0.0)
            gram = tl.dot(tl.trans(c), c, gram, input_precision=PRECISION)
        pairs = (part * rank + columns)[:, None] * rank + columns[None, :]
        tl.store(grams + pairs, gram, mask=column_mask[:, None] & column_mask[None, :])


@triton.jit
def bases_kernel(
    sums,  # [splits, B, d, r]
    grams,  # [splits, B, r, r], nmf
    totals,  # [splits, B, r], soft
    bases,  # [B, d, r], nmf: the ones before
    out,  # out [B, d, r]
    products,  # out [tiles, B, r, r], nmf: outᵀ out, over the rows of each tile
    width,
    rank,
    splits,
    epsilon,
    KIND: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of channels and sample. nmf: bases sums / (bases gram + ε); soft: sums / (totals + ε)."""
    tiles = tl.cdiv(width, BLOCK_D)
    first = (tl.program_id(0) % tiles) * BLOCK_D
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    samples = (tl.num_programs(0) // tiles).to(tl.int64)
    columns = tl.arange(0, BLOCK_R)
    column_mask = columns < rank
    channels = first + tl.arange(0, BLOCK_D)
    mask = (channels < width)[:, None] & column_mask[None, :]

    total = tl.zeros([BLOCK_D, BLOCK_R], tl.float32)
    gram = tl.zeros([BLOCK_R, BLOCK_R], tl.float32)
    share = tl.zeros([BLOCK_R], tl.float32)
    for split in range(splits):
        part = split * samples + sample
        total += load_bases(sums + part * width * rank, first, width, rank, BLOCK_D, BLOCK_R)
        if KIND == "nmf":
            gram += load_bases(grams + part * rank * rank, 0, rank, rank, BLOCK_R, BLOCK_R)
        else:
            share += tl.load(totals + part * rank + columns, mask=column_mask, other=0.0)
    if KIND == "nmf":
        d = load_bases(bases + sample * width * rank, first, width, rank, BLOCK_D, BLOCK_R)
        total = d * total / (tl.dot(d, gram, input_precision=PRECISION) + epsilon)
    else:
        total = total / (share + epsilon)[None, :]
    offsets = (sample * width + channels)[:, None] * rank + columns[None, :]
    tl.store(out + offsets, total, mask=mask)
    if KIND == "nmf":
        total = tl.where(mask, total, 0.0)
        product = tl.dot(tl.trans(total), total, input_precision=PRECISION)
        pairs = ((first // BLOCK_D * samples + sample) * rank + columns)[:, None] * rank + columns[None, :]
        tl.store(products + pairs, product, mask=column_mask[:, None] & column_mask[None, :])


@triton.jit
def one_step_gradient_kernel(
    x,  # [B, N, d]
    bases,  # [B, d, r]
    answers,  # [B, d, r]
    grams,  # [B, r, r], nmf: basesᵀ bases
    codes,  # [B, N, r], nmf: C before the last update
    dy,  # [B, N, d]
    dx,  # out [B, N, d]
    seq_len,
    width,
    rank,
    inverse_temperature,
    epsilon,
    KIND: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
    OUT_PRECISION: tl.constexpr,
):
    """Through the last update of the codes alone. One program per tile of tokens and sample."""
    tiles = tl.cdiv(seq_len, BLOCK_N)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    rows = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < seq_len
    columns = tl.arange(0, BLOCK_R)
    column_mask = columns < rank
    x += sample * seq_len * width
    dy += sample * seq_len * width
    dx += sample * seq_len * width
    bases += sample * width * rank
    answers += sample * width * rank

    dc = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
    projected = tl.zeros([BLOCK_N, BLOCK_R], tl.float32)
    squares = tl.zeros([BLOCK_N], tl.float32)
    lengths = tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, width, BLOCK_D):
        cotangent = load_tokens(dy, rows, row_mask, first, width, "plain", BLOCK_D)
        dc = times(cotangent, load_bases(answers, first, width, rank, BLOCK_D, BLOCK_R), dc, PRECISION)
        if KIND == "soft":
            d = load_bases(bases, first, width, rank, BLOCK_D, BLOCK_R)
            tile = load_tokens(x, rows, row_mask, first, width, KIND, BLOCK_D)
            projected = times(tile, d, projected, PRECISION)
            wide = tile.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
            lengths += tl.sum(d * d, axis=0)

    if KIND == "nmf":
        mask = row_mask[:, None] & column_mask[None, :]
        c = tl.load(codes + (sample * seq_len + rows)[:, None] * rank + columns[None, :], mask=mask, other=0.0)
        gram = load_bases(grams + sample * rank * rank, 0, rank, rank, BLOCK_R, BLOCK_R)
        dp = dc * c / (tl.dot(c, gram, input_precision=PRECISION) + epsilon)
    elif KIND == "soft":
        length = tl.sqrt(squares)
        lengths = tl.maximum(tl.sqrt(lengths), epsilon)
        scale = inverse_temperature / tl.maximum(length, epsilon)
        scores = projected * scale[:, None] / lengths[None, :]
        c = softmax_rows(scores, column_mask)
        ds = c * (dc - tl.sum(c * dc, axis=1)[:, None])
        dp = ds * scale[:, None] / lengths[None, :]
        along = tl.where(length > epsilon, tl.sum(ds * scores, axis=1) / tl.maximum(squares, epsilon * epsilon), 0.0)
    else:
        dp = dc
    for first in range(0, width, BLOCK_D):
        d = load_bases(bases, first, width, rank, BLOCK_D, BLOCK_R)
        gradient = tl.dot(dp, tl.trans(d), input_precision=OUT_PRECISION)
        if KIND != "ridge":
            tile = load_tokens(x, rows, row_mask, first, width, KIND, BLOCK_D).to(tl.float32)
            if KIND == "nmf":
                gradient = tl.where(tile > 0, gradient, 0.0)
            else:
                gradient -= tile * along[:, None]
        channels = first + tl.arange(0, BLOCK_D)
        inside = row_mask[:, None] & (channels < width)[None, :]
        tl.store(dx + rows[:, None] * width + channels[None, :], gradient.to(dx.dtype.element_ty), mask=inside)
