"""Y_ij = o_i + o_{h+j} with o_m = Σ_l p_ml v̄_l, p_m = softmax_l(q̄_mᵀ k̄_l), m and l over the h row and w column means.

Gao, Wang, Ji 2020, "Kronecker Attention Networks", KAO_QKV, https://arxiv.org/abs/2007.08442. x̄ = [H; L]: H_i is the
mean of row i over the width, L_j that of column j over the height; the first h outputs are the paper's O^H, the other
w its O^L. The paper has Q = K = V = [H; L] of one map, which is q = k = v here. Scope `layer` takes the means of x and
projects those, and projects O^H and O^L before they are added: a mean, and a sum, commute with a 1×1 map. No 1/√D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Generator, Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.cost import moved_again, product, traffic
from attnbench.kernels.library.graphs import with_graph
from attnbench.kernels.support import why_not
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator
from attnbench.operators._map_attention import scaled_maps, sides, tokens
from attnbench.operators._value_map import VALUE_MAP, mapped, value_map_multiply_adds, value_map_weights
from attnbench.operators.lowrank._margins import CAUSAL, GROUPED, kronecker_paper, layer_cost, margin_length, margins
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import channels_first, projected


def reference(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, value_map: Tensor | None = None
) -> Tensor:
    """q, k, v: [B, C, h, w]; value_map: [C, C]. Returns [B, C, h, w]."""
    return spread(problem, mixed(problem, margins(q), margins(k), margins(v), value_map))


def mixed(problem: Problem, q: Tensor, k: Tensor, v: Tensor, value_map: Tensor | None) -> Tensor:
    """q, k, v: means, [B, C, h + w]. Returns o, [B, C, h + w]."""
    queries, keys, values = (tokens(problem, x) for x in (q, k, v))  # [B, H, h + w, D]
    weights = (queries @ keys.transpose(-2, -1)).softmax(dim=-1)  # [B, H, h + w, h + w]
    return (weights @ mapped(values, value_map)).transpose(-2, -1).flatten(1, 2)


def spread(problem: Problem, means: Tensor) -> Tensor:
    """o, [B, C, h + w] → Y, [B, C, h, w]."""
    rows, columns = means.split(sides(problem), dim=-1)  # [B, C, h], [B, C, w]
    return rows[..., :, None] + columns[..., None, :]


def layer(
    means_of: Callable[[Tensor], Tensor], mix: Callable[..., Tensor], spread_out: Callable[[Problem, Tensor], Tensor]
) -> Callable[..., Tensor]:
    """The projections around `mix`, on the means that `means_of` takes of a map, until `spread_out`."""

    def call(
        problem: Problem,
        params: Params,
        x: Tensor,
        w_q: Tensor,
        w_k: Tensor,
        w_v: Tensor,
        w_o: Tensor,
        value_map: Tensor | None = None,
    ) -> Tensor:
        """x: [B, C, h, w]; the rest: [C, C]. Returns [B, C, h, w]."""
        means = means_of(x)  # [B, C, h + w]
        q, k, v = (channels_first(means, w) for w in (w_q, w_k, w_v))
        return spread_out(problem, channels_first(mix(problem, q, k, v, value_map), w_o))

    return call


def gains(problem: Problem) -> dict[str, float]:
    """Means over √N pixels have variance 1/√N; queries and keys share what makes up for it and for the dot product."""
    gain = (problem.seq_len / problem.head_dim) ** 0.25
    return {"q": gain, "k": gain}


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """v ~ N(0, 1); q, k ~ N(0, √(N/D)), so that the logits have variance about 1."""
    return scaled_maps(problem, params, generator, gains(problem))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference executes what the definition requires; the means and the outer sum are elementwise."""
    b, h, d = problem.batch, problem.heads, problem.head_dim
    m = margin_length(problem)
    flops = (
        product(b * h * m * m * d, mode)  # q̄ k̄ᵀ: [h + w, D] × [D, h + w]
        + product(b * h * m * m * d, mode)  # p v̄: [h + w, h + w] × [h + w, D]
        + product(value_map_multiply_adds(problem, params, m), mode)  # [h + w, C] × [C, C]
    )
    size = b * problem.seq_len * problem.channels
    return Cost(
        flops=flops,
        reference_flops=flops,
        elementwise=(7 * size + 4 * b * h * m * m) * (1 if mode == "fwd" else 2),  # two means of each, the outer sum
        bytes_required=traffic(problem, mode, read=3 * size + value_map_weights(problem, params), written=size),
        bytes_again=moved_again(problem, mode, backward=-3 * size),  # the means are still there
    )


def _fused(problem: Problem, q: Tensor, k: Tensor, v: Tensor, value_map: Tensor | None) -> Tensor:
    """As `mixed`."""
    queries, keys, values = (tokens(problem, x).contiguous() for x in (q, k, v))
    y = scaled_dot_product_attention(queries, keys, mapped(values, value_map), scale=1.0)  # [B, H, h + w, D]
    return y.transpose(-2, -1).flatten(1, 2)


def _fused_spread(problem: Problem, means: Tensor) -> Tensor:
    from attnbench.kernels.margins.launch import outer_sum

    return outer_sum(means, *sides(problem))


def _cuda() -> Callable[..., Tensor]:
    from attnbench.kernels.margins.launch import margin_means

    def call(
        problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, value_map: Tensor | None = None
    ) -> Tensor:
        means = _fused(problem, margin_means(q), margin_means(k), margin_means(v), value_map)
        return _fused_spread(problem, means)

    return call


def _cuda_layer() -> Callable[..., Tensor]:
    from attnbench.kernels.margins.launch import margin_means

    return layer(margin_means, _fused, _fused_spread)


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return why_not(problem)


def _layer_again(problem: Problem, mode: Mode) -> int:
    """The means of x are still there in the backward."""
    return moved_again(problem, mode, backward=-problem.batch * problem.seq_len * problem.channels)


CUDA = Impl(_cuda, "attnbench Triton: margins; torch SDPA", _cuda_why_not)
CORE = Form(reference, make_inputs, cost, {"cuda": CUDA})
EVERY_PIXEL = projected(CORE, layout="map", gains=gains, bytes_again=_layer_again)
LAYER = Form(
    layer(margins, mixed, spread),
    EVERY_PIXEL.make_inputs,
    layer_cost(EVERY_PIXEL, pixels=0, means=4, spared=4),
    {"cuda": replace(CUDA, load=_cuda_layer)},
)

OPERATOR = Operator(
    paper=kronecker_paper("KAO_QKV"),
    forms=with_graph({"core": CORE, "layer": LAYER}, "cuda"),
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={"value_map": VALUE_MAP},
    domains=("image",),
    causal=CAUSAL,
    grouped=GROUPED,
)
