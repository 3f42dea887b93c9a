"""y_i = Σ_j p_ij v_j with p_i = softmax_j(l_ij) over all j (causal: 0 ≤ j ≤ i); the logits l never compare two tokens.

`kind`, each head with its own weights:
dense             l_i = relu(x_i W₁ + b₁) W₂ + b₂: N logits from token i alone, through D hidden channels
random            l = R, a learned N×N matrix, the same for every input
factorized_dense  l_ij = α_i,(j mod a) · β_i,⌊j/a⌋, where α_i (a of them) and β_i come from x_i through two layers each
factorized_random l = R₁ R₂ᵀ of rank `rank`
a is the largest divisor of N in √N/2 … √N, and β_i has N/a values; where N has no such divisor, a = ⌈√N⌉, β_i has ⌈N/a⌉
and the products beyond N are cut off.

Tay et al. 2021, "Synthesizer: Rethinking Self-Attention in Transformer Models", sec. 3.1 to 3.4 (2020 as a preprint),
https://arxiv.org/abs/2005.00743. Head h of the dense kinds takes channels h·D … (h + 1)·D − 1 of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Generator, Tensor

from attnbench.cost import product, traffic
from attnbench.inputs import heads, normal, tokens
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.synthesized._fused import FUSED
from attnbench.operators.synthesized._two_layers import two_layers
from attnbench.problem import Mode, Params, Problem


def reference(problem: Problem, params: Params, v: Tensor, **tensors: Tensor) -> Tensor:
    """v (and x of the dense kinds): [B, H, N, D]; weights as `make_inputs` shapes them. Returns [B, H, N, D]."""
    weights = _masked(problem, logits(problem, params, **tensors)).softmax(dim=-1)
    b, h, n, d = v.shape
    if weights.dim() == 3:  # the same for all samples: one product for all of them
        y = weights @ v.permute(1, 2, 0, 3).reshape(h, n, b * d)  # [H, N, N] × [H, N, B·D]
        return y.view(h, n, b, d).permute(2, 0, 1, 3)
    return (weights @ v.transpose(0, 1)).transpose(0, 1)  # [H, B, N, N] × [H, B, N, D]


def logits(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
    """l before the causal mask: [H, N, N], or [H, B, N, N] where it depends on x."""
    kind = params["kind"]
    if kind == "random":
        return tensors["r"]
    if kind == "factorized_random":
        return tensors["r1"] @ tensors["r2"].transpose(-2, -1)
    if kind == "dense":
        return two_layers(tensors, "")
    alpha, beta = two_layers(tensors, "_alpha"), two_layers(tensors, "_beta")  # [H, B, N, a], [H, B, N, ⌈N/a⌉]
    tiled = (beta.unsqueeze(-1) * alpha.unsqueeze(-2)).flatten(-2)  # [H, B, N, ≥ N], a running fastest
    return tiled[..., : problem.seq_len]


def _masked(problem: Problem, scores: Tensor) -> Tensor:
    if not problem.causal:
        return scores
    ahead = torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype, device=scores.device).triu_(1)
    return scores + ahead  # not in place: the scores can be R itself


def factors(seq_len: int) -> tuple[int, int]:
    """a and the number of β for N tokens; their product is N, or a little more."""
    for a in range(math.isqrt(seq_len), 0, -1):
        if seq_len % a == 0 and 4 * a * a >= seq_len:
            return a, seq_len // a
    a = math.isqrt(seq_len - 1) + 1
    return a, -(-seq_len // a)


def layers(problem: Problem, params: Params) -> dict[str, int]:
    """The two-layer maps of a kind: their names' suffix and their number of outputs."""
    if params["kind"] == "dense":
        return {"": problem.seq_len}
    if params["kind"] == "factorized_dense":
        return dict(zip(("_alpha", "_beta"), factors(problem.seq_len), strict=True))
    return {}


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x, v ~ N(0, 1); weights such that logits have variance about 1. Shapes: w1 [H, D, D], b1 [H, 1, D], w2
    [H, D, outputs], b2 [H, 1, outputs]; r [H, N, N]; r1, r2 [H, N, rank].
    """
    h, n, d = problem.heads, problem.seq_len, problem.head_dim
    parameters: dict[str, Tensor] = {}
    for suffix, outputs in layers(problem, params).items():
        parameters["w1" + suffix] = normal(problem, generator, h, d, d, scale=d**-0.5)
        parameters["b1" + suffix] = normal(problem, generator, h, 1, d, scale=0.1)
        parameters["w2" + suffix] = normal(problem, generator, h, d, outputs, scale=(2 / d) ** 0.5)
        parameters["b2" + suffix] = normal(problem, generator, h, 1, outputs, scale=0.1)
    if params["kind"] == "random":
        parameters["r"] = normal(problem, generator, h, n, n)
    if params["kind"] == "factorized_random":
        for name in ("r1", "r2"):
            parameters[name] = normal(problem, generator, h, n, params["rank"], scale=params["rank"] ** -0.25)
    return Inputs(heads(problem, generator, *(("x", "v") if layers(problem, params) else ("v",))), parameters)


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """A causal reference executes all N² pairs, at most twice the allowed ones. The factorized dense kind multiplies α
    by β for each pair: elementwise work, not a product.
    """
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    n_pairs = n * (n + 1) // 2 if problem.causal else n * n
    maps = layers(problem, params)
    scored = (b if maps else 1) * h * n_pairs  # logits: of each sample, or the same for all

    def total(pairs: int) -> int:
        flops = product(b * h * pairs * d, mode)  # p v: [N, N] × [N, D]
        for outputs in maps.values():
            flops += product(b * h * n * d * d, mode)  # x W₁: [N, D] × [D, D]
            each = pairs if params["kind"] == "dense" else n * outputs
            flops += product(b * h * each * d, mode)  # relu(…) W₂: [N, D] × [D, N], or × [D, a], [D, ⌈N/a⌉]
        if params["kind"] == "factorized_random":
            flops += product(h * pairs * params["rank"], mode)  # R₁ R₂ᵀ: [N, rank] × [rank, N]
        return flops

    per_logit = 5 if params["kind"] == "factorized_dense" else 4  # (α β), max, subtract, exp, divide
    data = (2 if maps else 1) * b * h * n * d
    return Cost(
        flops=total(n_pairs),
        reference_flops=total(n * n),
        elementwise=per_logit * scored * (1 if mode == "fwd" else 2),
        bytes_required=traffic(problem, mode, read=data + weight_count(problem, params), written=b * h * n * d),
        passes=1,
    )


def weight_count(problem: Problem, params: Params) -> int:
    """Elements of all parameters of the core; of a causal R the allowed half is required."""
    h, n, d = problem.heads, problem.seq_len, problem.head_dim
    if params["kind"] == "random":
        return h * (n * (n + 1) // 2 if problem.causal else n * n)
    if params["kind"] == "factorized_random":
        return 2 * h * n * params["rank"]
    return sum(h * (d * d + d + (d + 1) * outputs) for outputs in layers(problem, params).values())


def _layer(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """x W_v, the core, then its output times W_o; the dense kinds take their logits from x itself."""

    def layer(problem: Problem, params: Params, x: Tensor, w_v: Tensor, w_o: Tensor, **weights: Tensor) -> Tensor:
        def split(t: Tensor) -> Tensor:
            return t.view(problem.batch, problem.seq_len, problem.heads, problem.head_dim).transpose(1, 2)

        data = {"x": split(x)} if layers(problem, params) else {}
        y = call(problem, params, v=split(x @ w_v), **data, **weights)
        return y.transpose(1, 2).reshape(problem.batch, problem.seq_len, problem.channels) @ w_o

    return layer


def layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1); W_v and W_o keep its variance."""
    c = problem.channels
    inner = make_inputs(problem, params, generator)
    projections = {name: normal(problem, generator, c, c, scale=c**-0.5) for name in ("w_v", "w_o")}
    return Inputs(tokens(problem, generator, "x"), {**projections, **inner.parameters})


def layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The core's and two projections."""
    b, n, c = problem.batch, problem.seq_len, problem.channels
    inner = cost(problem, params, mode)
    projections = 2 * product(b * n * c * c, mode)  # x W_v and y W_o: [N, C] × [C, C]
    weights = weight_count(problem, params) + 2 * c * c
    return replace(
        inner,
        flops=inner.flops + projections,
        reference_flops=inner.reference_flops + projections,
        bytes_required=traffic(problem, mode, read=b * n * c + weights, written=b * n * c),
    )


IMPLS: Mapping[str, Impl] = FUSED

OPERATOR = Operator(
    paper=Paper(
        "Tay et al.",
        2020,
        "Synthesizer: Rethinking Self-Attention in Transformer Models",
        "https://arxiv.org/abs/2005.00743",
        "sec. 3.1 to 3.4",
    ),
    forms={
        "core": Form(reference, make_inputs, cost, IMPLS),
        "layer": Form(
            _layer(reference),
            layer_inputs,
            layer_cost,
            {
                name: replace(impl, load=lambda impl=impl: _layer(impl.load()))  # type: ignore[misc]
                for name, impl in IMPLS.items()
            },
        ),
    },
    complexity=lambda params: Complexity(time="n^2", memory="n^2"),
    params={
        "kind": Param(
            "dense", "where the logits come from", ("dense", "random", "factorized_dense", "factorized_random")
        ),
        "rank": Param(8, "columns of R₁ and R₂ (factorized_random)", minimum=1),
    },
    tolerance=(3.0, "biases get sums of gradients that cancel, so that the order of summation changes the rounding"),
    notes="parameters grow with N, of kind random with N²",
)
