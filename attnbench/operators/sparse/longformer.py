"""y_i = Σ_j p_ij v_j, p_i = softmax_j(q_iᵀ k_j / √D) over j < g or |i − j| ∈ {0, δ, …, wδ}; rows i < g: over all j.

Beltagy et al. 2020, "Longformer: The Long-Document Transformer", sec. 3.1, https://arxiv.org/abs/2004.05150. `window`
is w, one side (the paper's 512 is w = 256); `dilation` δ, of all heads; `global_tokens` g, the first tokens. They are
seen through the ordinary k and v; a global row attends through projections of its own, Q_g, K_g, V_g, whose results
are data in scope core. Causal (sec. 4, which has no global tokens): 0 ≤ i − j ≤ wδ.
`kind` mixed_heads is the reading taught in lectures, not the paper's: a third of the heads sees the window, undilated;
a third every `stride`-th token, w of them on each side; a third is global_tokens, internal, with the ordinary q, k, v.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from attnbench.cost import product, traffic
from attnbench.grouped import folded, unfolded
from attnbench.inputs import heads, normal, tokens
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.sparse import _mixed, global_tokens, local, strided
from attnbench.operators.sparse._mixed import Part
from attnbench.operators.sparse._pairs import pair_cost
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.projection import width
from attnbench.state import appended, cached_rows, caches, drawn_caches
from attnbench.window import attend, class_length, executed_pairs, past_keys, window_pairs

GLOBAL_DATA = ("q_global", "k_global", "v_global")


def reference(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
    **global_data: Tensor,
) -> Tensor:
    """Windows in blocks, with the global tokens beside each; the rows of global tokens apart.

    Args:
        q: [B, H, Q, D].
        k, v: [B, Hk, Q, D].
        k_cache, v_cache: [B, Hk, min(N − Q, wδ) + Q, D], where Q < N.
        global_data: with global tokens q_global, [B, H, g, D], and k_global, v_global, [B, Hk, N, D].

    Returns: [B, H, Q, D].
    """
    if params["kind"] == "mixed_heads":
        return _mixed.reference(problem, parts(params), q, k, v)
    before, after = local.sides(problem, params)
    g = global_count(problem, params)
    k, v = appended(k_cache, k), appended(v_cache, v)
    y = attend(q * problem.head_dim**-0.5, k, v, before, after, classes=dilation(problem, params), hubs=g)
    return torch.cat((global_rows(**global_data), y[..., g:, :]), dim=-2) if global_data else y


def global_rows(q_global: Tensor, k_global: Tensor, v_global: Tensor) -> Tensor:
    """Full attention of the global tokens: [B, H, g, D]."""
    scores = folded(q_global * q_global.shape[-1] ** -0.5, k_global) @ k_global.transpose(-2, -1)  # [B, Hk, G·g, N]
    return unfolded(scores.softmax(dim=-1) @ v_global, q_global)


def parts(params: Params) -> tuple[Part, ...]:
    """The form and params of each group of heads of kind mixed_heads."""
    return (
        Part(local.CORE, {"window": params["window"]}),
        Part(strided.CORE, {"stride": params["stride"], "reach": params["window"]}),
        Part(global_tokens.CORE, {"kind": "internal", "global_tokens": max(1, params["global_tokens"])}),
    )


def global_count(problem: Problem, params: Params) -> int:
    """g, at most the sequence."""
    return min(params["global_tokens"], problem.seq_len)


def dilation(problem: Problem, params: Params) -> int:
    """δ, at most the sequence."""
    return min(params["dilation"], problem.seq_len)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """All ~ N(0, 1): the logits have variance 1."""
    data = heads(problem, generator, "q", "k", "v")
    if has_global_projections(problem, params):
        shape = (problem.batch, problem.heads, global_count(problem, params), problem.head_dim)
        data |= {"q_global": normal(problem, generator, *shape)}
        data |= heads(problem, generator, "k_global", "v_global")
    return Inputs(data, state=drawn_caches(problem, generator, data["k"], data["v"], cache_length(problem, params)))


def cache_length(problem: Problem, params: Params) -> int:
    """How many of the last tokens a causal one can see."""
    reach: int = params["window"] * dilation(problem, params)
    return reach


def state(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """The last wδ keys and values: there are no global tokens in the causal form."""
    return caches(problem, k, v, cache_length(problem, params))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Blocks of b queries, about w/2, are multiplied with b + 2w + g keys; the global rows also as ordinary ones.

    At most 1.25 times the 2w + 1 + g required (causal: 1.5) for w ≥ 64 and g ≪ w on sequences much longer than wδ.
    """
    if params["kind"] == "mixed_heads":
        return _mixed.cost(problem, parts(params), mode)
    n, q, past = problem.seq_len, problem.query_len, problem.past
    before, after = local.sides(problem, params)
    g, classes, most = global_count(problem, params), dilation(problem, params), cache_length(problem, params)
    # A row beyond g sees the g global tokens, and a window in which they are not seen again.
    pairs = g * n + (n - g) * g + window_pairs(n - g, before, after, classes)
    pairs -= window_pairs(past, before, after, classes)  # there are no global tokens where Q < N
    executed = g * n + executed_pairs(q, before, after, classes, g, past=cached_rows(problem, most))
    # q kᵀ: [g, D] × [D, N], then N − g rows of [1, D] × [D, g + 2w + 1]; p v: the same pairs
    cached = past_keys(q, before, classes, past)
    inner = pair_cost(problem, mode, pairs, executed, cached, state_tokens=min(n, most))
    global_data = traffic(problem, mode, read=global_elements(problem, params), written=0)
    return replace(inner, bytes_required=inner.bytes_required + global_data)


def global_elements(problem: Problem, params: Params) -> int:
    """Elements of q_global, k_global and v_global."""
    if not has_global_projections(problem, params):
        return 0
    queries = global_count(problem, params) * problem.channels
    return problem.batch * (queries + 2 * problem.seq_len * problem.kv_channels)


def _cuda() -> Callable[..., Tensor]:
    from attnbench.kernels.flex.pieces import few_queries, with_rows
    from attnbench.kernels.flex.windows import window

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, **global_data: Tensor) -> Tensor:
        if params["kind"] == "mixed_heads":
            return _mixed.accelerated(problem, parts(params), q, k, v)
        g = global_count(problem, params)
        y = window(q, k, v, *local.sides(problem, params), classes=dilation(problem, params), hubs=g)
        if not global_data:
            return y
        return with_rows(y, few_queries(*(global_data[name] for name in GLOBAL_DATA)), 0)

    return call


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    from attnbench.kernels.flex import windows

    if params["kind"] == "mixed_heads":
        return _mixed.why_not(problem, parts(params), device)
    length = class_length(problem.seq_len, dilation(problem, params))
    return windows.why_not(problem, length, length + global_count(problem, params))


def _cuda_why_not_backward(problem: Problem, params: Params, device: str) -> str | None:
    if params["kind"] == "mixed_heads" and problem.dtype == "float32":
        return (
            "of queries that see one key alone FlexAttention's gradients are not 0 but rounding errors: on an H100 in "
            "float32 the sum of k's was 43 times as far from float64 as allowed; dtype bfloat16 and float16 are not"
        )
    return None


CUDA = Impl(
    _cuda,
    "FlexAttention, block mask; global rows apart",
    _cuda_why_not,
    grouped=True,
    why_not_backward=_cuda_why_not_backward,
)
CORE = Form(reference, make_inputs, cost, impls={"cuda": CUDA}, state=state)


def around(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The layer around the core computed by `call`."""

    def layer(problem: Problem, params: Params, x: Tensor, w_o: Tensor, **tensors: Tensor) -> Tensor:
        """x: [B, Q, C]; w_q, w_o and, with global tokens, w_q_global: [C, C]; of keys and values [C, Hk·D]."""
        y = call(problem, params, **_projected(problem, params, x, tensors))
        return y.transpose(1, 2).reshape(x.shape) @ w_o

    return layer


def _projected(problem: Problem, params: Params, x: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The core's tensors: those of weights projected from x, the others as they are."""
    data = {}
    for name, tensor in tensors.items():
        if not name.startswith("w_"):
            data[name] = tensor
            continue
        rows = x[:, : global_count(problem, params)] if name == "w_q_global" else x
        split = (rows @ tensor).view(*rows.shape[:2], -1, problem.head_dim)
        data[name.removeprefix("w_")] = split.transpose(1, 2)  # [B, H or Hk, Q or g, D]
    return data


def layer_state(problem: Problem, params: Params, x: Tensor, w_o: Tensor, **weights: Tensor) -> dict[str, Tensor]:
    """As the core's."""
    return state(problem, params, **_projected(problem, params, x, weights))


def layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1); weights that keep the variance."""
    c = problem.channels
    weights = {
        f"w_{name}": normal(problem, generator, c, width(problem, name), scale=c**-0.5)
        for name in projections(problem, params)
    }
    data = tokens(problem, generator, "x")
    return Inputs(data, weights, state=CORE.make_inputs(problem, params, generator).state if problem.past else {})


def projections(problem: Problem, params: Params) -> tuple[str, ...]:
    """What is projected from x, and the output, o."""
    return ("q", "k", "v", "o", *(GLOBAL_DATA if has_global_projections(problem, params) else ()))


def has_global_projections(problem: Problem, params: Params) -> bool:
    """Whether global tokens have separate projections."""
    return params["kind"] == "window" and global_count(problem, params) > 0


def layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """As the core's, with 4·N·C² of projections and (2N + g)·C² for the global ones (of keys and values N·C·Hk·D)."""
    inner = cost(problem, params, mode)
    b, q, c = problem.batch, problem.query_len, problem.channels
    widths = {name: width(problem, name) for name in projections(problem, params)}
    rows = {name: global_count(problem, params) if name == "q_global" else q for name in widths}
    flops = product(b * c * sum(rows[name] * widths[name] for name in widths), mode)  # [B·rows, C] × [C, width]
    # Around the core, x takes the place of its inputs; the weights come on top.
    replaced = b * q * (c + 2 * problem.kv_channels) + global_elements(problem, params)
    x_and_weights = b * q * c + c * sum(widths.values())
    return replace(
        inner,
        flops=inner.flops + flops,
        reference_flops=inner.reference_flops + flops,
        bytes_required=inner.bytes_required
        + traffic(problem, mode, read=x_and_weights, written=0)
        - traffic(problem, mode, read=replaced, written=0),
    )


def why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    """Global tokens have no causal form; three patterns need three heads."""
    if params["kind"] == "mixed_heads":
        if problem.causal:
            return "the global heads see later tokens"
        return "mixed_heads needs at least 3 heads, one for each pattern" if problem.heads < 3 else None
    if problem.causal and params["global_tokens"]:
        return "a global token sees later ones: a causal longformer has global_tokens: 0, as in the paper's sec. 4"
    return None


LAYER = Form(
    around(reference),
    layer_inputs,
    layer_cost,
    impls={"cuda": replace(CUDA, load=lambda: around(_cuda()))},
    state=layer_state,
)

OPERATOR = Operator(
    paper=Paper(
        "Beltagy et al.",
        2020,
        "Longformer: The Long-Document Transformer",
        "https://arxiv.org/abs/2004.05150",
        "sec. 3.1",
    ),
    forms=with_graph({"core": CORE, "layer": LAYER}, "cuda"),
    complexity=lambda params: Complexity(time="n", memory="n"),
    pairs=lambda params, causal: "fixed",
    approaches=lambda params: (
        "window" if params["kind"] == "window" and params["global_tokens"] == 0 and params["dilation"] == 1 else None
    ),
    grouped=True,
    continues=True,
    params={
        "kind": Param(
            "window", "all heads alike, or a third of them each local, strided, global", ("window", "mixed_heads")
        ),
        "window": Param(256, "tokens seen on each side, the token itself apart", minimum=0),
        "dilation": Param(1, "distance between the tokens of the window (kind window)", minimum=1),
        "global_tokens": Param(1, "g: the first tokens, which see and are seen by all", minimum=0),
        "stride": Param(8, "distance between the tokens that the strided heads see (kind mixed_heads)", minimum=1),
    },
    why_not=why_not,
)
