"""Hamburger's factorisations: x, [B, N, d], replaced by C Dᵀ after T updates of C and D, with the one-step gradient.

Serves kinds nmf, vq and cd (`operators.context.hamburger` states the updates). Every update streams the tokens once:
`codes_kernel` reads a tile of x, makes its products with D, and updates the tile's codes; `sums_kernel` adds up x C
over ranges of the tokens (splits), beside CᵀC or the sums of C; `bases_kernel` adds up the splits, and makes the next D
and DᵀD by tiles of its rows. Columns of D are brought to length 1 where they are used, never in memory. The last update
of C makes y in the same program, and C is not written. No atomics: results repeat bit by bit.

Layout. x: [B, N, d] contiguous. D: [B, d, r] and C: [B, N, r] in float32. A program holds [BLOCK_N, r] of codes, so
r ≤ 64. Offsets in tokens are int64.

Backward is one pass over x and dy (`one_step_gradient_kernel`), which recomputes what the last update needs. cd ends
with C = x D (DᵀD + βI)⁻¹, whose r×r inverse is torch's.

Precision: all sums are float32. bfloat16 x: products with D and C split into two bfloat16 numbers, 16 bits in all, as
cosines over a temperature of 0.01 need them. float16 x: three TF32 products, which make up a float32 one, since x is
exact in TF32. float32: TF32 where torch allows it for matrix products (`torch.backends.cuda.matmul.allow_tf32`), else
three TF32 products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from attnbench.kernels.building import Configuration, signature
from attnbench.kernels.factorisation.device import bases_kernel, codes_kernel, one_step_gradient_kernel, sums_kernel
from attnbench.kernels.launching import CAPABILITIES, POINTER, Tiles, named, operands_in_registers, padded
from attnbench.kernels.support import tf32_allowed

PROGRAMS = 264
"""About how many programs the token range is split into: two for each of 132 multiprocessors."""

MAX_SPLITS = 64


@dataclass(frozen=True)
class Updates:
    """A factorisation.

    Attributes:
        kind: nmf, vq or cd.
        steps: T.
        temperature: of the softmax (vq, cd).
        beta: of the ridge (cd).
        epsilon: added to denominators.
    """

    kind: str
    steps: int
    temperature: float
    beta: float
    epsilon: float = 1e-6

    @property
    def step(self) -> str:
        """KIND of the T steps."""
        return "nmf" if self.kind == "nmf" else "soft"

    @property
    def last(self) -> str:
        """KIND of the last update of C."""
        return {"nmf": "nmf", "vq": "soft", "cd": "ridge"}[self.kind]


def factorise(x: Tensor, bases: Tensor, updates: Updates) -> Tensor:
    """C Dᵀ after all updates; differentiable in x, once.

    Args:
        x: [B, N, d] on one CUDA device.
        bases: the first D, [B, d, r], r ≤ 64.
        updates: the kind of factorisation and its steps.
    Returns: [B, N, d].
    """
    y: Tensor = _OneStep.apply(x.contiguous(), bases, updates)
    return y


class _OneStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bases: Tensor, updates: Updates) -> Tensor:
        d, gram, codes = iterate(x, bases, updates)
        projection = d
        if updates.kind == "cd":
            d = torch.nn.functional.normalize(d, dim=-2, eps=updates.epsilon)
            ridge = d.transpose(-2, -1) @ d
            ridge.diagonal(dim1=-2, dim2=-1).add_(updates.beta)
            projection = d @ torch.linalg.inv(ridge)
        y = torch.empty_like(x)
        update_codes(x, projection, d, gram, codes, y, updates, updates.last, last=True)
        ctx.save_for_backward(x, projection, d, gram, codes)
        ctx.updates = updates
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, projection, d, gram, codes = ctx.saved_tensors
        updates: Updates = ctx.updates
        b, n, width = x.shape
        rank = d.shape[-1]
        dx = torch.empty_like(x)
        tiles = gradient_tiles(rank, x.dtype)
        grid = (triton.cdiv(n, tiles.constexprs["BLOCK_N"]) * b,)
        one_step_gradient_kernel[grid](
            x, projection, d, gram, codes, dy.contiguous(), dx,
            n, width, rank, 1 / updates.temperature, updates.epsilon,
            KIND=updates.last, **precision(x.dtype, out=True), **tiles.options,
        )  # fmt: skip
        return dx, None, None


def iterate(x: Tensor, bases: Tensor, updates: Updates) -> tuple[Tensor, Tensor, Tensor]:
    """After T full steps: D [B, d, r] (cd: before its columns are normalised), and for nmf DᵀD and C [B, N, r]."""
    d = bases.float().contiguous()
    gram = d.transpose(-2, -1) @ d if updates.kind == "nmf" else d
    codes = torch.empty(*x.shape[:2], d.shape[-1], dtype=torch.float32, device=x.device)
    for step in range(updates.steps):
        kind = "start" if updates.kind == "nmf" and step == 0 else updates.step
        update_codes(x, d, d, gram, codes, codes, updates, kind, last=False)
        d, gram = next_bases(x, d, codes, updates)
    return d, gram, codes


def update_codes(
    x: Tensor,
    projection: Tensor,
    answers: Tensor,
    gram: Tensor,
    codes: Tensor,
    y: Tensor,
    updates: Updates,
    kind: str,
    last: bool,
) -> None:
    """Codes in place; last: y instead. projection, answers: [B, d, r], what x and the new codes are multiplied with."""
    b, n, width = x.shape
    rank = projection.shape[-1]
    tiles = code_tiles(rank)
    codes_kernel[(triton.cdiv(n, tiles.constexprs["BLOCK_N"]) * b,)](
        x, projection, answers, gram, codes, y, n, width, rank, 1 / updates.temperature, updates.epsilon,
        KIND=kind, LAST=last, **precision(x.dtype, out=True), **tiles.options,
    )  # fmt: skip


def next_bases(x: Tensor, d: Tensor, codes: Tensor, updates: Updates) -> tuple[Tensor, Tensor]:
    """D [B, d, r] from the codes (cd: before its columns are normalised), and DᵀD [B, r, r] (nmf)."""
    b, n, width = x.shape
    rank, kind = d.shape[-1], updates.step
    tiles = sum_tiles(rank)
    columns = triton.cdiv(width, tiles.constexprs["BLOCK_D"]) + (kind == "nmf")
    splits = max(1, min(MAX_SPLITS, PROGRAMS // (columns * b), triton.cdiv(n, tiles.constexprs["BLOCK_N"])))
    split_len = triton.cdiv(triton.cdiv(n, splits), tiles.constexprs["BLOCK_N"]) * tiles.constexprs["BLOCK_N"]

    def parts(*shape: int) -> Tensor:
        return torch.empty(splits, b, *shape, dtype=torch.float32, device=x.device)

    sums = parts(width, rank)
    grams, totals = (parts(rank, rank), sums) if kind == "nmf" else (sums, parts(rank))
    compute = precision(x.dtype)
    sums_kernel[(columns * splits * b,)](
        x, codes, sums, grams, totals, n, width, rank, splits, split_len, KIND=kind, **compute, **tiles.options
    )
    out = torch.empty_like(d)
    tiles = base_tiles(rank)
    rows = triton.cdiv(width, tiles.constexprs["BLOCK_D"])
    products = torch.empty(rows, b, rank, rank, dtype=torch.float32, device=x.device) if kind == "nmf" else out
    bases_kernel[(rows * b,)](
        sums,
        grams,
        totals,
        d,
        out,
        products,
        width,
        rank,
        splits,
        updates.epsilon,
        KIND=kind,
        **compute,
        **tiles.options,
    )
    return out, products.sum(dim=0) if kind == "nmf" else out


def precision(dtype: torch.dtype, out: bool = False) -> dict[str, str]:
    """PRECISION of float32 products, and (out) that of those that are rounded to the working dtype next."""
    exact = dtype != torch.float32 or not tf32_allowed()
    constexprs = {"PRECISION": "tf32x3" if exact else "tf32"}
    if out:
        constexprs["OUT_PRECISION"] = "tf32" if dtype == torch.bfloat16 else constexprs["PRECISION"]
    return constexprs


def tokens(rank: int, capability: int | None) -> int:
    """BLOCK_N: 64, or 32 where so many codes and the operands of a product do not fit the registers."""
    return 32 if rank > 32 and operands_in_registers(capability) else 64


def code_tiles(rank: int, capability: int | None = None) -> Tiles:
    """Of `codes_kernel`. capability, here and below: as in `operands_in_registers`."""
    return Tiles({"BLOCK_N": tokens(rank, capability), "BLOCK_D": 32, "BLOCK_R": padded(rank)}, 8)


def gradient_tiles(rank: int, dtype: torch.dtype, capability: int | None = None) -> Tiles:
    """Of `one_step_gradient_kernel`."""
    narrow = dtype == torch.bfloat16
    sizes = {"BLOCK_N": tokens(rank, capability) if narrow else 32, "BLOCK_D": 32, "BLOCK_R": padded(rank)}
    return Tiles(sizes, 8, 2 if narrow else 1)


def sum_tiles(rank: int, capability: int | None = None) -> Tiles:
    """Of `sums_kernel`."""
    return Tiles({"BLOCK_N": tokens(rank, capability), "BLOCK_D": 64, "BLOCK_R": padded(rank)}, 8)


def base_tiles(rank: int) -> Tiles:
    """Of `bases_kernel`: small tiles, since it waits for nothing but memory."""
    return Tiles({"BLOCK_D": 16, "BLOCK_R": padded(rank)}, 8)


def configurations() -> Iterator[Configuration]:
    """Every default configuration: each kind at r = 16, 32, 64 in bfloat16, float16, float32 (TF32 or not)."""
    for kind in ("nmf", "vq", "cd"):
        for rank in (16, 32, 64):
            for dtype, compute in PRECISIONS:
                for capabilities in CAPABILITIES:
                    yield from _configurations(Updates(kind, 6, 0.01, 0.1), rank, dtype, compute, capabilities)


PRECISIONS: tuple[tuple[torch.dtype, str], ...] = (
    (torch.bfloat16, "tf32x3"),
    (torch.float16, "tf32x3"),
    (torch.float32, "tf32"),
    (torch.float32, "tf32x3"),
)


def _configurations(
    updates: Updates, rank: int, dtype: torch.dtype, compute: str, capabilities: tuple[int, ...]
) -> Iterator[Configuration]:
    floats = ("bases", "answers", "codes", "sums", "grams", "totals", "out", "products")
    types = {**dict.fromkeys(("x", "y", "dy", "dx"), POINTER[dtype]), **dict.fromkeys(floats, "*fp32")}
    types |= dict.fromkeys(("inverse_temperature", "epsilon"), "fp32")
    products = {"PRECISION": compute}
    out = {**products, "OUT_PRECISION": "tf32" if dtype == torch.bfloat16 else compute}
    by_code = code_tiles(rank, capabilities[0])
    step: list[tuple[Any, dict[str, Any], Tiles]] = [
        (codes_kernel, {"KIND": updates.step, "LAST": False, **out}, by_code),
        (codes_kernel, {"KIND": updates.last, "LAST": True, **out}, by_code),
        (one_step_gradient_kernel, {"KIND": updates.last, **out}, gradient_tiles(rank, dtype, capabilities[0])),
        (sums_kernel, {"KIND": updates.step, **products}, sum_tiles(rank, capabilities[0])),
        (bases_kernel, {"KIND": updates.step, **products}, base_tiles(rank)),
    ]
    if updates.kind == "nmf":
        step.append((codes_kernel, {"KIND": "start", "LAST": False, **out}, by_code))
    label = f"{updates.kind} r={rank} {named(dtype, compute)}"
    for kernel, flags, tiles in step:
        constexprs = {**tiles.constexprs, **flags}
        last = " last" if flags.get("LAST") else ""
        writes_codes = flags.get("LAST") is False  # then the launch passes them as y
        argument_types = {**types, "y": "*fp32"} if writes_codes else types
        sample = updates.kind == "nmf" and rank == 64 and dtype == torch.bfloat16 and flags["KIND"] != "start"
        yield Configuration(
            kernel, signature(kernel, argument_types), constexprs, tiles.warps, tiles.stages, label + last,
            sample and 90 in capabilities, capabilities=capabilities,
        )  # fmt: skip
