"""The feature map of a launch, and the tiles of every kernel of this package.

By head dim, map, dtype, how products are made and GPU generation. compute: PRECISION of the products; None: as torch is
set. capability: 80, 90 …; None: of the current device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl

from attnbench.kernels.launching import Tiles, generation, operands_in_registers, padded, precision


@dataclass(frozen=True)
class FeatureMap:
    """A map of `features`.

    Attributes:
        features: its name.
        count: m, the arguments per token.
        scale, epsilon: as in the table of `features`.
        denominator: ε beside φᵀz.
    """

    features: str
    count: int
    scale: float = 1.0
    epsilon: float = 0.0
    denominator: float = 0.0

    @property
    def rows(self) -> int:
        """M, the rows of the state."""
        return 2 * self.count if self.features == "fourier" else self.count


def even(phi: FeatureMap, tiles: Tiles) -> bool:
    """EVEN of a launch: whether its BLOCK_M divides the features. Not said of elu and relu, whose key gradients run out
    of registers without masks.
    """
    return phi.features in ("exp", "fourier") and phi.count % tiles.constexprs["BLOCK_M"] == 0


def products(dtype: torch.dtype, compute: str | None = None) -> dict[str, Any]:
    """COMPUTE and PRECISION of the products, as `full` states. compute: the latter; None: as torch is set."""
    return {"COMPUTE": tl.bfloat16 if dtype == torch.bfloat16 else tl.float32, "PRECISION": compute or precision(dtype)}


def sum_tiles(
    head_dim: int, phi: FeatureMap, dtype: torch.dtype, compute: str | None = None, capability: int | None = None,
    key: bool = True,
) -> Tiles:  # fmt: skip
    """Of `accumulate_kernel`, over keys or over queries."""
    wide = _of_shared_operands("sum" if key else "sum, queries", head_dim, phi, dtype, capability)
    if wide is not None:
        return wide
    chosen = products(dtype, compute)
    two = phi.features == "fourier"
    block_d = padded(head_dim)
    sizes = {"BLOCK_N": 32, "BLOCK_M": min(padded(phi.count), 32 if two else 64), "BLOCK_D": block_d, "WIDTH": 0}
    sizes["BLOCK_V"] = min(block_d, 64)
    if dtype == torch.bfloat16 and not two:
        sizes |= {"BLOCK_N": 32 if block_d > 64 or phi.features == "exp" else 64, "BLOCK_V": min(block_d, 128)}
    elif chosen["PRECISION"] == "tf32x3":
        sizes |= {"BLOCK_M": min(sizes["BLOCK_M"], 16 if two else 32), "WIDTH": 0 if block_d <= 64 else 32}
    elif block_d == 256 and phi.features not in ("elu", "softmax"):
        sizes |= {"BLOCK_M": 32, "WIDTH": 32}
    elif block_d == 128 and phi.features == "exp":
        sizes["BLOCK_M"] = 32
    return Tiles({"FEATURES": phi.features, **sizes, **chosen}, 8 if block_d > 32 else 4, 2)


def combine_tiles(head_dim: int, phi: FeatureMap, stabilised: bool) -> Tiles:
    """Of `combine_kernel`: small, since its loads wait for nothing but memory."""
    sizes = {"BLOCK_S": 8, "BLOCK_M": 16, "BLOCK_V": min(padded(head_dim), 32)}
    return Tiles({"FEATURES": phi.features, "STABILISED": stabilised, **sizes}, 4, 2)


def largest_tiles(head_dim: int, block_n: int) -> Tiles:
    """Of `largest_kernel`. block_n: BLOCK_N of `accumulate_kernel` over the keys."""
    block_d = padded(head_dim)
    sizes = {"BLOCK_N": block_n, "BLOCK_M": min(64, 4096 // block_d), "BLOCK_D": block_d, "BLOCK_S": 16}
    return Tiles(sizes, 4, 2)


def answer_tiles(
    head_dim: int, phi: FeatureMap, dtype: torch.dtype, compute: str | None = None, capability: int | None = None
) -> Tiles:
    """Of `answer_kernel`."""
    wide = _of_shared_operands("answer", head_dim, phi, dtype, capability)
    if wide is not None:
        return wide
    chosen = products(dtype, compute)
    two = phi.features == "fourier"
    block_d = padded(head_dim)
    sizes = {"BLOCK_N": 64, "BLOCK_M": min(padded(phi.count), 32), "BLOCK_D": block_d, "WIDTH": 0}
    sizes["BLOCK_V"] = min(block_d, 64 if two else 128)
    if chosen["PRECISION"] == "tf32x3" and block_d > 32:
        sizes |= {"BLOCK_N": 32, "BLOCK_V": min(block_d, 64), "WIDTH": 0 if block_d == 64 else 32}
    elif dtype == torch.float32 and block_d == 256:
        sizes["WIDTH"] = 64
    return Tiles({"FEATURES": phi.features, **sizes, **chosen}, 8 if block_d > 32 else 4, 2)


def gradient_tiles(
    kernel: str, head_dim: int, phi: FeatureMap, dtype: torch.dtype, compute: str | None = None,
    capability: int | None = None,
) -> Tiles:  # fmt: skip
    """Of `query_gradient_kernel` ("query") and `key_gradient_kernel` ("key")."""
    wide = _of_shared_operands(kernel, head_dim, phi, dtype, capability)
    if wide is not None:
        return wide
    block_d = padded(head_dim)
    chosen = products(dtype, compute)
    kind = "bf16" if dtype == torch.bfloat16 else chosen["PRECISION"]
    column = max(0, block_d.bit_length() - 6)  # 0 for 16 and 32, then 1 for 64, 2 for 128, 3 for 256
    block_n, block_m, width, warps = GRADIENT["two" if phi.features == "fourier" else "one", kind][column]
    constexprs = {"FEATURES": phi.features, "BLOCK_N": block_n, "BLOCK_M": min(padded(phi.count), block_m)}
    return Tiles({**constexprs, "BLOCK_D": block_d, "WIDTH": width, **chosen}, warps, 1)


def _of_shared_operands(
    kernel: str, head_dim: int, phi: FeatureMap, dtype: torch.dtype, capability: int | None
) -> Tiles | None:
    """The row of SHARED_OPERANDS, where products of bfloat16 read their operands from shared memory; else None."""
    if dtype != torch.bfloat16 or operands_in_registers(capability):
        return None
    block_d = padded(head_dim)
    rows = SHARED_OPERANDS.get((kernel, phi.features)) or SHARED_OPERANDS[kernel.split(",")[0], phi.features]
    row = rows[max(0, block_d.bit_length() - 7)]
    if row is None:
        return None
    block_n, block_m, third, warps, stages, registers = row
    sizes = {"BLOCK_N": block_n, "BLOCK_M": min(padded(phi.count), block_m), "BLOCK_D": block_d}
    sizes |= {"WIDTH": third} if kernel in ("query", "key") else {"WIDTH": 0, "BLOCK_V": min(block_d, third)}
    return Tiles({"FEATURES": phi.features, **sizes, **products(dtype)}, warps, stages, registers)


_Row = tuple[int, int, int, int, int, int | None]

SHARED_OPERANDS: dict[tuple[str, str], tuple[_Row, _Row, _Row | None]] = {
    ("sum", "elu"): ((64, 64, 64, 4, 3, None), (64, 64, 128, 8, 3, None), (64, 64, 128, 8, 3, None)),
    ("sum", "softmax"): ((64, 64, 64, 4, 3, None), (64, 64, 128, 8, 3, None), (64, 64, 128, 8, 3, None)),
    ("sum", "relu"): ((32, 128, 64, 8, 3, 128), (32, 128, 64, 8, 3, 128), (32, 64, 64, 4, 2, None)),
    ("sum", "exp"): ((64, 128, 64, 8, 3, 128), (32, 128, 128, 8, 3, None), (32, 64, 64, 4, 2, None)),
    ("sum, queries", "relu"): ((32, 128, 64, 8, 2, 128), (32, 128, 64, 8, 2, 128), (32, 64, 64, 4, 2, None)),
    ("sum, queries", "exp"): ((32, 128, 64, 8, 2, 128), (32, 128, 128, 8, 3, None), (32, 64, 64, 4, 2, None)),
    ("sum", "fourier"): ((32, 64, 64, 4, 3, 168), (32, 64, 64, 4, 3, 168), (32, 64, 64, 4, 2, None)),
    ("sum, queries", "fourier"): ((32, 64, 64, 4, 2, 168), (32, 64, 64, 4, 2, None), (32, 64, 64, 4, 2, None)),
    ("answer", "elu"): ((64, 32, 64, 4, 2, None), (64, 64, 128, 4, 2, None), (64, 32, 128, 4, 2, None)),
    ("answer", "softmax"): ((64, 32, 64, 4, 2, None), (64, 64, 128, 4, 2, None), (64, 32, 128, 4, 2, None)),
    ("answer", "relu"): ((128, 64, 64, 8, 3, 128), (128, 32, 128, 8, 3, 128), (128, 32, 128, 8, 2, None)),
    ("answer", "exp"): ((128, 64, 64, 8, 3, 128), (128, 32, 128, 8, 3, None), (128, 32, 128, 8, 2, None)),
    ("answer", "fourier"): ((128, 32, 64, 8, 3, 128), (128, 32, 128, 8, 3, None), (128, 32, 64, 8, 2, None)),
    ("query", "elu"): ((64, 32, 0, 4, 2, None), (64, 32, 0, 4, 2, None), (64, 32, 0, 4, 2, None)),
    ("query", "softmax"): ((64, 32, 0, 4, 2, None), (64, 32, 0, 4, 2, None), (64, 32, 0, 4, 2, None)),
    ("query", "relu"): ((128, 32, 0, 8, 3, 128), (64, 32, 0, 4, 2, None), (64, 32, 0, 8, 2, None)),
    ("query", "exp"): ((128, 32, 0, 8, 3, 128), (64, 32, 0, 4, 2, None), (64, 32, 64, 8, 2, None)),
    ("query", "fourier"): ((64, 32, 0, 4, 3, 168), (64, 32, 0, 4, 2, None), (64, 32, 64, 8, 2, None)),
    ("key", "elu"): ((64, 32, 0, 4, 2, None), (64, 32, 0, 4, 2, None), (64, 32, 0, 8, 2, None)),
    ("key", "softmax"): ((64, 32, 0, 4, 2, None), (64, 32, 0, 4, 2, None), (64, 32, 0, 8, 2, None)),
    ("key", "relu"): ((64, 32, 0, 4, 3, None), (64, 32, 0, 8, 2, None), (64, 16, 64, 8, 2, None)),
    ("key", "exp"): ((64, 32, 0, 4, 3, None), (64, 32, 0, 8, 2, None), (64, 16, 128, 8, 2, None)),
    ("key", "fourier"): ((64, 32, 0, 4, 3, None), (64, 16, 0, 8, 2, None), None),
}
"""BLOCK_N, BLOCK_M, BLOCK_V (of query and key: WIDTH), warps, stages and registers, for D up to 64, 128 and 256.

A kernel's special form ("sum, queries") has a row where it needs one. None: as elsewhere, since no
tile of 64 rows fits.

For bfloat16 where products read operands from shared memory (sm_90, sm_100): 64 rows for each four warps, as wgmma has
it, operands streamed ahead, two programs of eight warps or three of four on a multiprocessor where registers allow it,
and no stack (`make kernels`).
"""


GRADIENT: dict[tuple[str, str], tuple[tuple[int, int, int, int], ...]] = {
    ("one", "bf16"): ((64, 32, 0, 4), (64, 32, 0, 4), (32, 32, 0, 4), (32, 32, 128, 8)),
    ("one", "tf32"): ((32, 32, 0, 4), (32, 32, 0, 4), (32, 16, 0, 8), (32, 32, 128, 8)),
    ("one", "tf32x3"): ((32, 32, 16, 4), (32, 16, 32, 4), (32, 16, 32, 8), (16, 32, 64, 8)),
    ("two", "bf16"): ((32, 32, 0, 4), (32, 32, 0, 8), (32, 16, 0, 8), (32, 16, 128, 8)),
    ("two", "tf32"): ((32, 32, 0, 4), (32, 32, 0, 8), (32, 16, 64, 8), (32, 16, 128, 8)),
    ("two", "tf32x3"): ((32, 16, 16, 4), (32, 16, 32, 8), (32, 16, 32, 8), (16, 16, 64, 8)),
}
"""BLOCK_N, BLOCK_M, WIDTH and warps by features per argument (fourier: two) and products, for D up to 32, 64, 128, 256.

About the largest that spill nothing from sm_80 to sm_100 (`make kernels`). tf32: float16 too. Three TF32 products hold
each operand twice, so their tiles are smaller, and at D ≥ 128 the products over channels take WIDTH of them at a time.
"""


def chunk(head_dim: int, dtype: torch.dtype) -> int:
    """Tokens of a chunk of the causal scan: pairs are scored within it, and the state before it is written.

    Where blocks are small, those of a chunk are many, and each is scored with all before it.
    """
    return 128 if dtype == torch.bfloat16 or head_dim > 128 else 64


def state_tiles(
    head_dim: int, phi: FeatureMap, dtype: torch.dtype, compute: str | None = None, capability: int | None = None,
    key: bool = True,
) -> Tiles:  # fmt: skip
    """Of `chunk_states_kernel`: those of `accumulate_kernel`, but for bfloat16 where operands are in shared memory."""
    tiles = sum_tiles(head_dim, phi, dtype, compute, capability, key)
    sizes, warps, stages, registers = dict(tiles.constexprs), tiles.warps, tiles.stages, tiles.registers
    if dtype == torch.bfloat16 and not operands_in_registers(capability):
        two, block_d = phi.features == "fourier", padded(head_dim)
        narrow = block_d == 256 and phi.features != "elu"
        block_n, block_m, warps, registers = 64, 64, 4, None
        stages = 2 if block_d == 256 or (two and block_d == 128) else 3
        if narrow or (two and (block_d > 64 or not key)):
            block_n = 32
        elif phi.features in ("relu", "exp"):
            block_m, warps = 128, 8
        if generation(capability) == 10:
            # Of 64 rows Triton 3.6 and 3.9 compile none: "operand #0 does not dominate this use".
            block_n, block_m, warps = 32 if narrow else 64, 32, 4
            sizes["WIDTH"] = 64 if phi.features != "elu" and block_d > (64 if two else 128) else 0
        sizes |= {"BLOCK_N": block_n, "BLOCK_M": min(padded(phi.count), block_m)}
        sizes["BLOCK_V"] = min(block_d, 32 if two and block_d == 256 else 64)
    return Tiles({**sizes, "CHUNK": chunk(head_dim, dtype)}, warps, stages, registers)


WGMMA: dict[tuple[str, str], tuple[tuple[int, int, int], ...]] = {
    ("answer", "elu"): ((64, 32, 1), (64, 32, 1)),
    ("answer", "relu"): ((128, 32, 1), (128, 32, 1)),
    ("answer", "exp"): ((128, 32, 1), (128, 32, 1)),
    ("answer", "fourier"): ((128, 16, 1), (128, 16, 1)),
    ("query", "elu"): ((128, 64, 1), (128, 64, 1)),
    ("query", "relu"): ((128, 64, 1), (128, 64, 1)),
    ("query", "exp"): ((128, 64, 1), (128, 32, 1)),
    ("query", "fourier"): ((128, 16, 1),),
    ("key", "elu"): ((128, 32, 1), (128, 32, 1)),
    ("key", "relu"): ((128, 32, 2), (128, 32, 2)),
    ("key", "exp"): ((128, 32, 2), (128, 32, 2)),
    ("key", "fourier"): ((128, 16, 2), (128, 16, 2)),
}
"""BLOCK_N, BLOCK_M and TURNS by kernel and map, for D up to 64, and 128: bfloat16, operands in shared memory."""


def scan_tiles(
    kernel: str, head_dim: int, phi: FeatureMap, dtype: torch.dtype, compute: str | None = None,
    capability: int | None = None,
) -> Tiles:  # fmt: skip
    """Of chunk_answer_kernel ("answer"), chunk_query_gradient_kernel ("query") and chunk_key_gradient_kernel ("key").

    The largest tiles that spill nothing (`make kernels`). Where products read operands from shared memory (wgmma),
    bfloat16 has blocks of a whole chunk; answers of elu, which wait for memory alone, of half a chunk, so that several
    programs share a multiprocessor. (Its gradients too, but the queries' were then wrong on an H100 with Triton 3.6.)
    Else 64 tokens, 16 for each warp, since more warps than rows of a product would repeat them; fewer where registers
    are short: three TF32 products hold every operand twice; a gradient through ω sums [BLOCK_N, BLOCK_D]; and operands
    can be in registers too, in float32 for all but bfloat16. Two features per argument (fourier) double the rest.

    Args:
        compute: PRECISION of its products; None: as torch is set.
        capability: 80, 90 …; None: of the current device.
    """
    chosen = products(dtype, compute)
    wide, two, block_d = dtype != torch.bfloat16, phi.features == "fourier", padded(head_dim)
    in_registers = operands_in_registers(capability)
    block_m, block_v, width, turns = 16, 32, 64, 1
    block_n, warps = 64, 4 if block_d <= 64 else 8
    column = max(0, block_d.bit_length() - 7)  # 0 up to 64, then 1 for 128, 2 for 256
    if not wide and not in_registers and column < len(WGMMA[kernel, phi.features]):
        block_n, block_m, turns = WGMMA[kernel, phi.features][column]
        block_v, width, warps = 64, block_d, block_n // 16
        if kernel == "key" and block_d > 64 and phi.features in ("exp", "fourier"):
            width = 32
    elif chosen["PRECISION"] == "tf32x3" or (wide and two and kernel != "answer"):
        plain = dtype == torch.float32 and chosen["PRECISION"] == "tf32"
        narrow = 64 if kernel == "key" and plain else 32  # of D, with a WIDTH of 16
        block_n, block_v, width, turns = 16, 32 if kernel == "answer" else 16, 32 if block_d > narrow else 16, 2
        warps = 4 if block_d <= 128 else 8
    elif kernel == "answer":
        halvings = wide + two if in_registers else int(wide and two and block_d > 64)
        block_n = 64 >> halvings
        width = 32 if wide and two and block_d == 128 and not in_registers else width
    elif phi.features == "elu":  # its arguments are merely read, so that a second turn costs little
        block_n, turns = 32 if in_registers else 64, 2
    else:
        block_n = 32 if in_registers or block_d > 128 else 64
        if kernel == "key" and wide and in_registers and block_d > 128:
            block_n = 16
        block_v = 16 if two or (wide and (in_registers or block_d > 128)) else 32
        width = 32 if block_d == 64 or not (wide or in_registers) else 64
        warps = 4 if block_d <= (32 if wide and not in_registers else 64) else 8
        turns = 2 if in_registers or two or block_d > 128 or (wide and block_d == 64) else 1
    sizes = {"CHUNK": chunk(head_dim, dtype), "BLOCK_N": block_n, "BLOCK_M": min(padded(phi.count), block_m)}
    sizes |= {"BLOCK_D": block_d, "BLOCK_V": min(block_d, block_v), "WIDTH": width if block_d > width else 0}
    constexprs = {"FEATURES": phi.features, **sizes, **chosen}
    return Tiles({**constexprs, "TURNS": turns} if kernel == "key" else constexprs, warps, 2)


def walk_tiles(
    head_dim: int, phi: FeatureMap, dtype: torch.dtype, compute: str | None = None, capability: int | None = None
) -> Tiles | None:
    """Of `walk_kernel`, arguments as in `scan_tiles`; None: what a program keeps does not fit, or is of another map."""
    block_d, block_m = padded(head_dim), max(32, padded(phi.count))  # at least 64 rows with the cosines
    if phi.features != "fourier" or max(block_d, block_m) > 64:
        return None
    if dtype != torch.bfloat16 or operands_in_registers(capability):
        return None
    sizes = {"CHUNK": chunk(head_dim, dtype), "BLOCK_N": 64, "BLOCK_M": block_m, "BLOCK_D": block_d}
    return Tiles({**sizes, **products(dtype, compute)}, 8, 2)
