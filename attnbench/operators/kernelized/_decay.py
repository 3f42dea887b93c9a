"""y_i = φ(q_i)ᵀ S_i / φ(q_i)ᵀ z_i with S_i = a_i S_{i−1} + b_i φ(k_i) v_iᵀ and z_i = a_i z_{i−1} + b_i φ(k_i).

The decayed scan of features, with factors a_i ≤ 1 that forget and weights b_i, given by their logarithms. z stands
beside S as one more column, that of a value 1. Where Q < N the state of the tokens before is given, and that of all N
returned. Each head of keys and values has its factors, for all the query heads that read it.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from attnbench.operators.kernelized._contraction import chunk, chunk_length, widened
from attnbench.operators.recurrent._scan import Scan, executed_scan, last_state, scanned
from attnbench.problem import Mode, Problem


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
    c = chunk(d)
    if state is not None:
        c, fq, fk, v = min(c, n), *map(widened, (fq, fk, v))
    keep, take = (widened(x).unsqueeze(-1) for x in (log_keep, log_take))  # few, and summed
    y, state = scanned(fq, fk, pad(v, (0, 1), value=1.0), c, keep, take, state)
    return y[..., :d] / y[..., d:], state


def decayed_state(fk: Tensor, v: Tensor, log_keep: Tensor, log_take: Tensor) -> Tensor:
    """[S, z] after these tokens, in at least float32: [B, Hk, m, D+1]. Arguments: as of `decayed`."""
    fk, v, log_keep, log_take = map(widened, (fk, v, log_keep, log_take))
    return last_state(fk, pad(v, (0, 1), value=1.0), log_keep.unsqueeze(-1), log_take.unsqueeze(-1))


def executed_decayed(problem: Problem, m: int, mode: Mode) -> int:
    """FLOPs of `decayed`."""
    heads, states = problem.batch * problem.heads, problem.batch * problem.kv_heads
    sizes = problem.query_len, chunk_length(problem), m, problem.head_dim + 1
    return executed_scan(Scan(heads, heads, states, *sizes, problem.past > 0), mode)
