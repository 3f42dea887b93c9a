"""y_i = φ(q_i)ᵀ Σ_j φ(k_j) v_jᵀ / φ(q_i)ᵀ Σ_j φ(k_j), φ: 2m random Fourier features, over all j (causal: 0 ≤ j ≤ i).

φ(x) = [sin ω x̂, cos ω x̂] / √m with x̂ = x / ‖x‖ and ω of m Gaussian rows, so that φ(q)ᵀφ(k) estimates exp(−‖q̂−k̂‖²/2),
which is exp(q̂ᵀk̂) up to a constant. The gate, in the causal form only, forgets: with g_i = sigmoid(gate_i), one per
head (of keys), the sums become S_i = g_i S_{i−1} + (1 − g_i) φ(k_i) v_iᵀ and z_i = g_i z_{i−1} + (1 − g_i) φ(k_i), both
from 0.

Peng et al. 2021, "Random Feature Attention", sec. 2.2 (φ), 3.1 (full and causal), 3.2 (gate),
https://arxiv.org/abs/2103.02143. The σ that the paper learns is 1 here. The denominator is an estimate and can be ≤ 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid, normalize, scaled_dot_product_attention

from attnbench.cost import keys_summed_first, product, traffic
from attnbench.inputs import heads, normal, tokens
from attnbench.kernels.library.fla import KERNEL as FLA_KERNEL
from attnbench.kernels.library.fla import attend_with_fla, half_safe, why_no_gated_gradients, why_not_fla
from attnbench.kernels.library.graphs import with_graph
from attnbench.kernels.support import why_not, why_not_causal_groups
from attnbench.masking import ahead
from attnbench.operator import Call, Complexity, Cost, Estimated, Form, Impl, Inputs, Operator, Paper, Param
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
from attnbench.operators.kernelized._decay import decayed, decayed_state, executed_decayed
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.projection import projected
from attnbench.state import drawn_state

FEWEST_CHANNELS, FEWEST_FREQUENCIES = 4, 16

SHARED = 2.0
"""Length of the part that all q and k of a head share, in units of the expected length √D of the part drawn apart."""


def reference(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    omega: Tensor,
    gate: Tensor | None = None,
    sums: Tensor | None = None,
    totals: Tensor | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """float16 is widened inside: z grows as N.

    Args:
        q: [B, H, Q, D].
        k, v: [B, Hk, Q, D].
        omega: [m, D].
        gate: [B, Hk, Q], where gated.
        sums, totals: S and z after the tokens before, where Q < N; where gated `sums` is [S, z], of D + 1 columns.

    Returns: [B, H, Q, D]; where Q < N also the new `sums`, and `totals` where not gated.
    """
    dtype = q.dtype
    if problem.dtype == "float16":
        q, k, v, omega = q.float(), k.float(), v.float(), omega.float()
        gate = None if gate is None else gate.float()
    fq, fk = features(q, omega), features(k, omega)
    if gate is not None:
        y, state = decayed(fq, fk, v, logsigmoid(gate), logsigmoid(-gate), sums)
        return y.to(dtype) if state is None else (y.to(dtype), state)
    if sums is not None and totals is not None:
        y, *new = continued(fq, fk, v, sums, totals)
        return y.to(dtype), *new
    return (causal if problem.causal else full)(fq, fk, v).to(dtype)


def state(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, omega: Tensor, gate: Tensor | None = None
) -> dict[str, Tensor]:
    """Sums of fixed size."""
    fk = features(widened(k), widened(omega))
    if gate is None:
        return state_of(fk, v)
    gate = widened(gate)
    return {"sums": decayed_state(fk, v, logsigmoid(gate), logsigmoid(-gate))}


def features(x: Tensor, omega: Tensor) -> Tensor:
    """[B, H, N, D] → [B, H, N, 2m]: sines, then cosines."""
    angles = normalize(x, dim=-1) @ omega.t()
    return torch.cat((angles.sin(), angles.cos()), dim=-1) * omega.shape[0] ** -0.5


def gated(problem: Problem, params: Params) -> bool:
    """Whether this problem's form has the gate."""
    return problem.causal and params["gate"] == "causal"


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1), q and k with a shared part beside, so that the denominator is positive; gate ~ N(0, 1)."""
    hk, d = problem.kv_heads, problem.head_dim
    shared = SHARED * d**0.5 * normalize(normal(problem, generator, 1, hk, 1, d), dim=-1)

    def drawn(problem: Problem, params: Params, generator: Generator) -> Inputs:
        data = heads(problem, generator, "q", "k", "v")
        data["q"] += shared.repeat_interleave(problem.group, dim=1)
        data["k"] += shared
        if gated(problem, params):
            data["gate"] = normal(problem, generator, problem.batch, hk, problem.query_len)
        return Inputs(data)

    data = drawn(problem, params, generator).data
    choices = {"omega": normal(problem, generator, params["m"], d)}
    return Inputs(data, choices=choices, state=drawn_state(drawn, state, problem, params, generator, choices))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """ω is not differentiated. What a causal reference executes beyond `flops`: see `executed` and its like."""
    b, h, hk, q, d = problem.batch, problem.heads, problem.kv_heads, problem.query_len, problem.head_dim
    m, gate = params["m"], gated(problem, params)
    size, kv_size = b * q * problem.channels, b * q * problem.kv_channels
    angles = product(b * (h + hk) * q * d * m, mode, gradients=1)  # ω q̂ and ω k̂: [Q, D] × [D, m]
    elements = b * (h + hk) * q * (4 * 2 * m + 3 * d)  # sin, cos, scale, sum of 2m; square, sum, divide of D
    read = size + 2 * kv_size + (b * hk * q if gate else 0)
    return Cost(
        flops=angles + required(problem, 2 * m, mode),
        reference_flops=angles + (executed_decayed if gate else executed)(problem, 2 * m, mode),
        elementwise=elements * (1 if mode == "fwd" else 2),
        bytes_required=traffic(problem, mode, read=read, written=size, constant=m * d) + state_traffic(problem, 2 * m),
        state_bytes=state_bytes(problem, 2 * m) if problem.causal else None,
    )


def outside(problem: Problem, params: Params, scope: Scope) -> str | None:
    """The denominator estimates a positive number; where few terms estimate it, it is often 0."""
    if problem.head_dim < FEWEST_CHANNELS:
        return (
            f"head_dim {problem.head_dim}: for unit vectors of so few channels the denominator comes near 0 and "
            f"gradients become infinite; it takes {FEWEST_CHANNELS} or more"
        )
    if params["m"] < FEWEST_FREQUENCIES:
        return (
            f"m {params['m']}: with so few frequencies the estimated denominator is often near 0; it takes "
            f"{FEWEST_FREQUENCIES} or more"
        )
    return None


def estimated(params: Params) -> Estimated:
    """Its normalised kernel, which is not softmax attention: q and k have unit length."""
    return Estimated("attention with the Gaussian kernel of normalised q and k", kernel_attention)


def kernel_attention(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, omega: Tensor, gate: Tensor | None = None
) -> Tensor:
    """The limit as m grows: exp(q̂ᵀk̂), normalised; where gated, each pair times b_j Π a over j < s ≤ i."""
    q, k = normalize(q, dim=-1), normalize(k, dim=-1)
    bias = None
    if gate is not None:
        along = logsigmoid(gate).cumsum(dim=-1)
        later = ahead(gate.shape[-1], gate.shape[-1], q.device)
        bias = along.unsqueeze(-1) + (logsigmoid(-gate) - along).unsqueeze(-2)
        bias = bias.masked_fill(later, float("-inf")).repeat_interleave(problem.group, dim=1)
    ahead_hidden = problem.causal and bias is None
    grouped = problem.group > 1
    return scaled_dot_product_attention(q, k, v, bias, is_causal=ahead_hidden, scale=1.0, enable_gqa=grouped)


def _fused() -> Callable[..., Tensor]:
    from attnbench.kernels.kernelized.causal import attend_causally
    from attnbench.kernels.kernelized.full import FeatureMap, attend

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, omega: Tensor) -> Tensor:
        phi = FeatureMap("fourier", omega.shape[0])  # without 1/√m, which cancels
        return attend_causally(q, k, v, phi, omega) if problem.causal else attend(q, k, v, phi, omega)

    return call


def _fused_why_not(problem: Problem, params: Params, device: str) -> str | None:
    if gated(problem, params):
        return "the fused scan does not forget: it has no gate"
    return why_not_causal_groups(problem) or why_not(problem)


def _fla() -> Call:
    def call(
        problem: Problem,
        params: Params,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        omega: Tensor,
        gate: Tensor | None = None,
        sums: Tensor | None = None,
        totals: Tensor | None = None,
    ) -> Any:
        dtype = q.dtype
        q, k, v, omega = half_safe(q, k, v, omega)
        fq, fk = features(q, omega), features(k, omega)
        if gate is None:
            return attend_with_fla(fq, fk, v, dtype, sums=sums, totals=totals)
        weighted = fk * torch.sigmoid(-gate).unsqueeze(-1)
        return attend_with_fla(fq, weighted, v, dtype, log_keep=logsigmoid(gate.float()), sums=sums)

    return call


def _fla_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return why_not_fla(problem, 2 * params["m"])


def _fla_why_not_backward(problem: Problem, params: Params, device: str) -> str | None:
    return why_no_gated_gradients() if gated(problem, params) else None


CORE = Form(
    reference,
    make_inputs,
    cost,
    {
        "cuda": Impl(_fused, "attnbench Triton: kernelized", _fused_why_not, grouped=True),
        "cuda:fla": Impl(
            _fla, FLA_KERNEL, _fla_why_not, grouped=True, continues=True, why_not_backward=_fla_why_not_backward
        ),
    },
    state,
)
_UNGATED = projected(CORE, bytes_again=keys_summed_first)


def _with_gate(layer: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the gate's projection to a layer around q, k, v (or to its state), which passes unknown tensors on."""

    def call(
        problem: Problem,
        params: Params,
        x: Tensor,
        w_gate: Tensor | None = None,
        b_gate: Tensor | None = None,
        **tensors: Tensor,
    ) -> Any:
        """x: [B, Q, C]. w_gate: [C, Hk], b_gate: [Hk], where gated. tensors: as in any q, k, v layer."""
        if w_gate is not None and b_gate is not None:
            tensors["gate"] = (x @ w_gate + b_gate).transpose(1, 2)  # [B, Hk, Q]
        return layer(problem, params, x=x, **tensors)

    return call


def layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1) with a shared part, and W_k near W_q: so q and k share a part, as in `make_inputs`."""
    inner = _UNGATED.make_inputs(problem, params, generator)
    c, hk = problem.channels, problem.kv_heads
    shared = SHARED * normal(problem, generator, c)
    weights = dict(inner.parameters)
    w_q = weights["w_q"].unflatten(-1, (hk, problem.group, -1))
    first = w_q[..., :1, :]  # of a group of query heads, which all are near it
    weights["w_q"] = torch.cat((first, 0.9 * first + 0.4 * w_q[..., 1:, :]), dim=-2).flatten(1)
    weights["w_k"] = 0.9 * first.flatten(1) + 0.4 * weights["w_k"]
    if gated(problem, params):
        weights["w_gate"] = normal(problem, generator, c, hk, scale=c**-0.5)
        weights["b_gate"] = normal(problem, generator, hk)

    def drawn(problem: Problem, params: Params, generator: Generator) -> Inputs:
        return Inputs({"x": tokens(problem, generator, "x")["x"] + shared})

    fixed = {**weights, **inner.choices}
    before = drawn_state(drawn, layer_state, problem, params, generator, fixed)
    return Inputs({"x": inner.data["x"] + shared}, weights, inner.choices, before)


def layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The layer around q, k, v, and the gate's projection, whose weights are read in place of the gate."""
    around = _UNGATED.cost(problem, params, mode)
    if not gated(problem, params):
        return around
    b, q, c, hk = problem.batch, problem.query_len, problem.channels, problem.kv_heads
    gate = product(b * q * c * hk, mode)  # x W_gate: [B·Q, C] × [C, Hk]
    outside = traffic(problem, mode, read=c * hk + hk, written=0) - traffic(problem, mode, read=b * hk * q, written=0)
    return replace(
        around,
        flops=around.flops + gate,
        reference_flops=around.reference_flops + gate,
        bytes_required=around.bytes_required + outside,
    )


assert _UNGATED.state is not None
layer_state = _with_gate(_UNGATED.state)

LAYER = Form(
    _with_gate(_UNGATED.reference),
    layer_inputs,
    layer_cost,
    {
        name: replace(impl, load=lambda impl=impl: _with_gate(impl.load()))  # type: ignore[misc]
        for name, impl in _UNGATED.impls.items()
    },
    layer_state,
)

OPERATOR = Operator(
    paper=Paper(
        "Peng et al.",
        2021,
        "Random Feature Attention",
        "https://arxiv.org/abs/2103.02143",
        "sec. 2.2, 3.1, 3.2",
    ),
    forms=with_graph({"core": CORE, "layer": LAYER}, *GRAPHED),
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={
        "m": Param(64, "random frequencies per head: twice as many features", minimum=1),
        "gate": Param("causal", "whether the causal form is gated", ("causal", "none")),
    },
    grouped=True,
    continues=True,
    why_not=outside,
    estimates=estimated,
)
