"""y_i = ρ(q_i)ᵀ Σ_j κ_j v_jᵀ: ρ(q_i) = softmax of q_i over its D channels, κ = softmax of k over all N positions.

Shen et al. 2018, "Efficient Attention: Attention with Linear Complexities", sec. 3.2, with softmax normalisation (there
also called ρ, for both), https://arxiv.org/abs/1812.01243
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator, Tensor

from attnbench.cost import keys_summed_first, product, traffic
from attnbench.grouped import folded, unfolded
from attnbench.inputs import heads
from attnbench.kernels.library.graphs import with_graph
from attnbench.kernels.support import why_not
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import projected


def reference(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q: [B, H, N, D]. k, v: [B, Hk, N, D]. Returns [B, H, N, D]. float16 is widened inside: 1/N leaves its range."""
    dtype = q.dtype
    if problem.dtype == "float16":
        q, k, v = q.float(), k.float(), v.float()
    context = k.softmax(dim=-2).transpose(-2, -1) @ v  # [B, Hk, D, D]
    return unfolded(folded(q.softmax(dim=-1), context) @ context, q).to(dtype)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): what is exponentiated has variance 1."""
    return Inputs(heads(problem, generator, "q", "k", "v"))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference executes what the definition requires."""
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    flops = (
        product(b * problem.kv_heads * d * n * d, mode)  # κᵀ v: [D, N] × [N, D]
        + product(b * h * n * d * d, mode)  # ρ (κᵀ v): [N, D] × [D, D]
    )
    size, kv_size = b * h * n * d, b * n * problem.kv_channels
    return Cost(
        flops=flops,
        reference_flops=flops,
        elementwise=4 * (size + kv_size) * (1 if mode == "fwd" else 2),  # max, subtract, exp, divide, of q and k
        bytes_required=traffic(problem, mode, read=size + 2 * kv_size, written=size),
    )


def _fused() -> Callable[..., Tensor]:
    from attnbench.kernels.kernelized.full import FeatureMap, attend

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, FeatureMap("softmax", problem.head_dim))

    return call


def _fused_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return why_not(problem)


CORE = Form(
    reference, make_inputs, cost, {"cuda": Impl(_fused, "attnbench Triton: kernelized", _fused_why_not, grouped=True)}
)

OPERATOR = Operator(
    paper=Paper(
        "Shen et al.",
        2018,
        "Efficient Attention: Attention with Linear Complexities",
        "https://arxiv.org/abs/1812.01243",
        "sec. 3.2, softmax normalisation",
    ),
    forms=with_graph({"core": CORE, "layer": projected(CORE, bytes_again=keys_summed_first)}, "cuda"),
    complexity=lambda params: Complexity(time="n", memory="n"),
    grouped=True,
    causal="the softmax over positions needs every key before the first output",
)
