"""S_i = (I − β_i k_i k_iᵀ) Diag(e^{g_i}) S_{i−1} + β_i k_i v_iᵀ and y_i = K^{−½} S_iᵀ q_i, g_i ≤ 0 of K channels.

The gated delta rule with a decay of each channel of the keys: token i sees j ≤ i. No normaliser.

Kimi Team 2025, "Kimi Linear: An Expressive, Efficient Attention Architecture", eq. 1, https://arxiv.org/abs/2510.26692.
"""

from __future__ import annotations

from torch import Generator, Tensor
from torch.nn.functional import softplus

from attnbench.kernels.library.fla import Functions
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Inputs, Operator, Paper
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
    log_decay: Tensor,
    state: Tensor | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """In float32 at least.

    Args:
        q, k: [B, qk_heads, Q, K]; the layer gives both length 1.
        v: [B, H, Q, V].
        beta: [B, H, Q, 1].
        log_decay: g, [B, H, Q, K].
        state: S after the tokens before, [B, H, K, V], where Q < N.

    Returns: [B, H, Q, V]; where Q < N also S after all N tokens.
    """
    return delta_rule(q, k, v, log_decay, beta, q.shape[-1] ** -0.5, state)


def state(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor
) -> dict[str, Tensor]:
    """S."""
    return delta_rule_state(k, v, log_decay, beta)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, v ~ N(0, 1), ‖k‖ = 1, β = sigmoid(x) with x ~ N(0, 1), g as the layers begin."""
    sizes = sizes_of(problem, params)
    data = drawn_delta_rule(problem, sizes, generator)
    data["log_decay"] = drawn_decays(problem, sizes, generator, sizes.rows)
    return Inputs(data, state=drawn_state(make_inputs, state, problem, params, generator))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Sᵀ k, k uᵀ and Sᵀ q of each token. What the reference executes beyond that: see `executed_delta_rule`."""
    sizes = sizes_of(problem, params)
    executed = executed_delta_rule(sizes, mode, by_channel=True)
    return core_cost(problem, sizes, mode, products=3, executed=executed, gates=1 + sizes.rows)


def _arguments(params: Params, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> Arguments:
    return {"q": q, "k": k, "v": v, "g": log_decay.float()}, {"beta": beta.to(v.dtype)}, q.shape[-1] ** -0.5


KDA = Functions("kda", "chunk_kda", "fused_recurrent_kda")

CORE = Form(reference, make_inputs, cost, {"cuda": library(KDA, _arguments)}, state)


def _shapes(sizes: Sizes, channels: int, params: Params) -> dict[str, Shape]:
    low, decays, values = sizes.columns, sizes.heads * sizes.rows, sizes.heads * sizes.columns
    return {
        **qkv_shapes(sizes, channels),
        "w_low": (channels, low),
        "w_step": (low, decays),
        "step_bias": (decays,),
        "a_log": (sizes.heads,),
        "w_gate_low": (channels, low),
        "w_gate": (low, values),
        "bias_gate": (values,),
    }


def _enter(sizes: Sizes, params: Params, x: Tensor, rows: Tensor | None, w: Weights) -> Entered:
    inside, last = qkv_convolved(sizes, x, rows, w)
    steps = softplus(widened(x @ w["w_low"] @ w["w_step"]) + w["step_bias"])
    log_decay = -widened(w["a_log"]).exp().view(-1, 1, 1) * by_heads(steps, sizes.heads)
    gate = x @ w["w_gate_low"] @ w["w_gate"] + w["bias_gate"]
    return {**inside, "log_decay": log_decay}, {"gate": gate}, last


def _leave(sizes: Sizes, params: Params, y: Tensor, aside: Weights, w: Weights) -> Tensor:
    return by_tokens(rms_norm(y, w["norm"])) * aside["gate"].sigmoid()


LAYER = layer(Layer(CORE, _shapes, _enter, _leave, tail_rows=rows_of_qkv))


OPERATOR = Operator(
    paper=Paper(
        "Kimi Team",
        2025,
        "Kimi Linear: An Expressive, Efficient Attention Architecture",
        "https://arxiv.org/abs/2510.26692",
        "eq. 1",
    ),
    forms=with_graph({"core": CORE, "layer": LAYER}, *GRAPHED),
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={"key_dim": key_dim("d"), "qk_heads": QK_HEADS},
    domains=("sequence",),
    full=NOT_FULL,
    grouped=NOT_GROUPED,
    continues=True,
    why_not=outside_delta_rule,
)
