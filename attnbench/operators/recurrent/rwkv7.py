"""S_i = (Diag(e^{g_i}) − (κ_i ⊙ a_i) κ_iᵀ) S_{i−1} + k_i v_iᵀ and y_i = S_iᵀ q_i, with ‖κ_i‖ = 1 and g_i of K channels.

What the state has at κ_i is erased in part, channel by channel: 0 < a_i < 1; g = −e^{−½} sigmoid(·), between −0.607 and
0. Token i sees j ≤ i; no scale and no normaliser. In the paper's letters q is r, and its state is Sᵀ.

Peng et al. 2025, "RWKV-7 'Goose' with Expressive Dynamic State Evolution", sec. 4, https://arxiv.org/abs/2503.14456.
"""

from __future__ import annotations

import math

from torch import Generator, Tensor
from torch.nn.functional import normalize

from attnbench.kernels.library.fla import Functions
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Inputs, Operator, Paper
from attnbench.operators.kernelized._contraction import widened
from attnbench.operators.recurrent._core import (
    GRAPHED,
    NOT_FULL,
    NOT_GROUPED,
    Arguments,
    core_cost,
    drawn_heads,
    key_dim,
    library,
    sizes_of,
)
from attnbench.operators.recurrent._delta import delta_scan, delta_scan_state, executed_delta_scan
from attnbench.problem import Mode, Params, Problem
from attnbench.state import drawn_state

LEAST = -math.exp(-0.5)
"""The lowest log decay."""


def reference(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kappa: Tensor,
    a: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """In float32 at least.

    Args:
        q, k, kappa, a, log_decay: [B, H, Q, K].
        v: [B, H, Q, V].
        state: S after the tokens before, [B, H, K, V], where Q < N.

    Returns: [B, H, Q, V]; where Q < N also S after all N tokens.
    """
    return delta_scan(q, k, v, log_decay, -kappa, widened(kappa) * widened(a), state)


def state(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kappa: Tensor,
    a: Tensor,
    log_decay: Tensor,
) -> dict[str, Tensor]:
    """S."""
    return delta_scan_state(k, v, log_decay, -kappa, widened(kappa) * widened(a))


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, v ~ N(0, 1), k ~ N(0, 1/K), ‖κ‖ = 1; a and g of a sigmoid of N(0, 1)."""
    sizes = sizes_of(problem, params)
    data = drawn_heads(problem, sizes, generator, "q", "k", "v", "kappa", "a", "log_decay")
    data["k"] *= sizes.rows**-0.5
    data["kappa"] = normalize(data["kappa"], dim=-1)
    data["a"] = data["a"].sigmoid()
    data["log_decay"] = LEAST * data["log_decay"].sigmoid()
    return Inputs(data, state=drawn_state(make_inputs, state, problem, params, generator))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Sᵀ κ, its writing, k vᵀ and Sᵀ q of each token. What is executed beyond that: `executed_delta_scan`."""
    sizes = sizes_of(problem, params)
    executed = executed_delta_scan(sizes, mode)
    return core_cost(problem, sizes, mode, products=4, executed=executed, gates=3 * sizes.rows)


def _arguments(
    params: Params, q: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor, log_decay: Tensor
) -> Arguments:
    return {"r": q, "w": log_decay, "k": k, "v": v, "a": -kappa, "b": kappa * a}, {}, 1.0


RWKV7 = Functions("rwkv7", "chunk_rwkv7", "fused_recurrent_rwkv7")

CORE = Form(reference, make_inputs, cost, {"cuda": library(RWKV7, _arguments)}, state)

OPERATOR = Operator(
    paper=Paper(
        "Peng et al.",
        2025,
        "RWKV-7 'Goose' with Expressive Dynamic State Evolution",
        "https://arxiv.org/abs/2503.14456",
        "sec. 4",
    ),
    forms=with_graph({"core": CORE}, *GRAPHED),
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={"key_dim": key_dim("d")},
    domains=("sequence",),
    full=NOT_FULL,
    grouped=NOT_GROUPED,
    continues=True,
)
