"""Independent forms of kernelized attention: all N×N pairs, or one token after another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.operator import Inputs
from attnbench.problem import Params, Problem

unhurried = settings(deadline=None, max_examples=50)  # a first call may take long on a busy machine
sizes = st.fixed_dictionaries(
    {
        "tokens": st.integers(1, 70),
        "head_dim": st.integers(1, 9),
        "heads": st.integers(1, 3),
        "batch": st.integers(1, 2),
        "causal": st.booleans(),
        "seed": st.integers(0, 2**20),
    }
)


def drawn(
    make_inputs: Callable[..., Inputs], params: Params, size: dict[str, int], causal: bool | None = None
) -> tuple[Problem, Inputs]:
    """A float64 problem of the given size and its inputs."""
    problem = Problem(
        size["tokens"],
        size["head_dim"] * size["heads"],
        size["heads"],
        size["batch"],
        "float64",
        bool(size["causal"]) if causal is None else causal,
    )
    return problem, make_inputs(problem, params, torch.Generator().manual_seed(size["seed"]))


def weighted_mean(weights: Tensor, v: Tensor, causal: bool, epsilon: float = 0.0, first: int = 0) -> Tensor:
    """Σ_j w_ij v_j / (Σ_j w_ij + ε) from all pairs; causal: over j ≤ i − first."""
    if causal:
        weights = weights.tril(-first)
    return weights @ v / (weights.sum(dim=-1, keepdim=True) + epsilon)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def gradients(call: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Of a fixed weighted sum of the output."""
    given = [x.detach().requires_grad_() for x in tensors]
    output = call(*given)
    cotangent = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad(output, given, cotangent)
