"""y_i = φ(q_i)ᵀ S_i / φ(q_i)ᵀ z_i with S_i = a_i S_{i−1} + b_i φ(k_i) v_iᵀ and z_i = a_i z_{i−1} + b_i φ(k_i).

The causal scan of `_contraction` with a factor a_i ≤ 1 that forgets, given by its logarithm, and a weight b_i. The
states before each chunk are themselves such sums, over chunks, so they are added up the same way, group by group.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.cost import product
from attnbench.operators.kernelized._contraction import chunk, in_chunks
from attnbench.problem import Mode, Problem

GROUP = 16
"""States added up by one triangular product: these products are then at most GROUP/chunk of those with the states."""


def decayed(fq: Tensor, fk: Tensor, v: Tensor, log_keep: Tensor, log_take: Tensor) -> Tensor:
    """fq, fk: features [B, H, N, m]. v: [B, H, N, D]. log_keep, log_take: log a, log b, [B, H, N]. Returns like v."""
    n, d = v.shape[-2:]
    c = chunk(d)
    log_keep, log_take = (x if x.dtype == torch.float64 else x.float() for x in (log_keep, log_take))  # few, and summed
    fq, fk, v = (in_chunks(x, c) for x in (fq, fk, pad(v, (0, 1), value=1.0)))  # the ones add up to the normaliser
    along = in_chunks(log_keep.unsqueeze(-1), c).squeeze(-1).cumsum(dim=-1)  # [B, H, G, c]
    log_weights = in_chunks(log_take.unsqueeze(-1), c).squeeze(-1) - along
    scores = (fq @ fk.transpose(-2, -1)) * lower(along, log_weights).to(v.dtype)  # [B, H, G, c, c]
    y = scores @ v  # [B, H, G, c, D+1]
    remaining = (log_weights + along[..., -1:]).exp().to(v.dtype).unsqueeze(-1)[:, :, :-1]  # [B, H, G-1, c, 1]
    states = (fk[:, :, :-1] * remaining).transpose(-2, -1) @ v[:, :, :-1]  # [B, H, G-1, m, D+1]
    before = sums(states.flatten(-2), along[:, :, :-1, -1]).view_as(states)
    y[:, :, 1:] += (fq * along.exp().to(v.dtype).unsqueeze(-1))[:, :, 1:] @ before
    y = y.flatten(2, 3)[:, :, :n]
    return y[..., :d] / y[..., d:]


def sums(x: Tensor, log_keep: Tensor) -> Tensor:
    """s_g = exp(log_keep_g) s_{g−1} + x_g. x: [B, H, G, X]. log_keep: [B, H, G]. Returns [B, H, G, X]."""
    n = x.shape[2]
    if n <= GROUP:
        along = log_keep.cumsum(dim=-1)
        return lower(along, -along).to(x.dtype) @ x
    x = in_chunks(x, GROUP)
    along = in_chunks(log_keep.unsqueeze(-1), GROUP).squeeze(-1).cumsum(dim=-1)
    within = lower(along, -along).to(x.dtype) @ x  # [B, H, groups, GROUP, X]
    before = sums(within[:, :, :-1, -1], along[:, :, :-1, -1])
    carried = along[:, :, 1:].exp().to(x.dtype).unsqueeze(-1) * before.unsqueeze(-2)
    return torch.cat((within[:, :, :1], within[:, :, 1:] + carried), dim=2).flatten(2, 3)[:, :, :n]


def lower(rows: Tensor, columns: Tensor) -> Tensor:
    """exp(rows_i + columns_j) where j ≤ i, else 0: [..., c] and [..., c] → [..., c, c]."""
    ahead = torch.ones(rows.shape[-1], rows.shape[-1], dtype=torch.bool, device=rows.device).triu_(1)
    exponent = rows.unsqueeze(-1) + columns.unsqueeze(-2)
    return exponent.masked_fill(ahead, float("-inf")).exp()  # masked first: ahead, the exponent may overflow


def executed_decayed(problem: Problem, m: int, mode: Mode) -> int:
    """FLOPs of `decayed`: those of the causal scan, and the triangular products that add up the states.

    In addition to the scan's, GROUP·m·(D + 1) multiply-adds per state and a fifteenth of that for the sums of groups.
    """
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    c = chunk(d)
    groups = -(-n // c)
    return (
        product(b * h * groups * c * m * c, mode)  # scores: [c, m] × [m, c] in each chunk
        + product(b * h * groups * c * c * (d + 1), mode)  # scores [v, 1]: [c, c] × [c, D+1]
        + 2 * product(b * h * (groups - 1) * c * m * (d + 1), mode)  # states: [m, c] × [c, D+1]; their use
        + product(b * h * _triangular(groups - 1) * m * (d + 1), mode)
    )


def _triangular(states: int) -> int:
    """Multiply-adds of `sums` for each number of a state."""
    if states <= GROUP:
        return states * states
    groups = -(-states // GROUP)
    return groups * GROUP * GROUP + _triangular(groups - 1)
