"""y_i = φ(q_i)ᵀ S_i / (φ(q_i)ᵀ z_i + ε) with S_i = Σ_{j≤i} φ(k_j) v_jᵀ and z_i = Σ_{j≤i} φ(k_j), the feature map fused.

Serves linear_transformer, performer and (without the gate) rfa in the causal form. The tokens are cut into chunks, and
these into segments. The state before each chunk is written once: of its segment by `chunk_states_kernel`, of all
segments before by `segment_sums_kernel`. Then every block of queries is a program of its own (`chunk_answer_kernel`),
which scores the pairs within the chunk and takes all tokens before it from the two states. No feature is written, and
no launch reads what it writes. Where a program can keep the state (`walk_tiles`), it goes through the chunks of a
segment and answers each from it (`walk_kernel`). Gradients go the first way, the keys' with states of the queries after
each chunk.

Layout and precision as in `full`. No maximum over keys is taken (φ of a key is exp(a) + ε): nothing looks ahead.

Backward. With δ_i the denominator, c_i = y_i·dy_i, and P_ij = (v_j·dy_i − c_i) / δ_i for j ≤ i, else 0:
  dφ(q_i) = Σ_j P_ij φ(k_j)          the same scan: earlier segments and chunks through S and z, the chunk through P
  dφ(k_j) = Σ_i P_ij φ(q_i)          a scan from the end, with Σ_{i>j} φ(q_i) dy_iᵀ/δ_i and −Σ_{i>j} φ(q_i) c_i/δ_i
  dv_j = Σ_i (φ(q_i)ᵀφ(k_j)) dy_i / δ_i     in that scan too
Where D needs several tiles of value channels, programs share them, and the parts of dq and dk that each brings are
added up in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from attnbench.kernels.building import Configuration
from attnbench.kernels.kernelized.full import WARPS, accumulate, argument_types, configured
from attnbench.kernels.kernelized.scan import chunk_answer_kernel, chunk_states_kernel, segment_sums_kernel
from attnbench.kernels.kernelized.scan_gradients import chunk_key_gradient_kernel, chunk_query_gradient_kernel
from attnbench.kernels.kernelized.tiles import FeatureMap, even, scan_tiles, state_tiles, walk_tiles
from attnbench.kernels.kernelized.walk import walk_kernel
from attnbench.kernels.launching import CAPABILITIES, PRECISIONS, Tiles

LEAST_CHUNKS = 4
"""Of a segment, but for the last one."""

SUMMED = 128
"""Elements of the state that a program of `segment_sums_kernel` adds up over the segments."""


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
        tiles = walk_tiles(q.shape[-1], phi, q.dtype)
        if tiles is not None:
            y, saved, states = walk(q, k, v, omega, phi, tiles, save)
        else:
            states = chunk_states(k, v, omega, phi, None)
            y, saved = answer(q, k, v, omega, states, phi, save)
        if save:
            ctx.save_for_backward(q, k, v, omega, y, *saved, *states)
            ctx.phi = phi
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, omega, y, denominators, stabilisers, places, *states = ctx.saved_tensors
        phi: FeatureMap = ctx.phi
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        dq, weights, shares = query_gradients(q, k, v, omega, states, y, dy, (denominators, stabilisers, places), phi)
        query = weights, shares, stabilisers
        dk, dv = key_gradients(q, k, v, omega, chunk_states(q, dy, omega, phi, query), dy, query, phi)
        return dq, dk, dv, None, None, None


def chunk_states(
    x: Tensor, values: Tensor, omega: Tensor, phi: FeatureMap, query: tuple[Tensor, Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The state before each chunk of keys; of queries, after it.

    Args:
        query: weights, shares and stabilisers of queries, [B·H, N] each; None: x are keys.
    Returns: of the tokens of its segment: the state [chunks, B·H, M, D] and the normaliser [chunks, B·H, M]; of all
        segments before (after): the state [segments, B·H, M, D] and the normaliser [segments, B·H, M].
    """
    b, h, n, d = x.shape
    tiles = state_tiles(d, phi, x.dtype, key=query is None)
    sizes = tiles.constexprs
    programs = b * h * triton.cdiv(phi.count, sizes["BLOCK_M"]) * triton.cdiv(d, sizes["BLOCK_V"])
    chunks = triton.cdiv(n, sizes["CHUNK"])
    segments = segments_of(chunks, programs * tiles.warps * phi.rows // phi.count)
    segment_chunks = triton.cdiv(chunks, segments)
    dtype = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
    states = torch.empty(chunks, b * h, phi.rows, d, dtype=dtype, device=x.device)
    normalisers = torch.empty(chunks, b * h, phi.rows, dtype=torch.float32, device=x.device)
    segment_states = torch.empty(segments, b * h, phi.rows, d, dtype=torch.float32, device=x.device)
    segment_normalisers = torch.empty(segments, b * h, phi.rows, dtype=torch.float32, device=x.device)
    chunk_states_kernel[(programs * segments,)](
        x, values, *(query or (normalisers,) * 3), omega, states, normalisers, segment_states, segment_normalisers,
        h, n, phi.count, d, segments, segment_chunks, *x.stride()[:3], *values.stride()[:3], phi.scale, phi.epsilon,
        KEY=query is None, **tiles.options,
    )  # fmt: skip
    summed = segment_sums(segment_states, segment_normalisers, dtype, reverse=query is not None)
    return states, normalisers, *summed


def segment_sums(states: Tensor, normalisers: Tensor, dtype: torch.dtype, reverse: bool) -> tuple[Tensor, Tensor]:
    """The sum of all segments before each (reverse: after it), first (last) 0; that of the states in `dtype`."""
    summed = torch.empty_like(states, dtype=dtype), torch.empty_like(normalisers)
    size, size_z = states[0].numel(), normalisers[0].numel()
    segment_sums_kernel[(triton.cdiv(size, SUMMED) + triton.cdiv(size_z, SUMMED),)](
        states, normalisers, *summed, states.shape[0], size, size_z, REVERSE=reverse, BLOCK=SUMMED
    )
    return summed


def segments_of(chunks: int, warps: int) -> int:
    """How many segments the chunks make: about as many as occupy WARPS, `warps` to each segment (a warp with two sums
    counts as two)."""
    return int(triton.cdiv(chunks, max(LEAST_CHUNKS, triton.cdiv(chunks * warps, WARPS))))


def answer(
    q: Tensor, k: Tensor, v: Tensor, omega: Tensor, states: Sequence[Tensor], phi: FeatureMap, save: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """y like q, and where `save`, per query: the denominator, the stabiliser and its feature, [B·H, N] each."""
    b, h, n, d = q.shape
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device) if q.stride(-1) != 1 else torch.empty_like(q)
    rows = (b * h, n) if save else (1,)
    denominators, stabilisers = (torch.empty(rows, dtype=torch.float32, device=q.device) for _ in range(2))
    places = torch.empty(rows if phi.features == "exp" else (1,), dtype=torch.int32, device=q.device)
    tiles = scan_tiles("answer", d, phi, q.dtype)
    chunk_answer_kernel[(b * h * blocks(n, d, tiles),)](
        q, k, v, omega, *states, y, denominators, stabilisers, places, h, n, phi.count, d, chunks_per_segment(states),
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *y.stride()[:3], phi.scale, phi.epsilon, phi.denominator,
        SAVE=save, EVEN=even(phi, tiles), **tiles.options,
    )  # fmt: skip
    return y, (denominators, stabilisers, places)


def walk(
    q: Tensor, k: Tensor, v: Tensor, omega: Tensor, phi: FeatureMap, tiles: Tiles, save: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """y and what `answer` returns beside it; where `save` also what `chunk_states` returns, all chunks in one segment.

    Args:
        tiles: of `walk_tiles`.
    """
    b, h, n, d = q.shape
    chunks = triton.cdiv(n, tiles.constexprs["CHUNK"])
    segment_chunks = triton.cdiv(chunks, segments_of(chunks, b * h * tiles.warps))
    segments, segment_len = triton.cdiv(chunks, segment_chunks), segment_chunks * tiles.constexprs["CHUNK"]
    summed = segment_sums(*accumulate(k, v, omega, phi, None, segments, segment_len, False)[:2], q.dtype, reverse=False)
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device) if q.stride(-1) != 1 else torch.empty_like(q)
    saved_chunks, rows = (chunks, (b * h, n)) if save else (1, (1,))
    states = torch.empty(saved_chunks, b * h, phi.rows, d, dtype=q.dtype, device=q.device)
    normalisers = torch.empty(saved_chunks, b * h, phi.rows, dtype=torch.float32, device=q.device)
    denominators = torch.empty(rows, dtype=torch.float32, device=q.device)
    walk_kernel[(b * h * segments,)](
        q, k, v, omega, *summed, states, normalisers, y, denominators, h, n, phi.count, d, segments, segment_len,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *y.stride()[:3], phi.scale, phi.denominator,
        SAVE=save, **tiles.options,
    )  # fmt: skip
    none = torch.empty(1, dtype=torch.int32, device=q.device)
    return y, (denominators, denominators, none), (states, normalisers, *(x[:1] for x in summed))  # before the first: 0


def query_gradients(
    q: Tensor, k: Tensor, v: Tensor, omega: Tensor, states: Sequence[Tensor], y: Tensor, dy: Tensor,
    saved: tuple[Tensor, Tensor, Tensor], phi: FeatureMap,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq like q, and per query 1/δ and −(y·dy)/δ, [B·H, N] each. saved: what `answer` returns beside y."""
    b, h, n, d = q.shape
    tiles = scan_tiles("query", d, phi, q.dtype)
    shares_of_v = triton.cdiv(d, tiles.constexprs["BLOCK_V"])
    weights = torch.empty(b * h, n, dtype=torch.float32, device=q.device)
    shares = torch.empty(shares_of_v, b * h, n, dtype=torch.float32, device=q.device)
    dq = parts_of(q, shares_of_v)
    chunk_query_gradient_kernel[(b * h * blocks(n, d, tiles),)](
        q, k, v, omega, *states, y, dy, *saved, dq, weights, shares, h, n, phi.count, d, chunks_per_segment(states),
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *y.stride()[:3], *dy.stride()[:3], *dq.stride()[:4],
        phi.scale, phi.epsilon, EVEN=even(phi, tiles), **tiles.options,
    )  # fmt: skip
    return added(dq, q.dtype), weights, added(shares, torch.float32)


def key_gradients(
    q: Tensor, k: Tensor, v: Tensor, omega: Tensor, states: Sequence[Tensor], dy: Tensor,
    query: tuple[Tensor, Tensor, Tensor], phi: FeatureMap,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dk and dv like k. states: of the queries after each chunk. query: their weights, shares and stabilisers."""
    b, h, n, d = q.shape
    tiles = scan_tiles("key", d, phi, q.dtype)
    dk = parts_of(k, triton.cdiv(d, tiles.constexprs["BLOCK_V"]))
    dv = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    chunk_key_gradient_kernel[(b * h * blocks(n, d, tiles),)](
        q, k, v, omega, *states, dy, *query, dk, dv, h, n, phi.count, d, chunks_per_segment(states),
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *dy.stride()[:3], *dk.stride()[:4], *dv.stride()[:3],
        phi.scale, phi.epsilon, EVEN=even(phi, tiles), **tiles.options,
    )  # fmt: skip
    return added(dk, k.dtype), dv


def chunks_per_segment(states: Sequence[Tensor]) -> int:
    """Of what `chunk_states` returned."""
    return int(triton.cdiv(states[0].shape[0], states[2].shape[0]))


def blocks(n: int, d: int, tiles: Tiles) -> int:
    """How many programs take the tokens of a head."""
    return triton.cdiv(n, tiles.constexprs["BLOCK_N"]) * triton.cdiv(d, tiles.constexprs["BLOCK_V"])


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
                for capability in (each for alike in CAPABILITIES for each in alike):
                    yield from _configurations(FeatureMap(features, count or d), d, dtype, compute, capability)


def _configurations(
    phi: FeatureMap, d: int, dtype: torch.dtype, compute: str, capability: int
) -> Iterator[Configuration]:
    state = "*bf16" if dtype == torch.bfloat16 else "*fp32"
    launches: list[tuple[Any, dict[str, Any], Tiles]] = [
        (chunk_states_kernel, {"KEY": key}, state_tiles(d, phi, dtype, compute, capability, key))
        for key in (True, False)
    ]
    for kernel, name in (
        (chunk_answer_kernel, "answer"),
        (chunk_query_gradient_kernel, "query"),
        (chunk_key_gradient_kernel, "key"),
    ):
        flags = {"SAVE": True} if name == "answer" else {}
        launches.append((kernel, flags, scan_tiles(name, d, phi, dtype, compute, capability)))
    walking = walk_tiles(d, phi, dtype, compute, capability)
    if walking is not None:  # in place of the answers and what they need
        launches = [launch for launch in launches if launch[0] is not chunk_answer_kernel and not launch[1].get("KEY")]
        launches += [(walk_kernel, {"SAVE": save}, walking) for save in (True, False)]
    if dtype == torch.bfloat16 or (dtype == torch.float32 and compute == "tf32"):
        summing = (Tiles({"REVERSE": reverse, "BLOCK": SUMMED}, 4) for reverse in (True, False))
        launches.extend((segment_sums_kernel, {}, tiles) for tiles in summing)
    for kernel, flags, tiles in launches:
        types = argument_types(dtype) | {"states": state, "normalisers": "*fp32", "segment_normalisers": "*fp32"}
        if kernel is segment_sums_kernel:
            types |= {"states": "*fp32", "summed_states": state, "summed_normalisers": "*fp32"}
        types["segment_states"] = "*fp32" if kernel is chunk_states_kernel else state
        if triton.cdiv(d, tiles.constexprs.get("BLOCK_V", d)) > 1:
            types |= {"dq": "*fp32", "dk": "*fp32"}
        sample = phi.features == ("fourier" if kernel is walk_kernel else "exp") and d == 32
        sample = sample and dtype == torch.bfloat16 and capability == 90 and flags.get("SAVE", True)
        configuration = configured(kernel, types, {**tiles.constexprs, **flags}, tiles, phi, d, dtype, compute, sample)
        yield replace(configuration, capabilities=(capability,))
