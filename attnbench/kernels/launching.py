"""What all launches share: sizes of tiles, precision of products, names of types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton

from attnbench.kernels.support import tf32_allowed


@dataclass(frozen=True)
class Tiles:
    """Sizes of a launch.

    Attributes:
        constexprs: BLOCK_N and the like, by the kernel's names.
        registers: the most that a thread may use, so that more programs fit at a time; None: as ptxas chooses.
    """

    constexprs: dict[str, Any]
    warps: int
    stages: int = 2
    registers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of a launch."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {**self.constexprs, "num_warps": self.warps, "num_stages": self.stages, **limit}


CAPABILITIES = ((80,), (90, 100))
"""The compute capabilities that tiles are chosen for, by where products read operands: registers or shared memory."""


def operands_in_registers(capability: int | None = None) -> bool:
    """Whether products read operands from registers, as on all but sm_90 and sm_100; then tiles have less room.

    Args:
        capability: as in `generation`.
    """
    return generation(capability) not in (9, 10)


def generation(capability: int | None = None) -> int:
    """The first digit of a compute capability: 8, 9, 10 …

    Args:
        capability: 80, 90 …; None: of the current CUDA device; without one (Triton's interpreter) 90.
    """
    if capability is not None:
        return capability // 10
    if not torch.cuda.is_initialized():  # called at every launch
        return 9
    return torch.cuda.get_device_capability()[0]


def padded(size: int) -> int:
    """The tile that holds `size`: a power of two, at least 16, as a product on tensor cores needs."""
    return max(16, int(triton.next_power_of_2(size)))


def precision(dtype: torch.dtype) -> str:
    """PRECISION of products: TF32 where torch allows it for float32, else three TF32 products that make up a float32
    one. Of half precisions it is ignored."""
    return "tf32x3" if dtype == torch.float32 and not tf32_allowed() else "tf32"


PRECISIONS: tuple[tuple[torch.dtype, str], ...] = (
    (torch.bfloat16, "tf32"),
    (torch.float16, "tf32"),
    (torch.float32, "tf32"),
    (torch.float32, "tf32x3"),
)
"""Every working dtype with every PRECISION that it is launched with."""

POINTER = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
"""Triton's names for pointers to a working dtype."""


def named(dtype: torch.dtype, compute: str) -> str:
    """ "bfloat16", "float32 tf32x3": for a label."""
    name = str(dtype).removeprefix("torch.")
    return f"{name} {compute}" if dtype == torch.float32 else name
