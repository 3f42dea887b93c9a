"""y_i = Σ_j p_ij v_j with p_i = softmax_j(q_iᵀ k_j / √D) over all j where i < g, over 0 ≤ j < g where i ≥ g.

Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences", sec. 2, https://arxiv.org/abs/2007.14062.
`kind` internal (the paper's ITC): the first g tokens of the sequence are global; external (ETC): g tokens are added in
front, so that indices above run over g + N tokens and the output has g + N rows, the added ones first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from attnbench.cost import product, traffic
from attnbench.grouped import folded, unfolded
from attnbench.inputs import head_count, heads, normal
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.projection import projected

ADDED = ("q_global", "k_global", "v_global")


def reference(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, **added: Tensor) -> Tensor:
    """q: [B, H, N, D]; k, v: [B, Hk, N, D]; added (external): q_global, k_global, v_global, of g tokens.

    Returns [B, H, N, D], or [B, H, g + N, D] with external tokens.
    """
    return two_rectangles(problem, params, q, k, v, added, _eager, _eager)


def two_rectangles(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    added: dict[str, Tensor],
    wide: Callable[[Tensor, Tensor, Tensor], Tensor],
    tall: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Dense attention of the global queries to all keys, [g, N], and of the others to the global keys, [N − g, g].

    Args:
        wide, tall: attention by few queries and by many.
    """
    if added:
        q, k, v = (torch.cat((extra, x), dim=-2) for extra, x in zip(_added(**added), (q, k, v), strict=True))
    g = global_count(problem, params)
    few, many = q.split((g, q.shape[-2] - g), dim=-2)
    full = wide(few, k, v)
    if g == q.shape[-2]:
        return full
    thin = tall(many, k[..., :g, :], v[..., :g, :])
    return torch.cat((full, thin), dim=-2)


def _added(q_global: Tensor, k_global: Tensor, v_global: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q_global, k_global, v_global


def _eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = folded(q * q.shape[-1] ** -0.5, k) @ k.transpose(-2, -1)
    return unfolded(scores.softmax(dim=-1) @ v, q)


def global_count(problem: Problem, params: Params) -> int:
    """g; internal: at most the sequence."""
    g: int = params["global_tokens"]
    return g if params["kind"] == "external" else min(g, problem.seq_len)


def total(problem: Problem, params: Params) -> int:
    """Tokens that attend: N, and the added ones."""
    return problem.seq_len + (params["global_tokens"] if params["kind"] == "external" else 0)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """All ~ N(0, 1): the logits have variance 1."""
    data = heads(problem, generator, "q", "k", "v")
    if params["kind"] == "external":
        b, g, d = problem.batch, params["global_tokens"], problem.head_dim
        data |= {name: normal(problem, generator, b, head_count(problem, name), g, d) for name in ADDED}
    return Inputs(data)


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference executes what the definition requires."""
    b, h, d = problem.batch, problem.heads, problem.head_dim
    n, g = total(problem, params), global_count(problem, params)
    pairs = g * n + (n - g) * g
    flops = (
        product(b * h * g * n * d, mode)  # q kᵀ: [g, D] × [D, N]
        + product(b * h * (n - g) * g * d, mode)  # q kᵀ: [N − g, D] × [D, g]
        + product(b * h * pairs * d, mode)  # p v: [g, N] × [N, D] and [N − g, g] × [g, D]
    )
    size, kv_size = b * n * problem.channels, b * n * problem.kv_channels
    return Cost(
        flops=flops,
        reference_flops=flops,
        elementwise=4 * b * h * pairs * (1 if mode == "fwd" else 2),  # max, subtract, exp, divide
        bytes_required=traffic(problem, mode, read=size + 2 * kv_size, written=size),
    )


def _cuda() -> Callable[..., Tensor]:
    from attnbench.kernels.flex.pieces import few_keys, few_queries

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, **added: Tensor) -> Tensor:
        return two_rectangles(problem, params, q, k, v, added, few_queries, few_keys)

    return call


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    from attnbench.kernels.flex import windows

    return windows.why_not(problem, global_count(problem, params), total(problem, params))


CUDA = Impl(
    _cuda, "FlexAttention on pieces of the keys; torch SDPA on pieces of the queries", _cuda_why_not, grouped=True
)


CORE = Form(
    reference,
    make_inputs,
    cost,
    impls={"cuda": CUDA},
)
INNER = projected(CORE)


def _layer(inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def layer(problem: Problem, params: Params, x: Tensor, tokens: Tensor | None = None, **tensors: Tensor) -> Tensor:
        if tokens is not None:
            x = torch.cat((tokens.expand(x.shape[0], -1, -1), x), dim=1)  # [B, g + N, C]
        return inner(*_inside(problem, params), x=x, **tensors)

    return layer


def _inside(problem: Problem, params: Params) -> tuple[Problem, Params]:
    """Added tokens pass through the same projections: from there on they are the first tokens of a longer sequence."""
    problem = replace(problem, seq_len=total(problem, params), height=None, width=None)
    return problem, {**params, "kind": "internal"}


def _layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1), and external tokens as the paper learns them: one embedding [g, C] shared by the batch."""
    inputs = INNER.make_inputs(problem, {**params, "kind": "internal"}, generator)
    if params["kind"] == "internal":
        return inputs
    tokens = normal(problem, generator, params["global_tokens"], problem.channels)
    return replace(inputs, parameters={**inputs.parameters, "tokens": tokens})


def _layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """As `cost`, with the projections of all tokens; an external token is read once, not once per sample."""
    inner = INNER.cost(*_inside(problem, params), mode)
    shared = (problem.batch - 1) * (total(problem, params) - problem.seq_len) * problem.channels
    saved = traffic(problem, mode, read=shared, written=0)
    return replace(inner, bytes_required=inner.bytes_required - saved)


LAYER = Form(
    _layer(INNER.reference),
    _layer_inputs,
    _layer_cost,
    impls={"cuda": replace(CUDA, load=lambda: _layer(INNER.impls["cuda"].load()))},
)


def why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    """A block adds its x to what its layer returns."""
    if scope == "block" and params["kind"] == "external":
        return "the rows of added tokens have no x that a block could add to them"
    return None


OPERATOR = Operator(
    paper=Paper(
        "Zaheer et al.",
        2020,
        "Big Bird: Transformers for Longer Sequences",
        "https://arxiv.org/abs/2007.14062",
        "sec. 2, ITC and ETC",
    ),
    forms=with_graph({"core": CORE, "layer": LAYER}, "cuda"),
    complexity=lambda params: Complexity(time="n", memory="n"),
    pairs=lambda params, causal: "fixed",
    approaches=lambda params: "global_tokens" if params["kind"] == "internal" else None,
    params={
        "kind": Param("internal", "whether existing or added tokens are global", ("internal", "external")),
        "global_tokens": Param(
            128, "g: the tokens that see and are seen by all (BigBird: two blocks of 64)", minimum=1
        ),
    },
    grouped=True,
    causal="a global token sees every token, later ones too",
    continues="the rows of global tokens change with every new token, which they see",
    why_not=why_not,
)
