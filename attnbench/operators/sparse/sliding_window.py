"""y_i = Σ_j p_ij v_j, p_i a softmax of q_iᵀ k_j / √D over 0 ≤ i − j ≤ W − 1: W keys, its own included (i ≥ W − 1).

`sink`: what takes the weight that no key of the window should have.
none: nothing; `local`, causal, with w = W − 1.
tokens: the g first tokens are seen as well, those with j ≤ i: 0 ≤ i − j ≤ W − 1 or j < g, each once.
logit: a learned number s_h of each query head is one more logit, after the scale, in the denominator alone:
p_ij = exp(l_ij) / (exp(s_h) + Σ_j' exp(l_ij')), which is softmax · σ(lse_i − s_h).

Jiang et al. 2023, "Mistral 7B", sec. 2 "Sliding Window Attention", https://arxiv.org/abs/2310.06825 (W = 4096). tokens:
Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks", sec. 3.2, https://arxiv.org/abs/2309.17453
(g = 4); its new numbers of positions in the cache are a matter of position encodings. logit: OpenAI 2025, "gpt-oss-120b
& gpt-oss-20b Model Card", https://arxiv.org/abs/2508.10925 (W = 128).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log

import torch
from torch import Generator, Tensor

from attnbench.cost import product, traffic
from attnbench.grouped import folded, hide_for_each, hide_merged, unfolded
from attnbench.inputs import heads, normal
from attnbench.kernels.library.flash_attention import PACKAGES, Package
from attnbench.kernels.library.graphs import with_graph
from attnbench.kernels.library.sdpa_backends import after_cache
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
    q, cut = q * problem.head_dim**-0.5, cut_of(problem, params)
    if cut is None:
        return _in_one_block(problem, params, q, k, v, sink_logit)
    in_front = sinks_in_front(problem, params)
    scores = window_scores(q, k, cut, hubs=in_front)  # [B·Hk, 1, blocks, block·G, keys]
    scores = hide_merged(scores, _outside(problem, params, cut, in_front, q.device))
    if sink_logit is not None:
        sink_logit = sink_logit.view(-1, problem.group).repeat(problem.batch, cut.block)[:, None, None]
    return window_values(_weights(scores, sink_logit), v, q, cut, hubs=in_front)


def _in_one_block(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, sink_logit: Tensor | None
) -> Tensor:
    """All queries with all keys that there are. q: scaled."""
    scores = folded(q, k) @ k.transpose(-2, -1)  # [B, Hk, G·Q, keys]
    if problem.query_len > 1:
        scores = hide_for_each(scores, _outside_in_one_block(problem, params, q.device))
    if sink_logit is not None:
        sink_logit = sink_logit.view(-1, problem.group).repeat_interleave(problem.query_len, dim=1)
    return unfolded(_weights(scores, sink_logit) @ v, q)


def _weights(scores: Tensor, sink_logits: Tensor | None) -> Tensor:
    """Of all scores of a row, in their shape, with a sink logit in its sum, which broadcasts to the rows."""
    if sink_logits is None:
        return scores.softmax(dim=-1)
    column = sink_logits[..., None].expand(*scores.shape[:-1], 1)
    return torch.cat((scores, column), dim=-1).softmax(dim=-1)[..., :-1]


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


def cut_of(problem: Problem, params: Params) -> Windows | None:
    """The blocks of queries; None: one, of all queries and all keys in their places."""
    tokens = kept_tokens(problem, params)
    cut = windows(problem.query_len, params["window"] - 1, 0, tokens - problem.query_len)
    return cut if cut.blocks > 1 else None


def sinks_in_front(problem: Problem, params: Params) -> int:
    """Sink tokens before the keys of each of several blocks: those that are outside a window."""
    return min(sink_tokens(params), max(0, kept_tokens(problem, params) - params["window"]))


def _outside(problem: Problem, params: Params, cut: Windows, in_front: int, device: torch.device) -> Tensor:
    """True where a score of a block is of no pair: [1, blocks, block, keys]."""
    past = kept_tokens(problem, params) - problem.query_len
    outside = outside_window(cut, problem.query_len, params["window"] - 1, 0, 1, in_front, device, past)
    assert outside is not None  # blocks overlap windows
    if past < in_front:  # the first sink tokens see none that comes after them
        query = torch.arange(past, past + cut.blocks * cut.block, device=device).view(cut.blocks, cut.block, 1)
        outside[..., :in_front] = torch.arange(in_front, device=device) > query
    return outside


def _outside_in_one_block(problem: Problem, params: Params, device: torch.device) -> Tensor:
    """The same of all queries and all keys: [Q, keys]."""
    tokens = kept_tokens(problem, params)
    if sees_all(problem, params):
        return ahead(problem.query_len, tokens, device)
    key = torch.arange(tokens, device=device)
    back = key[-problem.query_len :, None] - key
    return (back < 0) | ((back >= params["window"]) & (key >= sink_tokens(params)))


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
    cut = cut_of(problem, params)
    if cut is None:
        executed = problem.query_len * kept_tokens(problem, params)
    else:
        executed = cut.pairs + cut.blocks * cut.block * sinks_in_front(problem, params)
    logits = problem.heads if params["sink"] == "logit" else 0
    return replace(
        windowed,
        reference_flops=2 * product(problem.batch * problem.channels * executed, mode),  # q kᵀ and p v
        bytes_required=windowed.bytes_required + traffic(problem, mode, read=logits, written=0),
    )


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
        "sdpa": Impl(
            lambda: after_cache, "torch SDPA, its own choice of kernel", _sdpa_why_not, grouped=True, continues=True
        ),
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
    approaches=lambda params: None if params["sink"] == "logit" else "window",
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
