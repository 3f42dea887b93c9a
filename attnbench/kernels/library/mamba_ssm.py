"""The scan of Mamba-2 by its authors' Triton kernels: in chunks of tokens, or one new token after a state.

Their x, B, C and dt are v, k, q and Δ; their states are [B, H, V, K]. They read tensors by their strides, so that
transposed views of [B, H, Q, X] are not copied. The one-token kernel writes the new state over the old one, of which it
gets a copy; it reads the strides of dt_bias and of D, which must therefore be there.

Dao and Gu 2024, https://github.com/state-spaces/mamba, version 2.3.2.post1
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnbench.kernels.support import tf32_allowed
from attnbench.kernels.support import why_not as why_not_triton
from attnbench.modules import installed
from attnbench.problem import Problem

CHUNK = 256
"""Tokens in a chunk, as the authors' layer has them; a power of two, to which the kernels pad a chunk."""

KERNEL = "mamba-ssm: Mamba-2"

MODULES = ("mamba_ssm.ops.triton.ssd_combined", "mamba_ssm.ops.triton.selective_state_update")


def why_not(problem: Problem) -> str | None:
    """The reason that it cannot run here, or None."""
    if not problem.causal:
        return "mamba-ssm has causal kernels only"
    reason = why_not_triton(problem)
    if reason is not None:
        return reason
    if problem.dtype == "float32" and not _one_token(problem) and not tf32_allowed():
        return "mamba-ssm's chunks multiply float32 in TF32, which torch's settings do not allow"
    if not all(installed(module) for module in MODULES):
        return "mamba-ssm is not installed: pip install mamba-ssm --no-build-isolation"
    return None


def scan(
    problem: Problem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    a: Tensor,
    d: Tensor,
    state: Tensor | None = None,
) -> Any:
    """S_i = e^{Δ_i a} S_{i−1} + k_i (Δ_i v_i)ᵀ and y_i = S_iᵀ q_i + d v_i.

    Args:
        q, k: [B, heads that divide H, Q, K].
        v: [B, H, Q, V].
        delta: Δ, [B, H, Q, 1].
        a, d: [H].
        state: S before, [B, H, K, V], float32.

    Returns: y, [B, H, Q, V]; with a state a tuple of it and of the new state, float32.
    """
    if state is not None and _one_token(problem):
        return _updated(q, k, v, delta, a, d, state)
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    x, b, c, dt = (each.transpose(1, 2) for each in (v, k, q, delta.squeeze(-1)))  # [B, Q, heads, …]
    if state is None:
        y: Tensor = mamba_chunk_scan_combined(x, dt, a, b, c, CHUNK, D=d)
        return y.transpose(1, 2)
    y, last = mamba_chunk_scan_combined(
        x, dt, a, b, c, CHUNK, D=d, initial_states=state.transpose(2, 3), return_final_states=True
    )
    return y.transpose(1, 2), last.transpose(2, 3)


def _one_token(problem: Problem) -> bool:
    return problem.past > 0 and problem.query_len == 1


def _updated(
    q: Tensor, k: Tensor, v: Tensor, delta: Tensor, a: Tensor, d: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One new token; it has no gradients. Numbers of a head are expanded, by which the kernel knows them."""
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    rows, columns = state.shape[2:]
    new = state.transpose(2, 3).clone(memory_format=torch.contiguous_format)
    y: Tensor = selective_state_update(
        new,
        v[:, :, 0],
        delta[:, :, 0].expand(-1, -1, columns),
        a.view(-1, 1, 1).expand(-1, columns, rows),
        k[:, :, 0],
        q[:, :, 0],
        D=d.view(-1, 1).expand(-1, columns),
        dt_bias=d.new_zeros(()).expand(len(d), columns),
    )
    return y.unsqueeze(2), new.transpose(2, 3)
