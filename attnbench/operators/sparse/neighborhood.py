"""y_i = Σ_j p_ij v_j, p_i = softmax_j(q_iᵀ k_j / √D) over k keys s ≤ j < s + k, s = min(max(i − (k−1)/2, 0), N − k).

At a border the window is shifted, not cut: every query sees k keys, and its own is not in the middle there (`local`
cuts). On an image the same along rows and along columns: k × k pixels. With a dilation δ the tokens of an axis whose
indices agree modulo δ are one by one such an axis: i and j then count positions in it, and N is the number of them.

Hassani et al. 2022, "Neighborhood Attention Transformer", eqs. 2–4, https://arxiv.org/abs/2204.07143; dilation:
Hassani, Shi 2022, "Dilated Neighborhood Attention Transformer", https://arxiv.org/abs/2209.15001. `kernel` is k,
`dilation` δ.
Scope `layer` adds to a logit, before the softmax, a learned bias of the head and of j − i (in steps of δ), from a table
of 2k − 1, on an image (2k − 1)², as NAT and DiNAT do; the package NATTEN has none from version 0.20 on: `bias` none.
Biases of the projections are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

from torch import Generator, Tensor

from attnbench.inputs import heads, normal
from attnbench.kernels.library import natten
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.sparse._pairs import pair_cost, with_bias
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.projection import projected
from attnbench.tiles import attend, cut

BIAS_SCALE = 0.5
"""Standard deviation of the table; NAT's begins at 0.02, at which nobody would notice that it is left out."""


def reference(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Tiles of queries with the keys around them.

    Args:
        q: [B, H, N, D].
        k, v: [B, Hk, N, D].
        bias: [H, 2·kernel − 1], on an image [H, 2·kernel − 1, 2·kernel − 1].

    Returns: [B, H, N, D].
    """
    axes = cut(*sides(problem), params["kernel"], params["dilation"])
    return attend(q * problem.head_dim**-0.5, k, v, axes, as_map(bias))


def sides(problem: Problem) -> tuple[int, int]:
    """Rows and columns; a sequence is one row."""
    return problem.height or 1, problem.width or problem.seq_len


def as_map(bias: Tensor | None) -> Tensor | None:
    """[H, 2·kernel − 1] → [H, 1, 2·kernel − 1]; that of an image as it is."""
    return bias.unsqueeze(1) if bias is not None and bias.dim() == 2 else bias


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the logits have variance 1."""
    return Inputs(heads(problem, generator, "q", "k", "v"))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Every query sees k or k² keys, and is multiplied with those of its tile.

    With k = 7 these are 4 to 5 times as many on an image, and 5 to 6 times in a sequence: larger products are faster.
    """
    rows, columns = cut(*sides(problem), params["kernel"], params["dilation"])
    # q kᵀ: windows of [1, D] × [D, k or k²]; p v: of [1, k or k²] × [k or k², D]
    return pair_cost(problem, mode, problem.seq_len * seen(problem, params), rows.pairs * columns.pairs)


def seen(problem: Problem, params: Params) -> int:
    """Keys of a query."""
    kernel: int = params["kernel"]
    return kernel if problem.height is None else kernel**2


def biased_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """As the core's, with a table where there is one."""
    data = make_inputs(problem, params, generator).data
    shape = bias_shape(problem, params)
    return Inputs(data, {"bias": normal(problem, generator, *shape, scale=BIAS_SCALE)} if shape else {})


def bias_shape(problem: Problem, params: Params) -> tuple[int, ...]:
    """Of the table; nothing where there is none."""
    if params["bias"] == "none":
        return ()
    offsets = 2 * params["kernel"] - 1
    return (problem.heads, offsets) if problem.height is None else (problem.heads, offsets, offsets)


def biased_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """With an addition to each score, and the table."""
    inner, shape = cost(problem, params, mode), bias_shape(problem, params)
    if not shape:
        return inner
    return with_bias(inner, problem, mode, problem.seq_len * seen(problem, params), prod(shape))


def _flex() -> Callable[..., Tensor]:
    from attnbench.kernels.flex.neighborhoods import cut, neighborhood

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return neighborhood(q, k, v, cut(*sides(problem), params["kernel"], params["dilation"]), as_map(bias))

    return call


def _flex_why_not(problem: Problem, params: Params, device: str) -> str | None:
    from attnbench.kernels.flex import neighborhoods, windows

    count = neighborhoods.positions(neighborhoods.cut(*sides(problem), params["kernel"], params["dilation"]))
    return windows.why_not(problem, count, count)


def _natten() -> Callable[..., Tensor]:
    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return natten.attend(problem, q, k, v, params["kernel"], params["dilation"])

    return call


def _natten_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return natten.why_not(problem, params["kernel"])


def _biased_natten_why_not(problem: Problem, params: Params, device: str) -> str | None:
    if params["bias"] != "none":
        return "NATTEN has had no relative bias since version 0.20: give bias: none"
    return _natten_why_not(problem, params, device)


def why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    """An odd kernel, which with its dilation fits into every side."""
    kernel, dilation = params["kernel"], params["dilation"]
    if kernel % 2 == 0:
        return f"kernel {kernel} has no middle: it must be odd"
    shortest = problem.seq_len if problem.height is None else min(sides(problem))
    if kernel * dilation > shortest:
        return f"kernel {kernel} with dilation {dilation} needs {kernel * dilation} tokens a side; here are {shortest}"
    return None


NATTEN = Impl(_natten, natten.KERNEL, _natten_why_not, grouped=True)
FLEX = Impl(_flex, "FlexAttention, block mask of tiles of a map", _flex_why_not, grouped=True)
CORE = Form(reference, make_inputs, cost, {"cuda": NATTEN, "cuda:flex": FLEX})
BIASED = Form(
    reference,
    biased_inputs,
    biased_cost,
    {"cuda": replace(NATTEN, why_not=_biased_natten_why_not), "cuda:flex": FLEX},
)

OPERATOR = Operator(
    paper=Paper(
        "Hassani et al.",
        2022,
        "Neighborhood Attention Transformer",
        "https://arxiv.org/abs/2204.07143",
        "eqs. 2–4",
    ),
    forms=with_graph({"core": CORE, "layer": projected(BIASED)}, "cuda", "cuda:flex"),
    complexity=lambda params: Complexity(time="n", memory="n"),
    pairs=lambda params, causal: "fixed",
    approaches=lambda params: "kernel" if params["dilation"] == 1 else None,
    grouped=True,
    causal="a window is shifted to later tokens at a border; one that is cut is local, with window k − 1",
    params={
        "kernel": Param(7, "k: tokens that are seen along an axis, odd", minimum=1),
        "dilation": Param(1, "δ: distance between them", minimum=1),
        "bias": Param("table", "what the layer adds to a logit by its offset", ("table", "none")),
    },
    why_not=why_not,
    notes="every token sees k, on an image k × k: at a border the window is shifted, not cut",
)
