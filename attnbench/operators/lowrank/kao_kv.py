"""y_n = Σ_m p_nm v̄_m with p_n = softmax_m(q_nᵀ k̄_m) over the h row means and w column means of k, and of v.

Gao, Wang, Ji 2020, "Kronecker Attention Networks", KAO_KV, https://arxiv.org/abs/2007.08442. x̄ = [H; L]: H_i is the
mean of row i over the width, L_j that of column j over the height. The paper has K = V = [H; L] of one map, which is
k = v here. Scope `layer` takes the means of x and projects those to K and V, since a mean commutes with a 1×1 map;
queries and output are projected at every pixel. No 1/√D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Generator, Tensor

from attnbench.cost import keys_summed_first, moved_again, product, traffic
from attnbench.kernels.library.graphs import with_graph
from attnbench.kernels.support import MAX_EXACT_DIM, why_not
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator
from attnbench.operators._map_attention import attend, scaled_maps, tokens
from attnbench.operators._value_map import VALUE_MAP, mapped, value_map_multiply_adds, value_map_weights
from attnbench.operators.lowrank._margins import CAUSAL, GROUPED, kronecker_paper, layer_cost, margin_length, margins
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import channels_first, projected


def reference(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, value_map: Tensor | None = None
) -> Tensor:
    """q, k, v: [B, C, h, w]; value_map: [C, C]. Returns [B, C, h, w]."""
    return mixed(problem, q, margins(k), margins(v), value_map)


def mixed(problem: Problem, q: Tensor, k: Tensor, v: Tensor, value_map: Tensor | None) -> Tensor:
    """q: [B, C, h, w]; k, v: means, [B, C, h + w]. Returns [B, C, h, w]."""
    keys, values = tokens(problem, k), tokens(problem, v)  # [B, H, h + w, D]
    return attend(problem, q, keys, mapped(values, value_map))


def layer(means_of: Callable[[Tensor], Tensor], mix: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The projections around `mix`, on the means that `means_of` takes of a map."""

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
        k, v = channels_first(means, w_k), channels_first(means, w_v)
        return channels_first(mix(problem, channels_first(x, w_q), k, v, value_map), w_o)

    return call


def gains(problem: Problem) -> dict[str, float]:
    """Means over √N pixels have variance 1/√N: the keys are that much larger, and divided by √D for the dot product."""
    return {"k": problem.seq_len**0.25 * problem.head_dim**-0.5}


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, v ~ N(0, 1); k ~ N(0, √N/D), so that the logits have variance about 1."""
    return scaled_maps(problem, params, generator, gains(problem))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference executes what the definition requires; the means are additions, counted as elementwise."""
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    m = margin_length(problem)
    flops = (
        product(b * h * n * m * d, mode)  # q k̄ᵀ: [N, D] × [D, h + w]
        + product(b * h * n * m * d, mode)  # p v̄: [N, h + w] × [h + w, D]
        + product(value_map_multiply_adds(problem, params, m), mode)  # [h + w, C] × [C, C]
    )
    size = b * h * n * d
    return Cost(
        flops=flops,
        reference_flops=flops,
        elementwise=(4 * b * h * n * m + 4 * size) * (1 if mode == "fwd" else 2),  # softmax; two means of k and of v
        bytes_required=traffic(problem, mode, read=3 * size + value_map_weights(problem, params), written=size),
        bytes_again=moved_again(problem, mode, backward=-2 * size),  # the means are still there
    )


def _fused(problem: Problem, q: Tensor, k: Tensor, v: Tensor, value_map: Tensor | None) -> Tensor:
    """As `mixed`."""
    from attnbench.kernels.few_keys import launch

    keys, values = tokens(problem, k), tokens(problem, v)
    y = launch.attend(tokens(problem, q), keys, mapped(values, value_map), 1.0)  # [B, H, N, D]
    return y.transpose(-2, -1).reshape(q.shape)


def _cuda() -> Callable[..., Tensor]:
    from attnbench.kernels.margins.launch import margin_means

    def call(
        problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, value_map: Tensor | None = None
    ) -> Tensor:
        return _fused(problem, q, margin_means(k), margin_means(v), value_map)

    return call


def _cuda_layer() -> Callable[..., Tensor]:
    from attnbench.kernels.margins.launch import margin_means

    return layer(margin_means, _fused)


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return why_not(problem, max_exact_dim=MAX_EXACT_DIM)


CUDA = Impl(_cuda, "attnbench Triton: margins, few_keys", _cuda_why_not)
CORE = Form(reference, make_inputs, cost, {"cuda": CUDA})
EVERY_PIXEL = projected(CORE, layout="map", gains=gains, bytes_again=keys_summed_first)
LAYER = Form(
    layer(margins, mixed),
    EVERY_PIXEL.make_inputs,
    layer_cost(EVERY_PIXEL, pixels=2, means=2, spared=2),
    {"cuda": replace(CUDA, load=_cuda_layer)},
)

OPERATOR = Operator(
    paper=kronecker_paper("KAO_KV"),
    forms=with_graph({"core": CORE, "layer": LAYER}, "cuda"),
    complexity=lambda params: Complexity(time="n^1.5", memory="n^1.5"),
    params={"value_map": VALUE_MAP},
    domains=("image",),
    causal=CAUSAL,
    grouped=GROUPED,
)
