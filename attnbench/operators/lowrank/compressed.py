"""y_i = Σ_m p_im v̄_m, p_i = softmax_m(q_iᵀ k̄_m / √D), k̄_m = Σ_t W_tᵀ k_{3m+t} over 0 ≤ t < 3, for all ⌈N/3⌉ blocks m.

Liu et al. 2018, "Generating Wikipedia by Summarizing Long Sequences", sec. 4.2.4 "Memory-compressed attention",
https://arxiv.org/abs/1801.10198. W: a convolution with kernel 3 and stride 3 within each head, one for keys and one
for values; tokens after the last are 0. Causal, as in the authors' code (Tensor2Tensor): query i sees the blocks whose
tokens all come before it, 3m + 3 ≤ i, and token 0 unchanged, without which the first queries would see no key.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, einsum
from torch.nn.functional import pad, scaled_dot_product_attention

from attnbench.cost import product, traffic, uncounted_sums
from attnbench.inputs import heads, normal
from attnbench.kernels.support import MAX_EXACT_DIM, why_not
from attnbench.masking import hide
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import projected


def reference(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, conv_k: Tensor, conv_v: Tensor
) -> Tensor:
    """q, k, v: [B, H, N, D]. conv_k, conv_v: [H, 3·D, D]. Returns [B, H, N, D]. Materialises N × N/3 weights."""
    keys, values = shortened(problem, params, k, conv_k), shortened(problem, params, v, conv_v)  # [B, H, M, D]
    scores = (q * problem.head_dim**-0.5) @ keys.transpose(-2, -1)  # [B, H, N, M]
    if problem.causal:
        scores = hide(scores, ~visible(problem, params, q.device))
    return scores.softmax(dim=-1) @ values


def shortened(problem: Problem, params: Params, x: Tensor, conv: Tensor) -> Tensor:
    """[B, H, N, D] → [B, H, M, D]: the blocks convolved; causal: token 0, then the blocks that any query sees."""
    factor, count = params["factor"], blocks(problem, params)
    n = count * factor
    inside = x[:, :, :n] if n <= problem.seq_len else pad(x, (0, 0, 0, n - problem.seq_len))
    short = einsum("bhmi,hio->bhmo", inside.unflatten(2, (count, factor)).flatten(3), conv)
    return torch.cat((x[:, :, :1], short), dim=2) if problem.causal else short


def blocks(problem: Problem, params: Params) -> int:
    """The number of blocks that are convolved."""
    n, factor = problem.seq_len, params["factor"]
    return (n - 1) // factor if problem.causal else -(-n // factor)


def visible(problem: Problem, params: Params, device: torch.device) -> Tensor:
    """Causal: [N, M], whether query i sees key m: token 0 where m = 0, else block m − 1."""
    i = torch.arange(problem.seq_len, device=device)
    m = torch.arange(blocks(problem, params) + 1, device=device)
    return m * params["factor"] <= i[:, None]


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1); convolutions ~ N(0, 1/(3·D)), so that shortened keys, and the logits, keep variance 1."""
    width = params["factor"] * problem.head_dim
    shape = (problem.heads, width, problem.head_dim)
    parameters = {name: normal(problem, generator, *shape, scale=width**-0.5) for name in ("conv_k", "conv_v")}
    return Inputs(heads(problem, generator, "q", "k", "v"), parameters)


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference multiplies up to two tokens of padding, and causal, all pairs: not quite twice those allowed."""
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    factor, m = params["factor"], blocks(problem, params)
    convolved = m * factor if problem.causal else n
    keys = m + 1 if problem.causal else m
    pairs = sum_of_floors(n, factor) + n if problem.causal else n * m
    size = b * h * n * d
    convolutions = 2 * product(b * h * m * factor * d * d, mode)
    return Cost(
        flops=2 * product(b * h * convolved * d * d, mode)  # of keys and of values: [M, 3·D] × [3·D, D]
        + product(b * h * pairs * d, mode)  # q k̄ᵀ: [N, D] × [D, M]
        + product(b * h * pairs * d, mode),  # p v̄: [N, M] × [M, D]
        reference_flops=convolutions + 2 * product(b * h * n * keys * d, mode),
        elementwise=4 * b * h * pairs * (1 if mode == "fwd" else 2),  # max, subtract, exp, divide
        bytes_required=traffic(problem, mode, read=3 * size + 2 * h * factor * d * d, written=size),
        passes=1,
        uncounted=uncounted_sums(convolutions, factor * d),
    )


def sum_of_floors(n: int, factor: int) -> int:
    """Σ ⌊i / factor⌋ over 0 ≤ i < n."""
    quotient, remainder = divmod(n, factor)
    return factor * (quotient * (quotient - 1) // 2) + remainder * quotient


def _cuda() -> Callable[..., Tensor]:
    def call(
        problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, conv_k: Tensor, conv_v: Tensor
    ) -> Tensor:
        keys, values = shortened(problem, params, k, conv_k), shortened(problem, params, v, conv_v)
        if not problem.causal:
            return scaled_dot_product_attention(q, keys, values)
        from attnbench.kernels.few_keys.launch import attend

        return attend(q, keys, values, problem.head_dim**-0.5, params["factor"])

    return call


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return why_not(problem, max_exact_dim=MAX_EXACT_DIM) if problem.causal else None


CORE = Form(
    reference,
    make_inputs,
    cost,
    {"cuda": Impl(_cuda, "cuBLAS, torch SDPA; causal: attnbench Triton: few_keys", _cuda_why_not)},
)

OPERATOR = Operator(
    paper=Paper(
        "Liu et al.",
        2018,
        "Generating Wikipedia by Summarizing Long Sequences",
        "https://arxiv.org/abs/1801.10198",
        "sec. 4.2.4, memory-compressed attention",
    ),
    forms={"core": CORE, "layer": projected(CORE)},
    complexity=lambda params: Complexity(time="n^2", memory="n^2"),
    params={"factor": Param(3, "tokens compressed into one: the convolution's kernel and stride", minimum=1)},
    notes="still quadratic, divided by 3",
)
