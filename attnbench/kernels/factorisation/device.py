"""Kernels of `factorisation`: codes and their sums over tokens, the update of the bases, the last codes, the gradient.

KIND says what an update of the codes is, from p = x · bases, row by row:
start  c = softmax(p), then nmf
nmf    x = relu(x); c ← c p / (c basesᵀbases + ε)
soft   c = softmax(p / (|x| |bases_r| temperature))
ridge  c = p

A [.., r] matrix as a pair, [.., 2R] in bfloat16: its high and its low bits, eight columns of each in turn, so that a
thread of a matrix product has both of a column. Products with a pair are added up by `folded`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def positive(x):
    """relu(x), in the same dtype."""
    return tl.where(x.to(tl.float32) > 0, x, tl.zeros_like(x))


@triton.jit
def load_tokens(pointer, rows, row_mask, first, width, KIND: tl.constexpr, BLOCK_D: tl.constexpr):
    """Channels first … first + BLOCK_D of the rows, 0 outside, in their own dtype; nmf: relu."""
    columns = first + tl.arange(0, BLOCK_D)
    mask = row_mask[:, None] & (columns < width)[None, :]
    x = tl.load(pointer + rows[:, None] * width + columns[None, :], mask=mask, other=0.0)
    if KIND == "start" or KIND == "nmf":
        x = positive(x)
    return x


@triton.jit
def load_rows(pointer, left, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """The first BLOCK_N rows at the pointer, of which `left` exist, with all their WIDTH columns; 0 outside."""
    n = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_D)
    mask = (n < left)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(pointer + (n[:, None] * WIDTH + columns[None, :]), mask=mask, other=0.0)


@triton.jit
def load_bases(pointer, first, width, rank, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr):
    """Rows first … first + BLOCK_D of a [width, rank] matrix in float32, 0 outside."""
    rows = first + tl.arange(0, BLOCK_D)
    columns = tl.arange(0, BLOCK_R)
    mask = (rows < width)[:, None] & (columns < rank)[None, :]
    return tl.load(pointer + rows[:, None] * rank + columns[None, :], mask=mask, other=0.0)


@triton.jit
def load_operand(pointer, first, width, rank, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr):
    """The same rows of what products read: of a [width, 2R] pair, or of the [width, rank] matrix in float32."""
    if pointer.dtype.element_ty == tl.bfloat16:
        rows = first + tl.arange(0, BLOCK_D)
        columns = tl.arange(0, 2 * BLOCK_R)
        operand = tl.load(
            pointer + rows[:, None] * (2 * BLOCK_R) + columns[None, :], mask=(rows < width)[:, None], other=0.0
        )
    else:
        operand = load_bases(pointer, first, width, rank, BLOCK_D, BLOCK_R)
    return operand


@triton.jit
def store_operand(pointer, matrix, first, width, rank, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr):
    """The place that `load_operand` reads, written: a pair, of which columns from rank on are 0, or float32."""
    rows = first + tl.arange(0, BLOCK_D)
    columns = tl.arange(0, BLOCK_R)
    if pointer.dtype.element_ty == tl.bfloat16:
        high, low = halves(matrix)
        places = pointer + rows[:, None] * (2 * BLOCK_R) + (columns // 8 * 16 + columns % 8)[None, :]
        tl.store(places, high, mask=(rows < width)[:, None])
        tl.store(places + 8, low, mask=(rows < width)[:, None])
    else:
        mask = (rows < width)[:, None] & (columns < rank)[None, :]
        tl.store(pointer + rows[:, None] * rank + columns[None, :], matrix, mask=mask)


@triton.jit
def halves(x):
    """A float32 matrix as the sum of two in bfloat16, so that 16 bits of it count."""
    high = x.to(tl.bfloat16)
    return high, (x - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def doubled(x, BLOCK_R: tl.constexpr):
    """[N, R] → [N, 2R], to multiply both parts of a pair."""
    wide = tl.reshape(x, [x.shape[0], BLOCK_R // 8, 1, 8])
    return tl.reshape(tl.broadcast_to(wide, [x.shape[0], BLOCK_R // 8, 2, 8]), [x.shape[0], 2 * BLOCK_R])


@triton.jit
def folded(product, BLOCK_R: tl.constexpr):
    """[N, 2R] → [N, R]: a product with both parts of a pair, added up; of float32 as it is."""
    if product.shape[1] != BLOCK_R:
        parts = tl.reshape(product, [product.shape[0], BLOCK_R // 8, 2, 8])
        product = tl.reshape(tl.sum(parts, axis=2), [product.shape[0], BLOCK_R])
    return product


@triton.jit
def folded_rows(product, BLOCK_R: tl.constexpr):
    """[2R, N] → [R, N]: the same of the transposed product."""
    parts = tl.reshape(product, [BLOCK_R // 8, 2, 8, product.shape[1]])
    return tl.reshape(tl.sum(parts, axis=1), [BLOCK_R, product.shape[1]])


@triton.jit
def times_operand(x, operand, total, PRECISION: tl.constexpr):
    """total + x operand, to be folded."""
    if operand.dtype == tl.bfloat16:
        total = tl.dot(x, operand, total)
    else:
        total = tl.dot(x.to(tl.float32), operand, total, input_precision=PRECISION)
    return total


@triton.jit
def times_gram(c, gram, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr):
    """c basesᵀbases, [N, R], c in float32."""
    if gram.dtype == tl.bfloat16:
        high, low = halves(c)
        product = folded(tl.dot(high, gram, tl.dot(low, gram)), BLOCK_R)
    else:
        product = tl.dot(c, gram, input_precision=PRECISION)
    return product


@triton.jit
def answered(c, operand, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr):
    """c operandᵀ, [N, BLOCK_D], c in float32."""
    if operand.dtype == tl.bfloat16:
        high, low = halves(c)
        columns = tl.trans(operand)
        product = tl.dot(doubled(high, BLOCK_R), columns, tl.dot(doubled(low, BLOCK_R), columns))
    else:
        product = tl.dot(c, tl.trans(operand), input_precision=PRECISION)
    return product


@triton.jit
def times(x, w, total, PRECISION: tl.constexpr):
    """total + x w, w in float32. bfloat16 x: w as two halves."""
    if x.dtype == tl.bfloat16:
        high, low = halves(w)
        total = tl.dot(x, high, tl.dot(x, low, total))
    else:
        total = tl.dot(x.to(tl.float32), w, total, input_precision=PRECISION)
    return total


@triton.jit
def float_product(a, b, HALVES: tl.constexpr, PRECISION: tl.constexpr):
    """a b of two float32 matrices; HALVES: three products of bfloat16 halves."""
    if HALVES:
        a_high, a_low = halves(a)
        b_high, b_low = halves(b)
        product = tl.dot(a_high, b_high, tl.dot(a_high, b_low, tl.dot(a_low, b_high)))
    else:
        product = tl.dot(a, b, input_precision=PRECISION)
    return product


@triton.jit
def softmax_rows(scores, column_mask):
    """Over the columns of the mask; 0 outside."""
    scores = tl.where(column_mask[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    return weights / tl.sum(weights, axis=1)[:, None]


@triton.jit
def softmax_columns(scores, row_mask):
    """Over the rows of the mask; 0 outside."""
    scores = tl.where(row_mask[:, None], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=0)[None, :])
    return weights / tl.sum(weights, axis=0)[None, :]


@triton.jit
def load_gram(grams, sample, rank, BLOCK_R: tl.constexpr):
    """basesᵀ bases of a sample, as `bases_kernel` stores it."""
    rows = rank
    stride = rank * rank
    if grams.dtype.element_ty == tl.bfloat16:
        rows = BLOCK_R
        stride = 2 * BLOCK_R * BLOCK_R
    return load_operand(grams + sample * stride, 0, rows, rank, BLOCK_R, BLOCK_R)


@triton.jit
def step_kernel(
    x,  # bfloat16 [B, N, d]
    bases,  # [B, 2R, d], a pair, transposed: Triton 3.6 misplaces rows from 256 on of a tile that wgmma reads
    grams,  # nmf: [B, R, 2R], a pair; soft: [B, R], the lengths of the bases
    codes,  # nmf: in and out [B, N, r] (start: out)
    sums,  # out [splits, B, (d + r)·r] (soft: (d + 1)·r): Σ x c, then Σ cᵀ c (soft: Σ c)
    seq_len,
    splits,
    split_tiles,
    inverse_temperature,
    epsilon,
    KIND: tl.constexpr,
    BACKWARDS: tl.constexpr,
    WIDTH: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """New codes and their sums, with one read of x. One program per split of the tiles of tokens and sample.

    The bases stay in shared memory and the sums in registers. The next tile and its codes are on their way in registers
    while a tile in shared memory is multiplied, first with the bases, then with its codes. BACKWARDS: the last tile
    first, of which the pass before has left most in the L2 cache.
    """
    split = tl.program_id(0) % splits
    sample = (tl.program_id(0) // splits).to(tl.int64)
    r = tl.arange(0, BLOCK_R)
    n = tl.arange(0, BLOCK_N)
    rank_mask = r < RANK
    pairs = load_rows(bases + sample * WIDTH * (2 * BLOCK_R), 2 * BLOCK_R, WIDTH, 2 * BLOCK_R, BLOCK_D)
    if KIND == "soft":
        lengths = tl.load(grams + sample * BLOCK_R + r)
        share = tl.zeros([BLOCK_R], tl.float32)
    else:
        gram = load_gram(grams, sample, RANK, BLOCK_R)
        gram_total = tl.zeros([BLOCK_R, BLOCK_R], tl.float32)
    total = tl.zeros([BLOCK_D, BLOCK_R], tl.float32)

    begin = split * split_tiles
    end = tl.minimum(begin + split_tiles, tl.cdiv(seq_len, BLOCK_N))
    STEP: tl.constexpr = -BLOCK_N if BACKWARDS else BLOCK_N
    first = end - 1 if BACKWARDS else begin
    x += (sample * seq_len + first * BLOCK_N) * WIDTH
    codes += (sample * seq_len + first * BLOCK_N) * RANK
    left = seq_len - first * BLOCK_N
    at = 0  # tokens from the first tile to this one
    ahead = load_rows(x, left, WIDTH, BLOCK_N, BLOCK_D)
    if KIND == "nmf":
        before = load_rows(codes, left, RANK, BLOCK_N, BLOCK_R)
    for index in tl.range(begin, end, disable_licm=True):  # what a loop holds constant takes registers from the sums
        mask = (n < left)[:, None] & rank_mask[None, :]
        tile = ahead
        if KIND != "soft":  # here: done where it is loaded, the products would wait for what comes
            tile = positive(ahead)
        if KIND == "nmf":
            c = tl.trans(before)
        projected = folded_rows(tl.dot(pairs, tl.trans(tile)), BLOCK_R)  # [R, N]
        if KIND == "soft":
            wide = tile.to(tl.float32)
            scale = inverse_temperature / tl.maximum(tl.sqrt(tl.sum(wide * wide, axis=1)), epsilon)
            c = softmax_columns(projected * scale[None, :] / lengths[:, None], rank_mask)
            c = tl.where((n < left)[None, :], c, 0.0)
            share += tl.sum(c, axis=1)
        else:
            if KIND == "start":
                c = softmax_columns(projected, rank_mask)
            high, low = halves(c)
            weighted = folded_rows(tl.dot(tl.trans(gram), high, tl.dot(tl.trans(gram), low)), BLOCK_R)
            c = c * projected / (weighted + epsilon)
            tl.store(codes + at * RANK + (n[None, :] * RANK + r[:, None]), c, mask=tl.trans(mask))
        high, low = halves(c)
        if KIND != "soft":
            gram_total = tl.dot(high, tl.trans(high), gram_total)
        at += STEP
        left = tl.where(index + 1 < end, left - STEP, 0)
        ahead = load_rows(x + at * WIDTH, left, WIDTH, BLOCK_N, BLOCK_D)
        if KIND == "nmf":
            before = load_rows(codes + at * RANK, left, RANK, BLOCK_N, BLOCK_R)
        rows = tl.trans(tile)
        total = tl.dot(rows, tl.trans(low), total)
        tl.debug_barrier()  # Triton 3.6 would load what comes behind both products
        total = tl.dot(rows, tl.trans(high), total)

    d = tl.arange(0, BLOCK_D)
    ROWS: tl.constexpr = WIDTH + (1 if KIND == "soft" else RANK)
    part = split * (tl.num_programs(0) // splits) + sample
    sums += part * (ROWS * RANK)
    tl.store(sums + (d[:, None] * RANK + r[None, :]), total, mask=(d < WIDTH)[:, None] & rank_mask[None, :])
    sums += WIDTH * RANK
    if KIND == "soft":
        tl.store(sums + r, share, mask=rank_mask)
    else:
        tl.store(sums + (r[:, None] * RANK + r[None, :]), gram_total, mask=rank_mask[:, None] & rank_mask[None, :])


@triton.jit
def codes_kernel(
    x,  # [B, N, d]
    bases,  # [B, d, r], or a pair: what p is made with
    answers,  # [B, d, r], or a pair, LAST: what y is made with
    grams,  # nmf: [B, r, r], or a pair; soft: [B, R], the lengths of the bases
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
    PAIR: tl.constexpr = 2 if bases.dtype.element_ty == tl.bfloat16 else 1
    operand_rank = PAIR * BLOCK_R if PAIR == 2 else rank
    x += sample * seq_len * width
    codes += sample * seq_len * rank
    bases += sample * width * operand_rank

    product = tl.zeros([BLOCK_N, PAIR * BLOCK_R], tl.float32)
    squares = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, width, BLOCK_D):
        tile = load_tokens(x, rows, row_mask, first, width, KIND, BLOCK_D)
        product = times_operand(tile, load_operand(bases, first, width, rank, BLOCK_D, BLOCK_R), product, PRECISION)
        if KIND == "soft":
            wide = tile.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
    projected = folded(product, BLOCK_R)

    offsets = rows[:, None] * rank + columns[None, :]
    if KIND == "soft":
        lengths = tl.load(grams + sample * BLOCK_R + columns)
        scale = inverse_temperature / tl.maximum(tl.sqrt(squares), epsilon)
        c = softmax_rows(projected * scale[:, None] / lengths[None, :], column_mask)
    elif KIND == "ridge":
        c = projected
    else:
        if KIND == "start":
            c = softmax_rows(projected, column_mask)
        else:
            c = tl.load(codes + offsets, mask=mask, other=0.0)
        gram = load_gram(grams, sample, rank, BLOCK_R)
        c = c * projected / (times_gram(c, gram, BLOCK_R, PRECISION) + epsilon)
    if LAST:
        answers += sample * width * operand_rank
        y += sample * seq_len * width
        for first in range(0, width, BLOCK_D):
            operand = load_operand(answers, first, width, rank, BLOCK_D, BLOCK_R)
            out = answered(c, operand, BLOCK_R, OUT_PRECISION)
            channels = first + tl.arange(0, BLOCK_D)
            inside = row_mask[:, None] & (channels < width)[None, :]
            tl.store(y + rows[:, None] * width + channels[None, :], out.to(y.dtype.element_ty), mask=inside)
    else:
        tl.store(codes + offsets, c, mask=mask)


@triton.jit
def sums_kernel(
    x,  # [B, N, d]
    codes,  # [B, N, r]
    sums,  # out [splits, B, (d + r)·r] (soft: (d + 1)·r): Σ x c, then Σ cᵀ c (soft: Σ c)
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
    sums += part * rank * (width + (rank if KIND == "nmf" else 1))
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
        inside = (channels < width)[:, None] & column_mask[None, :]
        tl.store(sums + channels[:, None] * rank + columns[None, :], total, mask=inside)
        if KIND == "soft":
            if first == 0:
                tl.store(sums + width * rank + columns, share, mask=column_mask)
    elif KIND == "nmf":
        gram = tl.zeros([BLOCK_R, BLOCK_R], tl.float32)
        for start in range(begin, end, BLOCK_N):
            rows = start + tl.arange(0, BLOCK_N).to(tl.int64)
            mask = (rows < end)[:, None] & column_mask[None, :]
            c = tl.load(codes + rows[:, None] * rank + columns[None, :], mask=mask, other=0.0)
            gram = tl.dot(tl.trans(c), c, gram, input_precision=PRECISION)
        pairs = column_mask[:, None] & column_mask[None, :]
        tl.store(sums + width * rank + columns[:, None] * rank + columns[None, :], gram, mask=pairs)


@triton.jit
def bases_kernel(
    sums,  # [B, (d + r)·r] (soft: (d + 1)·r), over all tokens
    bases,  # [B, d, r], given and nmf
    out,  # out [B, d, r], nmf and soft
    operand,  # out [B, d, r], or a pair: what products read of it
    turned,  # out [B, 2R, d], TURNED: the pair, transposed
    grams,  # out, GRAM: [B, r, r], or a pair; else [B, R], the lengths of the columns
    width,
    rank,
    epsilon,
    KIND: tl.constexpr,
    GRAM: tl.constexpr,
    TURNED: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per sample. nmf: bases sums / (bases gram + ε); soft: sums / (totals + ε); given: the bases."""
    sample = tl.program_id(0).to(tl.int64)
    PAIR: tl.constexpr = operand.dtype.element_ty == tl.bfloat16
    columns = tl.arange(0, BLOCK_R)
    column_mask = columns < rank
    bases += sample * width * rank
    out += sample * width * rank
    operand += sample * width * (2 * BLOCK_R if PAIR else rank)
    sums += sample * rank * (width + (rank if KIND == "nmf" else 1))
    if KIND == "nmf":
        code_gram = load_bases(sums + width * rank, 0, rank, rank, BLOCK_R, BLOCK_R)
    elif KIND == "soft":
        share = tl.load(sums + width * rank + columns, mask=column_mask, other=0.0)

    gram = tl.zeros([BLOCK_R, BLOCK_R], tl.float32)
    squares = tl.zeros([BLOCK_R], tl.float32)
    for first in range(0, width, BLOCK_D):
        if KIND == "soft":
            d = load_bases(sums, first, width, rank, BLOCK_D, BLOCK_R) / (share + epsilon)[None, :]
        else:
            d = load_bases(bases, first, width, rank, BLOCK_D, BLOCK_R)
        if KIND == "nmf":
            weighted = float_product(d, code_gram, PAIR, PRECISION)
            d = d * load_bases(sums, first, width, rank, BLOCK_D, BLOCK_R) / (weighted + epsilon)
        if KIND != "given":
            channels = first + tl.arange(0, BLOCK_D)
            mask = (channels < width)[:, None] & column_mask[None, :]
            tl.store(out + channels[:, None] * rank + columns[None, :], d, mask=mask)
        store_operand(operand, d, first, width, rank, BLOCK_D, BLOCK_R)
        if TURNED:
            rows = first + tl.arange(0, BLOCK_D)
            places = turned + sample * width * 2 * BLOCK_R + (columns // 8 * 16 + columns % 8)[None, :] * width
            high, low = halves(d)
            tl.store(places + rows[:, None], high, mask=(rows < width)[:, None])
            tl.store(places + 8 * width + rows[:, None], low, mask=(rows < width)[:, None])
        if GRAM:
            gram += float_product(tl.trans(d), d, PAIR, PRECISION)
        else:
            squares += tl.sum(d * d, axis=0)
    if not GRAM:
        tl.store(grams + sample * BLOCK_R + columns, tl.maximum(tl.sqrt(squares), epsilon))
    elif PAIR:
        store_operand(grams + sample * 2 * BLOCK_R * BLOCK_R, gram, 0, BLOCK_R, rank, BLOCK_R, BLOCK_R)
    else:
        store_operand(grams + sample * rank * rank, gram, 0, rank, rank, BLOCK_R, BLOCK_R)


@triton.jit
def one_step_gradient_kernel(
    x,  # [B, N, d]
    bases,  # [B, d, r], or a pair
    answers,  # [B, d, r], or a pair
    grams,  # nmf: [B, r, r], or a pair: basesᵀ bases; soft: [B, R], the lengths of the bases
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
    PAIR: tl.constexpr = 2 if bases.dtype.element_ty == tl.bfloat16 else 1
    operand_rank = PAIR * BLOCK_R if PAIR == 2 else rank
    x += sample * seq_len * width
    dy += sample * seq_len * width
    dx += sample * seq_len * width
    bases += sample * width * operand_rank
    answers += sample * width * operand_rank

    product = tl.zeros([BLOCK_N, PAIR * BLOCK_R], tl.float32)
    for first in range(0, width, BLOCK_D):
        cotangent = load_tokens(dy, rows, row_mask, first, width, "plain", BLOCK_D)
        operand = load_operand(answers, first, width, rank, BLOCK_D, BLOCK_R)
        product = times_operand(cotangent, operand, product, PRECISION)
    dc = folded(product, BLOCK_R)

    if KIND == "nmf":
        mask = row_mask[:, None] & column_mask[None, :]
        c = tl.load(codes + (sample * seq_len + rows)[:, None] * rank + columns[None, :], mask=mask, other=0.0)
        gram = load_gram(grams, sample, rank, BLOCK_R)
        dp = dc * c / (times_gram(c, gram, BLOCK_R, PRECISION) + epsilon)
    elif KIND == "soft":
        product = tl.zeros([BLOCK_N, PAIR * BLOCK_R], tl.float32)
        squares = tl.zeros([BLOCK_N], tl.float32)
        for first in range(0, width, BLOCK_D):
            tile = load_tokens(x, rows, row_mask, first, width, KIND, BLOCK_D)
            operand = load_operand(bases, first, width, rank, BLOCK_D, BLOCK_R)
            product = times_operand(tile, operand, product, PRECISION)
            wide = tile.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
        length = tl.sqrt(squares)
        lengths = tl.load(grams + sample * BLOCK_R + columns)
        scale = inverse_temperature / tl.maximum(length, epsilon)
        scores = folded(product, BLOCK_R) * scale[:, None] / lengths[None, :]
        c = softmax_rows(scores, column_mask)
        ds = c * (dc - tl.sum(c * dc, axis=1)[:, None])
        dp = ds * scale[:, None] / lengths[None, :]
        along = tl.where(length > epsilon, tl.sum(ds * scores, axis=1) / tl.maximum(squares, epsilon * epsilon), 0.0)
    else:
        dp = dc
    for first in range(0, width, BLOCK_D):
        operand = load_operand(bases, first, width, rank, BLOCK_D, BLOCK_R)
        gradient = answered(dp, operand, BLOCK_R, OUT_PRECISION)
        if KIND != "ridge":
            tile = load_tokens(x, rows, row_mask, first, width, KIND, BLOCK_D).to(tl.float32)
            if KIND == "nmf":
                gradient = tl.where(tile > 0, gradient, 0.0)
            else:
                gradient -= tile * along[:, None]
        channels = first + tl.arange(0, BLOCK_D)
        inside = row_mask[:, None] & (channels < width)[None, :]
        tl.store(dx + rows[:, None] * width + channels[None, :], gradient.to(dx.dtype.element_ty), mask=inside)
