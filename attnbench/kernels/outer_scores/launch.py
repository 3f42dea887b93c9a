"""Attention whose scores are an outer product of a token's own factors: score_ij = α_i,(j mod a) · β_i,⌊j/a⌋.

Synthesizer's factorised dense kind. N scores come from 2√N numbers of the query, so they are made in registers and no
score is ever in memory. Forward keeps the softmax as it goes (`attend_outer_kernel`) and its log-sum-exp for backward,
which makes the weights again: `outer_score_gradient_kernel` by queries for α and β, `outer_value_gradient_kernel` by
keys for v, two columns at a time. β, and α for the latter, are read with tokens last, so that a column is one piece of
memory. No atomics: results repeat bit by bit. Offsets in tokens are int64.

Precision: scores in float32, products in the working dtype, added up in float32. float32: TF32 where torch allows it
for matrix products (`torch.backends.cuda.matmul.allow_tf32`), else three TF32 products that make up a float32 one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from attnbench.kernels.building import Configuration, signature
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
from attnbench.kernels.outer_scores.device import (
    attend_outer_kernel,
    outer_score_gradient_kernel,
    outer_value_gradient_kernel,
)


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
        beta_t = tokens_last(beta)
        attend_outer_kernel[(triton.cdiv(n, tiles.constexprs["BLOCK_N"]) * b * h,)](
            alpha, beta_t, v, y, totals, n, alpha.shape[-1], beta.shape[-1], d,
            CAUSAL=causal, PRECISION=precision(v.dtype), **tiles.options,
        )  # fmt: skip
        ctx.save_for_backward(alpha, beta_t, v, y, totals)
        ctx.causal = causal
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        alpha, beta_t, v, y, totals = ctx.saved_tensors
        dy = dy.contiguous()
        agreements = (y.float() * dy.float()).sum(dim=-1)
        dalpha, dbeta = score_gradients(alpha, beta_t, v, dy, totals, agreements, ctx.causal)
        return dalpha, dbeta, value_gradients(tokens_last(alpha), beta_t, dy, totals, ctx.causal), None


def tokens_last(x: Tensor) -> Tensor:
    """[B, H, N, W] → [B, H, W, N], contiguous."""
    return x.transpose(-2, -1).contiguous()


def score_gradients(
    alpha: Tensor, beta_t: Tensor, v: Tensor, dy: Tensor, totals: Tensor, agreements: Tensor, causal: bool
) -> tuple[Tensor, Tensor]:
    """dα and dβ. totals, agreements: [B, H, N], the log₂-sum-exp and y·dy of each query."""
    b, h, n, d = v.shape
    width, columns = alpha.shape[-1], beta_t.shape[-2]
    tiles = score_tiles(width, d, v.dtype)
    dalpha = torch.empty_like(alpha)
    parts = triton.cdiv(width, tiles.constexprs["BLOCK_S"])
    dbeta_t = torch.empty(parts, *beta_t.shape, dtype=torch.float32, device=v.device)
    outer_score_gradient_kernel[(triton.cdiv(n, tiles.constexprs["BLOCK_N"]) * b * h,)](
        alpha, beta_t, v, dy, totals, agreements, dalpha, dbeta_t, n, width, columns, d,
        CAUSAL=causal, PRECISION=precision(v.dtype), **tiles.options,
    )  # fmt: skip
    return dalpha, (dbeta_t.sum(dim=0) * math.log(2)).to(beta_t.dtype).transpose(-2, -1)


def value_gradients(alpha_t: Tensor, beta_t: Tensor, dy: Tensor, totals: Tensor, causal: bool) -> Tensor:
    """dv, of dy's shape."""
    b, h, n, d = dy.shape
    width, columns = alpha_t.shape[-2], beta_t.shape[-2]
    tiles = key_tiles(width, d, dy.dtype, causal)
    dv = torch.empty_like(dy)
    programs = triton.cdiv(width, tiles.constexprs["BLOCK_S"]) * triton.cdiv(columns, 1 + tiles.constexprs["TWO"])
    outer_value_gradient_kernel[(programs * b * h,)](
        alpha_t, beta_t, dy, totals, dv, n, width, columns, d,
        CAUSAL=causal, PRECISION=precision(dy.dtype), **tiles.options,
    )  # fmt: skip
    return dv


def query_tiles(
    width: int, head_dim: int, dtype: torch.dtype, compute: str | None = None, capability: int | None = None
) -> Tiles:
    """Of `attend_outer_kernel`. Three TF32 products hold every operand twice, which leaves room for half as many keys.

    Args:
        compute: PRECISION of its products; None: as torch is set.
        capability: as in `generation`.
    """
    if dtype != torch.float32:
        rows = 64 if operands_in_registers(capability) else 128
        return Tiles({"BLOCK_N": rows, "BLOCK_S": min(64, padded(width)), "BLOCK_D": padded(head_dim)}, 8, 3)
    most = 16 if (compute or precision(dtype)) == "tf32x3" else 32
    return Tiles({"BLOCK_N": 64, "BLOCK_S": min(most, padded(width)), "BLOCK_D": padded(head_dim)}, 8, 1)


def score_tiles(
    width: int, head_dim: int, dtype: torch.dtype, compute: str | None = None, capability: int | None = None
) -> Tiles:
    """Of `outer_score_gradient_kernel`, which holds its queries' cotangents too. compute, capability: as above."""
    if padded(head_dim) <= 64 or (compute or precision(dtype)) != "tf32x3":
        return query_tiles(width, head_dim, dtype, compute, capability)
    return Tiles({"BLOCK_N": 16, "BLOCK_S": min(32, padded(width)), "BLOCK_D": padded(head_dim)}, 8, 1)


def key_tiles(width: int, head_dim: int, dtype: torch.dtype, causal: bool = False) -> Tiles:
    """Of `outer_value_gradient_kernel`: rows of scores are its keys. Causal has a loop more, and fewer stages."""
    block_d = padded(head_dim)
    if dtype == torch.float32:
        return Tiles({"BLOCK_N": 32, "BLOCK_S": min(64, padded(width)), "BLOCK_D": block_d, "TWO": False}, 8, 1)
    constexprs = {"BLOCK_N": 64, "BLOCK_S": min(128, padded(width)), "BLOCK_D": block_d, "TWO": block_d <= 64}
    return Tiles(constexprs, 8 if padded(width) >= 128 else 4, 2 if causal else 3)


def configurations() -> Iterator[Configuration]:
    """Every default configuration: a = 256, D = 16 … 128, full; bfloat16, float16, float32 (TF32 or not)."""
    for capabilities in CAPABILITIES:
        for d in (16, 32, 64, 128):
            for dtype, compute in PRECISIONS:
                yield from _configurations(d, dtype, compute, False, capabilities)
        yield from _configurations(64, torch.bfloat16, "tf32", True, capabilities)


def _configurations(
    d: int, dtype: torch.dtype, compute: str, causal: bool, capabilities: tuple[int, ...]
) -> Iterator[Configuration]:
    types = dict.fromkeys(("alpha", "alpha_t", "beta_t", "v", "y", "dy", "dalpha", "dv"), POINTER[dtype])
    types |= dict.fromkeys(("totals", "agreements", "dbeta_t"), "*fp32")
    label = f"D={d} {named(dtype, compute)}"
    for kernel, tiles in (
        (attend_outer_kernel, query_tiles(256, d, dtype, compute, capabilities[0])),
        (outer_score_gradient_kernel, score_tiles(256, d, dtype, compute, capabilities[0])),
        (outer_value_gradient_kernel, key_tiles(256, d, dtype, causal)),
    ):
        yield Configuration(
            kernel,
            signature(kernel, types),
            {**tiles.constexprs, "CAUSAL": causal, "PRECISION": compute},
            tiles.warps,
            tiles.stages,
            label + (" causal" if causal else ""),
            d == 64 and dtype == torch.bfloat16 and causal and 90 in capabilities,
            multiples=("seq_len", "width", "columns", "head_dim"),
            capabilities=capabilities,
        )
