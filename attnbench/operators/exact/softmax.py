"""y_i = Σ_j p_ij v_j with p_i = softmax_j(q_iᵀ k_j / √D) over all j (causal: over 0 ≤ j ≤ i).

Vaswani et al. 2017, "Attention Is All You Need", eq. 1, https://arxiv.org/abs/1706.03762
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.cost import product, traffic
from attnbench.inputs import heads
from attnbench.kernels.library.sdpa_backends import BACKENDS, flash_attn, forced, why_not_flash_attn, why_not_forced
from attnbench.masking import hide
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper
from attnbench.operators._value_map import (
    VALUE_MAP,
    has_value_map,
    make_value_map,
    mapped,
    value_map_multiply_adds,
    value_map_weights,
)
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import projected


def reference(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, value_map: Tensor | None = None
) -> Tensor:
    """q, k, v: [B, H, N, D]; value_map: [C, C]. Returns [B, H, N, D]. Eager: the N×N weights are materialised."""
    scores = (q * problem.head_dim**-0.5) @ k.transpose(-2, -1)  # [B, H, N, N]
    if problem.causal:
        n = problem.seq_len
        ahead = torch.ones(n, n, dtype=torch.bool, device=q.device).triu_(1)
        scores = hide(scores, ahead)
    return scores.softmax(dim=-1) @ mapped(v, value_map)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the logits have variance 1."""
    return Inputs(heads(problem, generator, "q", "k", "v"), make_value_map(problem, params, generator))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """`flops` counts the allowed pairs; a causal reference executes all N² of them, at most twice as many."""
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    pairs = n * (n + 1) // 2 if problem.causal else n * n
    size = b * h * n * d
    value_map = product(value_map_multiply_adds(problem, params, n), mode)  # [N, C] × [C, C]
    return Cost(
        flops=product(b * h * pairs * d, mode)  # q kᵀ: [N, D] × [D, N]
        + product(b * h * pairs * d, mode)  # p v: [N, N] × [N, D]
        + value_map,
        reference_flops=2 * product(b * h * n * n * d, mode) + value_map,
        elementwise=4 * b * h * pairs * (1 if mode == "fwd" else 2),  # max, subtract, exp, divide
        bytes_required=traffic(problem, mode, read=3 * size + value_map_weights(problem, params), written=size),
        passes=1,
    )


def _sdpa() -> Callable[..., Tensor]:
    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=problem.causal)

    return call


def _sdpa_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return "the value map is a separate product beside the SDPA call" if has_value_map(params) else None


def _forced(backend: str) -> Impl:
    """An impl that runs one library kernel, on mapped values where there is a value map."""

    def load() -> Callable[..., Tensor]:
        attend = flash_attn if backend == "flash_attn" else forced(backend)

        def call(
            problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, value_map: Tensor | None = None
        ) -> Tensor:
            return attend(problem, q, k, mapped(v, value_map))

        return call

    def why_not(problem: Problem, params: Params, device: str) -> str | None:
        if backend == "flash_attn":
            return why_not_flash_attn(problem)
        return why_not_forced(backend, problem, device)

    return Impl(load, "flash-attn package" if backend == "flash_attn" else f"torch SDPA, {backend} forced", why_not)


CORE = Form(
    reference,
    make_inputs,
    cost,
    impls={
        "sdpa": Impl(_sdpa, "torch SDPA, its own choice of kernel", _sdpa_why_not),
        **{f"cuda:{backend}": _forced(backend) for backend in (*BACKENDS, "flash_attn")},
    },
)

OPERATOR = Operator(
    paper=Paper("Vaswani et al.", 2017, "Attention Is All You Need", "https://arxiv.org/abs/1706.03762", "eq. 1"),
    forms={"core": CORE, "layer": projected(CORE)},
    complexity=lambda params: Complexity(time="n^2", memory="n^2"),
    params={"value_map": VALUE_MAP},
    exact=lambda params: True,
    notes="the baseline",
)
