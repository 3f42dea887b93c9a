"""Kernels of `lambda_convolution`: the position lambdas applied to the queries, and the four gradients.

Shapes, contiguous: q [B, h, |k|, N], v [B, |v|, u, N], E [|k|, u, r, r], y [B, h, |v|, N]. dλ lies in tiles of BLOCK_X
pixels of a row, [B, |v|, height, tiles, BLOCK_K, BLOCK_X], so that a tile is one line of a product.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def patches(v, lines, line_mask, pixels, offsets, height, width, depth, side):
    """v at every pixel shifted by every offset, 0 outside the map: [rows, offsets].

    Args:
        lines: b·|v| + channel of each row.
        offsets: (u·r + row)·r + column of E, which gives the layer and the shift.
    """
    area = side * side
    layer = offsets // area
    y = (pixels // width)[:, None] + (offsets % area // side - side // 2)[None, :]
    x = (pixels % width)[:, None] + (offsets % side - side // 2)[None, :]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    mask = inside & line_mask[:, None] & (offsets < depth * area)[None, :]
    places = (lines[:, None] * depth + layer[None, :]) * (height * width) + y * width + x
    return tl.load(v + places, mask=mask, other=0.0)


@triton.jit
def line_of(row, WARPS: tl.constexpr):
    """The line of a product that `as_operand` makes of a row."""
    if WARPS == 0:
        return row
    return row // (16 * WARPS) * (16 * WARPS) + row // 8 % WARPS * 16 + row // (8 * WARPS) % 2 * 8 + row % 8


@triton.jit
def column_of(place, WARPS: tl.constexpr):
    """The column, of each 32, that `as_operand` moves to a place."""
    if WARPS == 0:
        return place
    return place // 32 * 32 + place // 2 % 4 * 8 + place // 8 % 4 * 2 + place % 2


@triton.jit
def as_operand(rows, WARPS: tl.constexpr):
    """Rows of 32 elements of 16 bits, in an order of rows and columns in which wgmma takes them from the registers that
    they were loaded to, 16 bytes a thread, without a way through shared memory. WARPS 0: as they are.
    """
    if WARPS == 0:
        return rows
    count: tl.constexpr = rows.shape[0]
    rows = tl.reshape(rows, [count // (16 * WARPS), 2, WARPS, 8, 4, 2, 2, 2])
    return tl.reshape(tl.permute(rows, (0, 2, 1, 3, 5, 6, 4, 7)), [count, 32])


@triton.jit
def border_kernel(
    v,
    bordered,  # out [B·|v|·u, rows, pitch]
    height,
    width,
    rows,
    pitch,
    border,
    BLOCK: tl.constexpr,
):
    """v between zeros: `border` rows and columns before it. One program per BLOCK elements of a map, and map."""
    blocks = tl.cdiv(rows * pitch, BLOCK)
    line = (tl.program_id(0) // blocks).to(tl.int64)
    place = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    y = place // pitch - border
    x = place % pitch - border
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    value = tl.load(v + line * height * width + y * width + x, mask=inside, other=0.0)
    tl.store(bordered + line * rows * pitch + place, value, mask=place < rows * pitch)


@triton.jit
def bands_kernel(
    e,
    bands,  # out [pieces, BLOCK_K, BLOCK_X, BLOCK_S]
    count,  # elements of bands
    keys,
    depth,
    side,
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHUNKS: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Spreads every row of E, in CHUNKS pieces, into a band from BLOCK_S columns of a window to BLOCK_X pixels."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = index // BLOCK_S % BLOCK_X
    key = index // (BLOCK_S * BLOCK_X) % BLOCK_K
    piece = index // (BLOCK_S * BLOCK_X * BLOCK_K)
    column = piece % CHUNKS * BLOCK_S + column_of(index % BLOCK_S, WARPS) - x  # of E
    mask = (key < keys) & (column >= 0) & (column < side) & (index < count)
    weight = tl.load(e + (key * (depth * side) + piece // CHUNKS) * side + column, mask=mask, other=0.0)
    tl.store(bands + index, weight, mask=index < count)


@triton.jit(do_not_specialize=["quarter"])
def apply_kernel(
    q,
    bordered,  # v with a border of zeros, [B, |v|, u, rows, pitch]
    bands,  # of `bands_kernel`
    content,  # [B, |v|, |k|]: added to every position lambda
    lambdas,  # out, SAVE: position and content together, [programs, BLOCK_V, BLOCK_Y, BLOCK_K, BLOCK_X]
    y,  # out
    heads,
    keys,
    values,
    depth,
    height,
    width,
    side,
    rows,
    pitch,
    quarter,  # of the elements of a piece of `bands`
    SAVE: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHUNKS: tl.constexpr,
    WARPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of columns, of rows, of value channels and sample, in that order.

    A line of the product is BLOCK_S columns of one row and channel of v, its columns are |k|·BLOCK_X lambdas: a lambda
    needs BLOCK_X + r − 1 columns where r would do, and every operand is contiguous. WARPS, 0 or those of the program: v
    goes to registers, through L1, which holds what the next rows of E share with this one, a step ahead. The bands go
    through L1 too, for the other program there, as they are copied 8 bytes at a time where the compiler knows of no
    more; 16 would pass it by.
    """
    tiles_x = tl.cdiv(width, BLOCK_X)
    tiles_y = tl.cdiv(height, BLOCK_Y)
    tiles_v = tl.cdiv(values, BLOCK_V)
    index = tl.program_id(0)
    first_x = index % tiles_x * BLOCK_X
    first_y = index // tiles_x % tiles_y * BLOCK_Y
    first_v = index // (tiles_x * tiles_y) % tiles_v * BLOCK_V
    sample = (index // (tiles_x * tiles_y * tiles_v)).to(tl.int64)
    rows_v = tl.arange(0, BLOCK_V * BLOCK_Y)
    lines = line_of(rows_v, WARPS)
    channels = sample * values + tl.minimum(first_v + lines // BLOCK_Y, values - 1)
    window = tl.arange(0, BLOCK_S)
    starts = bordered + (channels * depth * rows + first_y + lines % BLOCK_Y) * pitch + first_x
    windows = starts[:, None] + window[None, :]
    columns = tl.arange(0, BLOCK_K * BLOCK_X)
    band_places = columns[:, None] * BLOCK_S + window[None, :]

    lambda_tile = tl.zeros([BLOCK_V * BLOCK_Y, BLOCK_K * BLOCK_X], tl.float32)
    row = 0  # of E, in its layer
    shift = 0  # of that row in `bordered`
    offset = 0
    if WARPS > 0:
        following = tl.load(windows)
    pieces = depth * side * CHUNKS
    tl.assume(pieces > 0)  # ptxas does not overlap the products of a loop that may be empty, here and below
    for piece in range(pieces):
        near = as_operand(following, WARPS) if WARPS > 0 else tl.load(windows + offset)
        step = tl.where(piece % CHUNKS == CHUNKS - 1, 1, 0)
        last = row + step == side
        shift += tl.where(last, rows - side + 1, step)
        row = tl.where(last, 0, row + step)
        offset = tl.where(piece + 1 < pieces, shift * pitch + (piece + 1) % CHUNKS * BLOCK_S, offset)
        if WARPS > 0:
            following = tl.load(windows + offset)
        band = tl.load(bands + piece * quarter * 4 + band_places)
        lambda_tile = tl.dot(near, tl.trans(band), lambda_tile, input_precision=PRECISION)

    lambda_tile = tl.reshape(lambda_tile, [BLOCK_V, BLOCK_Y, BLOCK_K, BLOCK_X])
    v_index = first_v + tl.arange(0, BLOCK_V)
    y_index = first_y + tl.arange(0, BLOCK_Y)
    x_index = first_x + tl.arange(0, BLOCK_X)
    k_index = tl.arange(0, BLOCK_K)
    v_mask = v_index < values
    k_mask = k_index < keys
    shared = tl.load(
        content + (sample * values + v_index)[:, None] * keys + k_index[None, :],
        mask=v_mask[:, None] & k_mask[None, :],
        other=0.0,
    )
    lambda_tile += shared.to(tl.float32)[:, None, :, None]
    seq_len = height * width
    pixels = y_index[:, None] * width + x_index[None, :]
    inside = (y_index < height)[:, None] & (x_index < width)[None, :]
    if SAVE:
        saved = tl.reshape(lambda_tile, [BLOCK_V * BLOCK_Y, BLOCK_K * BLOCK_X]).to(lambdas.dtype.element_ty)
        lambdas += index.to(tl.int64) * (BLOCK_V * BLOCK_Y * BLOCK_K * BLOCK_X)
        tl.store(lambdas + rows_v[:, None] * (BLOCK_K * BLOCK_X) + columns[None, :], saved)
    q_places = q + (sample * heads * keys + k_index)[None, :, None] * seq_len + pixels[:, None, :]
    q_mask = k_mask[None, :, None] & inside[:, None, :]
    y_places = y + (sample * heads * values + v_index)[:, None, None] * seq_len + pixels[None, :, :]
    y_mask = v_mask[:, None, None] & inside[None, :, :]
    following = tl.load(q_places, mask=q_mask, other=0.0)
    for head in range(heads):
        query = following.to(tl.float32)
        q_places += tl.where(head + 1 < heads, keys * seq_len, 0)
        following = tl.load(q_places, mask=q_mask, other=0.0)
        answer = tl.sum(lambda_tile * query[None, :, :, :], axis=2)  # [BLOCK_V, BLOCK_Y, BLOCK_X]
        tl.store(y_places, answer.to(y.dtype.element_ty), mask=y_mask)
        y_places += values * seq_len


@triton.jit
def lambda_gradient_kernel(
    q,
    lambdas,  # of `apply_kernel`, in its tiles of LINES_V and LINES_Y
    dy,  # [B, h, |v|, N]
    dlambdas,  # out, and in with ADD
    dq,  # out [B, h, |k|, N]
    sums,  # out [B, height · tiles, |v|, BLOCK_K]: of dlambdas over a tile's pixels
    first_head,
    heads,
    keys,
    values,
    height,
    width,
    ADD: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LINES_V: tl.constexpr,
    LINES_Y: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dλ_n = Σ_h dy_n q_nᵀ, and dq_n = λ_n dy_n, for BLOCK_H heads. One program per tile of pixels and sample.

    ADD: to the dλ of the heads before.
    """
    tiles_x = tl.cdiv(width, BLOCK_X)
    tile = tl.program_id(0) % (height * tiles_x)
    sample = (tl.program_id(0) // (height * tiles_x)).to(tl.int64)
    seq_len = height * width
    h_index = first_head + tl.arange(0, BLOCK_H)
    k_index = tl.arange(0, BLOCK_K)
    x_index = tile % tiles_x * BLOCK_X + tl.arange(0, BLOCK_X)
    row = tile // tiles_x
    pixels = row * width + x_index
    h_mask = h_index < heads
    x_mask = x_index < width
    hx_mask = h_mask[:, None, None] & x_mask[None, None, :]
    q_mask = hx_mask & (k_index < keys)[None, :, None]
    q_places = ((sample * heads + h_index)[:, None, None] * keys + k_index[None, :, None]) * seq_len
    q_places += pixels[None, None, :]
    query = tl.load(q + q_places, mask=q_mask, other=0.0).to(tl.float32)[:, None, :, :]
    dquery = tl.zeros([BLOCK_H, BLOCK_K, BLOCK_X], tl.float32)
    tiles_y = tl.cdiv(height, LINES_Y)
    tiles_v = tl.cdiv(values, LINES_V)
    inner = tl.arange(0, BLOCK_K)[None, :, None] * BLOCK_X + tl.arange(0, BLOCK_X)[None, None, :]
    for first_v in tl.range(0, values, BLOCK_V, num_stages=STAGES):
        v_index = first_v + tl.arange(0, BLOCK_V)
        v_mask = v_index < values
        line = (sample * values + v_index) * (height * tiles_x) + tile
        places = line[:, None, None] * (BLOCK_K * BLOCK_X) + inner
        program = ((sample * tiles_v + v_index // LINES_V) * tiles_y + row // LINES_Y) * tiles_x + tile % tiles_x
        line = (program * LINES_V + v_index % LINES_V) * LINES_Y + row % LINES_Y
        saved = lambdas + line[:, None, None] * (BLOCK_K * BLOCK_X) + inner
        dy_places = ((sample * heads + h_index)[:, None, None] * values + v_index[None, :, None]) * seq_len
        dy_mask = hx_mask & v_mask[None, :, None]
        lambda_tile = tl.load(saved, mask=v_mask[:, None, None], other=0.0).to(tl.float32)
        cotangent = tl.load(dy + dy_places + pixels[None, None, :], mask=dy_mask, other=0.0).to(tl.float32)
        cotangent = cotangent[:, :, None, :]  # [BLOCK_H, BLOCK_V, 1, BLOCK_X]
        gradient = tl.sum(cotangent * query, axis=0)
        dquery += tl.sum(cotangent * lambda_tile[None, :, :, :], axis=1)
        if ADD:
            gradient += tl.load(dlambdas + places, mask=v_mask[:, None, None], other=0.0)
        tl.store(dlambdas + places, gradient.to(dlambdas.dtype.element_ty), mask=v_mask[:, None, None])
        total = tl.sum(gradient, axis=2)  # [BLOCK_V, BLOCK_K]
        part = (sample * (height * tiles_x) + tile) * values + v_index
        tl.store(sums + part[:, None] * BLOCK_K + k_index[None, :], total, mask=v_mask[:, None])
    tl.store(dq + q_places, dquery.to(dq.dtype.element_ty), mask=q_mask)


@triton.jit
def block_bands_kernel(
    e,
    bands,  # out [u·CHUNKS, r + BLOCK_R − 1, BLOCK_R, BLOCK_S, BLOCK_K, BLOCK_X]
    count,  # elements of bands
    keys,
    depth,
    side,
    BLOCK_R: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHUNKS: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Spreads E into bands from a tile of |k|·BLOCK_X gradients to BLOCK_R rows of BLOCK_S columns around it."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inner = column_of(index % (BLOCK_K * BLOCK_X), WARPS)
    x = inner % BLOCK_X
    key = inner // BLOCK_X
    rest = index // (BLOCK_X * BLOCK_K)
    target = rest // BLOCK_S % BLOCK_R
    source = rest // (BLOCK_S * BLOCK_R) % (side + BLOCK_R - 1)
    piece = rest // (BLOCK_S * BLOCK_R) // (side + BLOCK_R - 1)
    column = piece % CHUNKS * BLOCK_S + rest % BLOCK_S - x  # of E
    row = target + side - 1 - source
    mask = (key < keys) & (column >= 0) & (column < side) & (row >= 0) & (row < side) & (index < count)
    weight = tl.load(e + ((key * depth + piece // CHUNKS) * side + row) * side + column, mask=mask, other=0.0)
    tl.store(bands + index, weight, mask=index < count)


@triton.jit
def value_gradient_kernel(
    dlambdas,
    bands,  # of `block_bands_kernel`
    parts,  # out [programs, BLOCK_V, BLOCK_Y·BLOCK_R, BLOCK_S]: the gradient that a tile gives to its windows
    values,
    depth,
    height,
    width,
    side,
    BLOCK_V: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_I: tl.constexpr,
    CHUNKS: tl.constexpr,
    WARPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dv_m = Σ_n Σ_k E_k,(m − n) dλ_nk, of each tile of pixels n by itself: `overlap_kernel` adds the tiles.

    One program per tile of columns, of rows, of value channels, piece of the window, layer and sample, in that order.
    A line of the product is BLOCK_I of a tile's gradients for one channel, its columns are BLOCK_R rows of BLOCK_S
    columns of dv. WARPS: as of `apply_kernel`.
    """
    tiles_x = tl.cdiv(width, BLOCK_X)
    tiles_y = tl.cdiv(height, BLOCK_Y * BLOCK_R)
    tiles_v = tl.cdiv(values, BLOCK_V)
    index = tl.program_id(0)
    tile_x = index % tiles_x
    first_y = index // tiles_x % tiles_y * (BLOCK_Y * BLOCK_R)
    first_v = index // (tiles_x * tiles_y) % tiles_v * BLOCK_V
    piece = index // (tiles_x * tiles_y * tiles_v) % (depth * CHUNKS)
    sample = (index // (tiles_x * tiles_y * tiles_v * depth * CHUNKS)).to(tl.int64)
    width_i: tl.constexpr = BLOCK_K * BLOCK_X
    steps = side + BLOCK_R - 1
    count = steps * (width_i // BLOCK_I)
    tl.assume(count > 0)
    rows = tl.arange(0, BLOCK_V * BLOCK_Y)
    lines = line_of(rows, WARPS)
    channel = tl.minimum(first_v + lines // BLOCK_Y, values - 1)
    ys = first_y + lines % BLOCK_Y * BLOCK_R - side // 2
    starts = dlambdas + (((sample * values + channel) * height + ys) * tiles_x + tile_x) * width_i
    inner = tl.arange(0, BLOCK_I)
    places = starts[:, None] + inner[None, :]
    columns = tl.arange(0, BLOCK_R * BLOCK_S)
    band_places = piece * steps * (BLOCK_R * BLOCK_S * width_i) + columns[:, None] * width_i + inner[None, :]

    total = tl.zeros([BLOCK_V * BLOCK_Y, BLOCK_R * BLOCK_S], tl.float32)
    source = 0
    first_i = 0
    if WARPS > 0:
        following = tl.load(places, mask=((ys >= 0) & (ys < height))[:, None], other=0.0)
    for step in range(count):
        y = ys + source
        offset = source * tiles_x * width_i + first_i
        if WARPS > 0:
            gradient = as_operand(following, WARPS)
        else:
            gradient = tl.load(places + offset, mask=((y >= 0) & (y < height))[:, None], other=0.0)
        band = tl.load(bands + band_places + (source * (BLOCK_R * BLOCK_S * width_i) + first_i))
        last = source + 1 == steps
        first_i += tl.where(last & (step + 1 < count), BLOCK_I, 0)
        source = tl.where(last, 0, source + 1)
        if WARPS > 0:
            y = ys + source
            offset = source * tiles_x * width_i + first_i
            following = tl.load(places + offset, mask=((y >= 0) & (y < height))[:, None], other=0.0)
        total = tl.dot(gradient, tl.trans(band), total, input_precision=PRECISION)

    parts += index.to(tl.int64) * (BLOCK_V * BLOCK_Y * BLOCK_R * BLOCK_S)
    tl.store(parts + rows[:, None] * (BLOCK_R * BLOCK_S) + columns[None, :], total)


@triton.jit
def overlap_kernel(
    parts,  # of `value_gradient_kernel`, in its tiles of BLOCK_V and ROWS = BLOCK_Y·BLOCK_R
    dv,  # out [B, |v|, u, N]
    values,
    depth,
    height,
    width,
    side,
    BLOCK_V: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dv, of the tiles whose windows hold a pixel. One program per tile of columns, row, layer, channel and sample."""
    blocks = tl.cdiv(width, BLOCK)
    tiles_x = tl.cdiv(width, BLOCK_X)
    line = tl.program_id(0) // blocks
    y = line % height
    layer = line // height % depth
    channel = line // (height * depth) % values
    sample = (line // (height * depth * values)).to(tl.int64)
    tile_len: tl.constexpr = BLOCK_V * ROWS * BLOCK_S
    piece_len = tl.cdiv(values, BLOCK_V) * tl.cdiv(height, ROWS) * tiles_x
    piece_len = piece_len.to(tl.int64) * tile_len
    parts += (sample * depth + layer) * CHUNKS * piece_len
    parts += (channel // BLOCK_V * tl.cdiv(height, ROWS) + y // ROWS).to(tl.int64) * tiles_x * tile_len
    parts += (channel % BLOCK_V * ROWS + y % ROWS) * BLOCK_S
    xs = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    reached = xs + side // 2  # in windows, which begin side // 2 columns before their tile
    total = tl.zeros([BLOCK], tl.float32)
    for back in tl.static_range((CHUNKS * BLOCK_S + BLOCK_X - 1) // BLOCK_X):
        tile_x = reached // BLOCK_X - back
        place = reached % BLOCK_X + back * BLOCK_X
        mask = (tile_x >= 0) & (tile_x < tiles_x) & (place < CHUNKS * BLOCK_S)
        places = parts + tile_x * tile_len
        if CHUNKS > 1:
            places += (place // BLOCK_S) * piece_len
        total += tl.load(places + place % BLOCK_S, mask=mask, other=0.0)
    tl.store(dv + line.to(tl.int64) * width + xs, total.to(dv.dtype.element_ty), mask=xs < width)


@triton.jit(do_not_specialize=["quarter"])
def embedding_gradient_kernel(
    bordered,  # v with a border of zeros, [B·|v|, u, rows, pitch]
    dlambdas,
    parts,  # out [splits, BLOCK_K·BLOCK_X, pieces, BLOCK_S]
    lines,  # B·|v|
    pieces,  # a multiple of BLOCK_P
    depth,
    height,
    width,
    side,
    rows,
    quarter,  # of the pitch
    split_len,
    BLOCK_Y: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The gradient of `bands_kernel`'s bands: Σ dλ vᵀ over samples, value channels and tiles of pixels.

    One program per BLOCK_P pieces and split of all tiles of pixels. A step takes BLOCK_Y rows, whose windows of v
    overlap: copied 8 bytes at a time, as the compiler does where it knows of no more, they go through L1, unlike 16.
    """
    pitch = quarter * 4
    tiles_x = tl.cdiv(width, BLOCK_X)
    tiles_y = tl.cdiv(height, BLOCK_Y)
    groups = pieces // BLOCK_P
    group = tl.program_id(0) % groups
    split = tl.program_id(0) // groups
    width_i: tl.constexpr = BLOCK_K * BLOCK_X
    ys = tl.arange(0, BLOCK_Y)
    inner = tl.arange(0, width_i)
    columns = tl.arange(0, BLOCK_P * BLOCK_S)
    piece = tl.minimum(group * BLOCK_P + columns // BLOCK_S, depth * side * CHUNKS - 1)
    row = piece // CHUNKS
    shifts = (row // side * rows + row % side) * pitch + piece % CHUNKS * BLOCK_S + columns % BLOCK_S
    gradient_places = ys[:, None] * (tiles_x * width_i) + inner[None, :]
    near_places = ys[:, None] * pitch + shifts[None, :]

    total = tl.zeros([width_i, BLOCK_P * BLOCK_S], tl.float32)
    begin = split * split_len
    count = tl.minimum(split_len, lines * tiles_x * tiles_y - begin)
    tl.assume(count > 0)
    for step in range(begin, begin + count):
        first_y = step % tiles_y * BLOCK_Y
        tile_x = step // tiles_y % tiles_x
        line = (step // (tiles_y * tiles_x)).to(tl.int64)
        start = ((line * height + first_y) * tiles_x + tile_x) * width_i
        mask = (first_y + ys < height)[:, None]
        gradient = tl.load(dlambdas + start + gradient_places, mask=mask, other=0.0)
        start = (line * depth * rows + first_y) * pitch + tile_x * BLOCK_X
        near = tl.load(bordered + start + near_places)
        total = tl.dot(tl.trans(gradient), near, total, input_precision=PRECISION)
    places = (split.to(tl.int64) * width_i + inner)[:, None] * (pieces * BLOCK_S) + group * (BLOCK_P * BLOCK_S)
    tl.store(parts + places + columns[None, :], total)
