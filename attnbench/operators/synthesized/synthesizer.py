"""y_i = Σ_j p_ij v_j with p_i = softmax_j(l_ij) over all j (causal: 0 ≤ j ≤ i); the logits l never compare two tokens.

`kind`, each head with its own weights:
dense             l_i = relu(x_i W₁ + b₁) W₂ + b₂: N logits from token i alone, through D hidden channels
random            l = R, a learned N×N matrix, the same for every input
factorized_dense  l_ij = α_i,(j mod a) · β_i,⌊j/a⌋, where α_i (a of them) and β_i come from x_i through two layers each
factorized_random l = R₁ R₂ᵀ of rank `rank`
a is the largest divisor of N in √N/2 … √N, and β_i has N/a values; where N has no such divisor, a = ⌈√N⌉, β_i has ⌈N/a⌉
and the products beyond N are cut off.

Tay et al. 2021, "Synthesizer: Rethinking Self-Attention in Transformer Models", sec. 3.1 to 3.4 (2020 as a preprint),
https://arxiv.org/abs/2005.00743. Head h of the dense kinds takes channels h·D … (h + 1)·D − 1 of x. Kept of the tokens
before the new ones: their values. The weights, and a, are those of all N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Generator, Tensor

from attnbench.cost import moved_again, product, traffic
from attnbench.inputs import heads, normal, tokens
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.synthesized._fused import FUSED
from attnbench.operators.synthesized._two_layers import two_layers
from attnbench.problem import Mode, Params, Problem
from attnbench.state import appended, causal_pairs, with_room


def reference(problem: Problem, params: Params, v: Tensor, v_cache: Tensor | None = None, **tensors: Tensor) -> Tensor:
    """v (and x of the dense kinds): [B, H, Q, D]; weights as `make_inputs` shapes them; v_cache: [B, H, N, D], where
    Q < N. Returns [B, H, Q, D].
    """
    weights = _masked(problem, logits(problem, params, **tensors)).softmax(dim=-1)
    v = appended(v_cache, v)
    b, h, n, d = v.shape
    if problem.past and problem.query_len <= d:  # fewer weights than values, which then are not moved
        return (weights if weights.dim() == 3 else weights.transpose(0, 1)) @ v
    if weights.dim() == 3:  # the same for all samples: one product for all of them
        y = weights @ v.permute(1, 2, 0, 3).reshape(h, n, b * d)  # [H, Q, N] × [H, N, B·D]
        return y.view(h, -1, b, d).permute(2, 0, 1, 3)
    return (weights @ v.transpose(0, 1)).transpose(0, 1)  # [H, B, Q, N] × [H, B, N, D]


def logits(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
    """l before the causal mask: [H, Q, N], or [H, B, Q, N] where it depends on x."""
    kind = params["kind"]
    if kind == "random":
        return _of_new(problem, tensors["r"])
    if kind == "factorized_random":
        return _of_new(problem, tensors["r1"]) @ tensors["r2"].transpose(-2, -1)
    if kind == "dense":
        return two_layers(tensors, "")
    alpha, beta = two_layers(tensors, "_alpha"), two_layers(tensors, "_beta")  # [H, B, Q, a], [H, B, Q, ⌈N/a⌉]
    tiled = (beta.unsqueeze(-1) * alpha.unsqueeze(-2)).flatten(-2)  # [H, B, Q, ≥ N], a running fastest
    return tiled[..., : problem.seq_len]


def _of_new(problem: Problem, rows: Tensor) -> Tensor:
    """The rows of the new tokens: [H, N, X] → [H, Q, X]."""
    return rows[:, problem.past :] if problem.past else rows


def _masked(problem: Problem, scores: Tensor) -> Tensor:
    if not problem.causal or (problem.past and problem.query_len == 1):
        return scores
    ahead = torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype, device=scores.device)
    return scores + ahead.triu_(1 + problem.past)  # not in place: the scores can be R itself


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
    shape = (problem.batch, h, n, d)
    data = heads(problem, generator, *(("x", "v") if layers(problem, params) else ("v",)))
    cache = {"v_cache": appended(normal(problem, generator, *shape), data["v"])} if problem.past else {}
    return Inputs(data, parameters, state=cache)


def state(problem: Problem, params: Params, v: Tensor, **tensors: Tensor) -> dict[str, Tensor]:
    """All values so far."""
    return {"v_cache": with_room(problem, v)}


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """A causal reference executes all N² pairs, at most twice the allowed ones. The factorized dense kind multiplies α
    by β for each pair: elementwise work, not a product.
    """
    b, h, n, d, q = problem.batch, problem.heads, problem.seq_len, problem.head_dim, problem.query_len
    n_pairs = causal_pairs(problem) if problem.causal else n * n
    maps = layers(problem, params)
    scored = (b if maps else 1) * h * n_pairs  # logits: of each sample, or the same for all

    def total(pairs: int) -> int:
        flops = product(b * h * pairs * d, mode)  # p v: [Q, N] × [N, D]
        for outputs in maps.values():
            flops += product(b * h * q * d * d, mode)  # x W₁: [Q, D] × [D, D]
            each = pairs if params["kind"] == "dense" else q * outputs
            flops += product(b * h * each * d, mode)  # relu(…) W₂: [Q, D] × [D, N], or × [D, a], [D, ⌈N/a⌉]
        if params["kind"] == "factorized_random":
            flops += product(h * pairs * params["rank"], mode)  # R₁ R₂ᵀ: [Q, rank] × [rank, N]
        return flops

    per_logit = 5 if params["kind"] == "factorized_dense" else 4  # (α β), max, subtract, exp, divide
    size = b * h * q * d
    return Cost(
        flops=total(n_pairs),
        reference_flops=total(q * n),
        elementwise=per_logit * scored * (1 if mode == "fwd" else 2),
        bytes_required=traffic(
            problem,
            mode,
            read=(2 if maps else 1) * size + weight_count(problem, params),
            constant=_cached(problem),
            written=size + _added(problem),
        ),
        bytes_again=moved_again(problem, mode, backward=size),  # y, as of softmax
        state_bytes=b * h * n * d * problem.item_bytes if problem.causal else None,
    )


def _cached(problem: Problem) -> int:
    """Elements of the values of the tokens before."""
    return problem.batch * problem.past * problem.channels


def _added(problem: Problem) -> int:
    """Elements written to the cache."""
    return problem.batch * problem.query_len * problem.channels if problem.past else 0


def weight_count(problem: Problem, params: Params) -> int:
    """Elements of the parameters of the core that the new tokens need; of a causal R the allowed half."""
    h, n, d = problem.heads, problem.seq_len, problem.head_dim
    if params["kind"] == "random":
        return h * (causal_pairs(problem) if problem.causal else n * n)
    if params["kind"] == "factorized_random":
        return h * (problem.query_len + n) * params["rank"]
    return sum(h * (d * d + d + (d + 1) * outputs) for outputs in layers(problem, params).values())


def _layer(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """x W_v, the core, then its output times W_o; the dense kinds take their logits from x itself."""

    def layer(problem: Problem, params: Params, x: Tensor, w_v: Tensor, w_o: Tensor, **weights: Tensor) -> Tensor:
        data = {"x": _by_head(problem, x)} if layers(problem, params) else {}
        y = call(problem, params, v=_by_head(problem, x @ w_v), **data, **weights)
        return y.transpose(1, 2).reshape(x.shape) @ w_o

    return layer


def _by_head(problem: Problem, x: Tensor) -> Tensor:
    """[B, Q, C] → [B, H, Q, D]."""
    return x.view(*x.shape[:2], problem.heads, problem.head_dim).transpose(1, 2)


def layer_state(problem: Problem, params: Params, x: Tensor, w_v: Tensor, **tensors: Tensor) -> dict[str, Tensor]:
    """All values so far."""
    return state(problem, params, _by_head(problem, x @ w_v))


def layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1); W_v and W_o keep its variance."""
    c = problem.channels
    inner = make_inputs(problem, params, generator)
    projections = {name: normal(problem, generator, c, c, scale=c**-0.5) for name in ("w_v", "w_o")}
    return Inputs(tokens(problem, generator, "x"), {**projections, **inner.parameters}, state=inner.state)


def layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The core's and two projections."""
    c, size = problem.channels, problem.batch * problem.query_len * problem.channels
    inner = cost(problem, params, mode)
    projections = 2 * product(size * c, mode)  # x W_v and y W_o: [Q, C] × [C, C]
    weights = weight_count(problem, params) + 2 * c * c
    return replace(
        inner,
        flops=inner.flops + projections,
        reference_flops=inner.reference_flops + projections,
        bytes_required=traffic(
            problem, mode, read=size + weights, constant=_cached(problem), written=size + _added(problem)
        ),
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
    forms=with_graph(
        {
            "core": Form(reference, make_inputs, cost, IMPLS, state),
            "layer": Form(
                _layer(reference),
                layer_inputs,
                layer_cost,
                {
                    name: replace(impl, load=lambda impl=impl: _layer(impl.load()))  # type: ignore[misc]
                    for name, impl in IMPLS.items()
                },
                layer_state,
            ),
        },
        "sdpa",
        "cuda",
    ),
    complexity=lambda params: Complexity(time="n^2", memory="n^2"),
    params={
        "kind": Param(
            "dense", "where the logits come from", ("dense", "random", "factorized_dense", "factorized_random")
        ),
        "rank": Param(8, "columns of R₁ and R₂ (factorized_random)", minimum=1),
    },
    continues=True,
    grouped="it has no keys, and every head has logits of its own, so kv_heads = heads",
    data_dependent=lambda params: "random" not in params["kind"],
    any_length=lambda params: False,
    tolerance=(3.0, "biases get sums of gradients that cancel, so that the order of summation changes the rounding"),
    notes="parameters grow with N, of kind random with N²",
)
