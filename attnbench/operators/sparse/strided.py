"""y_i = Σ_j p_ij v_j with p_i = softmax_j(q_iᵀ k_j / √D) over (i − j) mod s = 0 and |i − j| ≤ reach·s (causal: j ≤ i).

Child et al. 2019, "Generating Long Sequences with Sparse Transformers", sec. 4.2: the pattern A⁽²⁾ of strided attention
alone, https://arxiv.org/abs/1904.10509. `reach` all: every token of the query's residue class modulo s.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.grouped import merged, separated
from attnbench.inputs import heads
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.sparse._pairs import pair_cost
from attnbench.operators.sparse._size import SQRT, size
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import projected
from attnbench.state import appended, cached_rows, caches, drawn_caches
from attnbench.window import (
    attend,
    class_length,
    executed_pairs,
    from_classes,
    past_keys,
    to_classes,
    window_pairs,
)


def reference(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
) -> Tensor:
    """Permuted, a residue class is a short sequence with a window.

    Args:
        q: [B, H, Q, D].
        k, v: [B, Hk, Q, D].
        k_cache, v_cache: [B, Hk, min(N − Q, cache_length) + Q, D], where Q < N.

    Returns: [B, H, Q, D].
    """
    before, after = sides(problem, params)
    k, v = appended(k_cache, k), appended(v_cache, v)
    return attend(q * problem.head_dim**-0.5, k, v, before, after, classes=stride(problem, params))


def stride(problem: Problem, params: Params) -> int:
    """s, which is also the number of residue classes."""
    return size(params["stride"], problem.seq_len)


def sides(problem: Problem, params: Params) -> tuple[int, int]:
    """How many tokens of its class a token sees before and after itself."""
    longest = class_length(problem.seq_len, stride(problem, params)) - 1
    reach = longest if params["reach"] == "all" else min(params["reach"], longest)
    return reach, 0 if problem.causal else reach


def cache_length(problem: Problem, params: Params) -> int:
    """How many of the last tokens a causal one can see: a step sees few of them, the next s − 1 steps the others."""
    return problem.seq_len if params["reach"] == "all" else params["reach"] * stride(problem, params)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the logits have variance 1."""
    data = heads(problem, generator, "q", "k", "v")
    return Inputs(data, state=drawn(problem, params, generator, data["k"], data["v"]))


def drawn(problem: Problem, params: Params, generator: Generator, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """A state, drawn. k, v: the new ones."""
    return drawn_caches(problem, generator, k, v, cache_length(problem, params))


def state(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """The last reach·s keys and values; all where reach is all."""
    return caches(problem, k, v, cache_length(problem, params))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """All pairs of a class are multiplied where reach is all: N²/s (causal: twice the required ones), and those of at
    most one padding token per class. A limited reach wastes what a window wastes: at most 1.25 (causal: 1.5) for
    reach ≥ 64 in classes much longer than that.
    """
    before, after = sides(problem, params)
    s, past, most = stride(problem, params), problem.past, cache_length(problem, params)
    # s classes of [N/s, D] × [D, N/s] and of [N/s, N/s] × [N/s, D], or their windows
    pairs = window_pairs(problem.seq_len, before, after, s) - window_pairs(past, before, after, s)
    executed = executed_pairs(problem.query_len, before, after, s, past=cached_rows(problem, most))
    cached = past_keys(problem.query_len, before, s, past)
    return pair_cost(problem, mode, pairs, executed, cached, state_tokens=min(problem.seq_len, most))


def _sdpa() -> Callable[..., Tensor]:
    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        classes, group = stride(problem, params), problem.group
        queries = merged(to_classes(q, classes), group, 1)  # [B·Hk, s·G, N/s, D]
        keys, values = (to_classes(x, classes) for x in (k, v))  # [B·Hk, s, N/s, D]
        # A causal query of the sequence never sees the padding, which comes last.
        ragged = problem.seq_len % classes != 0 and not problem.causal
        inside = _inside(problem.seq_len, classes, q.device).repeat_interleave(group, 0) if ragged else None
        y = scaled_dot_product_attention(
            queries, keys, values, attn_mask=inside, is_causal=problem.causal, enable_gqa=group > 1
        )
        return from_classes(separated(y, group, 1), classes, q)

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
        "sdpa": Impl(_sdpa, "permutation and torch SDPA, its choice", _sdpa_why_not, grouped=True),
        "cuda": Impl(_cuda, "permutation and FlexAttention, block mask", _cuda_why_not, grouped=True),
    },
    state=state,
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
    forms=with_graph({"core": CORE, "layer": projected(CORE)}, "sdpa", "cuda"),
    complexity=complexity,
    grouped=True,
    continues=True,
    pairs=lambda params, causal: "fixed",
    approaches=lambda params: "stride" if params["reach"] == "all" else None,
    params={
        "stride": Param(SQRT, "s: the distance of the tokens seen", (SQRT,), minimum=1),
        "reach": Param("all", "tokens of its class seen on each side", ("all",), minimum=0),
    },
    notes="a token never sees its neighbours: classes modulo the stride do not mix",
)
