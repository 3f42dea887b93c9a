"""y = softmax(q (E k)ᵀ / √D) (F v), where E and F: k×N shorten the N keys and values to k of each.

Wang et al. 2020, "Linformer: Self-Attention with Linear Complexity", eq. 7, https://arxiv.org/abs/2006.04768.
k does not follow N: where it is larger, the keys are lengthened, as the equation has it. The paper's layerwise sharing,
one E for all layers, is `kv` in each of them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator, Tensor, einsum

from attnbench.cost import keys_summed_first, product, traffic, uncounted_sums
from attnbench.grouped import folded, unfolded
from attnbench.inputs import heads, normal
from attnbench.kernels.library.graphs import with_graph
from attnbench.kernels.support import MAX_EXACT_DIM, why_not
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import projected


def reference(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, e: Tensor, f: Tensor | None = None
) -> Tensor:
    """q: [B, H, N, D]. k, v: [B, Hk, N, D]. e, f: [k, N], or [Hk, k, N] where heads of keys do not share them; f None:
    values share e. Returns [B, H, N, D].
    """
    keys, values = shortened(e, k), shortened(e if f is None else f, v)
    scores = folded(q * problem.head_dim**-0.5, keys) @ keys.transpose(-2, -1)  # [B, Hk, G·N, k]
    return unfolded(scores.softmax(dim=-1) @ values, q)


def shortened(e: Tensor, x: Tensor) -> Tensor:
    """[k, N] or [Hk, k, N] times [B, Hk, N, D] → [B, Hk, k, D]; neither e nor its gradient is repeated for heads."""
    return einsum("kn,bhnd->bhkd" if e.dim() == 2 else "hkn,bhnd->bhkd", e, x)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1); E, F ~ N(0, 1/N), so that shortened keys, and the logits, keep variance 1."""
    per_head = (problem.kv_heads,) if params["sharing"] == "none" else ()
    shape = (*per_head, params["k"], problem.seq_len)
    names = ("e",) if params["sharing"] == "kv" else ("e", "f")
    scale = problem.seq_len**-0.5
    parameters = {name: normal(problem, generator, *shape, scale=scale) for name in names}
    return Inputs(heads(problem, generator, "q", "k", "v"), parameters)


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference executes what the definition requires. The weights' own gradients are among the products."""
    b, h, hk, n, d = problem.batch, problem.heads, problem.kv_heads, problem.seq_len, problem.head_dim
    k = params["k"]
    shortening = 2 * product(b * hk * k * n * d, mode)  # E k and F v: [k, N] × [N, D]
    flops = (
        shortening
        + product(b * h * n * k * d, mode)  # q (E k)ᵀ: [N, D] × [D, k]
        + product(b * h * n * k * d, mode)  # p (F v): [N, k] × [k, D]
    )
    size, kv_size = b * h * n * d, b * n * problem.kv_channels
    weights = (hk if params["sharing"] == "none" else 1) * k * n
    weights *= 1 if params["sharing"] == "kv" else 2
    return Cost(
        flops=flops,
        reference_flops=flops,
        elementwise=4 * b * h * n * k * (1 if mode == "fwd" else 2),  # max, subtract, exp, divide
        bytes_required=traffic(problem, mode, read=size + 2 * kv_size + weights, written=size),
        uncounted=uncounted_sums(shortening, n),
    )


def _few_keys() -> Callable[..., Tensor]:
    from attnbench.kernels.few_keys.launch import attend

    def call(
        problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, e: Tensor, f: Tensor | None = None
    ) -> Tensor:
        return attend(q, shortened(e, k), shortened(e if f is None else f, v), problem.head_dim**-0.5)

    return call


def _few_keys_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return why_not(problem, max_exact_dim=MAX_EXACT_DIM)


CORE = Form(
    reference,
    make_inputs,
    cost,
    {"cuda": Impl(_few_keys, "cuBLAS, attnbench Triton: few_keys", _few_keys_why_not, grouped=True)},
)

OPERATOR = Operator(
    paper=Paper(
        "Wang et al.",
        2020,
        "Linformer: Self-Attention with Linear Complexity",
        "https://arxiv.org/abs/2006.04768",
        "eq. 7",
    ),
    forms=with_graph({"core": CORE, "layer": projected(CORE, bytes_again=keys_summed_first)}, "cuda"),
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={
        "k": Param(256, "length of the shortened keys and values", minimum=1),
        "sharing": Param(
            "headwise",
            "which share E and F: none, all heads (of keys), or also keys and values",
            ("none", "headwise", "kv"),
        ),
    },
    grouped=True,
    any_length=lambda params: False,
    causal="shortening mixes all positions, so no token can be kept from seeing later ones",
)
