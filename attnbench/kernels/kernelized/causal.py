"""y_i = φ(q_i)ᵀ S_i / (φ(q_i)ᵀ z_i + ε) with S_i = Σ_{j≤i} φ(k_j) v_jᵀ and z_i = Σ_{j≤i} φ(k_j), the feature map fused.

Serves linear_transformer, performer and (without the gate) rfa in the causal form. The tokens are cut into segments
that run side by side, and a segment into chunks that run one after another. First the sums of each segment are taken
(`accumulate_kernel`) and added up to the state before each; then a program carries that state through its segment
(`scan_answer_kernel`), scoring the pairs within each chunk. There is one state per segment, and no feature is written.

Layout and precision as in `full`. No maximum over keys is taken (φ of a key is exp(a) + ε): nothing looks ahead.

Backward. With δ_i the denominator, c_i = y_i·dy_i, and P_ij = (v_j·dy_i − c_i) / δ_i for j ≤ i, else 0:
  dφ(q_i) = Σ_j P_ij φ(k_j)          the same scan: earlier segments and chunks through S and z, the chunk through P
  dφ(k_j) = Σ_i P_ij φ(q_i)          a scan from the end, with Σ_{i>j} φ(q_i) dy_iᵀ/δ_i and −Σ_{i>j} φ(q_i) c_i/δ_i
  dv_j = Σ_i (φ(q_i)ᵀφ(k_j)) dy_i / δ_i     in that scan too
Where D needs several tiles of value channels, programs share them, and the parts of dq and dk that each brings are
added up in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from attnbench.kernels.building import Configuration
from attnbench.kernels.kernelized.full import PROGRAMS, accumulate, argument_types, configured
from attnbench.kernels.kernelized.scan import scan_answer_kernel
from attnbench.kernels.kernelized.scan_gradients import scan_key_gradient_kernel, scan_query_gradient_kernel
from attnbench.kernels.kernelized.tiles import FeatureMap, scan_tiles, sum_tiles
from attnbench.kernels.launching import CAPABILITIES, PRECISIONS


def attend_causally(q: Tensor, k: Tensor, v: Tensor, phi: FeatureMap, omega: Tensor | None = None) -> Tensor:
    """Kernelized attention over the keys j ≤ i; differentiable in q, k and v, once.

    Args:
        q, k, v: [B, H, N, D] on one CUDA device, D ≤ 256.
        phi: the feature map, not softmax.
        omega: [m, D], for relu, exp and fourier; None: the map has none.
    Returns: [B, H, N, D].
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    save = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    return _Attention.apply(q, k, v, q if omega is None else omega.contiguous(), phi, save)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, omega: Tensor, phi: FeatureMap, save: bool) -> Tensor:
        b, h, n, d = q.shape
        segments, length = cut(b * h, n, d, phi, q.dtype)
        parts, part_normalisers, *_ = accumulate(k, v, omega, phi, None, segments, length, False)
        prefix, prefix_normaliser = before(parts), before(part_normalisers)
        y = torch.empty(q.shape, dtype=q.dtype, device=q.device) if q.stride(-1) != 1 else torch.empty_like(q)
        rows = (b * h, n) if save else (1,)
        denominators, stabilisers = (torch.empty(rows, dtype=torch.float32, device=q.device) for _ in range(2))
        places = torch.empty(rows if phi.features == "exp" else (1,), dtype=torch.int32, device=q.device)
        tiles = scan_tiles("answer", d, phi, q.dtype)
        shares_of_v = triton.cdiv(d, tiles.constexprs["BLOCK_V"])
        state = prefix.clone() if save else prefix
        scan_answer_kernel[(b * h * segments * shares_of_v,)](
            q, k, v, omega, state, prefix_normaliser.repeat(shares_of_v, 1, 1, 1), y, denominators, stabilisers, places,
            h, n, phi.count, d, segments, length,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *y.stride()[:3], phi.scale, phi.epsilon,
            phi.denominator, SAVE=save, **tiles.options,
        )  # fmt: skip
        if save:
            ctx.save_for_backward(q, k, v, omega, y, prefix, prefix_normaliser, denominators, stabilisers, places)
            ctx.phi, ctx.cut = phi, (segments, length)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, omega, y, prefix, prefix_normaliser, *saved = ctx.saved_tensors
        denominators, stabilisers, _ = saved
        phi: FeatureMap = ctx.phi
        segments, length = ctx.cut
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        b, h, n, d = q.shape
        tiles = scan_tiles("query", d, phi, q.dtype)
        shares_of_v = triton.cdiv(d, tiles.constexprs["BLOCK_V"])
        along = torch.empty(shares_of_v, b * h, n, dtype=torch.float32, device=q.device)
        dq_parts = parts_of(q, shares_of_v)
        scan_query_gradient_kernel[(b * h * segments * shares_of_v,)](
            q, k, v, omega, prefix.clone(), prefix_normaliser.repeat(shares_of_v, 1, 1, 1), y, dy, *saved,
            dq_parts, along, h, n, phi.count, d, segments, length,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *y.stride()[:3], *dy.stride()[:3],
            *dq_parts.stride()[:4], phi.scale, phi.epsilon,
            **tiles.options,
        )  # fmt: skip
        weights = denominators.reciprocal()
        shares = -along.sum(dim=0) * weights
        sums, sum_normalisers, *_ = accumulate(
            q, dy, omega, phi, (weights, shares, stabilisers), segments, length, False
        )
        tiles = scan_tiles("key", d, phi, q.dtype)
        shares_of_v = triton.cdiv(d, tiles.constexprs["BLOCK_V"])
        dk_parts = parts_of(k, shares_of_v)
        dv = torch.empty_like(dk_parts[0], dtype=v.dtype)
        scan_key_gradient_kernel[(b * h * segments * shares_of_v,)](
            q, k, v, omega, after(sums), after(sum_normalisers).repeat(shares_of_v, 1, 1, 1), dy, weights, shares,
            stabilisers, dk_parts, dv, h, n, phi.count, d, segments, length,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            *dy.stride()[:3], *dk_parts.stride()[:4], *dv.stride()[:3], phi.scale, phi.epsilon,
            **tiles.options,
        )  # fmt: skip
        return added(dq_parts, q.dtype), added(dk_parts, k.dtype), dv, None, None, None


def cut(heads: int, n: int, d: int, phi: FeatureMap, dtype: torch.dtype) -> tuple[int, int]:
    """How many segments of how many tokens: about PROGRAMS programs, four blocks or more to each."""
    sizes = [scan_tiles(kernel, d, phi, dtype).constexprs for kernel in ("answer", "query", "key")]
    block = max(sum_tiles(d, phi, dtype).constexprs["BLOCK_N"], *(size["BLOCK_N"] for size in sizes))
    programs = heads * triton.cdiv(d, sizes[0]["BLOCK_V"])
    segments = max(1, min(PROGRAMS // programs, triton.cdiv(n, 4 * block)))
    length = triton.cdiv(triton.cdiv(n, segments), block) * block
    return triton.cdiv(n, length), length


def before(parts: Tensor) -> Tensor:
    """The sum of all segments before each: [segments, …], first 0."""
    sums = torch.zeros_like(parts)
    torch.cumsum(parts[:-1], dim=0, out=sums[1:])
    return sums


def after(parts: Tensor) -> Tensor:
    """The sum of all segments after each: [segments, …], last 0."""
    return before(parts.flip(0)).flip(0)


def parts_of(x: Tensor, count: int) -> Tensor:
    """Room for `count` parts of the gradient of x: in its own dtype where there is one, else in float32."""
    return torch.empty((count, *x.shape), dtype=x.dtype if count == 1 else torch.float32, device=x.device)


def added(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of the parts."""
    return parts[0] if parts.shape[0] == 1 else parts.sum(dim=0).to(dtype)


def configurations() -> Iterator[Configuration]:
    """Every default configuration, as in `full`; fourier with 64 frequencies, rfa's default."""
    for features, count in (("elu", 0), ("relu", 256), ("exp", 256), ("fourier", 64)):
        for d in (16, 32, 64, 128, 256):
            for dtype, compute in PRECISIONS:
                for capabilities in CAPABILITIES:
                    yield from _configurations(FeatureMap(features, count or d), d, dtype, compute, capabilities)


def _configurations(
    phi: FeatureMap, d: int, dtype: torch.dtype, compute: str, capabilities: tuple[int, ...]
) -> Iterator[Configuration]:
    sample = phi.features == "exp" and d == 32 and dtype == torch.bfloat16 and 90 in capabilities
    for kernel, name in (
        (scan_answer_kernel, "answer"),
        (scan_query_gradient_kernel, "query"),
        (scan_key_gradient_kernel, "key"),
    ):
        tiles = scan_tiles(name, d, phi, dtype, compute, capabilities[0])
        types = argument_types(dtype)
        if triton.cdiv(d, tiles.constexprs["BLOCK_V"]) > 1:
            types |= {"dq": "*fp32", "dk": "*fp32"}
        constexprs = {**tiles.constexprs, "SAVE": True} if name == "answer" else tiles.constexprs
        configuration = configured(kernel, types, constexprs, tiles, phi, d, dtype, compute, sample)
        yield replace(configuration, capabilities=capabilities)
