"""y_i = Σ_j p_ij v_j with p_i = softmax_j(q_iᵀ k_j / √D) over i's row (y, ·), its column (·, x), or the sum of both.

`axis` rows: pixel (y, x) sees the w pixels of row y. columns: the h pixels of column x. sum: both outputs, added, each
with a softmax of its own, so that the pixel itself counts twice.

Ho et al. 2019, "Axial Attention in Multidimensional Transformers", sec. 3.1, https://arxiv.org/abs/1912.12180. The
paper stacks layers: scope `layer` of axis sum has rows, then columns of what these give, each with projections of its
own; `in_turn` false is one set of projections around the core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Generator, Tensor

from attnbench.cost import moved_again, traffic
from attnbench.inputs import heads
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Call, Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators._map_attention import sides
from attnbench.operators.sparse._cells import Within, as_map, within_cells, within_cells_by_sdpa
from attnbench.operators.sparse._pairs import pair_cost
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import projected

AXES = ("rows", "columns")


def reference(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q: [B, H, N, D]; k, v: [B, Hk, N, D]. Returns [B, H, N, D]. The weights of whole rows are materialised."""
    return along(problem, params, q, k, v, within_cells)


def along(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, attend: Within) -> Tensor:
    """A row is a cell of 1 × w pixels, a column one of h × 1."""
    height, width = sides(problem)
    cells = {"rows": (1, width), "columns": (height, 1)}
    q, k, v = (as_map(problem, x) for x in (q, k, v))
    first, *rest = (attend(q, k, v, *cells[axis], None) for axis in axes(params))
    return sum(rest, first).flatten(2, 3)


def axes(params: Params) -> tuple[str, ...]:
    """Those along which there is attention."""
    return AXES if params["axis"] == "sum" else (params["axis"],)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the logits have variance 1."""
    return Inputs(heads(problem, generator, "q", "k", "v"))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference executes what the definition requires."""
    height, width = sides(problem)
    pairs = problem.seq_len * sum({"rows": width, "columns": height}[axis] for axis in axes(params))
    return pair_cost(problem, mode, pairs, pairs)  # of each row q kᵀ: [w, D] × [D, w], p v: [w, w] × [w, D]


def _sdpa() -> Callable[..., Tensor]:
    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return along(problem, params, q, k, v, within_cells_by_sdpa)

    return call


def _sdpa_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return "rows and columns take an SDPA call each: impl cuda" if params["axis"] == "sum" else None


CORE = Form(
    reference,
    make_inputs,
    cost,
    {
        "sdpa": Impl(_sdpa, "torch SDPA, its own choice of kernel", _sdpa_why_not, grouped=True),
        "cuda": Impl(_sdpa, "torch SDPA, once for each axis", lambda problem, params, device: None, grouped=True),
    },
)
ONE = projected(CORE)
"""One set of projections."""


def _in_turn(params: Params) -> bool:
    return bool(params["axis"] == "sum" and params["in_turn"])


def _stacked(call: Call) -> Call:
    """A layer of rows, then one of columns, where the params have them."""

    def layer(problem: Problem, params: Params, x: Tensor, **weights: Tensor) -> Tensor:
        """x: [B, N, C]; w_q, w_o: [C, C]; w_k, w_v: [C, Hk·D]; in turn w_q_rows, w_q_columns, …. Returns as x."""
        y = x
        for axis in AXES if _in_turn(params) else ():
            own = {name.removesuffix(f"_{axis}"): w for name, w in weights.items() if name.endswith(axis)}
            y = call(problem, {**params, "axis": axis}, x=y, **own)
        return y if _in_turn(params) else call(problem, params, x=x, **weights)

    return layer


def _layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    first = ONE.make_inputs(problem, params, generator)
    if not _in_turn(params):
        return first
    drawn = zip(AXES, (first, ONE.make_inputs(problem, params, generator)), strict=True)
    return Inputs(first.data, {f"{name}_{axis}": w for axis, inputs in drawn for name, w in inputs.parameters.items()})


def _layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """In turn what the rows give is written and read; its gradient too, for which it is read once more."""
    if not _in_turn(params):
        return ONE.cost(problem, params, mode)
    rows, columns = (ONE.cost(problem, {**params, "axis": axis}, mode) for axis in AXES)
    size = problem.batch * problem.seq_len * problem.channels
    inside = traffic(problem, mode, read=size, written=size)  # the y of the first layer as the x of the second
    return Cost(
        flops=rows.flops + columns.flops,
        reference_flops=rows.reference_flops + columns.reference_flops,
        elementwise=rows.elementwise + columns.elementwise,
        bytes_required=rows.bytes_required + columns.bytes_required - inside,
        bytes_again=moved_again(problem, mode, forward=2 * size, backward=3 * size),
    )


def _layer_impl(impl: Impl) -> Impl:
    return replace(impl, load=lambda: _stacked(impl.load()))


LAYER = Form(
    _stacked(ONE.reference),
    _layer_inputs,
    _layer_cost,
    {name: _layer_impl(impl) for name, impl in ONE.impls.items()},
)

OPERATOR = Operator(
    paper=Paper(
        "Ho et al.",
        2019,
        "Axial Attention in Multidimensional Transformers",
        "https://arxiv.org/abs/1912.12180",
        "sec. 3.1",
    ),
    forms=with_graph({"core": CORE, "layer": LAYER}, "sdpa", "cuda"),
    complexity=lambda params: Complexity(time="n^1.5", memory="n^1.5"),
    pairs=lambda params, causal: "fixed",
    params={
        "axis": Param("sum", "what a pixel sees: its row, its column, or both, added", (*AXES, "sum")),
        "in_turn": Param(
            True,
            "of a layer of both: columns after rows, each with projections of its own, as the paper; false: added",
            (False, True),
        ),
    },
    domains=("image",),
    grouped=True,
    causal="the paper's causal model masks rows and columns in layers of their own, with shifts between them",
)
