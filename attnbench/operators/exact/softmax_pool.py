"""y_n = Σ_m p_nm v̄_m with p_n = softmax_m(q_nᵀ k̄_m) over the ⌈h/2⌉·⌈w/2⌉ means of k, and of v, in 2×2 windows.

The "Attn+Pool" that Gao, Wang, Ji 2020, "Kronecker Attention Networks", compare with, https://arxiv.org/abs/2007.08442.
Windows do not overlap; where a side is odd the last one holds the pixels that are left, and averages those. No 1/√D.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator, Tensor
from torch.nn.functional import avg_pool2d, scaled_dot_product_attention

from attnbench.cost import moved_again, product, traffic
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper
from attnbench.operators._map_attention import attend, scaled_maps, sides, tokens
from attnbench.operators._value_map import VALUE_MAP, mapped, value_map_multiply_adds, value_map_weights
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import projected


def reference(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, value_map: Tensor | None = None
) -> Tensor:
    """q, k, v: [B, C, h, w]; value_map: [C, C]. Returns [B, C, h, w]. The N × N/4 weights are materialised."""
    keys, values = tokens(problem, pooled(k)), tokens(problem, pooled(v))  # [B, H, ~N/4, D]
    return attend(problem, q, keys, mapped(values, value_map))


def pooled(x: Tensor) -> Tensor:
    """[B, C, h, w] → [B, C, ⌈h/2⌉, ⌈w/2⌉]."""
    return avg_pool2d(x, 2, ceil_mode=True)


def gains(problem: Problem) -> dict[str, float]:
    """Means of four have variance 1/4, and a dot product of them is divided by √D."""
    return {"k": 2 * problem.head_dim**-0.5}


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, v ~ N(0, 1); k ~ N(0, 4/D): the logits have variance 1."""
    return scaled_maps(problem, params, generator, gains(problem))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference executes what the definition requires; the means are additions, counted as elementwise."""
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    height, width = sides(problem)
    m = -(-height // 2) * -(-width // 2)
    flops = (
        product(b * h * n * m * d, mode)  # q k̄ᵀ: [N, D] × [D, ~N/4]
        + product(b * h * n * m * d, mode)  # p v̄: [N, ~N/4] × [~N/4, D]
        + product(value_map_multiply_adds(problem, params, m), mode)  # [~N/4, C] × [C, C]
    )
    size = b * h * n * d
    return Cost(
        flops=flops,
        reference_flops=flops,
        elementwise=(4 * b * h * n * m + 2 * size) * (1 if mode == "fwd" else 2),  # softmax; the means of k and of v
        bytes_required=traffic(problem, mode, read=3 * size + value_map_weights(problem, params), written=size),
        # Means of k and v, where they are not more, are written and read in place of them.
        bytes_again=_y_again(problem, mode) + moved_again(problem, mode, backward=2 * min(0, 2 * b * h * m * d - size)),
    )


def _cuda() -> Callable[..., Tensor]:
    def call(
        problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, value_map: Tensor | None = None
    ) -> Tensor:
        queries, keys, values = (tokens(problem, x).contiguous() for x in (q, pooled(k), pooled(v)))
        y = scaled_dot_product_attention(queries, keys, mapped(values, value_map), scale=1.0)  # [B, H, N, D]
        return y.transpose(-2, -1).reshape(q.shape)

    return call


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return None


def _y_again(problem: Problem, mode: Mode) -> int:
    """As of softmax."""
    return moved_again(problem, mode, backward=problem.batch * problem.seq_len * problem.channels)


CORE = Form(reference, make_inputs, cost, {"cuda": Impl(_cuda, "torch SDPA on pooled maps", _cuda_why_not)})

OPERATOR = Operator(
    paper=Paper("Gao, Wang, Ji", 2020, "Kronecker Attention Networks", "https://arxiv.org/abs/2007.08442", "Attn+Pool"),
    forms=with_graph({"core": CORE, "layer": projected(CORE, layout="map", gains=gains, bytes_again=_y_again)}, "cuda"),
    complexity=lambda params: Complexity(time="n^2", memory="n^2"),
    params={"value_map": VALUE_MAP},
    domains=("image",),
    grouped="queries, keys and values are feature maps of the same C channels, as the paper defines its layer",
    causal="the mean of a window mixes pixels of two rows, before and after others in raster order",
)
