"""y_i = Σ_j p_ij v_j, p_i a softmax of q_iᵀ k_j / √D over 0 ≤ i − j ≤ W − 1: W keys, its own included (i ≥ W − 1).

`sink`: what takes the weight that no key of the window should have.
none: nothing; `local`, causal, with w = W − 1.
tokens: the g first tokens are seen as well, those with j ≤ i: 0 ≤ i − j ≤ W − 1 or j < g, each once.
logit: a learned number s_h of each query head is one more logit, after the scale, in the denominator alone:
p_ij = exp(l_ij) / (exp(s_h) + Σ_j' exp(l_ij')), which is softmax · σ(lse_i − s_h).

Jiang et al. 2023, "Mistral 7B", sec. 2 "Sliding Window Attention", https://arxiv.org/abs/2310.06825 (W = 4096). tokens:
Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks", sec. 3.2, https://arxiv.org/abs/2309.17453
(g = 4); its new numbers of positions in the cache are a matter of position encodings. logit: OpenAI 2025, "gpt-oss-120b
& gpt-oss-20b Model Card", sec. 2.2, https://arxiv.org/abs/2508.10925 (W = 128).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log

import torch
from torch import Generator, Tensor

from attnbench.cost import product, traffic
from attnbench.grouped import hide_merged
from attnbench.inputs import heads, normal
from attnbench.kernels.library import sdpa_backends
from attnbench.kernels.library.flash_attention import PACKAGES, Package
from attnbench.kernels.library.graphs import with_graph
from attnbench.masking import ahead
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.sparse import local
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import projected
from attnbench.state import appended, cached_rows, caches, drawn_caches
from attnbench.window import Windows, outside_window, window_scores, window_values, windows


def reference(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink_logit: Tensor | None = None,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
) -> Tensor:
    """Where tokens were left out between the sink tokens and the window of a cache, the rest are taken as neighbours.

    Args:
        q: [B, H, Q, D].
        k, v: [B, Hk, Q, D].
        sink_logit: [H], with the sink `logit`.
        k_cache, v_cache: [B, Hk, min(N − Q, g + W − 1) + Q, D], the sink tokens in front, where Q < N.

    Returns: [B, H, Q, D].
    """
    k, v = appended(k_cache, k), appended(v_cache, v)
    cut, in_front = cut_of(problem, params)
    scores = window_scores(q * problem.head_dim**-0.5, k, cut, hubs=in_front)  # [B·Hk, 1, blocks, block·G, keys]
    outside = outside_of(problem, params, cut, in_front, q.device)
    if outside is not None:
        scores = hide_merged(scores, outside)
    return window_values(_weights(problem, scores, sink_logit), v, q, cut, hubs=in_front)


def sink_tokens(params: Params) -> int:
    """g; 0 without sink tokens."""
    return int(params["sink_tokens"]) if params["sink"] == "tokens" else 0


def reach(params: Params) -> int:
    """g + W − 1: the most keys that a token sees beside its own."""
    return sink_tokens(params) + int(params["window"]) - 1


def kept_tokens(problem: Problem, params: Params) -> int:
    """Tokens of which there are keys: the sink tokens and the window before the first new token, and the new ones."""
    return cached_rows(problem, reach(params)) + problem.query_len


def sees_all(problem: Problem, params: Params) -> bool:
    """Whether every new token sees all keys up to its own that there are: a single one does."""
    return kept_tokens(problem, params) <= reach(params) + 1


def cut_of(problem: Problem, params: Params) -> tuple[Windows, int]:
    """The blocks of queries, and how many sink tokens stand in front of the keys of each.

    A block of all queries has all keys in their places. A token is in front where it is outside a window.
    """
    queries, tokens = problem.query_len, kept_tokens(problem, params)
    past, width = tokens - queries, params["window"]
    cut = windows(queries, width - 1, 0, past)
    if cut.blocks == 1:
        return Windows(queries, past, 0, queries, 1), 0
    return cut, min(sink_tokens(params), max(0, tokens - width))


def outside_of(problem: Problem, params: Params, cut: Windows, in_front: int, device: torch.device) -> Tensor | None:
    """True where a score is of no pair: [Q, keys], or [1, blocks, block, keys]; None where every one is."""
    queries, tokens, width = problem.query_len, kept_tokens(problem, params), params["window"]
    past = tokens - queries
    if cut.blocks > 1:
        outside = outside_window(cut, queries, width - 1, 0, 1, in_front, device, past)
        if outside is not None and past < in_front:  # the first sink tokens see none that comes after them
            query = torch.arange(past, past + cut.blocks * cut.block, device=device).view(cut.blocks, cut.block, 1)
            outside[..., :in_front] = torch.arange(in_front, device=device) > query
        return outside
    if sees_all(problem, params):
        return ahead(queries, tokens, device) if queries > 1 else None
    key = torch.arange(tokens, device=device)
    back = key[past:, None] - key
    return (back < 0) | ((back >= width) & (key >= sink_tokens(params)))


def _weights(problem: Problem, scores: Tensor, sink_logit: Tensor | None) -> Tensor:
    """p of scores [B·Hk, 1, blocks, block·G, keys], in their shape, with the sink of its head in each row's sum."""
    if sink_logit is None:
        return scores.softmax(dim=-1)
    of_rows = sink_logit.view(-1, problem.group).repeat(problem.batch, scores.shape[-2] // problem.group)
    column = of_rows[:, None, None, :, None].expand(*scores.shape[:-1], 1)
    return torch.cat((scores, column), dim=-1).softmax(dim=-1)[..., :-1]


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the logits have variance 1. A sink logit has about the weight of all keys of a window."""
    data = heads(problem, generator, "q", "k", "v")
    parameters = {}
    if params["sink"] == "logit":
        typical = log(min(problem.seq_len, params["window"]))
        parameters["sink_logit"] = normal(problem, generator, problem.heads).add_(typical)
    caches_drawn = drawn_caches(problem, generator, data["k"], data["v"], reach(params))
    return Inputs(data, parameters, state=caches_drawn)


def state(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, sink_logit: Tensor | None = None
) -> dict[str, Tensor]:
    """Keys and values of the g first tokens and of the last W − 1, each once."""
    left_out = max(0, problem.past - reach(params))
    first = sink_tokens(params)
    if left_out and first:
        k, v = (torch.cat((x[..., :first, :], x[..., first + left_out :, :]), dim=-2) for x in (k, v))
    return caches(problem, k, v, reach(params))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """A token sees min(i + 1, W + g) keys. Blocks of b queries are multiplied with b + W − 1 keys, as by `local`."""
    windowed = local.cost(problem, {"window": reach(params)}, mode)
    cut, in_front = cut_of(problem, params)
    executed = cut.pairs + cut.blocks * cut.block * in_front
    logits = problem.heads if params["sink"] == "logit" else 0
    return replace(
        windowed,
        reference_flops=2 * product(problem.batch * problem.channels * executed, mode),  # q kᵀ and p v
        bytes_required=windowed.bytes_required + traffic(problem, mode, read=logits, written=0),
    )


def _sdpa() -> Callable[..., Tensor]:
    def call(
        problem: Problem,
        params: Params,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_cache: Tensor | None = None,
        v_cache: Tensor | None = None,
    ) -> Tensor:
        return sdpa_backends.attention(problem, q, appended(k_cache, k), appended(v_cache, v))

    return call


def _sdpa_why_not(problem: Problem, params: Params, device: str) -> str | None:
    if params["sink"] == "logit":
        return "SDPA has no sink logit"
    return None if sees_all(problem, params) else _no_window("SDPA", problem, params)


def _no_window(name: str, problem: Problem, params: Params) -> str:
    """Why what has no pattern of this kind cannot compute a problem."""
    pattern = f"window of {params['window']} tokens" + (" beside sink tokens" if sink_tokens(params) else "")
    asked = f"{problem.query_len} new of {problem.seq_len} tokens"
    return f"{name} has no {pattern}: it computes what sees all keys that are kept, such as one token, not {asked}"


def _cuda() -> Callable[..., Tensor]:
    from attnbench.kernels.flex import windows as flex

    def call(
        problem: Problem,
        params: Params,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sink_logit: Tensor | None = None,
        k_cache: Tensor | None = None,
        v_cache: Tensor | None = None,
    ) -> Tensor:
        k, v = appended(k_cache, k), appended(v_cache, v)
        before, hubs = (None, 0) if sees_all(problem, params) else (params["window"] - 1, sink_tokens(params))
        return flex.causal_window(q, k, v, before, hubs, sink_logit)

    return call


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    from attnbench.kernels.flex import windows as flex

    return flex.why_not(problem, problem.query_len, kept_tokens(problem, params))


def _package(package: Package) -> Impl:
    def call(
        problem: Problem,
        params: Params,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sink_logit: Tensor | None = None,
        k_cache: Tensor | None = None,
        v_cache: Tensor | None = None,
    ) -> Tensor:
        before = None if sees_all(problem, params) else params["window"] - 1
        if package.step is not None and k_cache is not None:
            return package.step(problem, q, k, v, k_cache, v_cache, before, sink_logit)
        return package.attend(problem, q, appended(k_cache, k), appended(v_cache, v), before, sink_logit)

    def why_not(problem: Problem, params: Params, device: str) -> str | None:
        if sink_tokens(params) and not sees_all(problem, params):
            return _no_window(package.name, problem, params)
        return package.why_not(problem, sink_logit=params["sink"] == "logit")

    def why_not_backward(problem: Problem, params: Params, device: str) -> str | None:
        return package.no_sink_gradient if params["sink"] == "logit" else None

    return Impl(lambda: call, package.name, why_not, grouped=True, continues=True, why_not_backward=why_not_backward)


CORE = Form(
    reference,
    make_inputs,
    cost,
    impls={
        "sdpa": Impl(_sdpa, "torch SDPA, its own choice of kernel", _sdpa_why_not, grouped=True, continues=True),
        "cuda": Impl(_cuda, "FlexAttention, block mask", _cuda_why_not, grouped=True, continues=True),
        **{f"cuda:{name}": _package(package) for name, package in PACKAGES.items()},
    },
    state=state,
)

OPERATOR = Operator(
    paper=Paper("Jiang et al.", 2023, "Mistral 7B", "https://arxiv.org/abs/2310.06825", "sec. 2, sliding window"),
    forms=with_graph({"core": CORE, "layer": projected(CORE)}, "sdpa", "cuda"),
    complexity=lambda params: Complexity(time="n", memory="n"),
    pairs=lambda params, causal: "fixed",
    params={
        "window": Param(4096, "W, tokens seen, the token itself among them", minimum=1),
        "sink": Param("none", "what takes surplus weight", ("none", "tokens", "logit")),
        "sink_tokens": Param(4, "g, the first tokens, which sink: tokens always sees", minimum=1),
    },
    domains=("sequence",),
    full="the window ends at the token itself; `local` has one with as many tokens after it",
    grouped=True,
    continues=True,
    notes="its cache keeps the window and the sink tokens",
)
