"""Synthesizer's kinds as one SDPA call or one Triton kernel, without input-dependent N×N logits in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from attnbench.kernels.support import why_not as kernel_why_not
from attnbench.masking import ahead
from attnbench.operator import Impl
from attnbench.problem import Params, Problem

Call = Callable[..., Tensor]


def _sdpa() -> Call:
    def call(problem: Problem, params: Params, v: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
        # Copies: cuDNN lays its output out as the queries are, and refuses a batch that is one sample seen again.
        q, k = (r.expand(problem.batch, -1, -1, -1).contiguous() for r in (r1, r2))  # [B, H, N, rank]
        return scaled_dot_product_attention(q, k, v, is_causal=problem.causal, scale=1.0)

    return call


def _cuda() -> Call:
    def call(problem: Problem, params: Params, v: Tensor, **tensors: Tensor) -> Tensor:
        by_kind: dict[str, Call] = {"dense": dense, "random": random, "factorized_dense": factorized_dense}
        return by_kind[params["kind"]](problem, v, **tensors)

    return call


def dense(problem: Problem, v: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Queries [relu(x W₁ + b₁), 1], keys [W₂, b₂], scale 1; q, k, v of one width, a multiple of 8 for flash."""
    d = problem.head_dim
    zeros = 8 - (d + 1) % 8 if (d + 1) % 8 else 0
    hidden = (x @ w1 + b1).relu()  # [B, H, N, D]
    q = torch.cat((pad(hidden, (0, 1), value=1.0), hidden.new_zeros(*hidden.shape[:-1], zeros)), dim=-1)
    k = pad(torch.cat((w2, b2), dim=-2).transpose(-2, -1), (0, zeros)).expand(problem.batch, -1, -1, -1)
    y = scaled_dot_product_attention(q, k, pad(v, (0, 1 + zeros)), is_causal=problem.causal, scale=1.0)
    return y[..., :d]


def random(problem: Problem, v: Tensor, r: Tensor) -> Tensor:
    """R as the bias of an attention whose queries and keys are 0: R is read once, its softmax never written."""
    nothing = v.new_zeros(*v.shape[:-1], 8)  # [B, H, N, 8], the thinnest the kernels take
    if problem.causal:
        r = r.masked_fill(ahead(r.shape[-2], r.shape[-1], r.device), float("-inf"))
    return scaled_dot_product_attention(nothing, nothing, v, attn_mask=r.expand(problem.batch, -1, -1, -1))


def factorized_dense(problem: Problem, v: Tensor, **tensors: Tensor) -> Tensor:
    """Two layers for α and for β, then a kernel that multiplies them as it attends."""
    from attnbench.kernels.outer_scores.launch import attend
    from attnbench.operators.synthesized._two_layers import two_layers

    alpha, beta = (two_layers(tensors, suffix).transpose(0, 1) for suffix in ("_alpha", "_beta"))  # [B, H, N, a or t]
    return attend(alpha, beta, v, problem.causal)


def _sdpa_why_not(problem: Problem, params: Params, device: str) -> str | None:
    if params["kind"] != "factorized_random":
        return f"kind {params['kind']} is not attention between two factors; one call with work around it is impl cuda"
    return None


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    if params["kind"] == "factorized_random":
        return "kind factorized_random is exactly one SDPA call: impl sdpa"
    if params["kind"] == "factorized_dense":
        return kernel_why_not(problem, max_head_dim=128)
    return None


FUSED = {
    "sdpa": Impl(_sdpa, "torch SDPA of R₁ and R₂, its choice", _sdpa_why_not),
    "cuda": Impl(
        _cuda,
        "torch SDPA with synthesized queries or bias; factorized_dense: attnbench Triton: outer_scores",
        _cuda_why_not,
    ),
}
