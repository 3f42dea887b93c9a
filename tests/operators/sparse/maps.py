"""The independent form of the operators on maps whose pixels see some others: a mask built pair by pair."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnbench.problem import Problem, Scope
from tests.operators.small import Small, small

Pixel = tuple[int, int]
Sees = Callable[[Pixel, Pixel], bool]


def case_of(
    name: str,
    side: Pixel,
    scope: Scope = "core",
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 4,
    **params: Any,
) -> Small:
    """Two samples."""
    return small(name, Problem.image(*side, head_dim * heads, heads, batch=2, kv_heads=kv_heads), scope, **params)


def sides_of(case: Small) -> Pixel:
    return case.problem.height or 0, case.problem.width or 0


def visible(side: Pixel, sees: Sees) -> Tensor:
    """[N, N]: whether pixel i sees pixel j, asked pair by pair, in row-major order."""
    pixels = list(itertools.product(range(side[0]), range(side[1])))
    return torch.tensor([[sees(i, j) for j in pixels] for i in pixels])


def masked(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, bias: Tensor | float = 0.0, scale: float = 0.0) -> Tensor:
    """softmax over the allowed pairs, [N, N]; bias: [H, N, N]; scale: 0 for 1/√D."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * (scale or q.shape[-1] ** -0.5) + bias
    return torch.einsum("bhij,bhjd->bhid", scores.masked_fill(~allowed, float("-inf")).softmax(-1), v)


def of_layer(case: Small) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of x."""
    x, d = case.tensors["x"], case.problem.head_dim
    return tuple((x @ case.tensors[f"w_{name}"]).unflatten(-1, (-1, d)).transpose(1, 2) for name in "qkv")


def output_of_layer(case: Small, y: Tensor) -> Tensor:
    """The last projection of y, [B, H, N, D]."""
    return y.transpose(1, 2).flatten(2) @ case.tensors["w_o"]
