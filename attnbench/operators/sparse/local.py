"""y_i = Σ_j p_ij v_j with p_i = softmax_j(q_iᵀ k_j / √D) over |i − j| ≤ w: 2w + 1 keys (causal: 0 ≤ i − j ≤ w: w + 1).

Beltagy et al. 2020, "Longformer: The Long-Document Transformer", sec. 3.1 "Sliding Window",
https://arxiv.org/abs/2004.05150. `window` is w, one side: the paper's window of 512 is w = 256.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator, Tensor

from attnbench.inputs import heads
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.sparse._pairs import pair_cost
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import projected
from attnbench.state import appended, cached_rows, caches, drawn_caches
from attnbench.window import attend, executed_pairs, window_pairs


def reference(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
) -> Tensor:
    """q: [B, H, Q, D]; k, v: [B, Hk, Q, D]; where Q < N k_cache, v_cache: [B, Hk, min(N − Q, w) + Q, D].

    Returns [B, H, Q, D].
    """
    before, after = sides(problem, params)
    k, v = appended(k_cache, k), appended(v_cache, v)
    return attend(q * problem.head_dim**-0.5, k, v, before, after)


def sides(problem: Problem, params: Params) -> tuple[int, int]:
    """How many tokens before and after itself a token sees."""
    return params["window"], 0 if problem.causal else params["window"]


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the logits have variance 1."""
    data = heads(problem, generator, "q", "k", "v")
    return Inputs(data, state=drawn(problem, params, generator, data["k"], data["v"]))


def drawn(problem: Problem, params: Params, generator: Generator, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """A state, drawn. k, v: the new ones."""
    return drawn_caches(problem, generator, k, v, params["window"])


def state(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """The last w keys and values."""
    return caches(problem, k, v, params["window"])


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Blocks of b queries are multiplied with the b + 2w keys (causal: b + w) around them, b about w/2.

    That is at most 1.25 times the 2w + 1 keys required (causal: 1.5) for w ≥ 64 on sequences much longer than w;
    all N² pairs are multiplied where b + 2w ≥ N.
    """
    before, after = sides(problem, params)
    cached = cached_rows(problem, params["window"])
    pairs = window_pairs(problem.seq_len, before, after) - window_pairs(problem.past, before, after)
    executed = executed_pairs(problem.query_len, before, after, past=cached)
    # q kᵀ: windows of [1, D] × [D, 2w + 1], cut at the ends; p v: of [1, 2w + 1] × [2w + 1, D]
    return pair_cost(problem, mode, pairs, executed, cached, state_tokens=min(problem.seq_len, params["window"]))


def _cuda() -> Callable[..., Tensor]:
    from attnbench.kernels.flex.windows import window

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return window(q, k, v, *sides(problem, params))

    return call


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    from attnbench.kernels.flex import windows

    return windows.why_not(problem, problem.seq_len, problem.seq_len)


CUDA = Impl(_cuda, "FlexAttention, block mask", _cuda_why_not, grouped=True)
CORE = Form(reference, make_inputs, cost, impls={"cuda": CUDA}, state=state)

OPERATOR = Operator(
    paper=Paper(
        "Beltagy et al.",
        2020,
        "Longformer: The Long-Document Transformer",
        "https://arxiv.org/abs/2004.05150",
        "sec. 3.1, sliding window",
    ),
    forms=with_graph({"core": CORE, "layer": projected(CORE)}, "cuda"),
    complexity=lambda params: Complexity(time="n", memory="n"),
    pairs=lambda params, causal: "fixed",
    approaches=lambda params: "window",
    grouped=True,
    continues=True,
    params={"window": Param(256, "tokens seen on each side, the token itself apart", minimum=0)},
)
