"""Attention whose scores are an outer product of a token's own factors: score_ij = α_i,(j mod a) · β_i,⌊j/a⌋.

Synthesizer's factorised dense kind. N scores come from 2√N numbers of the query, so they are made in registers and no
score is ever in memory. Forward keeps the softmax as it goes (`attend_outer_kernel`) and its log-sum-exp for backward,
which makes the weights again: `outer_score_gradient_kernel` by queries for α and β, `outer_value_gradient_kernel` by
keys for v. No atomics: results repeat bit by bit. Offsets in tokens are int64.

Precision: scores in float32, products in the working dtype, added up in float32. float32: TF32 where torch allows it
for matrix products (`torch.backends.cuda.matmul.allow_tf32`), else three TF32 products that make up a float32 one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from attnbench.kernels.building import Configuration, signature
from attnbench.kernels.launching import POINTER, PRECISIONS, Tiles, named, padded, precision
from attnbench.kernels.outer_scores.device import (
    attend_outer_kernel,
    outer_score_gradient_kernel,
    outer_value_gradient_kernel,
)

STAGES = 1
"""More would hold addresses in registers that are needed."""


def attend(alpha: Tensor, beta: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attention with the scores α_i,(j mod a) · β_i,⌊j/a⌋; differentiable in all tensors, once.

    Args:
        alpha: [B, H, N, a] on one CUDA device.
        beta: [B, H, N, t], a·t ≥ N.
        v: [B, H, N, D], D ≤ 128.
        causal: whether only over j ≤ i.
    Returns: [B, H, N, D].
    """
    y: Tensor = _Attention.apply(*(x.contiguous() for x in (alpha, beta, v)), causal)
    return y


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, alpha: Tensor, beta: Tensor, v: Tensor, causal: bool) -> Tensor:
        b, h, n, d = v.shape
        y = torch.empty_like(v)
        totals = torch.empty(b, h, n, dtype=torch.float32, device=v.device)
        tiles = query_tiles(alpha.shape[-1], d, v.dtype)
        attend_outer_kernel[(triton.cdiv(n, tiles.constexprs["BLOCK_N"]) * b * h,)](
            alpha, beta, v, y, totals, n, alpha.shape[-1], beta.shape[-1], d,
            CAUSAL=causal, PRECISION=precision(v.dtype), **tiles.options,
        )  # fmt: skip
        ctx.save_for_backward(alpha, beta, v, y, totals)
        ctx.causal = causal
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        alpha, beta, v, y, totals = ctx.saved_tensors
        dy = dy.contiguous()
        agreements = (y.float() * dy.float()).sum(dim=-1)
        dalpha, dbeta = score_gradients(alpha, beta, v, dy, totals, agreements, ctx.causal)
        return dalpha, dbeta, value_gradients(alpha, beta, dy, totals, ctx.causal), None


def score_gradients(
    alpha: Tensor, beta: Tensor, v: Tensor, dy: Tensor, totals: Tensor, agreements: Tensor, causal: bool
) -> tuple[Tensor, Tensor]:
    """dα and dβ. totals, agreements: [B, H, N], the log-sum-exp and y·dy of each query."""
    b, h, n, d = v.shape
    width, columns = alpha.shape[-1], beta.shape[-1]
    tiles = score_tiles(width, d, v.dtype)
    dalpha = torch.empty_like(alpha)
    parts = triton.cdiv(width, tiles.constexprs["BLOCK_S"])
    dbeta = torch.empty(parts, *beta.shape, dtype=torch.float32, device=v.device)
    outer_score_gradient_kernel[(triton.cdiv(n, tiles.constexprs["BLOCK_N"]) * b * h,)](
        alpha, beta, v, dy, totals, agreements, dalpha, dbeta, n, width, columns, d,
        CAUSAL=causal, PRECISION=precision(v.dtype), **tiles.options,
    )  # fmt: skip
    return dalpha, dbeta.sum(dim=0).to(beta.dtype)


def value_gradients(alpha: Tensor, beta: Tensor, dy: Tensor, totals: Tensor, causal: bool) -> Tensor:
    """dv, of dy's shape."""
    b, h, n, d = dy.shape
    width, columns = alpha.shape[-1], beta.shape[-1]
    tiles = key_tiles(width, d, dy.dtype)
    dv = torch.empty_like(dy)
    outer_value_gradient_kernel[(triton.cdiv(width, tiles.constexprs["BLOCK_S"]) * columns * b * h,)](
        alpha, beta, dy, totals, dv, n, width, columns, d,
        CAUSAL=causal, PRECISION=precision(dy.dtype), **tiles.options,
    )  # fmt: skip
    return dv


def query_tiles(width: int, head_dim: int, dtype: torch.dtype, compute: str | None = None) -> Tiles:
    """Of `attend_outer_kernel`. compute: PRECISION of its products; None: as torch is set. Three TF32 products hold
    every operand twice, which leaves room for half as many keys."""
    most = 16 if (compute or precision(dtype)) == "tf32x3" else 32
    return Tiles({"BLOCK_N": 64, "BLOCK_S": min(most, padded(width)), "BLOCK_D": padded(head_dim)}, 8, STAGES)


def score_tiles(width: int, head_dim: int, dtype: torch.dtype, compute: str | None = None) -> Tiles:
    """Of `outer_score_gradient_kernel`, which holds its queries' cotangents too. compute: as above."""
    if padded(head_dim) <= 64 or (compute or precision(dtype)) != "tf32x3":
        return query_tiles(width, head_dim, dtype, compute)
    return Tiles({"BLOCK_N": 16, "BLOCK_S": min(32, padded(width)), "BLOCK_D": padded(head_dim)}, 8, STAGES)


def key_tiles(width: int, head_dim: int, dtype: torch.dtype) -> Tiles:
    """Of `outer_value_gradient_kernel`."""
    block_n, most = (32, 64) if dtype == torch.float32 else (64, 32)
    return Tiles({"BLOCK_N": block_n, "BLOCK_S": min(most, padded(width)), "BLOCK_D": padded(head_dim)}, 8, STAGES)


def configurations() -> Iterator[Configuration]:
    """Every default configuration: a = 64, D = 16 … 128, full; bfloat16, float16, float32 (TF32 or not)."""
    for d in (16, 32, 64, 128):
        for dtype, compute in PRECISIONS:
            yield from _configurations(d, dtype, compute, causal=False)
    yield from _configurations(64, torch.bfloat16, "tf32", causal=True)


def _configurations(d: int, dtype: torch.dtype, compute: str, causal: bool) -> Iterator[Configuration]:
    types = dict.fromkeys(("alpha", "beta", "v", "y", "dy", "dalpha", "dv"), POINTER[dtype])
    types |= dict.fromkeys(("totals", "agreements", "dbeta"), "*fp32")
    label = f"D={d} {named(dtype, compute)}"
    for kernel, tiles in (
        (attend_outer_kernel, query_tiles(64, d, dtype, compute)),
        (outer_score_gradient_kernel, score_tiles(64, d, dtype, compute)),
        (outer_value_gradient_kernel, key_tiles(64, d, dtype)),
    ):
        constexprs = {**tiles.constexprs, "CAUSAL": causal, "PRECISION": compute}
        sample = d == 64 and dtype == torch.bfloat16 and causal
        yield Configuration(
            kernel,
            signature(kernel, types),
            constexprs,
            tiles.warps,
            tiles.stages,
            label + (" causal" if causal else ""),
            sample,
        )
