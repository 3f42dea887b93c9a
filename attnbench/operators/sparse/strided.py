"""y_i = Σ_j p_ij v_j with p_i = softmax_j(q_iᵀ k_j / √D) over (i − j) mod s = 0 and |i − j| ≤ reach·s (causal: j ≤ i).

Child et al. 2019, "Generating Long Sequences with Sparse Transformers", sec. 4.2: the pattern A⁽²⁾ of strided attention
alone, https://arxiv.org/abs/1904.10509. `reach` all: every token of the query's residue class modulo s.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.cost import product, traffic
from attnbench.inputs import heads
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.sparse._size import SQRT, size
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import projected
from attnbench.window import attend, class_length, executed_pairs, from_classes, to_classes, window_pairs


def reference(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: [B, H, N, D]. Returns [B, H, N, D]. Permuted, a residue class is a short sequence with a window."""
    before, after = sides(problem, params)
    return attend(q * problem.head_dim**-0.5, k, v, before, after, classes=stride(problem, params))


def stride(problem: Problem, params: Params) -> int:
    """s, which is also the number of residue classes."""
    return size(params["stride"], problem.seq_len)


def sides(problem: Problem, params: Params) -> tuple[int, int]:
    """How many tokens of its class a token sees before and after itself."""
    longest = class_length(problem.seq_len, stride(problem, params)) - 1
    reach = longest if params["reach"] == "all" else min(params["reach"], longest)
    return reach, 0 if problem.causal else reach


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the logits have variance 1."""
    return Inputs(heads(problem, generator, "q", "k", "v"))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """All pairs of a class are multiplied where reach is all: N²/s (causal: twice the required ones), and those of at
    most one padding token per class. A limited reach wastes what a window wastes: at most 1.25 (causal: 1.5) for
    reach ≥ 64 in classes much longer than that.
    """
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    before, after = sides(problem, params)
    s = stride(problem, params)
    pairs, executed = window_pairs(n, before, after, s), executed_pairs(n, before, after, s)
    tensor = b * h * n * d
    return Cost(
        flops=product(b * h * pairs * d, mode)  # q kᵀ: s classes of [N/s, D] × [D, N/s], or their windows
        + product(b * h * pairs * d, mode),  # p v: s classes of [N/s, N/s] × [N/s, D], or their windows
        reference_flops=2 * product(b * h * executed * d, mode),
        elementwise=4 * b * h * pairs * (1 if mode == "fwd" else 2),  # max, subtract, exp, divide
        bytes_required=traffic(problem, mode, read=3 * tensor, written=tensor),
        passes=1,
    )


def _sdpa() -> Callable[..., Tensor]:
    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        classes = stride(problem, params)
        queries, keys, values = (to_classes(x, classes) for x in (q, k, v))  # [B·H, s, N/s, D]
        # A causal query of the sequence never sees the padding, which comes last.
        ragged = problem.seq_len % classes != 0 and not problem.causal
        inside = _inside(problem.seq_len, classes, q.device) if ragged else None
        y = scaled_dot_product_attention(queries, keys, values, attn_mask=inside, is_causal=problem.causal)
        return from_classes(y, classes, q)

    return call


def _inside(seq_len: int, classes: int, device: torch.device) -> Tensor:
    """Which positions of each class are tokens: [s, 1, N/s]."""
    return (
        (torch.arange(class_length(seq_len, classes) * classes, device=device) < seq_len).view(-1, classes).t()[:, None]
    )


def _sdpa_why_not(problem: Problem, params: Params, device: str) -> str | None:
    if not _covers(problem, params):
        return "a limited reach is a band within each class: one SDPA call would need an N/s × N/s mask"
    return None


def _covers(problem: Problem, params: Params) -> bool:
    """Whether every token sees its whole class."""
    return sides(problem, params)[0] + 1 >= class_length(problem.seq_len, stride(problem, params))


def _cuda() -> Callable[..., Tensor]:
    from attnbench.kernels.flex.windows import window

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return window(q, k, v, *sides(problem, params), classes=stride(problem, params))

    return call


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    from attnbench.kernels.flex import windows

    if _covers(problem, params):
        return "whole classes are attended to: one SDPA call, listed as sdpa"
    length = class_length(problem.seq_len, stride(problem, params))
    return windows.why_not(problem, length, length)


CORE = Form(
    reference,
    make_inputs,
    cost,
    impls={
        "sdpa": Impl(_sdpa, "permutation and torch SDPA, its choice", _sdpa_why_not),
        "cuda": Impl(_cuda, "permutation and FlexAttention, block mask", _cuda_why_not),
    },
)


def complexity(params: Params) -> Complexity:
    """A class holds N/s tokens: N·min(reach, N/s) pairs."""
    if params["reach"] != "all":
        return Complexity(time="n", memory="n")
    growth = Complexity(time="n^1.5", memory="n^1.5")
    return growth if params["stride"] == SQRT else Complexity(time="n^2", memory="n^2")


OPERATOR = Operator(
    paper=Paper(
        "Child et al.",
        2019,
        "Generating Long Sequences with Sparse Transformers",
        "https://arxiv.org/abs/1904.10509",
        "sec. 4.2, the second pattern of strided attention",
    ),
    forms={"core": CORE, "layer": projected(CORE)},
    complexity=complexity,
    params={
        "stride": Param(SQRT, "s: the distance of the tokens seen", (SQRT,), minimum=1),
        "reach": Param("all", "tokens of its class seen on each side", ("all",), minimum=0),
    },
    notes="a token never sees its neighbours: classes modulo the stride do not mix",
)
