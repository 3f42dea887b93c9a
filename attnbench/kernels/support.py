"""Why a Triton kernel cannot run here, without importing Triton."""

from __future__ import annotations

import importlib.util

import torch

from attnbench.problem import Problem

MAX_HEAD_DIM = 256

MAX_EXACT_DIM = 128
"""The largest head_dim of few_keys in float32 without TF32; with more, no tile fits into registers."""


def why_not(problem: Problem, max_head_dim: int = MAX_HEAD_DIM, max_exact_dim: int = MAX_HEAD_DIM) -> str | None:
    """The reason that a kernel cannot run on a CUDA device, or None: Triton, an NVIDIA GPU of compute capability 8.0
    or more, D ≤ max_head_dim, no float64. The registry checks that the device is a CUDA device.

    Args:
        max_exact_dim: the bound on D where float32 is not TF32, whose products take more registers.
    """
    if importlib.util.find_spec("triton") is None:
        return "needs Triton: pip install 'attnbench[kernels]'"
    if torch.version.hip is not None:
        return "the kernels are written for NVIDIA GPUs"
    if torch.cuda.get_device_capability() < (8, 0):
        return "needs compute capability 8.0 (Ampere) or more"
    if problem.dtype == "float64":
        return "the kernels add up in float32; float64 is for the reference"
    if problem.head_dim > max_head_dim:
        return f"head_dim {problem.head_dim} is more than the {max_head_dim} that one program holds"
    exact = problem.dtype == "float32" and not tf32_allowed()
    if exact and problem.head_dim > max_exact_dim:
        return f"head_dim {problem.head_dim} in float32 is more than the {max_exact_dim} that fit without TF32"
    return None


def why_not_causal_groups(problem: Problem) -> str | None:
    """The reason that a kernel whose causal form goes by the numbers of rows cannot take a problem, or None."""
    if problem.causal and problem.group > 1:
        return "its causal form takes as many heads of keys and values as of queries"
    return None


def tf32_allowed() -> bool:
    """Whether torch may use TF32 for float32 matrix products, by either of its settings."""
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")  # allow_tf32 cannot be read once this was set
