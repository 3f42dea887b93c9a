"""Kernels of `lambda_convolution`: the position lambdas applied to the queries, and the four gradients.

Shapes, contiguous: q [B, h, |k|, N], v [B, |v|, u, N], E [|k|, u, r, r], lambdas [B, |v|, |k|, N], y [B, h, |v|, N].
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
    BLOCK: tl.constexpr,
):
    """Spreads every row of E, in CHUNKS pieces, into a band from BLOCK_S columns of a window to BLOCK_X pixels."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = index // BLOCK_S % BLOCK_X
    key = index // (BLOCK_S * BLOCK_X) % BLOCK_K
    piece = index // (BLOCK_S * BLOCK_X * BLOCK_K)
    column = piece % CHUNKS * BLOCK_S + index % BLOCK_S - x  # of E
    mask = (key < keys) & (column >= 0) & (column < side) & (index < count)
    weight = tl.load(e + (key * (depth * side) + piece // CHUNKS) * side + column, mask=mask, other=0.0)
    tl.store(bands + index, weight, mask=index < count)


@triton.jit
def apply_kernel(
    q,
    padded,  # v with a border of zeros, [B, |v|, u, rows, pitch]
    bands,  # of `bands_kernel`
    content,  # [B, |v|, |k|]: added to every position lambda
    lambdas,  # out, SAVE: position and content together
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
    SAVE: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of columns, of rows, of value channels and sample, in that order.

    A line of the product is BLOCK_S columns of one row and channel of v, its columns are |k|·BLOCK_X lambdas: a lambda
    needs BLOCK_X + r − 1 columns where r would do, and every operand is contiguous.
    """
    tiles_x = tl.cdiv(width, BLOCK_X)
    tiles_y = tl.cdiv(height, BLOCK_Y)
    tiles_v = tl.cdiv(values, BLOCK_V)
    index = tl.program_id(0)
    first_x = index % tiles_x * BLOCK_X
    first_y = index // tiles_x % tiles_y * BLOCK_Y
    first_v = index // (tiles_x * tiles_y) % tiles_v * BLOCK_V
    sample = (index // (tiles_x * tiles_y * tiles_v)).to(tl.int64)
    lines = tl.arange(0, BLOCK_V * BLOCK_Y)
    channels = sample * values + tl.minimum(first_v + lines // BLOCK_Y, values - 1)
    starts = padded + (channels * depth * rows + first_y + lines % BLOCK_Y) * pitch + first_x
    window = tl.arange(0, BLOCK_S)
    columns = tl.arange(0, BLOCK_K * BLOCK_X)
    band_places = columns[:, None] * BLOCK_S + window[None, :]

    lambda_tile = tl.zeros([BLOCK_V * BLOCK_Y, BLOCK_K * BLOCK_X], tl.float32)
    row = 0  # of E, in its layer
    shift = 0  # of that row in `padded`
    for piece in range(depth * side * CHUNKS):
        near = tl.load(starts[:, None] + (shift * pitch + piece % CHUNKS * BLOCK_S + window)[None, :])
        band = tl.load(bands + piece * (BLOCK_K * BLOCK_X * BLOCK_S) + band_places)
        lambda_tile = tl.dot(near, tl.trans(band), lambda_tile, input_precision=PRECISION)
        step = tl.where(piece % CHUNKS == CHUNKS - 1, 1, 0)
        last = row + step == side
        shift += tl.where(last, rows - side + 1, step)
        row = tl.where(last, 0, row + step)

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
        line = (sample * values + v_index)[:, None] * keys + k_index[None, :]
        places = line[:, None, :, None] * seq_len + pixels[None, :, None, :]
        mask = (v_mask[:, None] & k_mask[None, :])[:, None, :, None] & inside[None, :, None, :]
        tl.store(lambdas + places, lambda_tile.to(lambdas.dtype.element_ty), mask=mask)
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
    lambdas,
    dy,  # [B, h, |v|, N]
    dlambdas,  # out [B, |v|, |k|, N]
    dq,  # out [tiles of values, B, h, |k|, N], in float32 where there are several
    heads,
    keys,
    values,
    seq_len,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dλ_n = Σ_h dy_n q_nᵀ, and dq_n = λ_n dy_n over a tile of value channels. Programs as in `apply_kernel`."""
    tiles_n = tl.cdiv(seq_len, BLOCK_N)
    tiles_v = tl.cdiv(values, BLOCK_V)
    n_index = tl.program_id(0) % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    tile_v = tl.program_id(0) // tiles_n % tiles_v
    sample = (tl.program_id(0) // (tiles_n * tiles_v)).to(tl.int64)
    samples = (tl.num_programs(0) // (tiles_n * tiles_v)).to(tl.int64)
    v_index = tile_v * BLOCK_V + tl.arange(0, BLOCK_V)
    columns = tl.arange(0, BLOCK_K)
    v_mask = v_index < values
    n_mask = n_index < seq_len
    k_mask = columns < keys
    mask = v_mask[:, None, None] & k_mask[None, :, None] & n_mask[None, None, :]
    places = ((sample * values + v_index)[:, None, None] * keys + columns[None, :, None]) * seq_len
    places += n_index[None, None, :]
    lambda_tile = tl.load(lambdas + places, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_V, BLOCK_K, BLOCK_N]
    gradient = tl.zeros([BLOCK_V, BLOCK_K, BLOCK_N], tl.float32)
    for head in range(heads):
        line = (sample * heads + head) * keys + columns
        query_mask = k_mask[:, None] & n_mask[None, :]
        query = tl.load(q + line[:, None] * seq_len + n_index[None, :], mask=query_mask, other=0.0).to(tl.float32)
        value_line = (sample * heads + head) * values + v_index
        cotangent = tl.load(
            dy + value_line[:, None] * seq_len + n_index[None, :], mask=v_mask[:, None] & n_mask[None, :], other=0.0
        ).to(tl.float32)
        gradient += cotangent[:, None, :] * query[None, :, :]
        dquery = tl.sum(lambda_tile * cotangent[:, None, :], axis=0)  # [BLOCK_K, BLOCK_N]
        part = (tile_v * samples * heads * keys + line)[:, None] * seq_len + n_index[None, :]
        tl.store(dq + part, dquery.to(dq.dtype.element_ty), mask=query_mask)
    tl.store(dlambdas + places, gradient.to(dlambdas.dtype.element_ty), mask=mask)


@triton.jit
def value_gradient_kernel(
    dlambdas,
    e,
    dv,  # out [B, |v|, u, N]
    keys,
    values,
    depth,
    height,
    width,
    side,
    BLOCK_V: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dv_m = Σ_n Σ_k E_k,(m − n) dλ_nk. One program per tile of columns, of rows, of value channels, layer and sample.

    A row of E becomes a [BLOCK_S, BLOCK_X] band matrix, from the BLOCK_S ≥ BLOCK_X + r − 1 columns of the gradients
    that reach a tile to the columns of the tile, so that a convolution to one channel is a product on tensor cores.
    """
    tiles_x = tl.cdiv(width, BLOCK_X)
    tiles_y = tl.cdiv(height, BLOCK_Y)
    tiles_v = tl.cdiv(values, BLOCK_V)
    index = tl.program_id(0)
    first_x = index % tiles_x * BLOCK_X
    first_y = index // tiles_x % tiles_y * BLOCK_Y
    first_v = index // (tiles_x * tiles_y) % tiles_v * BLOCK_V
    layer = index // (tiles_x * tiles_y * tiles_v) % depth
    sample = (index // (tiles_x * tiles_y * tiles_v * depth)).to(tl.int64)
    half = side // 2
    rows = tl.arange(0, BLOCK_V * BLOCK_Y)
    channels = first_v + rows // BLOCK_Y
    ys = first_y + rows % BLOCK_Y
    sources = tl.arange(0, BLOCK_S)
    targets = tl.arange(0, BLOCK_X)
    xs = first_x - half + sources
    column = targets[None, :] - sources[:, None] + 2 * half  # of E
    banded = (column >= 0) & (column < side)
    inside_x = (xs >= 0) & (xs < width)

    total = tl.zeros([BLOCK_V * BLOCK_Y, BLOCK_X], tl.float32)
    for step in range(keys * side):
        key = step // side
        row = step % side
        from_y = ys + half - row
        mask = ((channels < values) & (from_y >= 0) & (from_y < height))[:, None] & inside_x[None, :]
        line = (sample * values + channels) * keys + key
        places = (line * (height * width) + from_y * width)[:, None] + xs[None, :]
        gradient = tl.load(dlambdas + places, mask=mask, other=0.0)
        band = tl.load(e + ((key * depth + layer) * side + row) * side + column, mask=banded, other=0.0)
        total = tl.dot(gradient, band, total, input_precision=PRECISION)
    mask = ((channels < values) & (ys < height))[:, None] & (first_x + targets < width)[None, :]
    line = (sample * values + channels) * depth + layer
    places = (line * (height * width) + ys * width + first_x)[:, None] + targets[None, :]
    tl.store(dv + places, total.to(dv.dtype.element_ty), mask=mask)


@triton.jit
def embedding_gradient_kernel(
    v,
    dlambdas,
    parts,  # out [splits, u·r·r, |k|]
    count,  # B·|v| lines, times the tiles of pixels in each
    keys,
    depth,
    height,
    width,
    side,
    split_len,
    BLOCK_J: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dE = Σ dλ_nk v_m over samples, value channels and pixels. One program per tile of offsets and split of the lines'
    pixel tiles, all lines one after the other.
    """
    seq_len = height * width
    terms = depth * side * side
    tiles_j = tl.cdiv(terms, BLOCK_J)
    tiles_n = tl.cdiv(seq_len, BLOCK_N)
    offsets = tl.program_id(0) % tiles_j * BLOCK_J + tl.arange(0, BLOCK_J)
    split = (tl.program_id(0) // tiles_j).to(tl.int64)
    columns = tl.arange(0, BLOCK_K)
    begin = split * split_len
    total = tl.zeros([BLOCK_J, BLOCK_K], tl.float32)
    for tile in range(begin, tl.minimum(begin + split_len, count)):
        line = tile // tiles_n
        pixels = (tile % tiles_n).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
        mask = pixels < seq_len
        every = tl.zeros([BLOCK_N], tl.int64) + line
        near = patches(v, every, mask, pixels, offsets, height, width, depth, side)  # [BLOCK_N, BLOCK_J]
        places = (line * keys + columns)[None, :] * seq_len + pixels[:, None]
        gradient = tl.load(dlambdas + places, mask=mask[:, None] & (columns < keys)[None, :], other=0.0)
        total = tl.dot(tl.trans(near), gradient, total, input_precision=PRECISION)
    places = (split * terms + offsets)[:, None] * keys + columns[None, :]
    tl.store(parts + places, total, mask=(offsets < terms)[:, None] & (columns < keys)[None, :])
