"""Why a Triton kernel cannot run here: asked before anything of Triton is imported."""

from __future__ import annotations

import importlib.util

import torch

from attnbench.problem import Problem

MAX_HEAD_DIM = 256


def why_not(problem: Problem, device: str, max_head_dim: int = MAX_HEAD_DIM) -> str | None:
    """The reason, or None: Triton, an NVIDIA GPU of compute capability 8.0 or more, D ≤ max_head_dim, no float64."""
    if device != "cuda":
        return "needs a CUDA device"
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
    return None
