"""S_i = Diag(e^{g_i}) S_{i−1} + k_i v_iᵀ and y_i = K^{−½} S_iᵀ q_i, g_i ≤ 0 of K channels: token i sees j ≤ i.

Each channel of the keys forgets at its own rate, which the token sets: g = logsigmoid(·) / 16. No normaliser.

Yang et al. 2024, "Gated Linear Attention Transformers with Hardware-Efficient Training", sec. 4.1 to 4.4,
https://arxiv.org/abs/2312.06635.
"""

from __future__ import annotations

from torch import Generator, Tensor
from torch.nn.functional import logsigmoid, silu

from attnbench.inputs import normal
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
    drawn_heads,
    key_dim,
    library,
    sizes_of,
    why_not_heads,
)
from attnbench.operators.recurrent._layer import (
    Entered,
    Layer,
    Shape,
    Weights,
    by_heads,
    by_tokens,
    layer,
    projected,
    projections,
    rms_norm,
    too_narrow,
)
from attnbench.operators.recurrent._scan import executed_of, scan, scan_state
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.state import drawn_state

TEMPERATURE = 16.0
"""What log decays are divided by."""


def reference(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    """In float32 at least.

    Args:
        q, k: [B, qk_heads, Q, K].
        v: [B, H, Q, V].
        log_decay: g, [B, H, Q, K].
        state: S after the tokens before, [B, H, K, V], where Q < N.

    Returns: [B, H, Q, V]; where Q < N also S after all N tokens.
    """
    return scan(q, k, v, log_decay, q.shape[-1] ** -0.5, state)


def state(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> dict[str, Tensor]:
    """S."""
    return scan_state(k, v, log_decay)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1); g = logsigmoid(x) / 16, x ~ N(0, 1)."""
    sizes = sizes_of(problem, params)
    data = drawn_heads(problem, sizes, generator, "q", "k", "v")
    gates = normal(problem, generator, sizes.batch, sizes.heads, sizes.tokens, sizes.rows)
    data["log_decay"] = logsigmoid(gates) / TEMPERATURE
    return Inputs(data, state=drawn_state(make_inputs, state, problem, params, generator))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """k vᵀ and Sᵀ q of each token. What the reference executes beyond that: see `executed_scan`."""
    sizes = sizes_of(problem, params)
    executed = executed_of(sizes, mode, by_channel=True)
    return core_cost(problem, sizes, mode, products=2, executed=executed, gates=sizes.rows)


def _arguments(params: Params, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Arguments:
    return {"q": q, "k": k, "v": v, "g": log_decay.float()}, {}, q.shape[-1] ** -0.5


GLA = Functions("gla", "chunk_gla", "fused_recurrent_gla", {"g": "gk"})

CORE = Form(reference, make_inputs, cost, {"cuda": library(GLA, _arguments)}, state)

LOW_RANK = 16
"""Of the layer's projection to the decays."""


def _shapes(sizes: Sizes, channels: int, params: Params) -> dict[str, Shape]:
    decays, values = sizes.heads * sizes.rows, sizes.heads * sizes.columns
    return {
        **projections(sizes, channels),
        "w_low": (channels, LOW_RANK),
        "w_decay": (LOW_RANK, decays),
        "bias_decay": (decays,),
        "w_gate": (channels, values),
        "norm": (sizes.columns,),
    }


def _enter(sizes: Sizes, params: Params, x: Tensor, rows: Tensor | None, w: Weights) -> Entered:
    gates = widened(x @ w["w_low"] @ w["w_decay"]) + w["bias_decay"]
    decays = by_heads(logsigmoid(gates) / TEMPERATURE, sizes.heads)
    return {**projected(sizes, x, w), "log_decay": decays}, {"gate": x @ w["w_gate"]}, None


def _leave(sizes: Sizes, params: Params, y: Tensor, aside: Weights, w: Weights) -> Tensor:
    return by_tokens(rms_norm(y, w["norm"])) * silu(aside["gate"])


LAYER = layer(Layer(CORE, _shapes, _enter, _leave))


def outside(problem: Problem, params: Params, scope: Scope) -> str | None:
    """Heads that share q and k, and the layer's norm."""
    narrow = too_narrow("a head", problem.head_dim) if scope == "layer" else None
    return why_not_heads(problem, params, scope) or narrow


OPERATOR = Operator(
    paper=Paper(
        "Yang et al.",
        2024,
        "Gated Linear Attention Transformers with Hardware-Efficient Training",
        "https://arxiv.org/abs/2312.06635",
        "sec. 4.1 to 4.4",
    ),
    forms=with_graph({"core": CORE, "layer": LAYER}, *GRAPHED),
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={"key_dim": key_dim("d/2"), "qk_heads": QK_HEADS},
    domains=("sequence",),
    full=NOT_FULL,
    grouped=NOT_GROUPED,
    continues=True,
    why_not=outside,
)
