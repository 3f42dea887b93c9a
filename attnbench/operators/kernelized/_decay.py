"""y_i = φ(q_i)ᵀ S_i / φ(q_i)ᵀ z_i with S_i = a_i S_{i−1} + b_i φ(k_i) v_iᵀ and z_i = a_i z_{i−1} + b_i φ(k_i).

The causal scan of `_contraction` with a factor a_i ≤ 1 that forgets, given by its logarithm, and a weight b_i. The
states before each chunk are themselves such sums, over chunks, so they are added up the same way, group by group.
z stands beside S as one more column, that of a value 1. Where Q < N the state of the tokens before is given, and that
of all N returned. Each head of keys and values has its factors, for all the query heads that read it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.cost import product
from attnbench.grouped import group_of
from attnbench.masking import ahead
from attnbench.operators.kernelized._contraction import (
    before_chunks,
    chunk,
    chunk_length,
    in_chunks,
    query_chunks,
    tokens_of,
    widened,
)
from attnbench.problem import Mode, Problem

GROUP = 16
"""States added up by one triangular product: these products are then at most GROUP/chunk of those with the states."""


def decayed(
    fq: Tensor, fk: Tensor, v: Tensor, log_keep: Tensor, log_take: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """A chunk has no more tokens than are new.

    Args:
        fq: features [B, H, Q, m].
        fk, v: [B, Hk, Q, m] and [B, Hk, Q, D].
        log_keep, log_take: log a, log b, [B, Hk, Q].
        state: [S, z] after the tokens before, [B, Hk, m, D+1], where Q < N.

    Returns: y, [B, H, Q, D], and the state after all where one was given.
    """
    n, d = v.shape[-2:]
    c, group, queries = chunk(d), group_of(fq, fk), fq
    if state is not None:
        c, fq, fk, v = min(c, n), *map(widened, (fq, fk, v))
    log_keep, log_take = (widened(x) for x in (log_keep, log_take))  # few, and summed
    fq = query_chunks(fq, fk, c)  # [B, Hk, G, group·c, m]
    fk, v = (in_chunks(x, c) for x in (fk, pad(v, (0, 1), value=1.0)))
    along = in_chunks(log_keep.unsqueeze(-1), c).squeeze(-1).cumsum(dim=-1)  # [B, Hk, G, c]
    log_weights = in_chunks(log_take.unsqueeze(-1), c).squeeze(-1) - along
    scores = (fq @ fk.transpose(-2, -1)) * _for_group(lower(along, log_weights), group).to(v.dtype)
    y = scores @ v  # [B, Hk, G, group·c, D+1]
    taken = None if state is not None else -1  # without a state, that after the last chunk is not wanted
    remaining = (log_weights + along[..., -1:]).exp().to(v.dtype).unsqueeze(-1)[:, :, :taken]  # [B, Hk, chunks, c, 1]
    states = (fk[:, :, :taken] * remaining).transpose(-2, -1) @ v[:, :, :taken]  # [B, Hk, chunks, m, D+1]
    if state is None:
        before = sums(states.flatten(-2), along[:, :, :-1, -1]).view_as(states)
        y[:, :, 1:] += (fq * _for_group(along.exp().to(v.dtype).unsqueeze(-1), group))[:, :, 1:] @ before
    else:
        before, state = before_chunks(_after_chunks(states, along[..., -1], state), state)
        y += (fq * _for_group(along.exp().to(v.dtype).unsqueeze(-1), group)) @ before
    y = tokens_of(y, queries, c)
    return y[..., :d] / y[..., d:], state


def _after_chunks(states: Tensor, log_keep: Tensor, state: Tensor) -> Tensor:
    """The state after each chunk, from what each adds, which is overwritten, and the state before all."""
    if states.shape[2] > 1:
        states = sums(states.flatten(-2), log_keep).view_as(states)
    share = log_keep.cumsum(dim=-1).exp().to(states.dtype)[..., None, None]  # [B, Hk, chunks, 1, 1]
    return states.addcmul_(share, state.unsqueeze(2))


def decayed_state(fk: Tensor, v: Tensor, log_keep: Tensor, log_take: Tensor) -> Tensor:
    """[S, z] after these tokens, in at least float32: [B, Hk, m, D+1]. Arguments: as of `decayed`."""
    fk, v, log_keep, log_take = map(widened, (fk, v, log_keep, log_take))
    along = log_keep.cumsum(dim=-1)
    weights = (log_take + along[..., -1:] - along).exp().unsqueeze(-1)
    return (fk * weights).transpose(-2, -1) @ pad(v, (0, 1), value=1.0)


def _for_group(x: Tensor, group: int) -> Tensor:
    """A factor of each of a chunk's tokens, for the queries of a group of heads: […, c, X] → […, group·c, X]."""
    return x if group == 1 else x.repeat(*[1] * (x.dim() - 2), group, 1)


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
    later = ahead(rows.shape[-1], rows.shape[-1], rows.device)
    exponent = rows.unsqueeze(-1) + columns.unsqueeze(-2)
    return exponent.masked_fill(later, float("-inf")).exp()  # masked first: ahead, the exponent may overflow


def executed_decayed(problem: Problem, m: int, mode: Mode) -> int:
    """FLOPs of `decayed`: those of the causal scan, and the triangular products that add up the states.

    In addition to the scan's, GROUP·m·(D + 1) multiply-adds per state and a fifteenth of that for the sums of groups.
    """
    b, h, hk, d = problem.batch, problem.heads, problem.kv_heads, problem.head_dim
    c = chunk_length(problem)
    chunks = -(-problem.query_len // c)
    states = chunks - (0 if problem.past else 1)  # of chunks whose state is wanted
    return (
        product(b * h * chunks * c * m * c, mode)  # scores: [c, m] × [m, c] in each chunk
        + product(b * h * chunks * c * c * (d + 1), mode)  # scores [v, 1]: [c, c] × [c, D+1]
        + product(b * (h + hk) * states * c * m * (d + 1), mode)  # states: [m, c] × [c, D+1]; their use
        + (product(b * hk * _triangular(states) * m * (d + 1), mode) if states > 1 or not problem.past else 0)
    )


def _triangular(states: int) -> int:
    """Multiply-adds of `sums` for each number of a state."""
    if states <= GROUP:
        return states * states
    groups = -(-states // GROUP)
    return groups * GROUP * GROUP + _triangular(groups - 1)
