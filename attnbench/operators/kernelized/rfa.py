"""y_i = φ(q_i)ᵀ Σ_j φ(k_j) v_jᵀ / φ(q_i)ᵀ Σ_j φ(k_j), φ: 2m random Fourier features, over all j (causal: 0 ≤ j ≤ i).

φ(x) = [sin ω x̂, cos ω x̂] / √m with x̂ = x / ‖x‖ and ω of m Gaussian rows, so that φ(q)ᵀφ(k) estimates exp(−‖q̂−k̂‖²/2),
which is exp(q̂ᵀk̂) up to a constant. The gate, in the causal form only, forgets: with g_i = sigmoid(gate_i), one per
head, the sums become S_i = g_i S_{i−1} + (1 − g_i) φ(k_i) v_iᵀ and z_i = g_i z_{i−1} + (1 − g_i) φ(k_i), both from 0.

Peng et al. 2021, "Random Feature Attention", sec. 2.2 (φ), 3.1 (full and causal), 3.2 (gate),
https://arxiv.org/abs/2103.02143. The σ that the paper learns is 1 here. The denominator is an estimate and can be ≤ 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import logsigmoid, normalize, scaled_dot_product_attention

from attnbench.cost import product, traffic
from attnbench.inputs import normal
from attnbench.kernels.library.fla import KERNEL as FLA_KERNEL
from attnbench.kernels.library.fla import attend_with_fla, why_not_fla
from attnbench.kernels.support import why_not
from attnbench.operator import Complexity, Cost, Estimated, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.kernelized._contraction import causal, executed, full, required
from attnbench.operators.kernelized._decay import decayed, executed_decayed
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.projection import projected

FEWEST_CHANNELS, FEWEST_FREQUENCIES = 4, 16

SHARED = 2.0
"""Length of the part that all q and k of a head share, in units of the expected length √D of the part drawn apart."""


def reference(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, omega: Tensor, gate: Tensor | None = None
) -> Tensor:
    """q, k, v: [B, H, N, D]. omega: [m, D]. gate: [B, H, N], where gated. Returns [B, H, N, D]."""
    dtype = q.dtype
    if problem.dtype == "float16":  # widened inside: z grows as N
        q, k, v, omega = q.float(), k.float(), v.float(), omega.float()
        gate = None if gate is None else gate.float()
    fq, fk = features(q, omega), features(k, omega)
    if gate is not None:
        return decayed(fq, fk, v, logsigmoid(gate), logsigmoid(-gate)).to(dtype)
    return (causal if problem.causal else full)(fq, fk, v).to(dtype)


def features(x: Tensor, omega: Tensor) -> Tensor:
    """[B, H, N, D] → [B, H, N, 2m]: sines, then cosines."""
    angles = normalize(x, dim=-1) @ omega.t()
    return torch.cat((angles.sin(), angles.cos()), dim=-1) * omega.shape[0] ** -0.5


def gated(problem: Problem, params: Params) -> bool:
    """Whether this problem's form has the gate."""
    return problem.causal and params["gate"] == "causal"


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1), q and k with a shared part beside, so that the denominator is positive; gate ~ N(0, 1)."""
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    shared = SHARED * d**0.5 * normalize(normal(problem, generator, 1, h, 1, d), dim=-1)
    q, k = (normal(problem, generator, b, h, n, d) + shared for _ in range(2))
    data = {"q": q, "k": k, "v": normal(problem, generator, b, h, n, d)}
    if gated(problem, params):
        data["gate"] = normal(problem, generator, b, h, n)
    return Inputs(data, choices={"omega": normal(problem, generator, params["m"], d)})


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """ω is not differentiated. What a causal reference executes beyond `flops`: see `executed` and its like."""
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    m, gate = params["m"], gated(problem, params)
    angles = 2 * product(b * h * n * d * m, mode, gradients=1)  # ω q̂ and ω k̂: [N, D] × [D, m]
    elements = b * h * n * (2 * 4 * 2 * m + 2 * 3 * d)  # sin, cos, scale, sum of 2m; square, sum, divide of D
    return Cost(
        flops=angles + required(problem, 2 * m, mode),
        reference_flops=angles + (executed_decayed if gate else executed)(problem, 2 * m, mode),
        elementwise=elements * (1 if mode == "fwd" else 2),
        bytes_required=traffic(problem, mode, read=b * h * n * (3 * d + gate), written=b * h * n * d, constant=m * d),
        passes=1 if problem.causal else 2,  # all keys are summed before the first query is answered
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
        ahead = torch.ones(2 * gate.shape[-1:], dtype=torch.bool, device=q.device).triu_(1)
        bias = along.unsqueeze(-1) + (logsigmoid(-gate) - along).unsqueeze(-2)
        bias = bias.masked_fill(ahead, float("-inf"))
    return scaled_dot_product_attention(q, k, v, bias, is_causal=problem.causal and bias is None, scale=1.0)


def _fused() -> Callable[..., Tensor]:
    from attnbench.kernels.kernelized.causal import attend_causally
    from attnbench.kernels.kernelized.full import FeatureMap, attend

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, omega: Tensor) -> Tensor:
        phi = FeatureMap("fourier", omega.shape[0], omega.shape[0] ** -0.5)
        return attend_causally(q, k, v, phi, omega) if problem.causal else attend(q, k, v, phi, omega)

    return call


def _fused_why_not(problem: Problem, params: Params, device: str) -> str | None:
    if gated(problem, params):
        return "the fused scan does not forget: it has no gate"
    return why_not(problem)


def _fla() -> Callable[..., Tensor]:
    def call(
        problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, omega: Tensor, gate: Tensor | None = None
    ) -> Tensor:
        fq, fk = features(q, omega), features(k, omega)
        if gate is None:
            return attend_with_fla(fq, fk, v)
        weighted = fk * torch.sigmoid(-gate).unsqueeze(-1)
        return attend_with_fla(fq, weighted, v, log_keep=logsigmoid(gate.float()))

    return call


def _fla_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return why_not_fla(problem, 2 * params["m"])


CORE = Form(
    reference,
    make_inputs,
    cost,
    {
        "cuda": Impl(_fused, "attnbench Triton: kernelized", _fused_why_not),
        "cuda:fla": Impl(_fla, FLA_KERNEL, _fla_why_not),
    },
)
_UNGATED = projected(CORE)


def _with_gate(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Adds the gate's projection to a layer around q, k, v, which passes unknown tensors on to the core."""

    def call(
        problem: Problem,
        params: Params,
        x: Tensor,
        w_gate: Tensor | None = None,
        b_gate: Tensor | None = None,
        **tensors: Tensor,
    ) -> Tensor:
        """x: [B, N, C]. w_gate: [C, H], b_gate: [H], where gated. tensors: as in any q, k, v layer."""
        if w_gate is not None and b_gate is not None:
            tensors["gate"] = (x @ w_gate + b_gate).transpose(1, 2)  # [B, H, N]
        return layer(problem, params, x=x, **tensors)

    return call


def layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1) with a shared part, and W_k near W_q: so q and k share a part, as in `make_inputs`."""
    inner = _UNGATED.make_inputs(problem, params, generator)
    c, h = problem.channels, problem.heads
    x = inner.data["x"] + SHARED * normal(problem, generator, c)
    weights = dict(inner.parameters)
    weights["w_k"] = 0.9 * weights["w_q"] + 0.4 * weights["w_k"]
    if gated(problem, params):
        weights["w_gate"] = normal(problem, generator, c, h, scale=c**-0.5)
        weights["b_gate"] = normal(problem, generator, h)
    return Inputs({"x": x}, weights, inner.choices)


def layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The layer around q, k, v, and the gate's projection, whose weights are read in place of the gate."""
    around = _UNGATED.cost(problem, params, mode)
    if not gated(problem, params):
        return around
    b, n, c, h = problem.batch, problem.seq_len, problem.channels, problem.heads
    gate = product(b * n * c * h, mode)  # x W_gate: [B·N, C] × [C, H]
    outside = traffic(problem, mode, read=c * h + h, written=0) - traffic(problem, mode, read=b * h * n, written=0)
    return replace(
        around,
        flops=around.flops + gate,
        reference_flops=around.reference_flops + gate,
        bytes_required=around.bytes_required + outside,
    )


LAYER = Form(
    _with_gate(_UNGATED.reference),
    layer_inputs,
    layer_cost,
    {
        name: replace(impl, load=lambda impl=impl: _with_gate(impl.load()))  # type: ignore[misc]
        for name, impl in _UNGATED.impls.items()
    },
)

OPERATOR = Operator(
    paper=Paper(
        "Peng et al.",
        2021,
        "Random Feature Attention",
        "https://arxiv.org/abs/2103.02143",
        "sec. 2.2, 3.1, 3.2",
    ),
    forms={"core": CORE, "layer": LAYER},
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={
        "m": Param(64, "random frequencies per head: twice as many features", minimum=1),
        "gate": Param("causal", "whether the causal form is gated", ("causal", "none")),
    },
    why_not=outside,
    estimates=estimated,
)
