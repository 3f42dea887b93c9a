"""y_i = Σ_j p_ij v_j with p_i = softmax_j(q_iᵀ k_j / √D) over the pixels j of i's cell, of M × M pixels or fewer.

Pixel (y, x) is in cell (⌊y/M⌋, ⌊x/M⌋); with `shift` half, s = ⌊M/2⌋, in cell (⌊(y + M − s)/M⌋, ⌊(x + M − s)/M⌋): the
first cell of a side has s pixels. What is left at the end of a side is a shorter cell: nothing is padded, so that no
pixel attends to padding, as it does in implementations that pad the map to multiples of M. A side of M pixels or fewer
is one cell, and not shifted.

Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", sec. 3.2 and eq. 4,
https://arxiv.org/abs/2103.14030. Scope `layer` adds the relative position bias B to the scores, one number per head for
each of the (2M − 1)² offsets i − j.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from attnbench.inputs import heads, normal
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators._map_attention import sides
from attnbench.operators.sparse._cells import Within, as_map, within_cells, within_cells_by_sdpa
from attnbench.operators.sparse._pairs import pair_cost, with_bias
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import projected

MOST_CELLS = 65535
"""Of one SDPA call: they are an axis of the kernels' grids."""


def reference(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor | None = None
) -> Tensor:
    """q: [B, H, N, D]; k, v: [B, Hk, N, D]; bias_table: [(2M − 1)², H]. Returns [B, H, N, D]."""
    return cell_by_shape(problem, params, q, k, v, bias_table, within_cells)


def cell_by_shape(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor | None, attend: Within
) -> Tensor:
    """The cells of one shape at a time: the map is cut into strips, and these into parts, that such cells tile."""
    bias = None if bias_table is None else biases(problem, params, bias_table)
    heights, widths = (runs(side, params) for side in sides(problem))
    strips = []
    for height, *strip in zip(heights, *(cut(as_map(problem, x), 2, heights) for x in (q, k, v)), strict=True):
        parts = []
        for width, queries, keys, values in zip(widths, *(cut(x, 3, widths) for x in strip), strict=True):
            cell = height[1], width[1]
            added = None if bias is None else of_cell(bias, problem.kv_heads, *cell)
            parts.append(attend(queries, keys, values, *cell, added))
        strips.append(joined(parts, 3))
    return joined(strips, 2).flatten(2, 3)


def runs(side: int, params: Params) -> list[tuple[int, int]]:
    """How many cells of which length follow one another along a side: at most three runs."""
    m = params["window"]
    first = m // 2 if params["shift"] == "half" and side > m else 0
    counted = [(1, first), ((side - first) // m, m), (1, (side - first) % m)]
    return [(count, length) for count, length in counted if count * length]


def cut(x: Tensor, axis: int, along: list[tuple[int, int]]) -> tuple[Tensor, ...]:
    """A map cut along an axis where runs of cells end."""
    return x.split([count * length for count, length in along], dim=axis)


def joined(parts: list[Tensor], axis: int) -> Tensor:
    """The opposite of `cut`."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)


def biases(problem: Problem, params: Params, bias_table: Tensor) -> Tensor:
    """B of every pair of pixels of the largest cell of a map, height × width: [H, height, width, height, width]."""
    m = params["window"]
    height, width = (min(side, m) for side in sides(problem))
    y, x = (torch.arange(side, device=bias_table.device) for side in (height, width))
    of_rows = (y[:, None] - y + m - 1)[:, None, :, None]  # of query and key, from 0 on
    of_columns = (x[:, None] - x + m - 1)[:, None, :]
    index = of_rows * (2 * m - 1) + of_columns  # [height, width, height, width]
    return bias_table.t().index_select(1, index.flatten()).view(-1, *index.shape)


def of_cell(bias: Tensor, kv_heads: int, height: int, width: int) -> Tensor:
    """The biases of a smaller cell, of the queries of a group of heads one after the other: [Hk, G·L, L]."""
    return bias[:, :height, :width, :height, :width].reshape(kv_heads, -1, height * width)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the logits have variance 1."""
    return Inputs(heads(problem, generator, "q", "k", "v"))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference multiplies the pairs of the definition alone."""
    pairs = cell_pairs(problem, params)
    return pair_cost(problem, mode, pairs, pairs)  # q kᵀ and p v: [L, D] × [D, L] and [L, L] × [L, D] of each cell


def cell_pairs(problem: Problem, params: Params) -> int:
    """Pairs of pixels of one cell: Σ (height · width)² over all cells, which is a product of a sum for each side."""
    height, width = (sum(count * length**2 for count, length in runs(side, params)) for side in sides(problem))
    return height * width


def _sdpa() -> Callable[..., Tensor]:
    def call(
        problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor | None = None
    ) -> Tensor:
        return cell_by_shape(problem, params, q, k, v, bias_table, within_cells_by_sdpa)

    return call


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    height, width = (max(count for count, _ in runs(side, params)) for side in sides(problem))
    if height * width > MOST_CELLS:
        return f"{height}x{width} cells are more than the {MOST_CELLS} that one SDPA call takes"
    return None


def _sdpa_why_not(problem: Problem, params: Params, device: str) -> str | None:
    height, width = (len(runs(side, params)) for side in sides(problem))
    if height * width > 1:
        return f"the map has cells of {height * width} shapes, which take an SDPA call each: impl cuda"
    return _cuda_why_not(problem, params, device)


IMPLS = {
    "sdpa": Impl(_sdpa, "torch SDPA, its own choice of kernel", _sdpa_why_not, grouped=True),
    "cuda": Impl(_sdpa, "torch SDPA, once for each shape of a cell", _cuda_why_not, grouped=True),
}
CORE = Form(reference, make_inputs, cost, IMPLS)


def _biased_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """The table ~ N(0, 1/4); the paper's begins at a deviation of 0.02, at which nobody would notice that it is left
    out."""
    shape = ((2 * params["window"] - 1) ** 2, problem.heads)
    inputs = make_inputs(problem, params, generator)
    return replace(inputs, parameters={"bias_table": normal(problem, generator, *shape, scale=0.5)})


def _biased_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """With an addition to each score, and the table."""
    table = (2 * params["window"] - 1) ** 2 * problem.heads
    return with_bias(cost(problem, params, mode), problem, mode, cell_pairs(problem, params), table)


BIASED = Form(reference, _biased_inputs, _biased_cost, IMPLS)

OPERATOR = Operator(
    paper=Paper(
        "Liu et al.",
        2021,
        "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
        "https://arxiv.org/abs/2103.14030",
        "sec. 3.2, eq. 4",
    ),
    forms=with_graph({"core": CORE, "layer": projected(BIASED)}, "sdpa", "cuda"),
    complexity=lambda params: Complexity(time="n", memory="n"),
    pairs=lambda params, causal: "fixed",
    approaches=lambda params: "window",
    params={
        "window": Param(7, "M, pixels of a cell's side", minimum=1),
        "shift": Param("none", "half: cells begin ⌊M/2⌋ pixels into the map", ("none", "half")),
    },
    domains=("image",),
    grouped=True,
    causal="a cell holds pixels before and after any of its pixels",
    notes="shorter cells at the borders; nothing is padded",
)
