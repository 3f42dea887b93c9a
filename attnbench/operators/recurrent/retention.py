"""S_i = e^{g_h} S_{i−1} + k_i v_iᵀ and y_i = s S_iᵀ q_i: token i sees j ≤ i, with the weight s e^{g_h (i−j)} (q_i·k_j).

g_h is fixed, one for each head h of 0 ≤ h < H: log(1 − 2^{−5−h}) with s = K^{−½}; lightning: −2^{−8(h+1)/H} f with
s = 1 and f = 1 − l/(L − 1 + 10⁻⁵) + 10⁻⁵ in layer l of 0 ≤ l < L. No normaliser.

Sun et al. 2023, "Retentive Network: A Successor to Transformer for Large Language Models", eqs. 5 to 7,
https://arxiv.org/abs/2307.08621; lightning: MiniMax 2025, "MiniMax-01: Scaling Foundation Models with Lightning
Attention", https://arxiv.org/abs/2501.08313, with the decay of the authors' code. Of both layers the rotation of q and
k is left out. The retention layer's values are twice as wide as those of scope core.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import silu

from attnbench.kernels.library.fla import SIMPLE_GLA, why_no_gated_gradients
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Inputs, Operator, Paper, Param
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


def reference(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    """In float32 at least.

    Args:
        q, k: [B, qk_heads, Q, K].
        v: [B, H, Q, V].
        state: S after the tokens before, [B, H, K, V], where Q < N.

    Returns: [B, H, Q, V]; where Q < N also S after all N tokens.
    """
    return scan(q, k, v, log_decay(params, v), scale(params, q), state)


def state(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """S."""
    return scan_state(k, v, log_decay(params, v))


def scale(params: Params, q: Tensor) -> float:
    """s."""
    return float(q.shape[-1] ** -0.5) if params["kind"] == "retention" else 1.0


def log_decay(params: Params, v: Tensor) -> Tensor:
    """g of each token, [B, H, Q, 1], in float32 at least. v: [B, H, Q, V]."""
    heads = v.shape[1]
    h = torch.arange(heads, dtype=torch.float64 if v.dtype == torch.float64 else torch.float32, device=v.device)
    if params["kind"] == "retention":
        g = torch.log1p(-torch.exp2(-5 - h))
    else:
        factor = 1 - params["layer"] / (params["layers"] - 1 + 1e-5) + 1e-5
        g = -torch.exp2(-8 * (h + 1) / heads) * factor
    return g.view(1, -1, 1, 1).expand(*v.shape[:3], 1)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1); lightning, which has no scale: k ~ N(0, 1/K)."""
    sizes = sizes_of(problem, params)
    data = drawn_heads(problem, sizes, generator, "q", "k", "v")
    if params["kind"] == "lightning":
        data["k"] *= sizes.rows**-0.5
    return Inputs(data, state=drawn_state(make_inputs, state, problem, params, generator))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """k vᵀ and Sᵀ q of each token. What the reference executes beyond that: see `executed_scan`."""
    sizes = sizes_of(problem, params)
    return core_cost(problem, sizes, mode, products=2, executed=executed_of(sizes, mode, fixed=True))


def outside(problem: Problem, params: Params, scope: Scope) -> str | None:
    """Heads that share q and k, layers, and the layer's norm."""
    if params["layer"] >= params["layers"]:
        return f"layer {params['layer']} is not one of {params['layers']} layers, 0 to {params['layers'] - 1}"
    narrow = None
    if scope == "layer" and params["kind"] == "lightning":
        narrow = too_narrow("all heads", problem.channels)
    return why_not_heads(problem, params, scope) or narrow


def _arguments(params: Params, q: Tensor, k: Tensor, v: Tensor) -> Arguments:
    return {"q": q, "k": k, "v": v}, {"g": log_decay(params, v)}, scale(params, q)


CORE = Form(reference, make_inputs, cost, {"cuda": library(SIMPLE_GLA, _arguments, why_no_gated_gradients)}, state)


def _inner(problem: Problem, params: Params) -> tuple[Problem, Params]:
    """Retention's values are twice as wide as x, its keys are not."""
    if params["kind"] == "lightning":
        return problem, params
    return problem.with_sizes(channels=2 * problem.channels), {**params, "key_dim": sizes_of(problem, params).rows}


def _shapes(sizes: Sizes, channels: int, params: Params) -> dict[str, Shape]:
    values = sizes.heads * sizes.columns
    norm = {"norm": (values,)} if params["kind"] == "lightning" else {}
    return {**projections(sizes, channels), "w_gate": (channels, values), **norm}


def _enter(sizes: Sizes, params: Params, x: Tensor, rows: Tensor | None, w: Weights) -> Entered:
    inside = projected(sizes, x, w)
    if params["kind"] == "lightning":
        inside = {name: silu(tensor) for name, tensor in inside.items()}
    return inside, {"gate": x @ w["w_gate"]}, None


def _leave(sizes: Sizes, params: Params, y: Tensor, aside: Weights, w: Weights) -> Tensor:
    """Retention: a norm of each head, without weights, and silu of the gate; lightning: of all heads, and a sigmoid."""
    if params["kind"] == "lightning":
        return rms_norm(by_tokens(y), w["norm"]) * aside["gate"].sigmoid()
    return by_tokens(rms_norm(y)) * silu(aside["gate"])


LAYER = layer(Layer(CORE, _shapes, _enter, _leave, _inner))

OPERATOR = Operator(
    paper=Paper(
        "Sun et al.",
        2023,
        "Retentive Network: A Successor to Transformer for Large Language Models",
        "https://arxiv.org/abs/2307.08621",
        "eqs. 5 to 7",
    ),
    forms=with_graph({"core": CORE, "layer": LAYER}, *GRAPHED),
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={
        "kind": Param("retention", "whose fixed decays: retention's, or those of MiniMax", ("retention", "lightning")),
        "key_dim": key_dim("d"),
        "qk_heads": QK_HEADS,
        "layer": Param(0, "l, the number of the layer: lightning forgets less in later ones", minimum=0),
        "layers": Param(2, "L, layers of the model", minimum=2),
    },
    domains=("sequence",),
    full=NOT_FULL,
    grouped=NOT_GROUPED,
    continues=True,
    why_not=outside,
)
