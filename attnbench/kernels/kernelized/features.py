"""The feature maps φ of kernelized attention, a tile at a time, for the kernels that fuse them.

What a map is applied to (its argument a), for token i and feature r, and its value:

| FEATURES | argument a_ir | φ of a query | φ of a key |
| --- | --- | --- | --- |
| elu | x_ir | a + 1 above 0, exp a below | the same |
| relu | ω_r x_i · scale | max(a, 0) + ε | the same |
| exp | ω_r x_i · scale, for a key − (scale ‖x_i‖)²/2 | exp(a − max_r a) + ε | exp(a − max_jr a) + ε |
| fourier | ω_r x_i / ‖x_i‖ | [sin a, cos a] | the same |
| softmax | x_ir | exp(a) / Σ_r exp(a) | exp(a) / Σ_j exp(a) |
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether kernels run under Triton's interpreter, which has no inline assembly."""

NOWHERE = tl.constexpr(2**31 - 1)
"""Above any column or position."""

FEATURES = ("elu", "relu", "exp", "fourier", "softmax")


@triton.jit
def load_rows(pointer, rows, row_mask, row_stride, first, width, BLOCK: tl.constexpr):
    """Columns first … first + BLOCK of the given rows, 0 outside: [rows, BLOCK], in the tensor's own dtype."""
    columns = first + tl.arange(0, BLOCK)
    mask = row_mask[:, None] & (columns < width)[None, :]
    return tl.load(pointer + rows[:, None] * row_stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def rows_once(
    pointer, rows, row_mask, head_dim, FEATURES: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Rows that two products take, [rows, BLOCK_D]. Nothing to be used where the map has no omega, or the first product
    takes WIDTH channels at a time.
    """
    if WIDTH != 0 or FEATURES == "elu" or FEATURES == "softmax":
        return rows
    else:  # noqa: RET505  Triton compiles what follows a return too, and its types differ
        return load_rows(pointer, rows, row_mask, head_dim, 0, head_dim, BLOCK_D)


@triton.jit
def feature_count(features, FEATURES: tl.constexpr):
    """How many values φ has: two for each feature of fourier, its sine and its cosine."""
    if FEATURES == "fourier":
        return 2 * features
    else:  # noqa: RET505  Triton compiles what follows a return too
        return features


@triton.jit
def row_products(
    tile,
    x,
    rows,
    row_mask,
    row_stride,
    y,
    columns,
    column_mask,
    column_stride,
    width,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
    COMPUTE: tl.constexpr,
    PRECISION: tl.constexpr,
    other=None,
):
    """x yᵀ of rows of x and of BLOCK_M rows of y, which are `columns`: [rows, BLOCK_M].

    WIDTH 0: all channels at once, with those of x in `tile` [rows, BLOCK_D], and those of y in `other` [BLOCK_M,
    BLOCK_D] where they are loaded already. Otherwise WIDTH channels at a time, loaded again (`tile` and `other` are
    unused): operands are in registers, where those of all channels do not fit beside the sums.
    """
    if WIDTH == 0:
        if other is None:
            other = load_rows(y, columns, column_mask, column_stride, 0, width, BLOCK_D)
        total = tl.dot(tile.to(COMPUTE), tl.trans(other.to(COMPUTE)), input_precision=PRECISION)
    else:
        total = tl.zeros([rows.shape[0], BLOCK_M], tl.float32)
        for first in range(0, width, WIDTH):
            a = load_rows(x, rows, row_mask, row_stride, first, width, WIDTH).to(COMPUTE)
            b = load_rows(y, columns, column_mask, column_stride, first, width, WIDTH).to(COMPUTE)
            total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    return total


@triton.jit
def token_scalar(x, scale, FEATURES: tl.constexpr):
    """What a token brings to its arguments beside ω x: (scale ‖x‖)²/2 for exp, 1/‖x‖ for fourier. x: [N, D] → [N]."""
    wide = x.to(tl.float32)
    squares = tl.sum(wide * wide, axis=1)
    if FEATURES == "fourier":
        return 1.0 / tl.maximum(tl.sqrt(squares), 1e-12)
    return squares * (scale * scale * 0.5)


@triton.jit
def arguments(
    x,
    scalar,
    x_pointer,
    rows,
    row_mask,
    row_stride,
    omega,
    first,
    features,
    head_dim,
    scale,
    FEATURES: tl.constexpr,
    KEY: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDTH: tl.constexpr,
    w=None,
):
    """a for features first … first + BLOCK_M: [N, BLOCK_M] in float32. x: [N, BLOCK_D], unused by elu and softmax.

    WIDTH, w (rows of omega): as `row_products` has WIDTH and `other`.
    """
    if FEATURES == "elu" or FEATURES == "softmax":
        a = load_rows(x_pointer, rows, row_mask, row_stride, first, features, BLOCK_M).to(tl.float32)
    else:
        columns = first + tl.arange(0, BLOCK_M)
        column_mask = columns < features
        a = row_products(
            x, x_pointer, rows, row_mask, row_stride, omega, columns, column_mask, head_dim, head_dim,
            BLOCK_M, BLOCK_D, WIDTH, x_pointer.dtype.element_ty, PRECISION, w,
        )  # fmt: skip
        a = scaled(a, scalar, scale, FEATURES, KEY)
    return a


@triton.jit
def scaled(products, scalar, scale, FEATURES: tl.constexpr, KEY: tl.constexpr):
    """a from the products ω x [N, BLOCK_M], for the maps that have ω. scalar [N]: of `token_scalar`."""
    if FEATURES == "fourier":
        a = products * scalar[:, None]
    else:
        a = products * scale
    if FEATURES == "exp":
        if KEY:
            a = a - scalar[:, None]
    return a


@triton.jit
def in_units(a, COMPUTE: tl.constexpr):
    """An exponent, or a factor of it, in the units that `power` takes.

    Those are log2 where products are of bfloat16, so that the factor is one with the scale. In float32 its rounding,
    the same for all arguments, would show.
    """
    if tl.bfloat16 == COMPUTE:
        return a * 1.4426950408889634
    return a


@triton.jit
def unit_of(scale, FEATURES: tl.constexpr, COMPUTE: tl.constexpr):
    """The scale of `arguments`: of exp `in_units`."""
    if FEATURES == "exp":
        return in_units(scale, COMPUTE)
    return scale


@triton.jit
def power(a, COMPUTE: tl.constexpr):
    """exp of an exponent `in_units`."""
    if tl.bfloat16 == COMPUTE:
        return tl.exp2(a)
    return tl.exp(a)


@triton.jit
def exponent_of(z, COMPUTE: tl.constexpr):
    """The logarithm, `in_units`."""
    if tl.bfloat16 == COMPUTE:
        return tl.log2(z)
    return tl.log(z)


@triton.jit
def largest_column(a, columns, column_mask, EVEN: tl.constexpr, BLOCK_M: tl.constexpr, COMPUTE: tl.constexpr):
    """The largest entry of each row and its column: two [N]. a: [N, BLOCK_M]; outside −∞, or EVEN: nothing is outside.

    For products of bfloat16 the column takes the place of the last bits of an entry, so that one maximum gives both:
    the entry is rounded to 2⁻¹⁸ of itself at BLOCK_M 32, and of entries as close as that any may be the largest.
    """
    if tl.bfloat16 == COMPUTE:
        within = tl.arange(0, BLOCK_M)
        marked = ((a.to(tl.int32, bitcast=True) & -BLOCK_M) | within[None, :]).to(tl.float32, bitcast=True)
        if not EVEN:  # −∞ with marks is no number
            marked = tl.where(column_mask[None, :], marked, float("-inf"))
        top = tl.max(marked, axis=1)
        return top, tl.min(columns, axis=0) + (top.to(tl.int32, bitcast=True) & (BLOCK_M - 1))
    top = tl.max(a, axis=1)
    return top, tl.min(tl.where(a == top[:, None], columns[None, :], NOWHERE), axis=1)


@triton.jit
def plain(a, epsilon, FEATURES: tl.constexpr, COMPUTE: tl.constexpr = tl.float32):
    """φ of the maps without a stabiliser: elu and relu."""
    if FEATURES == "elu":
        return tl.where(a > 0, a + 1.0, power(in_units(tl.minimum(a, 0.0), COMPUTE), COMPUTE))
    return tl.maximum(a, 0.0) + epsilon


@triton.jit
def plain_slope(a, FEATURES: tl.constexpr, COMPUTE: tl.constexpr = tl.float32):
    """dφ/da of elu and relu."""
    if FEATURES == "elu":
        return tl.where(a > 0, 1.0, power(in_units(tl.minimum(a, 0.0), COMPUTE), COMPUTE))
    return tl.where(a > 0, 1.0, 0.0)


@triton.jit
def _of_hardware(a, INSTRUCTION: tl.constexpr):
    """An instruction of one float32 operand, applied to every element."""
    return tl.inline_asm_elementwise(INSTRUCTION, "=f,f", [a], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def sine_and_cosine(a, QUICK: tl.constexpr = False):
    """Both, to float32's precision for |a| up to some thousands (an argument is at most ‖ω‖).

    tl.sin and tl.cos are exact for any argument but need a table in local memory in every thread. Here a is reduced to
    ±π/4 by multiples of π/2 in three parts; then the polynomials of Cephes (sinf.c) apply. QUICK, for values that are
    rounded to bfloat16: the hardware's own, whose absolute error is at most 2⁻¹⁴ for |a| up to 300 (PTX ISA, 9.7.3).
    """
    if QUICK:
        if INTERPRETED:
            return tl.sin(a), tl.cos(a)
        return _of_hardware(a, "sin.approx.f32 $0, $1;"), _of_hardware(a, "cos.approx.f32 $0, $1;")
    quarter = tl.floor(a * 0.6366197723675814 + 0.5)
    r = ((a - quarter * 1.5703125) - quarter * 4.837512969970703e-4) - quarter * 7.549789954891882e-8
    z = r * r
    s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * r + r
    c = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0
    turn = quarter.to(tl.int32) & 3
    swapped = (turn & 1) == 1
    sine = tl.where(swapped, c, s)
    cosine = tl.where(swapped, s, c)
    return tl.where(turn >= 2, -sine, sine), tl.where((turn == 1) | (turn == 2), -cosine, cosine)
