"""Hamburger's factorisations: x, [B, N, d], replaced by C Dᵀ after T updates of C and D, with the one-step gradient.

Serves kinds nmf, vq and cd (`operators.context.hamburger` states the updates). A step streams the tokens once:
`step_kernel` keeps D in shared memory and the sums over its tokens in registers; a tile of x makes the tile's codes,
and these are added up with the same tile into x C, and CᵀC or the sums of C. The sums of all programs are added up, and
`bases_kernel` makes the next D and DᵀD. The last update of C makes y in the same program (`codes_kernel`), and C is not
written. No atomics: results repeat bit by bit. Passes run forwards and backwards in turn, so that each begins with what
the one before has left in the L2 cache.

Where D and the sums do not fit (more than `MAX_WIDTH` channels, float16, float32), and on GPUs that `IN_ONE_PASS` does
not name, a step streams the tokens twice: `codes_kernel` for the codes, `sums_kernel` for the sums.

Layout. x: [B, N, d] contiguous. D: [B, d, r] and C: [B, N, r] in float32. A program holds [BLOCK_N, r] of codes, so
r ≤ 64. Offsets in tokens are int64. Columns of D are brought to length 1 where they are used, never in memory.

Backward is one pass over x and dy (`one_step_gradient_kernel`), which recomputes what the last update needs. cd ends
with C = x D (DᵀD + βI)⁻¹, whose r×r inverse is torch's.

Precision: all sums are float32. bfloat16 x: products with D and C as pairs of two bfloat16 numbers, 16 bits in all, as
cosines over a temperature of 0.01 need them; CᵀC of C rounded to bfloat16, whose errors have either sign and average
out. float16 x: three TF32 products, which make up a float32 one, since x is exact in TF32. float32: TF32 where torch
allows it for matrix products (`torch.backends.cuda.matmul.allow_tf32`), else three TF32 products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from attnbench.kernels.building import Configuration, signature
from attnbench.kernels.factorisation.device import (
    bases_kernel,
    codes_kernel,
    one_step_gradient_kernel,
    step_kernel,
    sums_kernel,
)
from attnbench.kernels.launching import POINTER, Tiles, generation, named, operands_in_registers, padded
from attnbench.kernels.support import tf32_allowed

MULTIPROCESSORS = 132
"""Of an H100: the tokens of `step_kernel` are split into as many ranges, two times as many of `sums_kernel`."""

MAX_SPLITS = 64
"""Of `sums_kernel`."""

MAX_WIDTH = {9: 512, 10: 256}
"""The most channels that `step_kernel` has room for, by the first digit of the compute capability."""

IN_ONE_PASS = (9,)
"""The first digits of the compute capabilities on which `step_kernel` is used: those on which its results have been
compared with float64. A pair of 512 rows, or tiles of 64 channels, gave wrong sums on an H100 with Triton 3.6."""


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
        d, codes = iterate(x, bases, updates)
        projection = d
        if updates.kind == "cd":
            directions = torch.nn.functional.normalize(d.plain, dim=-2, eps=updates.epsilon)
            ridge = directions.transpose(-2, -1) @ directions
            ridge.diagonal(dim1=-2, dim2=-1).add_(updates.beta)
            d = given(directions, x.dtype, updates)
            projection = given(directions @ torch.linalg.inv(ridge), x.dtype, updates)
        y = torch.empty_like(x)
        update_codes(x, projection, d, codes, y, updates, updates.last, last=True)
        ctx.save_for_backward(x, projection.operand, d.operand, d.gram, codes)
        ctx.updates, ctx.rank = updates, bases.shape[-1]
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, projection, d, gram, codes = ctx.saved_tensors
        updates: Updates = ctx.updates
        b, n, width = x.shape
        dx = torch.empty_like(x)
        tiles = gradient_tiles(ctx.rank, x.dtype, updates.last)
        grid = (triton.cdiv(n, tiles.constexprs["BLOCK_N"]) * b,)
        one_step_gradient_kernel[grid](
            x, projection, d, gram, codes, dy.contiguous(), dx,
            n, width, ctx.rank, 1 / updates.temperature, updates.epsilon,
            KIND=updates.last, **precision(x.dtype, out=True), **tiles.options,
        )  # fmt: skip
        return dx, None, None


@dataclass(frozen=True)
class Bases:
    """D.

    Attributes:
        plain: float32 [B, d, r].
        operand: what products read: a pair of bfloat16 numbers, [B, d, 2R], or `plain`.
        turned: the pair, transposed, where `step_kernel` reads it: [B, 2R, d].
        gram: nmf: DᵀD, a pair [B, R, 2R] or float32 [B, r, r]; else the lengths of the columns, float32 [B, R].
    """

    plain: Tensor
    operand: Tensor
    turned: Tensor
    gram: Tensor


def given(bases: Tensor, dtype: torch.dtype, updates: Updates) -> Bases:
    """[B, d, r] for products with x of a dtype."""
    bases = bases.float().contiguous()
    return _bases(bases, bases, dtype, updates, "given", bases)


def _bases(sums: Tensor, before: Tensor, dtype: torch.dtype, updates: Updates, kind: str, plain: Tensor) -> Bases:
    """What `bases_kernel` makes of the sums, or of the bases before; kind: its KIND; plain: for D in float32."""
    b, width, rank = before.shape
    tiles = base_tiles(rank, dtype)
    padded_rank, pair, nmf = tiles.constexprs["BLOCK_R"], dtype == torch.bfloat16, updates.kind == "nmf"
    new = before.new_empty
    operand = new(b, width, 2 * padded_rank, dtype=dtype) if pair else plain
    in_one_pass = one_pass_tiles(width, dtype) is not None
    turned = new(b, 2 * padded_rank, width, dtype=dtype) if in_one_pass else operand
    if nmf:
        gram = new(b, padded_rank, 2 * padded_rank, dtype=dtype) if pair else new(b, rank, rank)
    else:
        gram = new(b, padded_rank)
    bases_kernel[(b,)](
        sums, before, plain, operand, turned, gram, width, rank, updates.epsilon,
        KIND=kind, GRAM=nmf, TURNED=in_one_pass, **precision(dtype), **tiles.options,
    )  # fmt: skip
    return Bases(plain, operand, turned, gram)


def iterate(x: Tensor, bases: Tensor, updates: Updates) -> tuple[Bases, Tensor]:
    """After T full steps: D (cd: before its columns are normalised), and for nmf C [B, N, r]."""
    b, n, width = x.shape
    d = given(bases, x.dtype, updates)
    in_one_pass = one_pass_tiles(width, x.dtype)
    stored = updates.kind == "nmf" or in_one_pass is None
    codes = torch.empty(b, n if stored else 0, bases.shape[-1], dtype=torch.float32, device=x.device)
    for step in range(updates.steps):
        kind = "start" if updates.kind == "nmf" and step == 0 else updates.step
        if in_one_pass is not None:
            sums = step_sums(x, d, codes, updates, kind, step % 2 == 1, in_one_pass)
        else:
            update_codes(x, d, d, codes, codes, updates, kind, last=False)
            sums = code_sums(x, codes, updates)
        d = next_bases(sums, d, x.dtype, updates)
    return d, codes


def update_codes(
    x: Tensor, projection: Bases, answers: Bases, codes: Tensor, y: Tensor, updates: Updates, kind: str, last: bool
) -> None:
    """Codes in place; last: y instead. projection, answers: what x and the new codes are multiplied with."""
    b, n, width = x.shape
    rank = codes.shape[-1]
    tiles = code_tiles(rank, x.dtype, kind)
    codes_kernel[(triton.cdiv(n, tiles.constexprs["BLOCK_N"]) * b,)](
        x, projection.operand, answers.operand, answers.gram, codes, y,
        n, width, rank, 1 / updates.temperature, updates.epsilon,
        KIND=kind, LAST=last, **precision(x.dtype, out=True), **tiles.options,
    )  # fmt: skip


def step_sums(x: Tensor, d: Bases, codes: Tensor, updates: Updates, kind: str, backwards: bool, tiles: Tiles) -> Tensor:
    """The codes of a step, in place (vq, cd: not stored), and their sums, as `code_sums`."""
    b, n, width = x.shape
    rank = codes.shape[-1]
    token_tiles = triton.cdiv(n, tiles.constexprs["BLOCK_N"])
    split_tiles = triton.cdiv(token_tiles, max(1, min(MULTIPROCESSORS // b, token_tiles)))
    splits = triton.cdiv(token_tiles, split_tiles)
    sums = _partial_sums(splits, b, width, rank, updates, x.device)
    step_kernel[(splits * b,)](
        x, d.turned, d.gram, codes, sums, n, splits, split_tiles, 1 / updates.temperature, updates.epsilon,
        KIND=kind, BACKWARDS=backwards, WIDTH=width, RANK=rank, **tiles.options,
    )  # fmt: skip
    return sums.sum(dim=0)


def _partial_sums(splits: int, b: int, width: int, rank: int, updates: Updates, device: torch.device) -> Tensor:
    rows = width + (rank if updates.kind == "nmf" else 1)
    return torch.empty(splits, b, rows * rank, dtype=torch.float32, device=device)


def code_sums(x: Tensor, codes: Tensor, updates: Updates) -> Tensor:
    """x C, then CᵀC or the sums of C: [B, (d + r)·r] or [B, (d + 1)·r]."""
    b, n, width = x.shape
    rank, kind = codes.shape[-1], updates.step
    tiles = sum_tiles(rank)
    block = tiles.constexprs["BLOCK_N"]
    columns = triton.cdiv(width, tiles.constexprs["BLOCK_D"]) + (kind == "nmf")
    splits = max(1, min(MAX_SPLITS, 2 * MULTIPROCESSORS // (columns * b), triton.cdiv(n, block)))
    split_len = triton.cdiv(triton.cdiv(n, splits), block) * block
    sums = _partial_sums(splits, b, width, rank, updates, x.device)
    sums_kernel[(columns * splits * b,)](
        x, codes, sums, n, width, rank, splits, split_len, KIND=kind, **precision(x.dtype), **tiles.options
    )
    return sums.sum(dim=0)


def next_bases(sums: Tensor, d: Bases, dtype: torch.dtype, updates: Updates) -> Bases:
    """D from the sums of a step (cd: before its columns are normalised)."""
    return _bases(sums, d.plain, dtype, updates, updates.step, torch.empty_like(d.plain))


def precision(dtype: torch.dtype, out: bool = False) -> dict[str, str]:
    """PRECISION of float32 products, and (out) that of those that are rounded to the working dtype next."""
    exact = dtype != torch.float32 or not tf32_allowed()
    constexprs = {"PRECISION": "tf32x3" if exact else "tf32"}
    if out:
        constexprs["OUT_PRECISION"] = "tf32" if dtype == torch.bfloat16 else constexprs["PRECISION"]
    return constexprs


def rank_block(rank: int, dtype: torch.dtype, capability: int | None = None) -> int:
    """BLOCK_R of what reads a pair: 64 where `step_kernel` does, whose products need as many rows.

    Args:
        capability: here and below as in `operands_in_registers`.
    """
    return 64 if dtype == torch.bfloat16 and not operands_in_registers(capability) else padded(rank)


def tokens(rank: int, capability: int | None) -> int:
    """BLOCK_N: 64, or 32 where so many codes and the operands of a product do not fit the registers."""
    return 32 if rank > 32 and operands_in_registers(capability) else 64


def step_tiles(width: int, dtype: torch.dtype, capability: int | None = None) -> Tiles | None:
    """Of `step_kernel`; None where it has no room."""
    if dtype != torch.bfloat16 or width > MAX_WIDTH.get(generation(capability), 0):
        return None
    return Tiles({"BLOCK_N": 32, "BLOCK_D": max(128, padded(width)), "BLOCK_R": 64}, 8, 1)


def one_pass_tiles(width: int, dtype: torch.dtype) -> Tiles | None:
    """The same where a step is taken in one pass, otherwise None."""
    return step_tiles(width, dtype) if generation() in IN_ONE_PASS else None


def code_tiles(rank: int, dtype: torch.dtype, kind: str, capability: int | None = None) -> Tiles:
    """Of `codes_kernel`. kind: its KIND."""
    block_r = rank_block(rank, dtype, capability)
    if dtype == torch.bfloat16 and not operands_in_registers(capability):
        return Tiles({"BLOCK_N": 128, "BLOCK_D": 64, "BLOCK_R": block_r}, 8, stages_of(kind))
    return Tiles({"BLOCK_N": tokens(rank, capability), "BLOCK_D": 32, "BLOCK_R": block_r}, 8)


def stages_of(kind: str) -> int:
    """On Hopper. soft: one. It takes squares of the tile that it multiplies, and with the next tiles on their way
    Triton 3.6 gives other codes from call to call on an H100.
    """
    return 1 if kind == "soft" else 3


def gradient_tiles(rank: int, dtype: torch.dtype, kind: str, capability: int | None = None) -> Tiles:
    """Of `one_step_gradient_kernel`. kind: of the last update of the codes."""
    block_r = rank_block(rank, dtype, capability)
    if dtype == torch.bfloat16 and not operands_in_registers(capability):
        return Tiles({"BLOCK_N": 128, "BLOCK_D": 64, "BLOCK_R": block_r}, 8, stages_of(kind))
    narrow = dtype == torch.bfloat16
    sizes = {"BLOCK_N": tokens(rank, capability) if narrow else 32, "BLOCK_D": 32, "BLOCK_R": block_r}
    return Tiles(sizes, 8, 2 if narrow else 1)


def sum_tiles(rank: int, capability: int | None = None) -> Tiles:
    """Of `sums_kernel`."""
    return Tiles({"BLOCK_N": tokens(rank, capability), "BLOCK_D": 64, "BLOCK_R": padded(rank)}, 8)


def base_tiles(rank: int, dtype: torch.dtype, capability: int | None = None) -> Tiles:
    """Of `bases_kernel`. By wgmma four warps multiply a tile of 64 rows: with eight each does as much, and twice."""
    block_r = rank_block(rank, dtype, capability)
    if operands_in_registers(capability):
        return Tiles({"BLOCK_D": 16, "BLOCK_R": block_r}, 8)
    if dtype == torch.bfloat16:
        return Tiles({"BLOCK_D": 64, "BLOCK_R": block_r}, 4)
    return Tiles({"BLOCK_D": 32, "BLOCK_R": block_r}, 8)


def configurations() -> Iterator[Configuration]:
    """Every default configuration: each kind at r = 16, 32, 64 in bfloat16, float16, float32 (TF32 or not)."""
    for kind in ("nmf", "vq", "cd"):
        for rank in (16, 32, 64):
            for dtype, compute in PRECISIONS:
                for capabilities in ((80,), (90,), (100,)):
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
    narrow, capability = dtype == torch.bfloat16, capabilities[0]
    types = {
        **dict.fromkeys(("x", "y", "dy", "dx"), POINTER[dtype]),
        **dict.fromkeys(("codes", "sums", "out"), "*fp32"),
    }
    types |= dict.fromkeys(("operand", "turned", "answers"), "*bf16" if narrow else "*fp32")
    types |= dict.fromkeys(("inverse_temperature", "epsilon"), "fp32")
    types["grams"] = "*bf16" if narrow and updates.kind == "nmf" else "*fp32"
    products = {"PRECISION": compute}
    out = {**products, "OUT_PRECISION": "tf32" if narrow else compute}

    def by_code(kind: str) -> Tiles:
        return code_tiles(rank, dtype, kind, capability)

    width = MAX_WIDTH.get(generation(capability), 0)
    by_step = step_tiles(width, dtype, capability) if width else None
    by_base = base_tiles(rank, dtype, capability)
    gram = {"GRAM": updates.kind == "nmf", "TURNED": by_step is not None, **products}
    launches: list[tuple[Any, dict[str, Any], Tiles]] = [
        (codes_kernel, {"KIND": updates.step, "LAST": False, **out}, by_code(updates.step)),
        (codes_kernel, {"KIND": updates.last, "LAST": True, **out}, by_code(updates.last)),
        (
            one_step_gradient_kernel,
            {"KIND": updates.last, **out},
            gradient_tiles(rank, dtype, updates.last, capability),
        ),
        (sums_kernel, {"KIND": updates.step, **products}, sum_tiles(rank, capability)),
        (bases_kernel, {"KIND": updates.step, **gram}, by_base),
        (bases_kernel, {"KIND": "given", **gram}, by_base),
    ]
    if updates.kind == "nmf":
        launches.append((codes_kernel, {"KIND": "start", "LAST": False, **out}, by_code("start")))
    if by_step is not None:
        sizes = {"WIDTH": width, "RANK": rank}
        launches += [
            (step_kernel, {"KIND": kind, "BACKWARDS": backwards, **sizes}, by_step)
            for kind, backwards in STEPS[updates.step]
        ]
    label = f"{updates.kind} r={rank} {named(dtype, compute)}"
    for kernel, flags, tiles in launches:
        special = {"bases": "*bf16" if narrow and kernel is not bases_kernel else "*fp32"}
        if flags.get("LAST") is False:  # then the launch passes codes as y
            special["y"] = "*fp32"
        sample = updates.kind == "nmf" and rank == 64 and narrow and flags["KIND"] in ("nmf", "soft")
        yield Configuration(
            kernel,
            signature(kernel, {**types, **special}),
            {**tiles.constexprs, **flags},
            tiles.warps,
            tiles.stages,
            label + "".join(f" {name.lower()}" for name in ("LAST", "BACKWARDS") if flags.get(name)),
            sample and 90 in capabilities,
            multiples=("width", "rank"),
            capabilities=capabilities,
        )


STEPS = {"nmf": (("start", False), ("nmf", True), ("nmf", False)), "soft": (("soft", False), ("soft", True))}
"""KIND and BACKWARDS of `step_kernel`, by the kind of a step."""
