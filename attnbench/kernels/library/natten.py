"""Neighborhood attention by NATTEN's fused kernels, which take [B, …, H, D] with one axis or two of tokens.

Hassani et al. 2024, "Faster Neighborhood Attention", https://arxiv.org/abs/2403.04690; https://github.com/SHI-Labs/NATTEN
"""

from __future__ import annotations

from torch import Tensor

from attnbench.modules import installed
from attnbench.problem import Problem

KERNEL = "NATTEN: fused neighborhood attention"

HEAD_DIM_MULTIPLE = 8


def why_not(problem: Problem, kernel: int) -> str | None:
    """The reason that it cannot run here, or None. Without its compiled part it computes all pairs."""
    if problem.dtype == "float64":
        return "NATTEN's kernels have no float64"
    if kernel < 2:
        return f"NATTEN takes kernels of at least 2, not {kernel}"
    if problem.head_dim % HEAD_DIM_MULTIPLE:
        return f"NATTEN takes a head_dim that is a multiple of {HEAD_DIM_MULTIPLE}, not {problem.head_dim}"
    if not installed("natten.libnatten"):
        return "NATTEN with its compiled kernels is not installed: https://natten.org/install"
    return None


def attend(problem: Problem, q: Tensor, k: Tensor, v: Tensor, kernel: int, dilation: int) -> Tensor:
    """q: [B, H, N, D], not scaled. k, v: [B, Hk, N, D]. Returns [B, H, N, D]."""
    from natten import na1d, na2d

    if problem.height is None or problem.width is None:
        y: Tensor = na1d(*(x.transpose(1, 2) for x in (q, k, v)), kernel_size=kernel, dilation=dilation)
        return y.transpose(1, 2)
    sides = (problem.height, problem.width)
    maps = (x.transpose(1, 2).unflatten(1, sides) for x in (q, k, v))  # [B, height, width, H or Hk, D]
    return na2d(*maps, kernel_size=kernel, dilation=dilation).flatten(1, 2).transpose(1, 2)
