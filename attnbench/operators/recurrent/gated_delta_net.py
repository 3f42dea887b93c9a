"""S_i = e^{g_i} (I − β_i k_i k_iᵀ) S_{i−1} + β_i k_i v_iᵀ and y_i = K^{−½} S_iᵀ q_i: values replace others.

With ‖k_i‖ = 1 and β_i = 1, what the state has at k_i is replaced by v_i; β_i ∈ (0, 1) replaces a part of it. g_i ≤ 0 is
one number per head and token; of `kind: delta_net` it is 0. Token i sees j ≤ i.

Yang et al. 2025, "Gated Delta Networks: Improving Mamba2 with Delta Rule", eq. 10, https://arxiv.org/abs/2412.06464;
delta_net: Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
https://arxiv.org/abs/2406.06484.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import silu, softplus

from attnbench.kernels.library.fla import Functions, why_no_gated_gradients
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Call, Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.kernelized._contraction import widened
from attnbench.operators.recurrent._core import (
    GRAPHED,
    NOT_FULL,
    NOT_GROUPED,
    QK_HEADS,
    Arguments,
    Sizes,
    core_cost,
    drawn_decays,
    drawn_delta_rule,
    key_dim,
    library,
    sizes_of,
)
from attnbench.operators.recurrent._delta import delta_rule, delta_rule_state, executed_delta_rule
from attnbench.operators.recurrent._layer import (
    Entered,
    Layer,
    Shape,
    Weights,
    by_heads,
    by_tokens,
    layer,
    outside_delta_rule,
    qkv_convolved,
    qkv_shapes,
    rms_norm,
    rows_of_qkv,
)
from attnbench.problem import Mode, Params, Problem
from attnbench.state import drawn_state


def reference(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    state: Tensor | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """In float32 at least.

    Args:
        q, k: [B, qk_heads, Q, K]; the layer gives both length 1.
        v: [B, H, Q, V].
        beta: [B, H, Q, 1].
        log_decay: g, [B, H, Q, 1]; None: 0.
        state: S after the tokens before, [B, H, K, V], where Q < N.

    Returns: [B, H, Q, V]; where Q < N also S after all N tokens.
    """
    return delta_rule(q, k, v, _decay(log_decay, beta), beta, q.shape[-1] ** -0.5, state)


def state(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
) -> dict[str, Tensor]:
    """S."""
    return delta_rule_state(k, v, _decay(log_decay, beta), beta)


def _decay(log_decay: Tensor | None, beta: Tensor) -> Tensor:
    return torch.zeros_like(beta) if log_decay is None else log_decay


def gated(params: Params) -> bool:
    """Whether the state decays."""
    return bool(params["kind"] == "gated_delta_net")


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, v ~ N(0, 1), ‖k‖ = 1, β = sigmoid(x) with x ~ N(0, 1), g as the layers begin."""
    sizes = sizes_of(problem, params)
    data = drawn_delta_rule(problem, sizes, generator)
    if gated(params):
        data["log_decay"] = drawn_decays(problem, sizes, generator)
    return Inputs(data, state=drawn_state(make_inputs, state, problem, params, generator))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Sᵀ k, k uᵀ and Sᵀ q of each token. What the reference executes beyond that: see `executed_delta_rule`."""
    sizes = sizes_of(problem, params)
    gates = 2 if gated(params) else 1
    return core_cost(problem, sizes, mode, products=3, executed=executed_delta_rule(sizes, mode), gates=gates)


GATED = Functions("gated_delta_rule", "chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule")
UNGATED = Functions("delta_rule", "chunk_delta_rule", "fused_recurrent_delta_rule")


def _arguments(
    params: Params, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None = None
) -> Arguments:
    numbers = {"beta": beta.to(v.dtype)}
    if log_decay is not None:
        numbers["g"] = log_decay.float()
    return {"q": q, "k": k, "v": v}, numbers, q.shape[-1] ** -0.5


IMPLS: Mapping[bool, Impl] = {
    True: library(GATED, _arguments, why_no_gated_gradients),
    False: library(UNGATED, _arguments, dtypes=("bfloat16", "float16")),
}
"""By whether the state decays."""


def _either() -> Call:
    calls = {gates: impl.load() for gates, impl in IMPLS.items()}

    def call(problem: Problem, params: Params, **tensors: Tensor) -> Any:
        return calls[gated(params)](problem, params, **tensors)

    return call


CUDA = Impl(
    _either,
    " or ".join(impl.kernel for impl in IMPLS.values()),
    lambda problem, params, device: IMPLS[gated(params)].why_not(problem, params, device),
    continues=True,
    why_not_backward=lambda problem, params, device: IMPLS[gated(params)].why_not_backward(problem, params, device),
)

CORE = Form(reference, make_inputs, cost, {"cuda": CUDA}, state)


def _shapes(sizes: Sizes, channels: int, params: Params) -> dict[str, Shape]:
    if not gated(params):
        return qkv_shapes(sizes, channels)
    return {
        **qkv_shapes(sizes, channels),
        "w_step": (channels, sizes.heads),
        "step_bias": (sizes.heads,),
        "a_log": (sizes.heads,),
        "w_gate": (channels, sizes.heads * sizes.columns),
    }


def _enter(sizes: Sizes, params: Params, x: Tensor, rows: Tensor | None, w: Weights) -> Entered:
    inside, last = qkv_convolved(sizes, x, rows, w)
    if not gated(params):
        return inside, {}, last
    log_decay = -widened(w["a_log"]).exp() * softplus(widened(x @ w["w_step"]) + w["step_bias"])
    return {**inside, "log_decay": by_heads(log_decay, sizes.heads)}, {"gate": x @ w["w_gate"]}, last


def _leave(sizes: Sizes, params: Params, y: Tensor, aside: Weights, w: Weights) -> Tensor:
    y = by_tokens(rms_norm(y, w["norm"]))
    return y * silu(aside["gate"]) if gated(params) else y


LAYER = layer(Layer(CORE, _shapes, _enter, _leave, tail_rows=rows_of_qkv))


OPERATOR = Operator(
    paper=Paper(
        "Yang et al.",
        2025,
        "Gated Delta Networks: Improving Mamba2 with Delta Rule",
        "https://arxiv.org/abs/2412.06464",
        "eq. 10",
    ),
    forms=with_graph({"core": CORE, "layer": LAYER}, *GRAPHED),
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={
        "kind": Param("gated_delta_net", "whether the state decays", ("gated_delta_net", "delta_net")),
        "key_dim": key_dim("d"),
        "qk_heads": QK_HEADS,
    },
    domains=("sequence",),
    full=NOT_FULL,
    grouped=NOT_GROUPED,
    continues=True,
    why_not=outside_delta_rule,
)
