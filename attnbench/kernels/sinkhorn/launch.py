"""Sinkhorn balancing of a matrix by its potentials, and blocks that attend to their own and to a sorted block.

Balancing. log S_ij = X_ij − u_i − v_j, so each of the 2T half steps reads X once and writes a vector:
u_i = log Σ_j exp(X_ij − v_j), v_j = log Σ_i exp(X_ij − u_i). Backward: the vectors of all steps are kept (2T of them,
no matrix); each half step again reads X once for the gradient of the vector before it, and one last pass adds every
step's share to dX.
Causal: columns are divided by running sums, which no vector holds, so each round reads a matrix and writes one.

Attention. One program per tile of a block, no copies joined: first the own block, then the sorted one, in one softmax.
Backward: a kernel for the queries, and one for the keys, run for the own blocks and for the sorted ones. No atomics:
results repeat bit by bit.

Precision: balancing in float32. Products in the working dtype, added up in float32; float32: TF32 where torch allows it
for matrix products (`torch.backends.cuda.matmul.allow_tf32`), else three TF32 products that make up a float32 one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
import triton
from torch import Tensor

from attnbench.kernels.building import Configuration, signature, strided
from attnbench.kernels.launching import (
    CAPABILITIES,
    POINTER,
    PRECISIONS,
    Tiles,
    named,
    operands_in_registers,
    precision,
)
from attnbench.kernels.sinkhorn.balance import (
    line_gradient_kernel,
    line_total_kernel,
    matrix_gradient_kernel,
    matrix_kernel,
)
from attnbench.kernels.sinkhorn.balance_so_far import (
    column_gradient_kernel,
    column_scan_kernel,
    row_gradient_kernel,
    row_total_kernel,
)
from attnbench.kernels.sinkhorn.block_pairs import attend_kernel, key_gradient_kernel, query_gradient_kernel
from attnbench.kernels.sorted_chunks.launch import Sizes, product_tiles

LINES = {"BLOCK_I": 16, "BLOCK_J": 64}
MATRIX = {"BLOCK_I": 16, "BLOCK_J": 64}
ROWS_SO_FAR = {"BLOCK_I": 8, "BLOCK_J": 128}
COLUMNS_SO_FAR = {"BLOCK_I": 64, "BLOCK_J": 32}
WARPS = 4


def balance(x: Tensor, iterations: int, rows: int, dtype: torch.dtype) -> Tensor:
    """The first rows of exp(x) after balancing rows, then columns; differentiable in x, once.

    Args:
        x: float32 [B, H, M, M] on a CUDA device.
        iterations: of balancing.
        rows: how many are returned.
        dtype: of the result.
    Returns: [B, H, rows, M].
    """
    s: Tensor = _Balance.apply(x.contiguous(), iterations, rows, dtype)
    return s


class _Balance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, iterations: int, rows: int, dtype: torch.dtype) -> Tensor:
        heads, size = x.shape[0] * x.shape[1], x.shape[-1]
        u = torch.empty(iterations, heads, size, dtype=torch.float32, device=x.device)
        v = torch.empty(iterations + 1, heads, size, dtype=torch.float32, device=x.device)
        v[0].zero_()
        grid = _lines_of(size, heads, LINES["BLOCK_I"])
        for step in range(iterations):
            line_total_kernel[grid](x, v[step], u[step], size, size, 1, **LINES, num_warps=WARPS)
            line_total_kernel[grid](x, u[step], v[step + 1], size, 1, size, **LINES, num_warps=WARPS)
        s = torch.empty(*x.shape[:2], rows, size, dtype=dtype, device=x.device)
        matrix_kernel[_tiles_of(rows, size, heads)](x, u[-1], v[-1], s, size, rows, **MATRIX, num_warps=WARPS)
        ctx.save_for_backward(x, u, v, s)
        return s

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, ds: Tensor) -> tuple[Tensor | None, ...]:
        x, u, v, s = ctx.saved_tensors
        iterations, heads, size = u.shape
        weighted = ds.float() * s  # [B, H, rows, M]
        du, dv = torch.zeros_like(u), torch.zeros_like(v)
        du[-1].view(*s.shape[:2], size)[..., : s.shape[2]] = -weighted.sum(dim=-1)
        dv[-1] = -weighted.sum(dim=-2).view(heads, size)
        grid = _lines_of(size, heads, LINES["BLOCK_I"])
        for step in reversed(range(iterations)):
            line_gradient_kernel[grid](
                x, u[step], v[step + 1], dv[step + 1], du[step], size, size, 1, **LINES, num_warps=WARPS
            )
            if step > 0:  # v₀ = 0 is no variable
                line_gradient_kernel[grid](
                    x, v[step], u[step], du[step], dv[step], size, 1, size, **LINES, num_warps=WARPS
                )
        dx = torch.empty_like(x)
        matrix_gradient_kernel[_tiles_of(size, size, heads)](
            x, weighted, u, v, du, dv, dx, heads, size, s.shape[2], iterations, **MATRIX, num_warps=WARPS
        )
        return dx, None, None, None


def balance_so_far(x: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
    """exp(x) after balancing rows, then columns by running sums, in the causal form; differentiable in x, once.

    Args:
        x: float32 [B, H, M, M] on a CUDA device; of row i, which sees the columns j ≤ i, the others are not read.
        iterations: of balancing.
        dtype: of the result.
    Returns: [B, H, M, M + 1], 0 where j > i; of a number of blocks that is a multiple of 8, as M + 1 is then, products
        are several times faster.
    """
    s: Tensor = _BalanceSoFar.apply(x.contiguous(), iterations, dtype)
    return s


class _BalanceSoFar(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
        heads, size = x.shape[0] * x.shape[1], x.shape[-1]
        s = torch.empty(*x.shape[:2], size, size + 1, dtype=dtype, device=x.device)
        matrices, totals = [x], []
        for step in range(iterations if size else 0):
            total = torch.empty(heads, size, dtype=torch.float32, device=x.device)
            balanced = torch.empty_like(x)
            row_total_kernel[_lines_of(size, heads, ROWS_SO_FAR["BLOCK_I"])](
                matrices[-1], total, size, **ROWS_SO_FAR, num_warps=WARPS
            )
            column_scan_kernel[_lines_of(size + 1, heads, COLUMNS_SO_FAR["BLOCK_J"])](
                matrices[-1], total, balanced, s, size,
                LAST=step == iterations - 1, **COLUMNS_SO_FAR, num_warps=WARPS,
            )  # fmt: skip
            matrices.append(balanced)
            totals.append(total)
        ctx.save_for_backward(s, *matrices, *totals)
        return s

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, ds: Tensor) -> tuple[Tensor | None, ...]:
        s, *saved = ctx.saved_tensors
        iterations = len(saved) // 2
        matrices, totals = saved[: iterations + 1], saved[iterations + 1 :]
        size, heads = s.shape[2], s.shape[0] * s.shape[1]
        gradient = ds[..., :size].float() * s[..., :size]
        for step in reversed(range(iterations)):
            column_gradient_kernel[_lines_of(size, heads, COLUMNS_SO_FAR["BLOCK_J"])](
                matrices[step], totals[step], matrices[step + 1], gradient, size, **COLUMNS_SO_FAR, num_warps=WARPS
            )
            row_gradient_kernel[_lines_of(size, heads, ROWS_SO_FAR["BLOCK_I"])](
                matrices[step], totals[step], gradient, size, FIRST=step == 0, **ROWS_SO_FAR, num_warps=WARPS
            )
        return gradient, None, None


def _lines_of(size: int, heads: int, block: int) -> tuple[int]:
    """The programs for `block` rows or columns of a matrix each."""
    return (triton.cdiv(size, block) * heads,)


def _tiles_of(rows: int, columns: int, heads: int) -> tuple[int]:
    return (triton.cdiv(rows, MATRIX["BLOCK_I"]) * triton.cdiv(columns, MATRIX["BLOCK_J"]) * heads,)


def attend(q: Tensor, k: Tensor, v: Tensor, sorted_k: Tensor, sorted_v: Tensor, block: int, causal: bool) -> Tensor:
    """Attention of every block's queries to the same block and to its sorted block, by q kᵀ/√D; differentiable once.

    Args:
        q, k, v: [B, H, N, D] on one CUDA device, D ≤ 256.
        sorted_k, sorted_v: [B, H, N_B, b, D]; causal: N_B − 1 blocks.
        block: b, the tokens of a block.
        causal: queries of block i see tokens of their block up to themselves, and sorted block i − 1 (block 0: none).
    Returns: [B, H, N, D].
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    y: Tensor = _Attention.apply(q, k, v, sorted_k.contiguous(), sorted_v.contiguous(), block, causal)
    return y


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sorted_k: Tensor, sorted_v: Tensor, block: int, causal: bool
    ) -> Tensor:
        b, h, n, d = q.shape
        y = torch.empty(b, h, n, d, dtype=v.dtype, device=v.device)
        total = torch.empty(b * h, n, dtype=torch.float32, device=v.device)
        tiles = attend_tiles(d, block, q.dtype)
        attend_kernel[(programs(n, block, tiles) * b * h,)](
            q, k, v, sorted_k, sorted_v, y, total, h, n, block, d,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], d**-0.5,
            CAUSAL=causal, PRECISION=precision(q.dtype), **tiles.options,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, sorted_k, sorted_v, y, total)
        ctx.block, ctx.causal = block, causal
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sorted_k, sorted_v, y, total = ctx.saved_tensors
        b, h, n, d = q.shape
        block, causal = ctx.block, ctx.causal
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        agreement = torch.empty_like(total)
        dq, dk, dv = (torch.empty(b, h, n, d, dtype=q.dtype, device=q.device) for _ in range(3))
        tiles = gradient_tiles(d, block, q.dtype)
        options = {"PRECISION": precision(q.dtype), **tiles.options}
        query_gradient_kernel[(programs(n, block, tiles) * b * h,)](
            q, k, v, sorted_k, sorted_v, y, dy, total, agreement, dq, h, n, block, d,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *dy.stride()[:3], d**-0.5, CAUSAL=causal, **options,
        )  # fmt: skip
        key_gradient_kernel[(programs(n, block, tiles) * b * h,)](
            q, k, v, dy, total, agreement, dk, dv, h, n, block, d,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *dy.stride()[:3], d**-0.5,
            CAUSAL=causal, SORTED=False, **options,
        )  # fmt: skip
        d_sorted_k, d_sorted_v = (torch.empty_like(x) for x in (sorted_k, sorted_v))
        sorted_blocks = sorted_k.shape[2]
        if sorted_blocks:
            strides = (h * sorted_blocks * block * d, sorted_blocks * block * d, d)
            key_gradient_kernel[(programs(sorted_blocks * block, block, tiles) * b * h,)](
                q, sorted_k, sorted_v, dy, total, agreement, d_sorted_k, d_sorted_v, h, n, block, d,
                *q.stride()[:3], *strides, *strides, *dy.stride()[:3], d**-0.5,
                CAUSAL=causal, SORTED=True, **options,
            )  # fmt: skip
        return dq, dk, dv, d_sorted_k, d_sorted_v, None, None


def programs(seq_len: int, block: int, tiles: Tiles) -> int:
    """Tiles of one head: blocks times tiles of a block."""
    return triton.cdiv(seq_len, block) * triton.cdiv(block, tiles.constexprs["BLOCK"])


def attend_tiles(
    head_dim: int, block: int, dtype: torch.dtype, compute: str | None = None, capability: int | None = None
) -> Tiles:
    """Of `attend_kernel`.

    Args:
        compute: PRECISION of its products; None: as torch is set.
        capability: as in `operands_in_registers`.
    """
    if operands_in_registers(capability):
        return product_tiles(ATTEND_IN_REGISTERS, block, head_dim, dtype, compute)
    return replace(product_tiles(ATTEND, block, head_dim, dtype, compute), stages=1 if dtype == torch.float32 else 2)


def gradient_tiles(
    head_dim: int, block: int, dtype: torch.dtype, compute: str | None = None, capability: int | None = None
) -> Tiles:
    """Of `query_gradient_kernel` and `key_gradient_kernel`. capability: as in `operands_in_registers`."""
    sizes = GRADIENT_IN_REGISTERS if operands_in_registers(capability) else GRADIENT
    return product_tiles(sizes, block, head_dim, dtype, compute)


ATTEND: Sizes = {
    "half": {16: (64, 4), 32: (64, 4), 64: (64, 4), 128: (64, 4), 256: (64, 8)},
    "tf32": {16: (64, 4), 32: (64, 4), 64: (32, 4), 128: (32, 8), 256: (16, 4)},
    "tf32x3": {16: (64, 4), 32: (32, 4), 64: (32, 4), 128: (32, 8), 256: (16, 4)},
}
ATTEND_IN_REGISTERS: Sizes = {**ATTEND, "half": {**ATTEND["half"], 64: (64, 8), 128: (64, 8)}}
GRADIENT_WIDE = {16: (32, 4), 32: (16, 2), 64: (16, 2), 128: (16, 4), 256: (16, 8)}
GRADIENT: Sizes = {
    "half": {16: (64, 4), 32: (64, 4), 64: (64, 4), 128: (64, 8), 256: (32, 8)},
    "tf32": GRADIENT_WIDE,
    "tf32x3": GRADIENT_WIDE,
}
GRADIENT_IN_REGISTERS: Sizes = {**GRADIENT, "half": {**GRADIENT["half"], 64: (32, 4)}}


def configurations() -> Iterator[Configuration]:
    """Every default configuration: blocks of 64, D = 16 … 256, each dtype (float32: TF32 or not), causal or not."""
    for d in (16, 32, 64, 128, 256):
        for dtype, compute in PRECISIONS:
            for causal, capabilities in product((False, True), CAPABILITIES):
                yield from _attention(causal, d, dtype, compute, capabilities)
    for output in ("*bf16", "*fp32"):
        yield from _balancing(output)


def _balancing(output: str) -> Iterator[Configuration]:
    so_far = {
        row_total_kernel: ({}, ROWS_SO_FAR),
        row_gradient_kernel: ({"FIRST": True}, ROWS_SO_FAR),
        column_scan_kernel: ({"LAST": True}, COLUMNS_SO_FAR),
        column_gradient_kernel: ({}, COLUMNS_SO_FAR),
    }
    for kernel in (line_total_kernel, line_gradient_kernel, matrix_kernel, matrix_gradient_kernel, *so_far):
        types = {p.name: "*fp32" for p in kernel.params if not p.is_constexpr}
        integers = dict.fromkeys(("size", "rows", "heads", "iterations", "line_stride", "along_stride"), "i32")
        types = {name: integers.get(name, output if name == "s" else kind) for name, kind in types.items()}
        sizes = LINES if kernel in (line_total_kernel, line_gradient_kernel) else MATRIX
        flags, sizes = so_far.get(kernel, ({}, sizes))
        yield Configuration(kernel, types, {**sizes, **flags}, WARPS, 3, output[1:], sample=output == "*bf16")


def _attention(
    causal: bool, d: int, dtype: torch.dtype, compute: str, capabilities: tuple[int, ...]
) -> Iterator[Configuration]:
    names = ("q", "k", "v", "sorted_k", "sorted_v", "y", "dy", "dq", "dk", "dv")
    types = {**dict.fromkeys(names, POINTER[dtype]), "total": "*fp32", "agreement": "*fp32", "scale": "fp32"}
    gradient = gradient_tiles(d, 64, dtype, compute, capabilities[0])
    launches: list[tuple[Any, dict[str, Any], Tiles]] = [
        (attend_kernel, {}, attend_tiles(d, 64, dtype, compute, capabilities[0])),
        (query_gradient_kernel, {}, gradient),
        (key_gradient_kernel, {"SORTED": False}, gradient),
        (key_gradient_kernel, {"SORTED": True}, gradient),
    ]
    label = f"b=64{' causal' if causal else ''} D={d} {named(dtype, compute)}"
    sample = d == 64 and dtype == torch.bfloat16 and not causal and 90 in capabilities
    for kernel, flags, tiles in launches:
        constexprs = {**tiles.constexprs, **flags, "CAUSAL": causal, "PRECISION": compute}
        types_of = signature(kernel, types)
        yield Configuration(
            kernel, types_of, constexprs, tiles.warps, tiles.stages, label, sample, strided(types_of), capabilities
        )
