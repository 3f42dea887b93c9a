"""y_i = Σ_j w_ij v_j / Σ_j w_ij over 0 ≤ i−j < c·H, with w_ij = exp(q_iᵀ k_j / √D) · 2^(−(i−j)/H); H: half-life, c 4.

An invented operator that shows what an operator file needs. Queries are processed in blocks of c·H, each with the keys
of the same and the previous block, so that nothing is quadratic in N.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from attnbench.cost import product, traffic
from attnbench.inputs import heads
from attnbench.operator import Complexity, Cost, Form, Inputs, Operator, Paper, Param
from attnbench.problem import Mode, Params, Problem

HALF_LIVES = 4


def reference(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: [B, H, N, D]. Returns [B, H, N, D]."""
    n, width = problem.seq_len, HALF_LIVES * params["half_life"]
    padding = -n % width
    q, k, v = (pad(x, (0, 0, 0, padding)).unflatten(2, (-1, width)) for x in (q, k, v))  # [B, H, n, w, D]
    k, v = (torch.cat([pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1], x], dim=3) for x in (k, v))  # [B, H, n, 2w, D]
    behind = torch.arange(width, device=q.device)[:, None] + width - torch.arange(2 * width, device=q.device)  # i − j
    bias = torch.where((behind >= 0) & (behind < width), -behind / params["half_life"] * 0.6931471805599453, -torch.inf)
    scores = (q * problem.head_dim**-0.5) @ k.transpose(-2, -1) + bias.to(q.dtype)  # [B, H, n, w, 2w]
    before_first = torch.zeros(scores.shape[2], 1, 2 * width, dtype=torch.bool, device=q.device)
    before_first[0, :, :width] = True
    return (scores.masked_fill(before_first, -torch.inf).softmax(dim=-1) @ v).flatten(2, 3)[:, :, :n]


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the logits have variance 1."""
    return Inputs(heads(problem, generator, "q", "k", "v"))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference multiplies 2w keys per query where w are needed, and pads the last block."""
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    width = HALF_LIVES * params["half_life"]
    pairs = sum(min(i + 1, width) for i in range(min(n, width))) + max(0, n - width) * width
    executed = -(-n // width) * width * 2 * width
    size = b * h * n * d
    return Cost(
        flops=2 * product(b * h * pairs * d, mode),  # q kᵀ and p v: [w, D] × [D, w]
        reference_flops=2 * product(b * h * executed * d, mode),
        elementwise=5 * b * h * pairs * (1 if mode == "fwd" else 2),  # decay, max, subtract, exp, divide
        bytes_required=traffic(problem, mode, read=3 * size, written=size),
    )


OPERATOR = Operator(
    paper=Paper("nobody", 2025, "An example", "https://example.org", "this file"),
    forms={"core": Form(reference, make_inputs, cost)},
    complexity=lambda params: Complexity(time="n", memory="n"),
    pairs=lambda params, causal: "fixed",
    params={"half_life": Param(32, "tokens after which a weight has halved", minimum=1)},
    notes="an example of an operator outside attnbench",
)
