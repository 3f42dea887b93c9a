"""y_i = φ(q_i)ᵀ Σ_j φ(k_j) v_jᵀ / (φ(q_i)ᵀ Σ_j φ(k_j) + 10⁻⁶), φ(x) = elu(x) + 1, over all j (causal: 0 ≤ j ≤ i).

Katharopoulos et al. 2020, "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
eqs. 5 to 7 (causal: 8 to 12), https://arxiv.org/abs/2006.16236; ε is that of the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Generator, Tensor
from torch.nn.functional import elu

from attnbench.cost import keys_summed_first, traffic
from attnbench.inputs import heads
from attnbench.kernels.library.fla import KERNEL as FLA_KERNEL
from attnbench.kernels.library.fla import attend_with_fla, half_safe, why_not_fla
from attnbench.kernels.library.graphs import with_graph
from attnbench.kernels.support import why_not, why_not_causal_groups
from attnbench.operator import Call, Complexity, Cost, Form, Impl, Inputs, Operator, Paper
from attnbench.operators.kernelized._contraction import (
    GRAPHED,
    causal,
    continued,
    executed,
    full,
    required,
    state_bytes,
    state_of,
    state_traffic,
    widened,
)
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import projected
from attnbench.state import drawn_state

EPSILON = 1e-6


def reference(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sums: Tensor | None = None,
    totals: Tensor | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """float16 is widened inside: Σ φ(k) passes 65504 at 56 K tokens.

    Args:
        q: [B, H, Q, D].
        k, v: [B, Hk, Q, D].
        sums, totals: Σ φ(k) vᵀ and Σ φ(k) of the tokens before, where Q < N.

    Returns: [B, H, Q, D]; where Q < N also `sums` and `totals` of all N tokens.
    """
    dtype = q.dtype
    if problem.dtype == "float16":
        q, k, v = q.float(), k.float(), v.float()
    if sums is not None and totals is not None:
        y, *new = continued(features(q), features(k), v, sums, totals, EPSILON)
        return y.to(dtype), *new
    contract = causal if problem.causal else full
    return contract(features(q), features(k), v, EPSILON).to(dtype)


def state(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Sums of fixed size."""
    return state_of(features(widened(k)), v)


def features(x: Tensor) -> Tensor:
    """φ(x) = elu(x) + 1: x + 1 above 0, exp x below."""
    return elu(x) + 1


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1)."""
    data = heads(problem, generator, "q", "k", "v")
    return Inputs(data, state=drawn_state(make_inputs, state, problem, params, generator))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """As many features as channels. What the causal reference executes beyond `flops`: see `executed`."""
    d = problem.head_dim
    size, kv_size = (problem.batch * problem.query_len * c for c in (problem.channels, problem.kv_channels))
    return Cost(
        flops=required(problem, d, mode),
        reference_flops=executed(problem, d, mode),
        # elu and + 1 of q and k, the sum of φ(k), the division
        elementwise=(3 * size + 3 * kv_size) * (1 if mode == "fwd" else 2),
        bytes_required=traffic(problem, mode, read=size + 2 * kv_size, written=size) + state_traffic(problem, d),
        state_bytes=state_bytes(problem, d) if problem.causal else None,
    )


def _fused() -> Callable[..., Tensor]:
    from attnbench.kernels.kernelized.causal import attend_causally
    from attnbench.kernels.kernelized.full import FeatureMap, attend

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        phi = FeatureMap("elu", problem.head_dim, denominator=EPSILON)
        return attend_causally(q, k, v, phi) if problem.causal else attend(q, k, v, phi)

    return call


def _fused_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return why_not_causal_groups(problem) or why_not(problem)


def _fla() -> Call:
    def call(
        problem: Problem,
        params: Params,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sums: Tensor | None = None,
        totals: Tensor | None = None,
    ) -> Any:
        dtype = q.dtype
        q, k, v = half_safe(q, k, v)
        return attend_with_fla(features(q), features(k), v, dtype, EPSILON, sums=sums, totals=totals)

    return call


def _fla_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return why_not_fla(problem, problem.head_dim)


CORE = Form(
    reference,
    make_inputs,
    cost,
    {
        "cuda": Impl(_fused, "attnbench Triton: kernelized", _fused_why_not, grouped=True),
        "cuda:fla": Impl(_fla, FLA_KERNEL, _fla_why_not, grouped=True, continues=True),
    },
    state,
)

OPERATOR = Operator(
    paper=Paper(
        "Katharopoulos et al.",
        2020,
        "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
        "https://arxiv.org/abs/2006.16236",
        "eqs. 5 to 12",
    ),
    forms=with_graph({"core": CORE, "layer": projected(CORE, bytes_again=keys_summed_first)}, *GRAPHED),
    complexity=lambda params: Complexity(time="n", memory="n"),
    grouped=True,
    continues=True,
)
