"""y_i = Σ_j w(s_ij) v_j / (Σ_j w(s_ij) + 10⁻⁶), s_ij = q_iᵀk_j / √d of d channels, over all j (causal: 0 ≤ j ≤ i).

`kind` based: w(s) = 1 + s + s²/2, the exponential's series up to its second term: so it approximates softmax attention
where logits are small. `kind` rebased: w(s) = s². In linear time w is a scalar product of features, the products of
each two channels, of which those that occur twice are computed once: for d = 16 there are 153 (rebased: 136).

Arora et al. 2024, "Simple linear attention language models balance the recall-throughput tradeoff", sec. 4.1,
https://arxiv.org/abs/2402.18668 (rebased: Aksenov et al. 2024, "Linear Transformers with Learnable Kernel Functions
are Better In-Context Models", sec. 3, https://arxiv.org/abs/2402.10644); ε is that of flash-linear-attention's kernels.
Scope `layer` projects to d channels of q and k; rebased's has a layer norm of each head of q and of k, with γ and β.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Generator, Tensor
from torch.nn.functional import layer_norm, pad, scaled_dot_product_attention

from attnbench.block import too_narrow
from attnbench.cost import keys_summed_first, traffic
from attnbench.grouped import folded, unfolded
from attnbench.inputs import head_count, normal
from attnbench.kernels.library.fla import KERNEL as FLA_KERNEL
from attnbench.kernels.library.fla import attend_with_fla, half_safe, taylor_with_fla, why_not_fla
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Call, Complexity, Cost, Estimated, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.kernelized._contraction import (
    GRAPHED,
    causal_chunks,
    chunk_length,
    continued_chunks,
    executed,
    full,
    in_chunks,
    query_chunks,
    required,
    state_bytes,
    state_of,
    state_traffic,
    widened,
    with_ones,
    without_later,
)
from attnbench.operators.kernelized._symmetric import products, squares
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.projection import projected
from attnbench.state import drawn_state

EPSILON = 1e-6

CHUNK = 64
"""Tokens in a chunk, whatever D: scores within one are products of few channels, and states have many rows."""


def reference(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sums: Tensor | None = None,
    totals: Tensor | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """In float32 at least: a small s² is what is left of features that are not small.

    Args:
        q: [B, H, Q, d].
        k: [B, Hk, Q, d].
        v: [B, Hk, Q, D].
        sums, totals: Σ φ(k) vᵀ and Σ φ(k) of the tokens before, where Q < N.

    Returns: [B, H, Q, D]; where Q < N also `sums` and `totals` of all N tokens.
    """
    dtype, kind, v = v.dtype, params["kind"], widened(v)
    rows, keys = (arguments(kind, x) for x in (q, k))
    if not problem.causal:
        y = full(features(kind, folded(rows, keys)), features(kind, keys), v, EPSILON)
        return unfolded(y, q).to(dtype)
    c = chunk_length(problem, CHUNK)
    rows, keys = query_chunks(rows, keys, c), in_chunks(keys, c)
    scores = without_later(weights(kind, rows, keys))
    if sums is not None and totals is not None:
        features_of_all = features(kind, rows), features(kind, keys)
        y, *after = continued_chunks(scores, *features_of_all, in_chunks(v, c), q, sums, totals, EPSILON)
        return y.to(dtype), *after
    between = features(kind, rows[:, :, 1:]), features(kind, keys[:, :, :-1])
    return causal_chunks(scores, *between, in_chunks(with_ones(v), c), q, EPSILON).to(dtype)


def arguments(kind: str, x: Tensor) -> Tensor:
    """x' with w(s) = (x'·y')² / 2, and for based ½ more: a one and x / d^¼, or x (2 / d)^¼; [B, H, Q, d + 1 or d]."""
    x, d = widened(x), x.shape[-1]
    return pad(x * d**-0.25, (1, 0), value=1.0) if kind == "based" else x * (2 / d) ** 0.25


def weights(kind: str, rows: Tensor, keys: Tensor) -> Tensor:
    """w of each two tokens of a chunk, from `arguments`: […, c, d'] and […, c', d'] → […, c, c']."""
    halves = (rows * 0.5**0.5 @ keys.transpose(-2, -1)).square()
    return halves.add_(0.5) if kind == "based" else halves


def features(kind: str, x: Tensor) -> Tensor:
    """φ, from `arguments`: […, tokens, d'] → […, tokens, m]; the square of the one is 1, not ½."""
    of_squares = x.new_full((x.shape[-1], 1), 0.5**0.5)
    if kind == "based":
        of_squares[0] = 1
    return squares(x.transpose(-2, -1).contiguous(), of_squares).transpose(-2, -1)


def features_count(params: Params) -> int:
    """m."""
    return products(params["key_dim"] + (params["kind"] == "based"))


def state(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Sums of fixed size."""
    return state_of(features(params["kind"], arguments(params["kind"], k)), v)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): s has variance 1."""
    widths = {"q": params["key_dim"], "k": params["key_dim"], "v": problem.head_dim}
    data = {
        name: normal(problem, generator, problem.batch, head_count(problem, name), problem.query_len, width)
        for name, width in widths.items()
    }
    return Inputs(data, state=drawn_state(make_inputs, state, problem, params, generator))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """As written there is a feature for each ordered pair of channels: 1 + d + d² (rebased: d²). The reference has each
    once, and squares scalar products within a chunk. What its causal form executes beyond that: see `executed`.
    """
    d, based = params["key_dim"], params["kind"] == "based"
    m, tokens = features_count(params), problem.batch * problem.query_len
    keys = tokens * (problem.heads + problem.kv_heads) * d
    values, size = tokens * problem.kv_channels, tokens * problem.channels
    # the products of q and of k, the sum of those of k, the division
    elements = tokens * (problem.heads + 2 * problem.kv_heads) * m + size
    return Cost(
        flops=required(problem, d * d + (1 + d if based else 0), mode),
        reference_flops=executed(problem, m, mode, scored=d + based, longest=CHUNK),
        elementwise=elements * (1 if mode == "fwd" else 2),
        bytes_required=traffic(problem, mode, read=keys + values, written=size) + state_traffic(problem, m),
        state_bytes=state_bytes(problem, m) if problem.causal else None,
    )


def _fused(function: dict[str, str]) -> Callable[[], Call]:
    """The library's own kernels, by kind."""

    def load() -> Call:
        def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kind, dtype = params["kind"], v.dtype
            q, k, v = half_safe(q, k, v)
            return taylor_with_fla(kind, function[kind], q, k, v, EPSILON).to(dtype)

        return call

    return load


LINEAR = {"based": "fused_chunk_based"}
PARALLEL = {"based": "parallel_based", "rebased": "parallel_rebased"}
MOST_CHANNELS = {"fused_chunk_based": 16, "parallel_based": 128, "parallel_rebased": 128}
"""Of q and k, as the library asserts."""


def _fused_why_not(function: dict[str, str]) -> Callable[[Problem, Params, str], str | None]:
    def why_not(problem: Problem, params: Params, device: str) -> str | None:
        kind, key_dim = params["kind"], params["key_dim"]
        if kind not in function:
            return f"flash-linear-attention has no kernel of {kind} in linear time"
        if key_dim > (most := MOST_CHANNELS[function[kind]]):
            return f"key_dim {key_dim}: {function[kind]} takes at most {most}"
        return why_not_fla(problem, key_dim, kind)

    return why_not


def _fla() -> Call:
    def call(
        problem: Problem,
        params: Params,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sums: Tensor | None = None,
        totals: Tensor | None = None,
    ) -> Any:
        dtype, kind = v.dtype, params["kind"]
        fq, fk = (features(kind, arguments(kind, x)).contiguous() for x in (q, k))
        return attend_with_fla(fq, fk, widened(v), dtype, EPSILON, sums=sums, totals=totals)

    return call


def _fla_why_not(problem: Problem, params: Params, device: str) -> str | None:
    if params["kind"] == "rebased":
        return "the first sums of s² are what is left of large features: from these float32 is not accurate enough"
    return why_not_fla(problem, features_count(params))


def _fla_flops(problem: Problem, params: Params, mode: Mode) -> int:
    return required(problem, features_count(params), mode)


CORE = Form(
    reference,
    make_inputs,
    cost,
    {
        "cuda": Impl(_fused(LINEAR), "flash-linear-attention: based", _fused_why_not(LINEAR)),
        "cuda:fla": Impl(_fla, FLA_KERNEL, _fla_why_not, flops=_fla_flops, grouped=True, continues=True),
        "cuda:parallel": Impl(_fused(PARALLEL), "flash-linear-attention: parallel", _fused_why_not(PARALLEL)),
    },
    state,
)


def _normed(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, with rebased's norms of q and k before it. gamma_q, beta_q: [H, 1, d]; gamma_k, beta_k: [Hk, 1, d]."""

    def normed(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, **rest: Tensor) -> Any:
        if params["kind"] == "rebased":
            q, k = (
                layer_norm(x, x.shape[-1:]) * rest.pop(f"gamma_{name}") + rest.pop(f"beta_{name}")
                for name, x in (("q", q), ("k", k))
            )
        return call(problem, params, q=q, k=k, v=v, **rest)

    return normed


def _norms(problem: Problem, params: Params) -> dict[str, tuple[int, int, int]]:
    """The shapes of the norms' parameters; none for based."""
    if params["kind"] == "based":
        return {}
    return {f"{p}_{x}": (head_count(problem, x), 1, params["key_dim"]) for x in ("q", "k") for p in ("gamma", "beta")}


def _normed_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """γ and β near 1 and 0."""
    parameters = {
        name: normal(problem, generator, *shape, scale=0.1) + name.startswith("gamma")
        for name, shape in _norms(problem, params).items()
    }
    inner = make_inputs(problem, params, generator)
    return replace(inner, parameters=parameters)


def _normed_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Five operations of a norm and two after it on each channel of q and k."""
    inner, shapes = cost(problem, params, mode), _norms(problem, params)
    numbers = sum(heads * d for heads, _, d in shapes.values())
    return replace(
        inner,
        elementwise=inner.elementwise + 7 * problem.batch * problem.query_len * numbers // 2,
        bytes_required=inner.bytes_required + traffic(problem, mode, read=numbers, written=0),
    )


NORMED = Form(
    _normed(reference),
    _normed_inputs,
    _normed_cost,
    {
        name: replace(impl, load=lambda impl=impl: _normed(impl.load()))  # type: ignore[misc]
        for name, impl in CORE.impls.items()
    },
    _normed(state),
)
LAYER = projected(NORMED, bytes_again=keys_summed_first, key_dim=lambda params: int(params["key_dim"]))


def outside(problem: Problem, params: Params, scope: Scope) -> str | None:
    """What s² leaves of one token and of few channels."""
    if params["kind"] == "based":
        return None
    if problem.seq_len == 1 and not problem.causal:
        return (
            "kind rebased of one token: the output is its value, and features in float32 cannot tell a small s² from 0"
        )
    d = params["key_dim"]
    if d == 1:
        return "kind rebased with key_dim 1: every weight is a multiple of the query's square, which the sum cancels"
    return too_narrow(d) if scope == "layer" else None


def softmax_attention(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of q and k with key_dim channels."""
    return scaled_dot_product_attention(q, k, v, is_causal=problem.causal, enable_gqa=problem.group > 1)


def estimated(params: Params) -> Estimated | None:
    """What the series is of; s² is a function of its own."""
    return Estimated("softmax attention", softmax_attention) if params["kind"] == "based" else None


OPERATOR = Operator(
    paper=Paper(
        "Arora et al.",
        2024,
        "Simple linear attention language models balance the recall-throughput tradeoff",
        "https://arxiv.org/abs/2402.18668",
        "sec. 4.1",
    ),
    forms=with_graph({"core": CORE, "layer": LAYER}, *GRAPHED),
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={
        "kind": Param("based", "weights of a logit s: based 1 + s + s²/2, or rebased s²", ("based", "rebased")),
        "key_dim": Param(16, "channels d of a query and of a key, of which about d²/2 features are made", minimum=1),
    },
    grouped=True,
    continues=True,
    why_not=outside,
    tolerance=(
        2.0,
        "a weight s² doubles the relative rounding of a logit s, in the working dtype where a layer makes it",
    ),
    estimates=estimated,
)
