"""S_i = e^{Δ_i A_h} S_{i−1} + k_i (Δ_i v_i)ᵀ and y_i = S_iᵀ q_i + D_h v_i, with Δ_i > 0 and A_h < 0 of each head h.

In the paper's letters q, k and v are C, B and x. q and k are the same for all heads of a group, of which `qk_heads` is
the number; no scale and no normaliser. The layer has twice as many heads as scope core, of the same width.

Dao and Gu 2024, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space
Duality", sec. 5 to 7, https://arxiv.org/abs/2405.21060.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import silu, softplus

from attnbench.kernels.library import mamba_ssm
from attnbench.kernels.library.fla import SIMPLE_GLA, why_no_gated_gradients
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.kernelized._contraction import widened
from attnbench.operators.recurrent._core import (
    GRAPHED,
    NOT_FULL,
    NOT_GROUPED,
    Arguments,
    Sizes,
    core_cost,
    drawn_heads,
    drawn_rates,
    drawn_steps,
    key_dim,
    library,
    sizes_of,
    why_not_heads,
)
from attnbench.operators.recurrent._layer import (
    CONVOLVED,
    Entered,
    Layer,
    Shape,
    Weights,
    by_heads,
    by_tokens,
    convolved,
    layer,
    rms_norm,
)
from attnbench.operators.recurrent._scan import executed_of, scan, scan_state
from attnbench.problem import Mode, Params, Problem
from attnbench.state import drawn_state


def reference(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    delta: Tensor,
    a: Tensor,
    d: Tensor,
    state: Tensor | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """In float32 at least.

    Args:
        q, k: [B, qk_heads, Q, K].
        v: [B, H, Q, V].
        delta: Δ, [B, H, Q, 1].
        a, d: A and D, [H].
        state: S after the tokens before, [B, H, K, V], where Q < N.

    Returns: [B, H, Q, V]; where Q < N also S after all N tokens.
    """
    outputs = scan(q, k, _written(v, delta), _log_decay(delta, a), 1.0, state)
    y, *rest = outputs if isinstance(outputs, tuple) else (outputs,)
    y = (y + _kept(v, d)).to(v.dtype)
    return (y, *rest) if rest else y


def state(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, delta: Tensor, a: Tensor, d: Tensor
) -> dict[str, Tensor]:
    """S."""
    return scan_state(k, _written(v, delta), _log_decay(delta, a))


def _written(v: Tensor, delta: Tensor) -> Tensor:
    """Δ v."""
    return widened(delta) * widened(v)


def _kept(v: Tensor, d: Tensor) -> Tensor:
    """D v."""
    return widened(d).view(-1, 1, 1) * widened(v)


def _log_decay(delta: Tensor, a: Tensor) -> Tensor:
    """Δ A."""
    return widened(delta) * widened(a).view(-1, 1, 1)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, v ~ N(0, 1), k ~ N(0, 1/K); Δ and A as the layers begin, D ~ 1."""
    sizes = sizes_of(problem, params)

    def drawn(problem: Problem, params: Params, generator: Generator) -> Inputs:
        sizes = sizes_of(problem, params)
        data = drawn_heads(problem, sizes, generator, "q", "k", "v")
        data["k"] *= sizes.rows**-0.5
        data["delta"] = drawn_steps(problem, sizes, generator)
        return Inputs(data)

    inputs = drawn(problem, params, generator)
    a = -drawn_rates(problem, sizes, generator)
    parameters = {"a": a, "d": torch.ones_like(a)}
    earlier = drawn_state(drawn, state, problem, params, generator, parameters)
    return replace(inputs, parameters=parameters, state=earlier)


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """k vᵀ and Sᵀ q of each token. What the reference executes beyond that: see `executed_scan`."""
    sizes = sizes_of(problem, params)
    executed = executed_of(sizes, mode)
    return core_cost(problem, sizes, mode, products=2, executed=executed, gates=1, parameters=2 * sizes.heads)


def _arguments(params: Params, q: Tensor, k: Tensor, v: Tensor, delta: Tensor, a: Tensor, d: Tensor) -> Arguments:
    return {"q": q, "k": k, "v": _written(v, delta).to(v.dtype)}, {"g": _log_decay(delta, a)}, 1.0


def _more(q: Tensor, k: Tensor, v: Tensor, delta: Tensor, a: Tensor, d: Tensor) -> Tensor:
    return _kept(v, d).to(v.dtype)


AUTHORS = Impl(
    load=lambda: lambda problem, params, **tensors: mamba_ssm.scan(problem, **tensors),
    kernel=mamba_ssm.KERNEL,
    why_not=lambda problem, params, device: mamba_ssm.why_not(problem),
    continues=True,
)

CORE = Form(
    reference,
    make_inputs,
    cost,
    {"cuda": library(SIMPLE_GLA, _arguments, why_no_gated_gradients, _more), "cuda:mamba_ssm": AUTHORS},
    state,
)


def _inner(problem: Problem, params: Params) -> tuple[Problem, Params]:
    """Twice as many heads."""
    return problem.with_sizes(channels=2 * problem.channels, heads=2 * problem.heads), params


def _widths(sizes: Sizes) -> tuple[int, int, int]:
    """Channels of v, k and q."""
    keys = sizes.qk_heads * sizes.rows
    return sizes.heads * sizes.columns, keys, keys


def _shapes(sizes: Sizes, channels: int, params: Params) -> dict[str, Shape]:
    values, convolved_channels = _widths(sizes)[0], sum(_widths(sizes))
    return {
        "w_gate": (channels, values),
        "w_vkq": (channels, convolved_channels),
        "w_step": (channels, sizes.heads),
        "conv": (CONVOLVED, convolved_channels),
        "bias_conv": (convolved_channels,),
        "step_bias": (sizes.heads,),
        "a_log": (sizes.heads,),
        "d": (sizes.heads,),
        "norm": (values,),
        "w_o": (values, channels),
    }


def _enter(sizes: Sizes, params: Params, x: Tensor, rows: Tensor | None, w: Weights) -> Entered:
    vkq, last = convolved(x @ w["w_vkq"], rows, w["conv"], w["bias_conv"])
    v, k, q = vkq.split(_widths(sizes), dim=-1)
    delta = softplus(widened(x @ w["w_step"]) + w["step_bias"])
    inside = {
        "q": by_heads(q, sizes.qk_heads),
        "k": by_heads(k, sizes.qk_heads),
        "v": by_heads(v, sizes.heads),
        "delta": by_heads(delta, sizes.heads),
        "a": -widened(w["a_log"]).exp(),
        "d": w["d"],
    }
    return inside, {"gate": x @ w["w_gate"]}, last


def _leave(sizes: Sizes, params: Params, y: Tensor, aside: Weights, w: Weights) -> Tensor:
    """The gate before the norm."""
    return rms_norm(by_tokens(y) * silu(aside["gate"]), w["norm"])


LAYER = layer(
    Layer(CORE, _shapes, _enter, _leave, _inner, lambda sizes, channels: (CONVOLVED - 1, sum(_widths(sizes))))
)

OPERATOR = Operator(
    paper=Paper(
        "Dao and Gu",
        2024,
        "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality",
        "https://arxiv.org/abs/2405.21060",
        "sec. 5 to 7",
    ),
    forms=with_graph({"core": CORE, "layer": LAYER}, *GRAPHED),
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={
        "key_dim": key_dim(128),
        "qk_heads": Param(1, "groups G: heads of q and k, each for as many heads of values", ("h",), minimum=1),
    },
    domains=("sequence",),
    full=NOT_FULL,
    grouped=NOT_GROUPED,
    continues=True,
    why_not=why_not_heads,
)
