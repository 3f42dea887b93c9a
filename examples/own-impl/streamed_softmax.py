"""y_i = Σ_j softmax_j(q_iᵀ k_j / √D) v_j, attnbench's softmax, with an impl of one's own: `mine`.

`mine` walks the keys in tiles and keeps a running maximum and a running sum (Milakov & Gimelshein 2018, "Online
normalizer calculation for softmax", https://arxiv.org/abs/1805.02867), so that no N × N weights are stored. It is
compared with softmax's own reference, in float64 and at every timed size, before it gets a time.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from attnbench.operator import Impl
from attnbench.operators.exact import softmax
from attnbench.problem import Params, Problem

TILE = 256
"""Keys in one tile."""


def streamed(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: [B, H, N, D]. Returns [B, H, N, D]."""
    q = q * problem.head_dim**-0.5
    largest = q.new_full((*q.shape[:-1], 1), -torch.inf)  # [B, H, N, 1]
    total, y = torch.zeros_like(largest), torch.zeros_like(q)
    for keys, values in zip(k.split(TILE, dim=2), v.split(TILE, dim=2), strict=True):
        scores = q @ keys.transpose(-2, -1)  # [B, H, N, tile]
        new = torch.maximum(largest, scores.amax(dim=-1, keepdim=True))
        weights, shrink = (scores - new).exp(), (largest - new).exp()
        total = total * shrink + weights.sum(dim=-1, keepdim=True)
        y = y * shrink + weights @ values
        largest = new
    return y / total


def why_not(problem: Problem, params: Params, device: str) -> str | None:
    """What it cannot do is skipped in a run, with this reason."""
    if problem.causal:
        return "it has no causal form"
    if problem.dtype in ("bfloat16", "float16"):
        return f"its running sums would be in {problem.dtype}"
    return None


MINE = Impl(load=lambda: streamed, kernel="tiles of keys, in PyTorch", why_not=why_not)
CORE = softmax.OPERATOR.forms["core"]
OPERATOR = replace(
    softmax.OPERATOR,
    forms={"core": replace(CORE, impls={"mine": MINE})},
    notes="softmax with an impl of this repository",
)
