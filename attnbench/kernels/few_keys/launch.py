"""y_i = Σ_m softmax_m(scale · q_iᵀ k_m) v_m for many queries and few keys.

Serves linformer and kao_kv. A flash backward gives each tile of keys to one program,
and with few keys most of a GPU stays idle: here the queries are split too, and the parts of dk and dv added up.

Layout. q: [B, H, N, D], or a map [B, C, h, w] seen as that, which is read and written as it lies; k, v: [B, H, M, D].
A forward program holds a tile of queries, and its weights for one tile of keys at a time: with M ≤ BLOCK_M that is the
whole softmax. Saved for the backward pass: y and the log-sum-exp of each query.

Backward, p the weights, δ_i = y_i·dy_i: ds = p ∘ (dy vᵀ − δ); dq = scale · ds k; dk = scale · dsᵀ q; dv = pᵀ dy.
Queries come first (`few_keys_query_gradient_kernel`, which writes δ), then keys (`few_keys_key_gradient_kernel`).

Precision. Half precisions: products of them, weights rounded to them, sums in float32. float32: TF32 where torch allows
it for matrix products (`torch.backends.cuda.matmul.allow_tf32`), else three TF32 products that make up a float32 one.
Offsets of tiles are int64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from attnbench.grouped import folded, unfolded
from attnbench.kernels.building import Configuration, signature, strided
from attnbench.kernels.few_keys.device import (
    few_keys_forward_kernel,
    few_keys_key_gradient_kernel,
    few_keys_query_gradient_kernel,
)
from attnbench.kernels.launching import (
    CAPABILITIES,
    POINTER,
    PRECISIONS,
    Tiles,
    named,
    operands_in_registers,
    padded,
    precision,
)
from attnbench.kernels.support import MAX_EXACT_DIM, MAX_HEAD_DIM

PROGRAMS = 512
"""About how many programs the queries are split into: enough for 132 multiprocessors to be evenly loaded."""

MAX_SPLITS = 64


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of every query to the keys, differentiable once.

    Args:
        q: [B, H, N, D] on a CUDA device, D ≤ 256.
        k, v: [B, Hk, M, D]: the queries of a group of heads are rows of one.
        scale: factor of the logits.
    Returns: [B, H, N, D].
    """
    queries, q = q, folded(q, k)
    if q.stride(-1) != 1 and not (q.stride(-2) == 1 and q.shape[-1] <= MAX_MAP_DIM and q.dtype != torch.float32):
        q = q.contiguous()
    save = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    return unfolded(_FewKeys.apply(q, k.contiguous(), v.contiguous(), scale, save), queries)


class _FewKeys(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, save: bool) -> Tensor:
        b, h, n, d = q.shape
        y = torch.empty_like(q)
        lse = torch.empty((b * h, n) if save else (1,), dtype=torch.float32, device=q.device)
        tiles = tiles_of("forward", q)
        few_keys_forward_kernel[(b * h * triton.cdiv(n, tiles.constexprs["BLOCK_N"]),)](
            q, k, v, y, lse, h, n, k.shape[2], d, *q.stride(), *y.stride(), scale * math.log2(math.e),
            SAVE=save, **tiles.options,
        )  # fmt: skip
        if save:
            ctx.save_for_backward(q, k, v, y, lse)
            ctx.scale = scale
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, lse = ctx.saved_tensors
        dq, delta = query_gradients(q, k, v, y, dy, lse, ctx.scale)
        dk, dv = key_gradients(q, k, v, dy, lse, delta, ctx.scale)
        return dq, dk, dv, None, None


def query_gradients(
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, dy: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """dq like q, and δ [B·H, N]."""
    b, h, n, d = q.shape
    dq, delta = torch.empty_like(q), torch.empty_like(lse)
    tiles = tiles_of("query_gradient", q)
    few_keys_query_gradient_kernel[(b * h * triton.cdiv(n, tiles.constexprs["BLOCK_N"]),)](
        q, k, v, y, dy, lse, dq, delta, h, n, k.shape[2], d,
        *q.stride(), *y.stride(), *dy.stride(), *dq.stride(), scale, scale * math.log2(math.e),
        **tiles.options,
    )  # fmt: skip
    return dq, delta


def key_gradients(
    q: Tensor, k: Tensor, v: Tensor, dy: Tensor, lse: Tensor, delta: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """dk and dv like k."""
    b, h, n, d = q.shape
    m = k.shape[2]
    tiles = tiles_of("key_gradient", q)
    block = tiles.constexprs["BLOCK_N"]
    programs = b * h * triton.cdiv(m, tiles.constexprs["BLOCK_M"])
    splits = max(1, min(MAX_SPLITS, PROGRAMS // programs, triton.cdiv(n, 2 * block)))
    split_len = triton.cdiv(triton.cdiv(n, splits), block) * block
    dk, dv = (torch.empty(splits, *k.shape, dtype=torch.float32, device=k.device) for _ in range(2))
    few_keys_key_gradient_kernel[(programs * splits,)](
        q, k, v, dy, lse, delta, dk, dv, h, n, m, d, splits, split_len,
        *q.stride(), *dy.stride(), scale, scale * math.log2(math.e),
        **tiles.options,
    )  # fmt: skip
    return dk.sum(dim=0).to(k.dtype), dv.sum(dim=0).to(v.dtype)


def tiles_of(kernel: str, q: Tensor) -> Tiles:
    """Of "forward", "query_gradient" or "key_gradient", for q as it lies."""
    return _tiles(kernel, q.shape[-1], q.dtype, precision(q.dtype), q.stride(-1) != 1)


def _tiles(
    kernel: str, head_dim: int, dtype: torch.dtype, compute: str, as_map: bool, capability: int | None = None
) -> Tiles:
    block_d = padded(head_dim)
    column = max(0, block_d.bit_length() - 6)  # 0 for 16 and 32, then 1 for 64, 2 for 128, 3 for 256
    half = "map" if as_map else "half in registers" if operands_in_registers(capability) else "half"
    block_n, block_m, warps, stages = SIZES[kernel, compute if dtype == torch.float32 else half][column]
    sizes = {"BLOCK_N": block_n, "BLOCK_M": block_m, "BLOCK_D": block_d}
    products = {"COMPUTE": COMPUTE[dtype], "PRECISION": compute}
    return Tiles({**sizes, **products}, warps, stages)


SIZES: dict[tuple[str, str], tuple[tuple[int, int, int, int], ...]] = {
    ("forward", "half"): ((128, 64, 8, 3), (128, 64, 8, 3), (128, 64, 8, 2), (64, 32, 8, 2)),
    ("forward", "half in registers"): ((128, 64, 4, 2), (128, 64, 8, 2), (128, 64, 8, 2), (64, 32, 8, 2)),
    ("forward", "map"): ((128, 64, 8, 2), (128, 64, 8, 2)),
    ("forward", "tf32"): ((128, 64, 8, 2), (128, 64, 8, 2), (64, 32, 4, 2), (32, 32, 8, 2)),
    ("forward", "tf32x3"): ((64, 32, 8, 2), (32, 32, 8, 2), (32, 32, 8, 2)),
    ("query_gradient", "half"): ((128, 64, 8, 2), (128, 64, 8, 2), (128, 32, 8, 2), (32, 64, 8, 1)),
    ("query_gradient", "half in registers"): ((64, 64, 4, 1), (64, 64, 8, 1), (64, 32, 8, 1), (32, 32, 8, 1)),
    ("query_gradient", "map"): ((128, 64, 8, 2), (128, 32, 8, 1)),
    ("query_gradient", "tf32"): ((64, 32, 4, 1), (32, 32, 8, 1), (32, 32, 8, 1), (32, 32, 8, 1)),
    ("query_gradient", "tf32x3"): ((32, 32, 4, 1), (32, 32, 8, 1), (16, 16, 8, 1)),
    ("key_gradient", "half"): ((64, 128, 8, 2), (64, 128, 8, 2), (32, 128, 8, 1), (32, 32, 8, 1)),
    ("key_gradient", "half in registers"): ((32, 128, 8, 2), (32, 128, 8, 1), (32, 64, 8, 1), (32, 32, 8, 1)),
    ("key_gradient", "map"): ((64, 128, 8, 1), (32, 128, 8, 1)),
    ("key_gradient", "tf32"): ((64, 64, 4, 1), (32, 32, 8, 1), (32, 32, 4, 1), (16, 32, 8, 1)),
    ("key_gradient", "tf32x3"): ((16, 32, 4, 1), (16, 32, 8, 1), (16, 16, 8, 1)),
}
"""BLOCK_N, BLOCK_M, warps and stages by kernel and products, for D up to 32, 64, 128 and 256; "map": half precision on
a map; "in registers": on GPUs whose products read operands from there.

About the largest that spill nothing from sm_80 to sm_100 (`make kernels`); half precision with 64 rows of a product for
each four warps where they fit, as wgmma needs. A tile of a map is read across its channels, which takes twice the
registers: in float32, or with more than 64 channels per head, a map is copied to tokens first.
"""

MAX_MAP_DIM = 64


COMPUTE = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def configurations() -> Iterator[Configuration]:
    """D = 16 … 256 in bfloat16, float16 and float32 (TF32 or not), by tokens and as a map."""
    for d in (16, 32, 64, 128, 256):
        for dtype, compute in PRECISIONS:
            if d > (MAX_EXACT_DIM if compute == "tf32x3" else MAX_HEAD_DIM):
                continue
            layouts = ("tokens", "map") if dtype != torch.float32 and d <= MAX_MAP_DIM else ("tokens",)
            for layout, capabilities in product(layouts, CAPABILITIES):
                yield from _configurations(d, dtype, compute, layout, capabilities)


def _configurations(
    d: int, dtype: torch.dtype, compute: str, layout: str, capabilities: tuple[int, ...]
) -> Iterator[Configuration]:
    tensors = dict.fromkeys(("q", "k", "v", "y", "dy", "dq"), POINTER[dtype])
    floats = ("lse", "delta", "dk", "dv")
    types = {**tensors, **dict.fromkeys(floats, "*fp32"), "scale": "fp32", "scale_log2": "fp32"}
    for which, kernel in KERNELS.items():
        tiles = _tiles(which, d, dtype, compute, layout == "map", capabilities[0])
        all_types = signature(kernel, types)
        suffix = "_n" if layout == "map" else "_d"  # of the strides that are 1, for which the launcher specialises
        unit = [stride for stride in all_types if len(stride) == 3 and stride.endswith(suffix)]
        argument_types = {arg: kind for arg, kind in all_types.items() if arg not in unit}
        constexprs = {**tiles.constexprs, **dict.fromkeys(unit, 1)}
        if which == "forward":
            constexprs["SAVE"] = True
        label = f"D={d} {named(dtype, compute)} {layout}"
        sample = d == 64 and dtype == torch.bfloat16 and 90 in capabilities
        multiples = strided(argument_types) if layout != "map" else ()
        yield Configuration(
            kernel, argument_types, constexprs, tiles.warps, tiles.stages, label, sample, multiples, capabilities
        )


KERNELS = {
    "forward": few_keys_forward_kernel,
    "query_gradient": few_keys_query_gradient_kernel,
    "key_gradient": few_keys_key_gradient_kernel,
}
