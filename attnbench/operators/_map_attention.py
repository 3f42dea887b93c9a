"""Softmax attention, without 1/√D, from every pixel of a map to a few keys, as the image operators share it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Generator, Tensor

from attnbench.inputs import normal
from attnbench.operator import Inputs
from attnbench.operators._value_map import make_value_map
from attnbench.problem import Params, Problem


def attend(problem: Problem, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """q: [B, C, h, w]; keys, values: [B, H, M, D]. Returns [B, C, h, w]."""
    scores = by_head(problem, q).transpose(-2, -1) @ keys.transpose(-2, -1)  # [B, H, N, D] × [B, H, D, M]
    weights = scores.softmax(dim=-1)
    return (values.transpose(-2, -1) @ weights.transpose(-2, -1)).reshape(q.shape)  # [B, H, D, M] × [B, H, M, N]


def by_head(problem: Problem, x: Tensor) -> Tensor:
    """[B, C, …] → [B, H, D, M], all axes after the channels flattened into one."""
    return x.reshape(x.shape[0], problem.heads, problem.head_dim, -1)


def tokens(problem: Problem, x: Tensor) -> Tensor:
    """[B, C, …] → [B, H, M, D]."""
    return by_head(problem, x).transpose(-2, -1)


def sides(problem: Problem) -> tuple[int, int]:
    """Height and width. Raises ValueError on a sequence."""
    if problem.height is None or problem.width is None:
        raise ValueError("an image operator needs height and width")
    return problem.height, problem.width


def scaled_maps(problem: Problem, params: Params, generator: Generator, gains: Mapping[str, float]) -> Inputs:
    """q, k, v: [B, C, h, w] ~ N(0, gain²), 1 for a name that is not in `gains`; and the value map where there is one.

    The operators have no scale of their own, so the gains give logits a variance of about 1.
    """
    shape = (problem.batch, problem.channels, *sides(problem))
    data = {name: normal(problem, generator, *shape, scale=gains.get(name, 1.0)) for name in ("q", "k", "v")}
    return Inputs(data, make_value_map(problem, params, generator))
