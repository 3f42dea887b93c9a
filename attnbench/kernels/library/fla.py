"""The causal scan by flash-linear-attention's chunk kernels, from features that eager PyTorch has computed.

Yang and Zhang 2024, `fla.ops.simple_gla.chunk_simple_gla`, https://github.com/fla-org/flash-linear-attention
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.kernels.support import why_not
from attnbench.problem import Problem

MAX_FEATURES = 256
KERNEL = "flash-linear-attention: chunk_simple_gla"


def why_not_fla(problem: Problem, features: int) -> str | None:
    """The reason the library cannot run this here, or None."""
    if not problem.causal:
        return "flash-linear-attention has causal kernels only"
    if importlib.util.find_spec("fla") is None:
        return "needs flash-linear-attention: pip install flash-linear-attention"
    if features > MAX_FEATURES:
        return f"flash-linear-attention's chunk kernels take at most {MAX_FEATURES} features, not {features}"
    return why_not(problem)


def attend_with_fla(fq: Tensor, fk: Tensor, v: Tensor, epsilon: float = 0.0, log_keep: Tensor | None = None) -> Tensor:
    """φ(q_i)ᵀ S_i / (φ(q_i)ᵀ z_i + ε), with S and z decayed by exp(log_keep).

    Columns of ones beside v sum to z: eight of them, to keep rows aligned.

    Args:
        fq, fk: features, [B, H, N, m].
        v: [B, H, N, D].
        epsilon: added to the normaliser.
        log_keep: [B, H, N], float32; None: no decay.
    Returns: [B, H, N, D].
    """
    from fla.ops.simple_gla import chunk_simple_gla

    d = v.shape[-1]
    q, k, values = (x.transpose(1, 2).contiguous() for x in (fq, fk, pad(v, (0, 8), value=1.0)))  # [B, N, H, ·]
    gate = None if log_keep is None else log_keep.transpose(1, 2).to(torch.float32).contiguous()
    y, _ = chunk_simple_gla(q, k, values, g=gate, scale=1.0)
    y = y.transpose(1, 2)
    return y[..., :d] / (y[..., d : d + 1] + epsilon)
