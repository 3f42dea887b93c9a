"""Shared queries and keys, sorted in several rounds: every chunk attends to itself and the one before, rounds merged.

One sort brings all rounds of all heads into order, and nothing is copied into it: programs gather their tokens.
Forward: each token's answer and log-sum-exp of its round, keys normalised on the way; a second kernel merges rounds.
Whether i sees j in a round is one comparison of labels (`lines`). A key that counts once counts in the first round that
brings it, which is the same y as 1/N_ij in each of N_ij rounds: one more comparison per pair and earlier round, no
count and no logarithm.

Backward: the merged map is one softmax over all rounds' keys, so its log-sum-exp alone gives back every weight. Each
program writes one round's share of its tokens' gradients in the working dtype; a last kernel adds the rounds.
No atomics: results repeat bit by bit.

On sm_90, in half precision, programs take chunks that fit into a tile of 64 tokens along the sorted line (`strips`), so
that every pair's logit and gradient are made once and the next tile is on its way meanwhile; a forward that is to be
differentiated keeps a bit for each pair that counts. Otherwise a program has one tile, backward first as queries, then
as keys.

A token that sees nobody has a log-sum-exp of +inf, with which all its weights vanish.

Precision: products in the working dtype, added up in float32. float32: TF32 where torch allows it for matrix products
(`torch.backends.cuda.matmul.allow_tf32`), else three TF32 products that make up a float32 one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from attnbench.kernels.building import SHARED_MEMORY_LIMIT, Configuration, signature, strided
from attnbench.kernels.launching import POINTER, PRECISIONS, Tiles, generation, named, padded, precision
from attnbench.kernels.sorted_chunks.device import attend_kernel, line_kernel, merge_kernel
from attnbench.kernels.sorted_chunks.gradients import add_rounds_kernel, agreement_kernel, gradient_kernel
from attnbench.kernels.sorted_chunks.strips import attend_strip_kernel, gradient_strip_kernel


@dataclass(frozen=True)
class Seeing:
    """Which keys a query sees.

    Attributes:
        chunk: m, the tokens of a chunk.
        causal: only earlier tokens.
        corrected: whether a key met in N_ij rounds counts once.
        by_bucket: only keys in the query's bucket.
    """

    chunk: int
    causal: bool
    corrected: bool
    by_bucket: bool


def lines(buckets: Tensor, most: int, seeing: Seeing) -> tuple[Tensor, Tensor]:
    """Each round's tokens in the order of their buckets, and each token's labels.

    In a round i sees j where label_i − label_j is 0 or 1: both are in one chunk of the order, or j in the one before,
    and in one bucket where that is asked for. All lines are one sort: of several long ones torch would launch several.
    Its keys are 16 bits wide where they suffice: a radix sort passes over all bits.

    Args:
        buckets: int32 [B, H, R, N], below `most`.
        seeing: which keys a query sees.
    Returns: the order, int32 [B, H, R, N], and labels, int32 [B, H, N, R made a power of two], not set beyond R.
    """
    b, h, rounds, n = buckets.shape
    keys = b * h * rounds * most
    dtype = torch.int16 if keys <= 2**16 else torch.int32 if keys <= 2**31 else torch.int64
    least = -(2**15) if dtype == torch.int16 else 0
    first = torch.arange(least, least + keys, most, device=buckets.device).view(b, h, rounds, 1)
    key = torch.add(buckets, first, out=torch.empty(buckets.shape, dtype=dtype, device=buckets.device))
    key, at = key.flatten().sort(stable=True)
    order = torch.empty_like(buckets, memory_format=torch.contiguous_format)
    label = torch.empty(b, h, n, triton.next_power_of_2(rounds), dtype=torch.int32, device=buckets.device)
    line_kernel[(triton.cdiv(n, PLACES) * b * h * rounds,)](
        key, at, order, label, rounds, n, seeing.chunk, most, least, BY_BUCKET=seeing.by_bucket,
        ROUNDS=label.shape[-1], BLOCK=PLACES, num_warps=4,
    )  # fmt: skip
    return order, label


PLACES = 2048
"""That a program of `line_kernel` takes."""


def attend(qk: Tensor, v: Tensor, order: Tensor, label: Tensor, seeing: Seeing) -> Tensor:
    """Attention within sorted chunks, merged over rounds; differentiable in qk and v, once.

    Args:
        qk, v: [B, H, N, D] on one CUDA device, D ≤ 256.
        order, label: as from `lines`.
        seeing: which keys a query sees.
    Returns: [B, H, N, D].
    """
    qk, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (qk, v))
    y: Tensor = _Attention.apply(qk, v, order.contiguous(), label.contiguous(), seeing)
    return y


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qk: Tensor, v: Tensor, order: Tensor, label: Tensor, seeing: Seeing) -> Tensor:
        y, total, kept = answer(qk, v, order, label, seeing, any(ctx.needs_input_grad))
        ctx.save_for_backward(qk, v, order, label, y, total, *kept)
        ctx.seeing = seeing
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        qk, v, order, label, y, total, *kept = ctx.saved_tensors
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        dqk, dv = gradients(qk, v, dy, order, label, y, total, kept, ctx.seeing)
        return dqk, dv, None, None, None


def answer(
    qk: Tensor, v: Tensor, order: Tensor, label: Tensor, seeing: Seeing, keep: bool
) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
    """y [B, H, N, D], the log₂-sum-exp [B·H, N] of each token, +inf where it sees nobody; and where `keep`, what the
    gradients along strips need: which pairs count, and log₂ e over each token's length."""
    b, h, n, d = qk.shape
    rounds = order.shape[2]
    parts = torch.empty(b, h, rounds, n, d, dtype=v.dtype, device=v.device)
    totals = torch.empty(b * h, rounds, n, dtype=torch.float32, device=v.device)
    tensors, strides = (qk, v, order, label, parts, totals), (*qk.stride()[:3], *v.stride()[:3])
    single = {"SINGLE": rounds == 1}
    kept: list[Tensor] = []
    if tiles := strip_tiles(d, seeing.chunk, rounds, qk.dtype):
        grid, (span, strip) = strips(n, seeing.chunk, b * h * rounds, tiles)
        if keep:
            words = (b * h, rounds, triton.cdiv(n, span), 4, tiles.constexprs["BLOCK"])
            kept = [torch.empty(words, dtype=torch.int32, device=v.device), torch.empty_like(totals[:, 0])]
        attend_strip_kernel[grid](
            *tensors, *(kept or (totals, totals)), h, rounds, n, span, strip, d, *strides,
            **strip_flags(seeing, rounds), **single, KEEP=keep, **tiles.options,
        )  # fmt: skip
    else:
        tiles = attend_tiles(d, seeing.chunk, qk.dtype)
        attend_kernel[(programs(n, seeing.chunk, tiles) * b * h * rounds,)](
            *tensors, h, rounds, n, seeing.chunk, d, *strides,
            **flags(seeing, rounds), **single, PRECISION=precision(qk.dtype), **tiles.options,
        )  # fmt: skip
    if rounds == 1:
        return parts.squeeze(2), totals.squeeze(1), kept
    y = torch.empty(b, h, n, d, dtype=v.dtype, device=v.device)
    total = torch.empty(b * h, n, dtype=torch.float32, device=v.device)
    tiles = token_tiles(d)
    merge_kernel[(triton.cdiv(n, tiles.constexprs["BLOCK"]) * b * h,)](
        v, parts, totals, y, total, h, rounds, n, d, *v.stride()[:3], **tiles.options
    )
    return y, total, kept


def gradients(
    qk: Tensor, v: Tensor, dy: Tensor, order: Tensor, label: Tensor, y: Tensor, total: Tensor, kept: Sequence[Tensor],
    seeing: Seeing,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dqk and dv: [B, H, N, D]. y, total, kept: as from `answer`."""
    b, h, n, d = qk.shape
    rounds = order.shape[2]
    agreement = torch.empty(b * h, n, dtype=torch.float32, device=qk.device)
    by_token = token_tiles(d)
    grid = (triton.cdiv(n, by_token.constexprs["BLOCK"]) * b * h,)
    agreement_kernel[grid](y, dy, agreement, h, n, d, *dy.stride()[:3], **by_token.options)
    parts = [torch.empty(b, h, rounds, n, d, dtype=qk.dtype, device=qk.device) for _ in range(2)]
    along = torch.empty(b * h, rounds, n, dtype=torch.float32, device=qk.device)
    made = (total, agreement, *parts, along)
    strides = (*qk.stride()[:3], *v.stride()[:3], *dy.stride()[:3])
    if tiles := strip_tiles(d, seeing.chunk, rounds, qk.dtype):
        cut_grid, cut = strips(n, seeing.chunk, b * h * rounds, tiles)
        gradient_strip_kernel[cut_grid](
            qk, v, dy, order, *kept, *made, h, rounds, n, *cut, d, *strides, **tiles.options
        )
    else:
        tiles = gradient_tiles(d, seeing.chunk, qk.dtype)
        gradient_kernel[(programs(n, seeing.chunk, tiles) * b * h * rounds,)](
            qk, v, dy, order, label, *made, h, rounds, n, seeing.chunk, d, *strides,
            **flags(seeing, rounds), PRECISION=precision(qk.dtype), **tiles.options,
        )  # fmt: skip
    dqk, dv = (torch.empty(b, h, n, d, dtype=qk.dtype, device=qk.device) for _ in range(2))
    add_rounds_kernel[grid](
        qk, *parts, along, dy, total, dqk, dv, h, rounds, n, d, *qk.stride()[:3], *dy.stride()[:3], **by_token.options
    )
    return dqk, dv


def flags(seeing: Seeing, rounds: int) -> dict[str, Any]:
    """The constexprs that say who sees whom. A token's labels are padded to a power of two, to be loaded at once."""
    correct = seeing.corrected and rounds > 1
    return {"CAUSAL": seeing.causal, "CORRECT": correct, "ROUNDS": triton.next_power_of_2(rounds)}


STRIP = 64
"""Tokens of a strip's tile: the rows that four warps multiply at once on sm_90."""

PROGRAMS = 1024
"""Of a strip kernel at least, where there are as many spans: four or more for each multiprocessor."""


def strip_flags(seeing: Seeing, rounds: int) -> dict[str, Any]:
    """The same of the kernels that go along strips. A bucket's tokens are in their own order: only where a query
    sees several buckets a key of the span before may be a later token."""
    return {**flags(seeing, rounds), "AHEAD": seeing.causal and not seeing.by_bucket}


def strip_tiles(
    head_dim: int, chunk: int, rounds: int, dtype: torch.dtype, capability: int | None = None
) -> Tiles | None:
    """Of the kernels that go along strips; None where they do not: labels and operands must fit the registers.

    Args:
        capability: as in `generation`. Only on sm_90 is there room: elsewhere products hold operands in registers, or
            (sm_100) wait for accumulators that are not.
    """
    if generation(capability) != 9 or dtype == torch.float32:
        return None
    if padded(head_dim) > 64 or chunk > STRIP or rounds > 8:
        return None
    return Tiles({"BLOCK": STRIP, "BLOCK_D": padded(head_dim)}, 4, 3)


def strips(seq_len: int, chunk: int, lines: int, tiles: Tiles) -> tuple[tuple[int], tuple[int, int]]:
    """The programs, then a span's tokens and a strip's spans: up to 32."""
    span = tiles.constexprs["BLOCK"] // chunk * chunk
    spans = triton.cdiv(seq_len, span)
    length = max(1, min(32, spans * lines // PROGRAMS))
    return (triton.cdiv(spans, length) * lines,), (span, length)


def programs(seq_len: int, chunk: int, tiles: Tiles) -> int:
    """Tiles of one line: chunks times tiles of a chunk."""
    return triton.cdiv(seq_len, chunk) * triton.cdiv(chunk, tiles.constexprs["BLOCK"])


def attend_tiles(head_dim: int, chunk: int, dtype: torch.dtype, compute: str | None = None) -> Tiles:
    """Of `attend_kernel`. compute: PRECISION of its products; None: as torch is set."""
    return product_tiles(ATTEND, chunk, head_dim, dtype, compute)


def gradient_tiles(head_dim: int, chunk: int, dtype: torch.dtype, compute: str | None = None) -> Tiles:
    """Of `gradient_kernel`. compute: as above."""
    return product_tiles(GRADIENT, chunk, head_dim, dtype, compute)


Sizes = Mapping[str, Mapping[int, tuple[int, int]]]
"""Tokens of a tile and warps, by what products are made of (half precision, TF32, three TF32 products) and BLOCK_D:
about the largest that fit the registers (`make kernels`)."""

ATTEND: Sizes = {
    "half": {16: (64, 4), 32: (64, 8), 64: (64, 8), 128: (64, 8), 256: (32, 8)},
    "tf32": {16: (64, 4), 32: (64, 4), 64: (32, 8), 128: (16, 4), 256: (16, 8)},
    "tf32x3": {16: (64, 8), 32: (32, 4), 64: (32, 8), 128: (16, 4), 256: (16, 8)},
}
GRADIENT_WIDE = {16: (16, 4), 32: (16, 2), 64: (16, 2), 128: (16, 4), 256: (16, 8)}
GRADIENT: Sizes = {
    "half": {16: (32, 4), 32: (32, 4), 64: (32, 4), 128: (32, 8), 256: (16, 4)},
    "tf32": GRADIENT_WIDE,
    "tf32x3": GRADIENT_WIDE,
}


def product_tiles(sizes: Sizes, chunk: int, head_dim: int, dtype: torch.dtype, compute: str | None) -> Tiles:
    """At most so many tokens, and what float32 can hold in registers of q and k at once."""
    block_d = padded(head_dim)
    most, warps = sizes[(compute or precision(dtype)) if dtype == torch.float32 else "half"][block_d]
    width = min(block_d, 32) if dtype == torch.float32 else block_d
    return Tiles({"BLOCK": min(most, padded(chunk)), "BLOCK_D": block_d, "WIDTH": width}, warps, 1)


def token_tiles(head_dim: int) -> Tiles:
    """Of the kernels that take tokens in their own order."""
    block_d = padded(head_dim)
    return Tiles({"BLOCK": max(16, 2048 // block_d), "BLOCK_D": block_d}, 4, 1)


def configurations() -> Iterator[Configuration]:
    """Every default configuration: chunk 64, 4 rounds and 1, D = 16 … 256, bfloat16, float16, float32 (TF32 or not)."""
    for d in (16, 32, 64, 128, 256):
        for dtype, compute in PRECISIONS:
            for rounds in (4, 1):
                yield from _configurations(Seeing(64, False, True, True), rounds, d, dtype, compute)
    yield from _configurations(Seeing(64, True, True, True), 4, 64, torch.bfloat16, "tf32")
    yield from _configurations(Seeing(64, False, True, True), 8, 64, torch.bfloat16, "tf32")
    yield from _configurations(Seeing(64, True, True, False), 4, 64, torch.bfloat16, "tf32")
    yield from _configurations(Seeing(256, False, False, True), 8, 64, torch.bfloat16, "tf32")


def _configurations(seeing: Seeing, rounds: int, d: int, dtype: torch.dtype, compute: str) -> Iterator[Configuration]:
    types = dict.fromkeys(("qk", "v", "dy", "y", "parts", "parts_qk", "parts_v", "dqk", "dv"), POINTER[dtype])
    types |= dict.fromkeys(("totals", "total", "agreement", "along", "scales"), "*fp32")
    types |= dict.fromkeys(("order", "label", "seen"), "*i32") | {"key": "*i16", "at": "*i64"}
    setting = f"m={seeing.chunk} R={rounds}{' causal' * seeing.causal}{'' if seeing.by_bucket else ' any bucket'}"
    label = f"{setting} D={d} {named(dtype, compute)}"
    sample = d == 64 and dtype == torch.bfloat16 and not seeing.causal and rounds > 1
    for kernel, settings, tiles, capabilities in _launches(seeing, rounds, d, dtype, compute):
        types_of = signature(kernel, types)
        yield Configuration(
            kernel,
            types_of,
            {**tiles.constexprs, **settings},
            tiles.warps,
            tiles.stages,
            label,
            sample and 90 in capabilities,
            multiples=strided(types_of),
            capabilities=capabilities,
        )


def _launches(
    seeing: Seeing, rounds: int, d: int, dtype: torch.dtype, compute: str
) -> Iterator[tuple[Any, dict[str, Any], Tiles, tuple[int, ...]]]:
    """Each kernel with its constexprs, its tiles, and the compute capabilities on which it is launched."""
    everywhere = tuple(SHARED_MEMORY_LIMIT)
    for kernel in (agreement_kernel, add_rounds_kernel, *((merge_kernel,) if rounds > 1 else ())):
        yield kernel, {}, token_tiles(d), everywhere
    by_place = {"BY_BUCKET": seeing.by_bucket, "ROUNDS": triton.next_power_of_2(rounds)}
    yield line_kernel, by_place, Tiles({"BLOCK": PLACES}, 4, 3), everywhere
    visible, single = flags(seeing, rounds), {"SINGLE": rounds == 1}
    rest = everywhere
    if tiles := strip_tiles(d, seeing.chunk, rounds, dtype, 90):
        for keep in (True, False):
            yield attend_strip_kernel, {**strip_flags(seeing, rounds), **single, "KEEP": keep}, tiles, (90,)
        yield gradient_strip_kernel, {}, tiles, (90,)
        rest = tuple(capability for capability in everywhere if capability != 90)
    visible["PRECISION"] = compute
    yield attend_kernel, {**visible, **single}, attend_tiles(d, seeing.chunk, dtype, compute), rest
    yield gradient_kernel, visible, gradient_tiles(d, seeing.chunk, dtype, compute), rest
