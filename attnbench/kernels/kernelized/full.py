"""y_i = φ(q_i)ᵀ S / (φ(q_i)ᵀ z + ε) with S = Σ_j φ(k_j) v_jᵀ and z = Σ_j φ(k_j), the feature map fused on both sides.

Serves efficient, linear_transformer, rfa and performer, full form, by their maps (`features`). No feature is ever
written to memory: forward reads k and v once (`accumulate_kernel`), adds up the splits (`combine_kernel`), then reads q
once and writes y (`answer_kernel`). All sums are float32.

Layout. q, k, v: [B, H, N, D], any strides with the last 1. The state S is [B·H, M, D], M = m (fourier: 2m, sines
first), in float32 and, for what reads it once per block of tokens, in the dtype of products. A program of
`accumulate_kernel` holds a [BLOCK_M, BLOCK_V] tile of S and streams a split of the tokens; a program of `answer_kernel`
holds [BLOCK_N, BLOCK_V] of y and streams the features. Offsets in tokens are int64.

Backward. With δ_i the denominator and c_i = y_i·dy_i:
  dφ(q_i) = (S dy_i − c_i z) / δ_i            `query_gradient_kernel`: dq, 1/δ and −c/δ
  dS = Σ_i φ(q_i) dy_iᵀ / δ_i,  dz = −Σ_i φ(q_i) c_i / δ_i      `accumulate_kernel` over the queries
  dφ(k_j) = dS v_j + dz,  dv_j = dSᵀ φ(k_j)   `key_gradient_kernel`: dk, dv
then through φ. softmax has no δ: S = Σ κ_j v_jᵀ with κ normalised over j, and the term that normalisation adds to dκ is
the row sum of dS ∘ S. exp: the maximum that is subtracted is differentiated too, since ε is not scaled by it. For a
query it takes what the other arguments got; for a key, one number per head, ⟨dS, S − ε Σv⟩ + ⟨dz, z − εN⟩, goes to the
one argument that is the maximum.

Precision. bfloat16: products of bfloat16, φ and S rounded to it. float16: products with φ and S in TF32, which has
float16's fraction and float32's range, for S grows as N. float32: TF32 where torch allows it for matrix products
(`torch.backends.cuda.matmul.allow_tf32`), else three TF32 products that make up a float32 one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from attnbench.grouped import folded, unfolded
from attnbench.kernels.building import Configuration, signature, strided
from attnbench.kernels.kernelized.answers import answer_kernel
from attnbench.kernels.kernelized.features import FEATURES
from attnbench.kernels.kernelized.gradients import key_gradient_kernel, query_gradient_kernel
from attnbench.kernels.kernelized.largest import largest_kernel
from attnbench.kernels.kernelized.sums import accumulate_kernel, combine_kernel
from attnbench.kernels.kernelized.tiles import FeatureMap as FeatureMap
from attnbench.kernels.kernelized.tiles import (
    answer_tiles,
    combine_tiles,
    even,
    gradient_tiles,
    largest_tiles,
    sum_tiles,
)
from attnbench.kernels.launching import CAPABILITIES, POINTER, PRECISIONS, Tiles, named

WARPS = 132 * 16
"""About how many warps sum at a time, 16 for each of 132 multiprocessors: more would only add splits to combine."""


def attend(q: Tensor, k: Tensor, v: Tensor, phi: FeatureMap, omega: Tensor | None = None) -> Tensor:
    """Kernelized attention over all keys; differentiable in q, k and v, once.

    Args:
        q: [B, H, N, D] on one CUDA device, D ≤ 256.
        k, v: [B, Hk, N, D]; the queries of a group of heads are rows of one.
        phi: the feature map.
        omega: [m, D], for relu, exp and fourier; None: the map has none.
    Returns: [B, H, N, D].
    """
    rows, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (folded(q, k), k, v))
    save = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    return unfolded(_Attention.apply(rows, k, v, rows if omega is None else omega.contiguous(), phi, save), q)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, omega: Tensor, phi: FeatureMap, save: bool) -> Tensor:
        sums, keys = sum_keys(k, v, omega, phi)
        y, queries = answer(q, omega, sums, phi, save)
        if save:
            ctx.save_for_backward(q, k, v, omega, y, sums.state, sums.rounded, sums.normaliser, *keys, *queries)
            ctx.phi = phi
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, omega, y, state, rounded, normaliser, maxima, places, top, totals, *queries = ctx.saved_tensors
        phi: FeatureMap = ctx.phi
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        dq, weights, shares = query_gradients(q, omega, rounded, normaliser, y, dy, queries, phi)
        gradient = sum_queries(q, dy, omega, weights, shares, queries[1], phi)
        dnormaliser, stabiliser = gradient.normaliser, top
        if phi.features == "softmax":
            stabiliser = normaliser
            dnormaliser = (gradient.state * state).sum(dim=-1)
        dk, dv = key_gradients(k, v, omega, gradient.rounded, dnormaliser, stabiliser, phi)
        if phi.features == "exp":
            sums = state, gradient.state, normaliser, dnormaliser, totals
            take_from_largest(dk, k, omega, sums, maxima, places, phi)
        return dq, dk, dv, None, None, None


@dataclass(frozen=True)
class Sums:
    """Over all tokens of a head.

    Attributes:
        state: [B·H, M, D] in float32.
        rounded: the same in the dtype of products; state itself where that is float32.
        normaliser: [B·H, M].
        column_sums: [B·H, parts, D], for exp: Σ over the features of the state, in parts.
    """

    state: Tensor
    rounded: Tensor
    normaliser: Tensor
    column_sums: Tensor


def sum_keys(
    k: Tensor, v: Tensor, omega: Tensor, phi: FeatureMap
) -> tuple[Sums, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """S and z; and of the stabiliser: maxima and the blocks of their tokens by split, the maximum, Σ v."""
    return _sums(k, v, omega, phi, None)


def sum_queries(
    q: Tensor, dy: Tensor, omega: Tensor, weights: Tensor, shares: Tensor, stabilisers: Tensor, phi: FeatureMap
) -> Sums:
    """dS and dz."""
    return _sums(q, dy, omega, phi, (weights, shares, stabilisers))[0]


def _sums(
    x: Tensor, values: Tensor, omega: Tensor, phi: FeatureMap, query: tuple[Tensor, Tensor, Tensor] | None
) -> tuple[Sums, tuple[Tensor, Tensor, Tensor, Tensor]]:
    b, h, n, d = x.shape
    tiles = sum_tiles(d, phi, x.dtype, key=query is None)
    sizes = tiles.constexprs
    programs = b * h * triton.cdiv(phi.count, sizes["BLOCK_M"]) * triton.cdiv(d, sizes["BLOCK_V"])
    splits = max(1, min(WARPS // (tiles.warps * programs), triton.cdiv(n, 4 * sizes["BLOCK_N"])))
    split_len = triton.cdiv(triton.cdiv(n, splits), sizes["BLOCK_N"]) * sizes["BLOCK_N"]
    stabilised = query is None and phi.features in ("exp", "softmax")
    parts, part_normalisers, maxima, places, part_totals = accumulate(
        x, values, omega, phi, query, splits, split_len, stabilised
    )
    tiles = combine_tiles(d, phi, stabilised)
    tiles_m = triton.cdiv(phi.rows, tiles.constexprs["BLOCK_M"])
    state, normaliser = torch.empty_like(parts[0]), torch.empty_like(part_normalisers[0])
    rounded = torch.empty_like(state, dtype=x.dtype) if x.dtype == torch.bfloat16 else state
    top, totals, column_sums = normaliser, normaliser, normaliser
    if stabilised and phi.features == "exp":
        top, totals = state.new_empty(b * h), state.new_empty(b * h, d)
        column_sums = state.new_empty(b * h, tiles_m, d)
    combine_kernel[(b * h * tiles_m * triton.cdiv(d, tiles.constexprs["BLOCK_V"]),)](
        parts, part_normalisers, maxima, part_totals, state, rounded, normaliser, top, totals, column_sums,
        n, phi.rows, d, splits, phi.epsilon, **tiles.options,
    )  # fmt: skip
    return Sums(state, rounded, normaliser, column_sums), (maxima, places, top, totals)


def accumulate(
    x: Tensor,
    values: Tensor,
    omega: Tensor,
    phi: FeatureMap,
    query: tuple[Tensor, Tensor, Tensor] | None,
    splits: int,
    split_len: int,
    stabilised: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The state and the normaliser of each split of split_len tokens.

    Args:
        query: weights, shares and stabilisers of queries, [B·H, N] each; None: x are keys.
    Returns: the state [splits, B·H, M, D] and the normaliser [splits, B·H, M]; where stabilised also maxima and the
        first token of the block of each [splits, B·H, m], and Σ values [splits, B·H, D].
    """
    b, h, n, d = x.shape
    tiles = sum_tiles(d, phi, x.dtype, key=query is None)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    parts, part_normalisers = empty(splits, b * h, phi.rows, d), empty(splits, b * h, phi.rows)
    maxima, places, part_totals = part_normalisers, part_normalisers, part_normalisers
    if stabilised:
        maxima = empty(splits, b * h, phi.count)
        places, part_totals = empty(splits, b * h, phi.count, dtype=torch.int32), empty(splits, b * h, d)
    programs = triton.cdiv(phi.count, tiles.constexprs["BLOCK_M"]) * triton.cdiv(d, tiles.constexprs["BLOCK_V"])
    accumulate_kernel[(b * h * splits * programs,)](
        x, values, *(query or (maxima, maxima, maxima)), omega, parts, part_normalisers, maxima, places, part_totals,
        h, n, phi.count, d, splits, split_len, *x.stride()[:3], *values.stride()[:3], phi.scale, phi.epsilon,
        KEY=query is None, STABILISED=stabilised, **tiles.options,
    )  # fmt: skip
    return parts, part_normalisers, maxima, places, part_totals


def answer(q: Tensor, omega: Tensor, sums: Sums, phi: FeatureMap, save: bool) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """y like q, and where `save`, per query: the denominator and the stabiliser, [B·H, N] each."""
    b, h, n, d = q.shape
    y = torch.empty_like(q)
    if y.stride(-1) != 1:
        y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    rows = (b * h, n) if save else (1,)
    denominators, stabilisers = (torch.empty(rows, dtype=torch.float32, device=q.device) for _ in range(2))
    tiles = answer_tiles(d, phi, q.dtype)
    programs = triton.cdiv(n, tiles.constexprs["BLOCK_N"]) * triton.cdiv(d, tiles.constexprs["BLOCK_V"])
    answer_kernel[(b * h * programs,)](
        q, omega, sums.rounded, sums.normaliser, sums.column_sums, y, denominators, stabilisers,
        h, n, phi.count, d, sums.column_sums.shape[1], *q.stride()[:3], *y.stride()[:3],
        phi.scale, phi.epsilon, phi.denominator,
        SAVE=save, EVEN=even(phi, tiles), **tiles.options,
    )  # fmt: skip
    return y, (denominators, stabilisers)


def query_gradients(
    q: Tensor, omega: Tensor, state: Tensor, normaliser: Tensor, y: Tensor, dy: Tensor, saved: list[Tensor],
    phi: FeatureMap,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq like q, and per query 1/δ and −(y·dy)/δ, [B·H, N] each."""
    b, h, n, d = q.shape
    dq = torch.empty_like(y)
    weights, shares = (torch.empty(b * h, n, dtype=torch.float32, device=q.device) for _ in range(2))
    tiles = gradient_tiles("query", d, phi, q.dtype)
    query_gradient_kernel[(b * h * triton.cdiv(n, tiles.constexprs["BLOCK_N"]),)](
        q, omega, state, normaliser, y, dy, *saved, dq, weights, shares, h, n, phi.count, d,
        *q.stride()[:3], *y.stride()[:3], *dy.stride()[:3], *dq.stride()[:3], phi.scale, phi.epsilon,
        EVEN=even(phi, tiles), **tiles.options,
    )  # fmt: skip
    return dq, weights, shares


def key_gradients(
    k: Tensor, v: Tensor, omega: Tensor, dstate: Tensor, dnormaliser: Tensor, stabiliser: Tensor, phi: FeatureMap
) -> tuple[Tensor, Tensor]:
    """dk and dv like k, without what the stabiliser's own gradient adds."""
    b, h, n, d = k.shape
    dk = torch.empty_like(k)
    if dk.stride(-1) != 1:
        dk = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    dv = torch.empty_like(dk)
    tiles = gradient_tiles("key", d, phi, k.dtype)
    key_gradient_kernel[(b * h * triton.cdiv(n, tiles.constexprs["BLOCK_N"]),)](
        k, v, omega, dstate, dnormaliser, stabiliser, dk, dv, h, n, phi.count, d,
        *k.stride()[:3], *v.stride()[:3], *dk.stride()[:3], phi.scale, phi.epsilon,
        EVEN=even(phi, tiles), **tiles.options,
    )  # fmt: skip
    return dk, dv


def take_from_largest(
    dk: Tensor, k: Tensor, omega: Tensor, sums: tuple[Tensor, ...], maxima: Tensor, places: Tensor, phi: FeatureMap
) -> None:
    """Adds in place what the stabiliser of the keys gets. sums: S, dS, z, dz and Σ v, as `largest_kernel` has them."""
    b, h, n, d = k.shape
    tiles = largest_tiles(d, sum_tiles(d, phi, k.dtype).constexprs["BLOCK_N"])
    largest_kernel[(b * h,)](
        k, omega, *sums, maxima, places, dk, h, n, phi.count, d, len(maxima), *k.stride()[:3], *dk.stride()[:3],
        phi.scale, phi.epsilon, **tiles.options,
    )  # fmt: skip


def configurations() -> Iterator[Configuration]:
    """Every default configuration: each map at D = 16 … 256 in bfloat16, float16 and float32 (TF32 or not)."""
    for features in FEATURES:
        for d in (16, 32, 64, 128, 256):
            count = d if features in ("elu", "softmax") else 64 if features == "fourier" else 256
            for dtype, compute in PRECISIONS:
                for capabilities in CAPABILITIES:
                    yield from _configurations(FeatureMap(features, count), d, dtype, compute, capabilities)


def _configurations(
    phi: FeatureMap, d: int, dtype: torch.dtype, compute: str, capabilities: tuple[int, ...]
) -> Iterator[Configuration]:
    types, capability = argument_types(dtype), capabilities[0]
    launches: list[tuple[Any, dict[str, Any], Tiles]] = []
    for key in (True, False):
        stabilised = key and phi.features in ("exp", "softmax")
        sums = sum_tiles(d, phi, dtype, compute, capability, key)
        launches.append((accumulate_kernel, {"KEY": key, "STABILISED": stabilised}, sums))
        if dtype != torch.float16 and compute == "tf32":  # it is the same for the others
            launches.append((combine_kernel, {}, combine_tiles(d, phi, stabilised)))
    answers = answer_tiles(d, phi, dtype, compute, capability)
    launches += [(answer_kernel, {"SAVE": save}, answers) for save in (False, True)]
    for name, kernel in (("query", query_gradient_kernel), ("key", key_gradient_kernel)):
        launches.append((kernel, {}, gradient_tiles(name, d, phi, dtype, compute, capability)))
    if phi.features == "exp":
        block_n = sum_tiles(d, phi, dtype, compute, capability).constexprs["BLOCK_N"]
        launches.append((largest_kernel, {}, largest_tiles(d, block_n)))
    sample = phi.features == "exp" and d == 32 and dtype == torch.bfloat16
    for kernel, flags, tiles in launches:
        configuration = configured(
            kernel, types, {**tiles.constexprs, **flags}, tiles, phi, d, dtype, compute, sample and capability == 90
        )
        yield replace(configuration, capabilities=capabilities)


def argument_types(dtype: torch.dtype) -> dict[str, str]:
    """Types of the kernels' arguments by name, for `signature`."""
    data = POINTER[dtype]
    tensors = dict.fromkeys(("x", "values", "omega", "q", "k", "v", "y", "dy", "dq", "dk", "dv"), data)
    parts = ("parts", "part_normalisers", "part_maxima", "part_totals")
    sums = (*parts, "state", "dstate", "normaliser", "maxima", "totals", "top", "column_sums")
    scans = ("prefix", "prefix_normaliser", "suffix", "suffix_normaliser", "along")
    tokens = ("weights", "shares", "stabilisers", "denominators", "dnormaliser")
    numbers = ("scale", "epsilon", "denominator_epsilon")
    wide = dict.fromkeys(sums + scans + tokens, "*fp32")
    rounded = data if dtype == torch.bfloat16 else "*fp32"
    return {**tensors, **wide, "rounded": rounded, **dict.fromkeys(numbers, "fp32"), "places": "*i32"}


def configured(
    kernel: Any,
    types: dict[str, str],
    constexprs: dict[str, Any],
    tiles: Tiles,
    phi: FeatureMap,
    d: int,
    dtype: torch.dtype,
    compute: str,
    sample: bool,
) -> Configuration:
    """A launch as a configuration. compute: the PRECISION of its products, for the label."""
    label = f"{phi.features} m={phi.count} D={d} {named(dtype, compute)}"
    names = signature(kernel, types)
    if "EVEN" in kernel.arg_names:
        constexprs = {**constexprs, "EVEN": even(phi, tiles)}
    multiples = (*strided(names), "features")
    return Configuration(
        kernel, names, constexprs, tiles.warps, tiles.stages, label, sample, multiples, registers=tiles.registers
    )
