"""The causal scan by flash-linear-attention's kernels, from features that eager PyTorch has computed.

Of up to MOST_RECURRENT new tokens after a state one kernel takes token after token; otherwise the kernels go by chunks.
A head of a sample is a sample of one head to them, so that nothing is transposed. The queries of a group of heads are
tokens one after the other, of which all but the first bring no key: so each state is read and written once for all.

Yang and Zhang 2024, `fla.ops.simple_gla`, https://github.com/fla-org/flash-linear-attention
"""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.grouped import group_of, merged, separated
from attnbench.kernels.support import why_not
from attnbench.modules import installed
from attnbench.problem import Problem

MAX_FEATURES = 256

MOST_RECURRENT = 16
"""New tokens after a state up to which one token after another is faster than chunks of 64."""

KERNEL = "flash-linear-attention: simple_gla"


def why_not_fla(problem: Problem, features: int) -> str | None:
    """The reason the library cannot run this here, or None."""
    if not problem.causal:
        return "flash-linear-attention has causal kernels only"
    if features > MAX_FEATURES:
        return f"flash-linear-attention's chunk kernels take at most {MAX_FEATURES} features, not {features}"
    reason = why_not(problem)
    if reason is None and not installed("fla.ops.simple_gla"):
        return "flash-linear-attention is not installed: pip install flash-linear-attention"
    return reason


def why_no_gated_gradients() -> str | None:
    """The reason the library refuses the gradients of a gated scan here, or None (its issue 640)."""
    numbers = tuple(int(n) for n in re.findall(r"\d+", metadata.version("triton"))[:3])
    hopper = torch.cuda.get_device_capability()[0] == 9
    if hopper and (3, 4) <= numbers < (3, 7, 1) and not installed("tilelang"):
        return (
            "Triton 3.4 to 3.7.0 compiles flash-linear-attention's gated gradients wrongly for Hopper: "
            "pip install 'triton>=3.7.1', or tilelang"
        )
    return None


def attend_with_fla(
    fq: Tensor,
    fk: Tensor,
    v: Tensor,
    dtype: torch.dtype,
    epsilon: float = 0.0,
    log_keep: Tensor | None = None,
    sums: Tensor | None = None,
    totals: Tensor | None = None,
) -> Any:
    """φ(q_i)ᵀ S_i / (φ(q_i)ᵀ z_i + ε), with S and z decayed by exp(log_keep).

    Where there are no totals, columns of ones beside v sum to z: eight of them, to keep rows aligned, or the one that
    sums has.

    Args:
        fq, fk: features, [B, H, Q, m] and [B, Hk, Q, m].
        v: [B, Hk, Q, D].
        dtype: of y.
        epsilon: added to the normaliser.
        log_keep: [B, Hk, Q], float32; None: no decay.
        sums: S, or where there are no totals [S, z], after the tokens before, float32, [B, Hk, m, D or D + 1].
        totals: z after them, [B, Hk, m].

    Returns: y, [B, H, Q, D]; with sums a tuple of it, of the new sums, and of the new totals where they were given.
    """
    if sums is None:
        y, _ = _scanned(fq, fk, pad(v, (0, 8), value=1.0), log_keep, None)
        return _normalised(y, v.shape[-1], epsilon).to(dtype)
    if totals is None:
        y, new = _scanned(fq, fk, pad(v, (0, 1), value=1.0), log_keep, sums)
        return _normalised(y, v.shape[-1], epsilon).to(dtype), new
    y, new = _scanned(fq, fk, v, log_keep, sums)
    counts = fk.cumsum(dim=2, dtype=totals.dtype) + totals.unsqueeze(2)  # [B, Hk, Q, m]
    heads = fq.unflatten(1, (fk.shape[1], -1))  # [B, Hk, G, Q, m]
    normaliser = (counts.unsqueeze(2) * heads).sum(dim=-1, keepdim=True).flatten(1, 2)
    return (y / (normaliser + epsilon)).to(dtype), new, counts[:, :, -1].contiguous()


def half_safe(*tensors: Tensor) -> tuple[Tensor, ...]:
    """float16 as float32: sums of features pass 65504; others as they are."""
    return tuple(x.float() if x.dtype == torch.float16 else x for x in tensors)


def _normalised(y: Tensor, d: int, epsilon: float) -> Tensor:
    return y[..., :d] / (y[..., d : d + 1] + epsilon)


def _scanned(
    q: Tensor, k: Tensor, v: Tensor, log_keep: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Σ_{j ≤ i} (q_i·k_j) v_j, decayed, [B, H, Q, X], and the last state; that is None where there was none before.

    Args:
        q, k: [B, H, Q, m] and [B, Hk, Q, m].
        v: [B, Hk, Q, X].
        log_keep: [B, Hk, Q].
        state: [B, Hk, m, X].
    """
    from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla

    group = group_of(q, k)
    rows = (merged(q, group, dim=2, heads=1), _spread(k, group), _spread(v, group))  # [B, Hk, Q·G, …]
    keep = None if log_keep is None else _spread(log_keep.float().unsqueeze(-1), group).flatten(0, 1)
    scan = chunk_simple_gla if state is None or rows[0].shape[2] > MOST_RECURRENT else fused_recurrent_simple_gla
    y, last = scan(
        *(x.flatten(0, 1).unsqueeze(2) for x in rows),  # [B·Hk, Q·G, 1, …]
        g=keep,
        scale=1.0,
        initial_state=None if state is None else state.flatten(0, 1).unsqueeze(1),
        output_final_state=state is not None,
    )
    y = separated(y.view(rows[2].shape), group, dim=2, heads=1)
    return y, None if state is None else last.view(state.shape)


def _spread(x: Tensor, group: int) -> Tensor:
    """Zeros after each token, for the queries of a group that bring none: [B, Hk, Q, X] → [B, Hk, Q·G, X]."""
    return x if group == 1 else pad(x.unsqueeze(3), (0, 0, 0, group - 1)).flatten(2, 3)
