"""Softmax attention with the weights of all pairs in memory, as plain PyTorch computes it."""

from __future__ import annotations

from torch import Tensor

from attnbench.grouped import folded, hide_for_each, unfolded
from attnbench.masking import ahead
from attnbench.problem import Problem


def attention(problem: Problem, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Eager: the Q×N weights are materialised.

    Args:
        q: [B, H, Q, K].
        k, v: [B, Hk, N, K] and [B, Hk, N, V], of all tokens.
        scale: of the logits.

    Returns: [B, H, Q, V].
    """
    scores = folded(q * scale, k) @ k.transpose(-2, -1)  # [B, Hk, G·Q, N]
    if problem.causal and problem.query_len > 1:
        scores = hide_for_each(scores, ahead(problem.query_len, problem.seq_len, q.device))
    return unfolded(scores.softmax(dim=-1) @ v, q)
