"""Random inputs, drawn on the generator's device in the problem's dtype."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from attnbench.problem import Problem


def normal(problem: Problem, generator: Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """N(0, scale²) of a shape in the working dtype; half precisions are rounded from float32."""
    dtype = torch_dtype(problem)
    drawn = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(shape, generator=generator, device=generator.device, dtype=drawn)
    return x.mul_(scale).to(dtype)


def heads(problem: Problem, generator: Generator, *names: str) -> dict[str, Tensor]:
    """One N(0, 1) tensor of the new tokens per name: [B, H, Q, D]; of k and v [B, Hk, Q, D]."""
    b, q, d = problem.batch, problem.query_len, problem.head_dim
    return {name: normal(problem, generator, b, head_count(problem, name), q, d) for name in names}


def head_count(problem: Problem, name: str) -> int:
    """Heads of a tensor by its name: Hk of k and v, else H."""
    return problem.kv_heads if name in KEYS_AND_VALUES else problem.heads


KEYS_AND_VALUES = ("k", "v", "k_global", "v_global", "k_cmp", "v_cmp", "k_win", "v_win")
"""The tensors of which several query heads may read one head."""


def tokens(problem: Problem, generator: Generator, *names: str) -> dict[str, Tensor]:
    """One N(0, 1) tensor of the new tokens [B, Q, C] per name."""
    shape = (problem.batch, problem.query_len, problem.channels)
    return {name: normal(problem, generator, *shape) for name in names}


def maps(problem: Problem, generator: Generator, *names: str) -> dict[str, Tensor]:
    """One N(0, 1) image [B, C, h, w] per name. Raises ValueError on a sequence."""
    if problem.height is None or problem.width is None:
        raise ValueError("an image operator needs height and width")
    shape = (problem.batch, problem.channels, problem.height, problem.width)
    return {name: normal(problem, generator, *shape) for name in names}


def torch_dtype(problem: Problem) -> torch.dtype:
    """The torch dtype of the problem's working dtype."""
    dtype: torch.dtype = getattr(torch, problem.dtype)
    return dtype
