"""S_i = (Diag(e^{g_i}) − (κ_i ⊙ a_i) κ_iᵀ) S_{i−1} + k_i v_iᵀ and y_i = S_iᵀ q_i, with ‖κ_i‖ = 1 and g_i of K channels.

What the state has at κ_i is erased in part, channel by channel: 0 < a_i < 1; g = −e^{−½} sigmoid(·), between −0.607 and
0. Token i sees j ≤ i; no scale and no normaliser. In the paper's letters q is r, and its state is Sᵀ.
The layer is the model's first one: later ones mix its values into theirs.

Peng et al. 2025, "RWKV-7 'Goose' with Expressive Dynamic State Evolution", sec. 4, https://arxiv.org/abs/2503.14456.
"""

from __future__ import annotations

import math

from torch import Generator, Tensor
from torch.nn.functional import layer_norm, normalize

from attnbench.kernels.library.fla import Functions
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Inputs, Operator, Paper
from attnbench.operators.kernelized._contraction import widened
from attnbench.operators.recurrent._core import (
    GRAPHED,
    NOT_FULL,
    NOT_GROUPED,
    Arguments,
    Sizes,
    channels_of,
    core_cost,
    drawn_heads,
    key_dim,
    library,
    sizes_of,
)
from attnbench.operators.recurrent._delta import delta_scan, delta_scan_state, executed_delta_scan
from attnbench.operators.recurrent._layer import (
    Entered,
    Layer,
    Shape,
    Weights,
    by_heads,
    by_tokens,
    layer,
    projections,
    rows_before,
    too_narrow,
    unit,
)
from attnbench.problem import Mode, Params, Problem, Scope
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
    return {"r": q, "w": log_decay.float(), "k": k, "v": v, "a": -kappa, "b": kappa * a}, {}, 1.0


RWKV7 = Functions("rwkv7", "chunk_rwkv7", "fused_recurrent_rwkv7")

CORE = Form(reference, make_inputs, cost, {"cuda": library(RWKV7, _arguments)}, state)

EPSILON = 64e-5
"""Of the layer's norm of a head."""


def _shapes(sizes: Sizes, channels: int, params: Params) -> dict[str, Shape]:
    keys, values = sizes.heads * sizes.rows, sizes.heads * sizes.columns
    low, low_gate = _rank(1.8 * channels**0.5), _rank(0.6 * channels**0.8)
    return {
        **projections(sizes, channels),
        "mix": (6, channels),
        "w_decay_low": (channels, low),
        "w_decay": (low, keys),
        "bias_decay": (keys,),
        "w_a_low": (channels, low),
        "w_a": (low, keys),
        "bias_a": (keys,),
        "w_gate_low": (channels, low_gate),
        "w_gate": (low_gate, values),
        "scale_kappa": (keys,),
        "scale_k": (keys,),
        "bonus": (sizes.heads, sizes.rows),
        "norm": (values,),
        "bias_norm": (values,),
    }


def _rank(wanted: float) -> int:
    """A multiple of 32, as the authors' code has it."""
    return max(32, 32 * round(wanted / 32))


def _enter(sizes: Sizes, params: Params, x: Tensor, rows: Tensor | None, w: Weights) -> Entered:
    longer, last = rows_before(x, rows, 1)
    shift = longer[:, : x.shape[1]] - x
    for_q, for_decay, for_k, for_v, for_a, for_gate = (x + shift * mix for mix in w["mix"].unbind())
    log_decay = LEAST * (widened((for_decay @ w["w_decay_low"]).tanh() @ w["w_decay"]) + w["bias_decay"]).sigmoid()
    a = (widened(for_a @ w["w_a_low"] @ w["w_a"]) + w["bias_a"]).sigmoid()
    k = for_k @ w["w_k"]
    inside = {
        "q": for_q @ w["w_q"],
        "k": (k * (1 + (a - 1) * w["scale_k"])).to(x.dtype),
        "v": for_v @ w["w_v"],
        "a": a.to(x.dtype),
        "log_decay": log_decay,
    }
    inside = {name: by_heads(tensor, sizes.heads) for name, tensor in inside.items()}
    inside["kappa"] = unit(by_heads(k * w["scale_kappa"], sizes.heads)).to(x.dtype)
    gate = (for_gate @ w["w_gate_low"]).sigmoid() @ w["w_gate"]
    return inside, {"gate": gate, **{name: inside[name] for name in ("q", "k", "v")}}, last


def _leave(sizes: Sizes, params: Params, y: Tensor, aside: Weights, w: Weights) -> Tensor:
    """A norm of each head, then what the token gives itself, then the gate."""
    normed = by_tokens(layer_norm(widened(y), y.shape[-1:], eps=EPSILON)) * w["norm"] + w["bias_norm"]
    q, k, v = (widened(aside[name]) for name in ("q", "k", "v"))
    bonus = (q * k * w["bonus"].unsqueeze(1)).sum(dim=-1, keepdim=True) * v
    return (normed + by_tokens(bonus)) * aside["gate"]


LAYER = layer(Layer(CORE, _shapes, _enter, _leave, tail_rows=lambda sizes, channels: (1, channels)))


def outside(problem: Problem, params: Params, scope: Scope) -> str | None:
    """The layer's norms: of two channels the one of a head leaves ±1."""
    k, v = channels_of(problem, params)
    return (too_narrow("a key", k) or too_narrow("a head", v, least=3)) if scope == "layer" else None


OPERATOR = Operator(
    paper=Paper(
        "Peng et al.",
        2025,
        "RWKV-7 'Goose' with Expressive Dynamic State Evolution",
        "https://arxiv.org/abs/2503.14456",
        "sec. 4",
    ),
    forms=with_graph({"core": CORE, "layer": LAYER}, *GRAPHED),
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={"key_dim": key_dim("d")},
    domains=("sequence",),
    full=NOT_FULL,
    grouped=NOT_GROUPED,
    continues=True,
    why_not=outside,
)
