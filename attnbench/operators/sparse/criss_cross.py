"""y_i = Σ_j p_ij v_j with p_i = softmax_j(q_iᵀ k_j) over i's row and column together, i itself once: h + w − 1 pixels.

Huang et al. 2019, "CCNet: Criss-Cross Attention for Semantic Segmentation", sec. 3.2, eqs. 1 and 2,
https://arxiv.org/abs/1811.11721. No 1/√K. The paper has one head, with keys of K = C/8 channels and values of C; here
each of H heads has keys of D/8 channels and values of D. Scope `layer` is the recurrent module: R times
x ← γ · y(x W_q, x W_k, x W_v) + x with the same weights, no output projection. γ, which starts at 0, is drawn as 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from attnbench.cost import moved_again, product, traffic
from attnbench.grouped import group_of
from attnbench.inputs import head_count, normal, tokens, torch_dtype
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Call, Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators._map_attention import sides
from attnbench.operators._width import width
from attnbench.operators.sparse._cells import as_map, from_cells, to_cells
from attnbench.problem import Mode, Params, Problem

LEAST_KEY_DIM = 16
"""Of FlexAttention: keys of fewer channels get zeros."""


def reference(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q: [B, H, N, K]; k: [B, Hk, N, K]; v: [B, Hk, N, D]. Returns [B, H, N, D]. The weights are materialised.

    Exponentials of a pixel's row and of its column are relative to the largest score of both.
    """
    q, k, v = (as_map(problem, x) for x in (q, k, v))
    group, (row, column) = group_of(q, k), _lines(problem)
    of_row = to_cells(q, group, *row) @ to_cells(k, 1, *row).transpose(-2, -1)  # [B·Hk, h, G·w, w]
    of_column = _with_others(to_cells(q, group, *column), to_cells(k, 1, *column))  # [B·Hk, w, G·h, h]
    with torch.no_grad():  # no softmax depends on it
        largest = (from_cells(x.amax(-1, True), q, group, *line) for x, line in ((of_row, row), (of_column, column)))
        highest = torch.maximum(*largest)

    def summed(scores: Tensor, line: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Σ e v and Σ e over the pixels of a line, as maps."""
        weights = scores.sub_(to_cells(highest, group, *line)).exp_()
        values = weights @ to_cells(v, 1, *line)
        y, total = (from_cells(x, q, group, *line) for x in (values, weights.sum(-1, keepdim=True)))
        return y, total

    (y, total), (of_others, total_of_others) = summed(of_row, row), summed(of_column, column)
    return ((y + of_others) / (total + total_of_others)).flatten(2, 3)


def _lines(problem: Problem) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of a row, and of a column."""
    height, width = sides(problem)
    return (1, width), (height, 1)


def _with_others(q: Tensor, k: Tensor) -> Tensor:
    """q kᵀ of each column, −∞ of a pixel with itself, which is in its row: [B·Hk, w, G·h, h].

    q: [B·Hk, w, G·h, K]; k: [B·Hk, w, h, K].
    """
    length = k.shape[2]
    itself = torch.zeros(length, length, dtype=q.dtype, device=q.device).fill_diagonal_(float("-inf"))
    hidden = itself.repeat(q.shape[2] // length, 1)
    return torch.baddbmm(hidden, q.flatten(0, 1), k.flatten(0, 1).transpose(-2, -1)).view(*q.shape[:3], length)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """v ~ N(0, 1); q, k ~ N(0, 1/√K): the logits have variance 1."""
    shapes = {name: (problem.batch, head_count(problem, name), problem.seq_len) for name in "qkv"}
    data = {
        name: normal(problem, generator, *shape, _width(problem, params, name), scale=_gain(problem, params, name))
        for name, shape in shapes.items()
    }
    return Inputs(data)


def _width(problem: Problem, params: Params, name: str) -> int:
    """Channels of a head of q, k or v."""
    return problem.head_dim if name == "v" else width(params["key_dim"], problem.head_dim)


def _gain(problem: Problem, params: Params, name: str) -> float:
    """Standard deviation of q, k or v."""
    return 1.0 if name == "v" else float(_width(problem, params, name) ** -0.25)


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference multiplies a pixel with itself twice, and hides one of the two."""
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    k = _width(problem, params, "k")
    pairs = n * (sum(sides(problem)) - 1)

    def products(pairs: int) -> int:
        return product(b * h * pairs * k, mode) + product(b * h * pairs * d, mode)  # q kᵀ and p v over the pairs

    read = b * n * (h * k + problem.kv_heads * (k + d))
    return Cost(
        flops=products(pairs),
        reference_flops=products(pairs + n),
        elementwise=4 * b * h * pairs * (1 if mode == "fwd" else 2),  # max, subtract, exp, divide
        bytes_required=traffic(problem, mode, read=read, written=b * n * h * d),
    )


def _cuda() -> Callable[..., Tensor]:
    from attnbench.kernels.flex.patterns import other_members
    from attnbench.kernels.flex.windows import attend_with_lse, merge

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        missing = max(0, LEAST_KEY_DIM - q.shape[-1])
        q, k = (pad(x, (0, missing)) if missing else x for x in (q, k))
        q, k, v = (as_map(problem, x) for x in (q, k, v))
        group, (row, column) = group_of(q, k), _lines(problem)
        others = other_members(column[0], group, q.device)

        def part(line: tuple[int, int], mask: Any) -> tuple[Tensor, Tensor]:
            keys, values = (to_cells(x, 1, *line) for x in (k, v))
            y, lse = attend_with_lse(to_cells(q, group, *line), keys, values, mask, scale=1.0)
            return from_cells(y, q, group, *line), from_cells(lse.unsqueeze(-1), q, group, *line).squeeze(-1)

        return merge(*part(row, None), *part(column, others)).flatten(2, 3)

    return call


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    from attnbench.kernels.flex import windows

    longest = max(sides(problem))
    return windows.why_not(problem, problem.group * longest, longest)


CORE = Form(
    reference,
    make_inputs,
    cost,
    {"cuda": Impl(_cuda, "FlexAttention of rows and of columns, merged", _cuda_why_not, grouped=True)},
)


def _recurrent(call: Call) -> Call:
    def layer(
        problem: Problem, params: Params, x: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, gamma: Tensor
    ) -> Tensor:
        """x: [B, N, C]; w_q: [C, H·K]; w_k: [C, Hk·K]; w_v: [C, Hk·D]; gamma: [1]. Returns [B, N, C]."""
        for _ in range(params["recurrence"]):
            q, k, v = (
                (x @ w).unflatten(-1, (head_count(problem, name), -1)).transpose(1, 2)
                for name, w in (("q", w_q), ("k", w_k), ("v", w_v))
            )
            x = gamma * call(problem, params, q=q, k=k, v=v).transpose(1, 2).flatten(2) + x
        return x

    return layer


def _columns(problem: Problem, params: Params) -> dict[str, int]:
    """Channels that x is projected to, by name."""
    return {name: head_count(problem, name) * _width(problem, params, name) for name in "qkv"}


def _layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1); projections with outputs distributed as in the core; γ = 1."""
    c = problem.channels
    weights = {
        f"w_{name}": normal(problem, generator, c, columns, scale=_gain(problem, params, name) * c**-0.5)
        for name, columns in _columns(problem, params).items()
    }
    gamma = torch.ones(1, dtype=torch_dtype(problem), device=generator.device)
    return Inputs(tokens(problem, generator, "x"), {**weights, "gamma": gamma})


def _layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """R times the core and the projections; the x between two is written and read, and its gradient too, for which it
    is read once more.
    """
    inner, times = cost(problem, params, mode), params["recurrence"]
    size, c = problem.batch * problem.seq_len * problem.channels, problem.channels
    columns = sum(_columns(problem, params).values())
    projections = product(problem.batch * problem.seq_len * c * columns, mode)  # [B·N, C] × [C, columns]
    between = (times - 1) * size
    return Cost(
        flops=times * (inner.flops + projections),
        reference_flops=times * (inner.reference_flops + projections),
        elementwise=times * (inner.elementwise + 2 * size * (1 if mode == "fwd" else 2)),  # γ y + x
        bytes_required=traffic(problem, mode, read=size + c * columns + 1, written=size),
        bytes_again=moved_again(problem, mode, forward=2 * between, backward=3 * between),
    )


def _layer_impl(impl: Impl) -> Impl:
    return replace(impl, load=lambda: _recurrent(impl.load()))


LAYER = Form(
    _recurrent(reference),
    _layer_inputs,
    _layer_cost,
    {name: _layer_impl(impl) for name, impl in CORE.impls.items()},
)

OPERATOR = Operator(
    paper=Paper(
        "Huang et al.",
        2019,
        "CCNet: Criss-Cross Attention for Semantic Segmentation",
        "https://arxiv.org/abs/1811.11721",
        "sec. 3.2, eqs. 1 and 2",
    ),
    forms=with_graph({"core": CORE, "layer": LAYER}, "cuda"),
    complexity=lambda params: Complexity(time="n^1.5", memory="n^1.5"),
    pairs=lambda params, causal: "fixed",
    params={
        "key_dim": Param("d/8", "channels K of a query and of a key; d: head_dim", ("d/8",), minimum=1),
        "recurrence": Param(2, "R, how often the layer is applied with the same weights", minimum=1, maximum=3),
    },
    domains=("image",),
    grouped=True,
    causal="the softmax is over whole rows and columns",
)
