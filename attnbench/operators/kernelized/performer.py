"""y_i = φ(q_i)ᵀ Σ_j φ(k_j) v_jᵀ / φ(q_i)ᵀ Σ_j φ(k_j), φ: m random features (FAVOR+), over all j (causal: 0 ≤ j ≤ i).

With x̂ = x / D^¼ and the rows of ω orthogonal in blocks of D, with the norms of Gaussian rows:
`kind` softmax: φ(x) = exp(ω x̂ − ‖x̂‖²/2 − s) + ε, which estimates softmax attention. s is the largest exponent: of the
query's own m for a query, of all keys' (one batch element, one head) for a key. In the causal form a maximum over all
keys would show the future through ε, so there s = 0 for a key; the exponent is at most half of z², where z is the part
of ω along x̂, a standard normal number. `kind` relu: φ(x) = max(ω x̂, 0) + ε.

Choromanski et al. 2021, "Rethinking Attention with Performers", eqs. 5 to 8, lemma 1, sec. 2.4 (ω), appendix B.1
(causal), https://arxiv.org/abs/2009.14794. ε as in the authors' code, where the common factor 1/√m cancels too; there s
is the largest ω x̂ alone, which lets ε outweigh all features of a long x̂.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from attnbench.cost import keys_summed_first, product, traffic
from attnbench.inputs import heads, torch_dtype
from attnbench.kernels.library.fla import KERNEL as FLA_KERNEL
from attnbench.kernels.library.fla import attend_with_fla, half_safe, why_not_fla
from attnbench.kernels.library.graphs import with_graph
from attnbench.kernels.support import why_not, why_not_causal_groups
from attnbench.operator import SOFTMAX, Call, Complexity, Cost, Estimated, Form, Impl, Inputs, Operator, Paper, Param
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
from attnbench.problem import Dtype, Mode, Params, Problem, Scope
from attnbench.projection import projected
from attnbench.state import drawn_state

FEWEST_RELU: dict[Dtype, int] = {"float64": 16, "float32": 16, "float16": 256, "bfloat16": 256}
EPSILON = {"softmax": 1e-6, "relu": 1e-3}


def reference(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    omega: Tensor,
    sums: Tensor | None = None,
    totals: Tensor | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """float16 is widened inside: sums of exp pass 65504.

    Args:
        q: [B, H, Q, D].
        k, v: [B, Hk, Q, D].
        omega: [m, D].
        sums, totals: Σ φ(k) vᵀ and Σ φ(k) of the tokens before, where Q < N.

    Returns: [B, H, Q, D]; where Q < N also `sums` and `totals` of all N tokens.
    """
    dtype = q.dtype
    if problem.dtype == "float16":
        q, k, v, omega = q.float(), k.float(), v.float(), omega.float()
    if sums is not None and totals is not None:
        y, *new = continued(*features(problem, params, q, k, omega), v, sums, totals)
        return y.to(dtype), *new
    contract = causal if problem.causal else full
    return contract(*features(problem, params, q, k, omega), v).to(dtype)


def state(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, omega: Tensor) -> dict[str, Tensor]:
    """Sums of fixed size: no key of the causal form is scaled by others, so that nothing in them needs rescaling."""
    return state_of(features(problem, params, widened(q), widened(k), widened(omega))[1], v)


def features(problem: Problem, params: Params, q: Tensor, k: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
    """φ(q), [B, H, Q, m], and φ(k), [B, Hk, Q, m]."""
    scaled = (omega * problem.head_dim**-0.25).t()  # [D, m]
    if params["kind"] == "relu":
        return _raised((q @ scaled).relu_(), "relu"), _raised((k @ scaled).relu_(), "relu")
    return query_features(q, scaled), key_features(k, scaled, ahead=not problem.causal)


def _raised(features: Tensor, kind: str) -> Tensor:
    """Plus ε, in place where nothing is differentiated: a gradient needs what it was of."""
    epsilon = EPSILON[kind]
    return features + epsilon if features.requires_grad else features.add_(epsilon)


def query_features(q: Tensor, scaled: Tensor) -> Tensor:
    """scaled: ωᵀ / D^¼, [D, m]. Returns [B, H, N, m]. ‖q̂‖²/2 is in the exponent and in its maximum: it cancels."""
    exponent = q @ scaled
    if exponent.requires_grad:
        largest, place = exponent.detach().max(dim=-1, keepdim=True)
        largest = with_gradient(largest, q, scaled, place.squeeze(-1))
    else:
        largest = exponent.amax(dim=-1, keepdim=True)
    return _raised(exponent.sub_(largest).exp_(), "softmax")


def key_features(k: Tensor, scaled: Tensor, ahead: bool) -> Tensor:
    """As `query_features`. ahead: whether a key's stabiliser may depend on the keys after it."""
    exponent = k @ scaled
    shift = -k.square().sum(dim=-1, keepdim=True) / (2 * k.shape[-1] ** 0.5)  # [B, H, N, 1]
    if ahead:
        reached = exponent.detach().amax(dim=-1, keepdim=True) + shift
        largest, token = reached.max(dim=-2, keepdim=True)  # [B, H, 1, 1]
        if exponent.requires_grad:  # the norm's is in it already
            place = exponent.detach().take_along_dim(token, dim=-2).argmax(dim=-1)
            largest = with_gradient(largest, k.take_along_dim(token, dim=-2), scaled, place)
        shift = shift - largest
    return _raised(exponent.add_(shift).exp_(), "softmax")


def with_gradient(largest: Tensor, x: Tensor, scaled: Tensor, place: Tensor) -> Tensor:
    """`largest`, and the gradient of x ω: of one feature for each row, where a maximum's own would pass over all.

    Args:
        largest: [B, H, N, 1].
        x: [B, H, N, D].
        scaled: [D, m].
        place: the feature of each row, [B, H, N].
    """
    product = (x * scaled.t()[place]).sum(dim=-1, keepdim=True)
    return largest + (product - product.detach())


def features_count(problem: Problem, params: Params) -> int:
    """m as a number: `m` itself, or D·ln D rounded down, at least 1."""
    d = problem.head_dim
    return max(1, int(d * math.log(d))) if params["m"] == "d*ln(d)" else params["m"]


def orthogonal(m: int, d: int, generator: Generator) -> Tensor:
    """ω of [m, d] in float64: rows orthogonal in blocks of d, uniform in direction, with Gaussian rows' norms."""

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)

    q, r = torch.linalg.qr(gaussian(-(-m // d), d, d))
    directions = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # without the signs q is not uniform
    return directions.transpose(-2, -1).reshape(-1, d)[:m] * gaussian(m, d).norm(dim=-1, keepdim=True)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the estimated logits have variance 1. omega is drawn once, for all heads."""
    data = heads(problem, generator, "q", "k", "v")
    omega = orthogonal(features_count(problem, params), problem.head_dim, generator)
    choices = {"omega": omega.to(torch_dtype(problem))}
    return Inputs(data, choices=choices, state=drawn_state(make_inputs, state, problem, params, generator, choices))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """ω is not differentiated. What the causal reference executes beyond `flops`: see `executed`."""
    b, h, hk, q, d = problem.batch, problem.heads, problem.kv_heads, problem.query_len, problem.head_dim
    m = features_count(problem, params)
    size, kv_size = b * q * problem.channels, b * q * problem.kv_channels
    arguments = product(b * (h + hk) * q * d * m, mode, gradients=1)  # ω q and ω k: [Q, D] × [D, m]
    per_feature = 5 if params["kind"] == "softmax" else 3  # maximum, subtract, exp, + ε, sum; relu, + ε, sum
    return Cost(
        flops=arguments + required(problem, m, mode),
        reference_flops=arguments + executed(problem, m, mode),
        elementwise=per_feature * b * (h + hk) * q * m * (1 if mode == "fwd" else 2),
        bytes_required=traffic(problem, mode, read=size + 2 * kv_size, written=size, constant=m * d)
        + state_traffic(problem, m),
        state_bytes=state_bytes(problem, m) if problem.causal else None,
    )


def outside(problem: Problem, params: Params, scope: Scope) -> str | None:
    """Relu features need two channels, and enough features that every query has one above 0."""
    if params["kind"] != "relu":
        return None
    if problem.head_dim == 1:
        return "kind relu with head_dim 1: every feature is a multiple of the query, which the normaliser cancels"
    m, fewest = features_count(problem, params), FEWEST_RELU[problem.dtype]
    if m < fewest:
        return (
            f"kind relu with {m} features in {problem.dtype}: too few of a query's features are above 0 to determine "
            f"numerator and normaliser separately; it takes {fewest} or more"
        )
    return None


def estimated(params: Params) -> Estimated | None:
    """The limit of φ(q)ᵀφ(k) as m grows and ε → 0: for the kind softmax exp(qᵀk / √D), normalised."""
    return SOFTMAX if params["kind"] == "softmax" else None


def _fused() -> Callable[..., Tensor]:
    from attnbench.kernels.kernelized.causal import attend_causally
    from attnbench.kernels.kernelized.full import FeatureMap, attend

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, omega: Tensor) -> Tensor:
        name = {"softmax": "exp", "relu": "relu"}[params["kind"]]
        phi = FeatureMap(name, omega.shape[0], problem.head_dim**-0.25, EPSILON[params["kind"]])
        return attend_causally(q, k, v, phi, omega) if problem.causal else attend(q, k, v, phi, omega)

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
        omega: Tensor,
        sums: Tensor | None = None,
        totals: Tensor | None = None,
    ) -> Any:
        dtype = q.dtype
        q, k, v, omega = half_safe(q, k, v, omega)
        return attend_with_fla(*features(problem, params, q, k, omega), v, dtype, sums=sums, totals=totals)

    return call


def _fla_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return why_not_fla(problem, features_count(problem, params))


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
        "Choromanski et al.",
        2021,
        "Rethinking Attention with Performers",
        "https://arxiv.org/abs/2009.14794",
        "eqs. 5 to 8, lemma 1, sec. 2.4, appendix B.1",
    ),
    forms=with_graph({"core": CORE, "layer": projected(CORE, bytes_again=keys_summed_first)}, *GRAPHED),
    complexity=lambda params: Complexity(time="n", memory="n"),
    tolerance=(
        2.0,
        "in float16 kernels multiply features in TF32, to which tensor cores cut both factors instead of rounding them",
    ),
    params={
        "kind": Param("softmax", "what φ is: positive features of the softmax kernel, or relu", ("softmax", "relu")),
        "m": Param(256, "random features per head", ("d*ln(d)",), minimum=1),
    },
    grouped=True,
    continues=True,
    why_not=outside,
    estimates=estimated,
    approaches=lambda params: "m" if params["kind"] == "softmax" else None,
)
