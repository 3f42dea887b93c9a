"""y_i = Σ_j p_ij v_j, p_i = softmax_j(q_iᵀ k_j / √D) over j ≤ i in A¹ or in A² (each its own heads), or in A¹ ∪ A².

Child et al. 2019, "Generating Long Sequences with Sparse Transformers", sec. 4.2 and 4.3,
https://arxiv.org/abs/1904.10509. l is `stride`, about √N.
`kind` strided: A¹ is 0 ≤ i − j ≤ l, A² is (i − j) mod l = 0. fixed: A¹ is ⌊j/l⌋ = ⌊i/l⌋, A² is j mod l ≥ l − c, the
last c = `summary` positions of every block; where A² is empty (i < l − c) y_i = 0.
`heads` split: A¹ for the first half of the heads (rounded up), A² for the rest; union: A¹ ∪ A² for all, each key once.
The paper is causal. On a problem that is not, j ≤ i is dropped and the window is |i − j| ≤ l.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from attnbench.grouped import hide_merged, merged, separated
from attnbench.inputs import heads
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.sparse import _fixed, _mixed, local, strided
from attnbench.operators.sparse._mixed import Part
from attnbench.operators.sparse._pairs import pair_cost
from attnbench.operators.sparse._size import SQRT, size
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.projection import projected
from attnbench.state import appended, caches, drawn_caches
from attnbench.window import (
    Windows,
    class_length,
    class_windows,
    executed_pairs,
    from_classes,
    outside_window,
    past_keys,
    to_classes,
    window_pairs,
    window_scores,
    window_values,
    windows,
)


def reference(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, **cache: Tensor) -> Tensor:
    """Split heads by the forms of their patterns; a union in one softmax.

    Args:
        q: [B, H, Q, D].
        k, v: [B, Hk, Q, D].
        cache: where Q < N, `state`.

    Returns: [B, H, Q, D].
    """
    if params["heads"] == "split":
        return _mixed.reference(problem, parts(problem, params), q, k, v, **cache)
    if params["kind"] == "fixed":
        return _fixed.union(problem, fixed_params(problem, params), q, k, v, **cache)
    k, v = appended(cache.get("k_cache"), k), appended(cache.get("v_cache"), v)
    return _window_and_stride(problem, stride(problem, params), q, k, v)


def stride(problem: Problem, params: Params) -> int:
    """l."""
    return size(params["stride"], problem.seq_len)


def fixed_params(problem: Problem, params: Params) -> Params:
    """The params of the forms of fixed attention."""
    return {"block": stride(problem, params), "summary": params["summary"]}


def parts(problem: Problem, params: Params) -> tuple[Part, Part]:
    """The form and params of each of the two groups of split heads."""
    if params["kind"] == "fixed":
        inner = fixed_params(problem, params)
        return (
            Part(_fixed.OWN, inner, drawn=_fixed.own_drawn),
            Part(_fixed.SUMMARIES, inner, drawn=_fixed.summary_drawn),
        )
    width = stride(problem, params)
    return (
        Part(local.CORE, {"window": width}, drawn=local.drawn),
        Part(strided.CORE, {"stride": width, "reach": "all"}, drawn=strided.drawn),
    )


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the logits have variance 1."""
    data = heads(problem, generator, "q", "k", "v")
    new = data["k"], data["v"]
    if params["heads"] == "split":
        return Inputs(data, state=_mixed.drawn(problem, parts(problem, params), generator, *new))
    if params["kind"] == "fixed":
        return Inputs(data, state=_fixed.union_drawn(problem, fixed_params(problem, params), generator, *new))
    return Inputs(data, state=drawn_caches(problem, generator, *new))


def state(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Keys and values by `heads` and `kind`, in sizes of N.

    Split heads keep what their own pattern sees: of the window the last l tokens, of the stride all; of the block the
    tokens since it began, of the summaries their positions. A union keeps all tokens (strided: every one is seen once
    in the next l), or the summaries of whole blocks and the block that has begun.
    """
    if params["heads"] == "split":
        return _mixed.state(problem, parts(problem, params), q, k, v)
    if params["kind"] == "fixed":
        return _fixed.union_state(problem, fixed_params(problem, params), q, k, v)
    return caches(problem, k, v)


def _window_and_stride(problem: Problem, width: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One softmax over the scores of the window and those of the residue class, put in the order of tokens."""
    queries, past, group = problem.query_len, problem.past, problem.group
    q = q * problem.head_dim**-0.5
    before, after = local.sides(problem, {"window": width})
    near, far = class_windows(queries, before, after, 1, past), _class_in_one_block(problem, width)
    near_scores = window_scores(q, k, near)  # [B·Hk, 1, blocks, block·G, keys]
    outside = outside_window(near, queries, before, after, 1, 0, q.device, past)
    if outside is not None:
        near_scores = hide_merged(near_scores, outside)
    far_scores = window_scores(q, k, far, width)[:, :, 0]  # [B·Hk, l, N/l·G, N/l]
    far_scores = _hide_far(far_scores, problem, width, far)
    classes = min(width, queries)  # of which there are queries
    in_order = from_classes(separated(far_scores, group, 2), classes, q)  # [B, H, Q, N/l]
    in_order = pad(in_order, (0, 0, 0, near.blocks * near.block - queries))
    in_order = in_order.view(q.shape[0] * q.shape[1], 1, near.blocks, near.block, far.keys)
    weights = torch.cat((near_scores, merged(in_order, group, 3)), dim=-1).softmax(dim=-1)
    near_weights, in_order = weights.split((near_scores.shape[-1], far.keys), dim=-1)
    in_order = separated(in_order, group, 3).reshape(*q.shape[:2], near.blocks * near.block, far.keys)[:, :, :queries]
    far_weights = merged(to_classes(in_order, classes)[:, :, None], group, 3)  # [B·Hk, l, 1, N/l·G, N/l]
    return window_values(near_weights, v, q, near) + window_values(far_weights, v, q, far, width)


def _class_in_one_block(problem: Problem, width: int) -> Windows:
    """Each class in one block of queries with all its keys; where Q < N without the last two, which the window has."""
    n, queries = problem.seq_len, problem.query_len
    if not problem.past:
        return windows(class_length(n, width), n, n)
    cut = class_windows(queries, n, 0, width, problem.past)
    return replace(cut, after=-min(2, cut.keys))


def _hide_far(scores: Tensor, problem: Problem, width: int, cut: Windows) -> Tensor:
    """Hides the pairs of a class that the window has, that are not allowed or not of the N tokens.

    scores: [B·Hk, l, N/l·G, N/l].
    """
    queries, past = problem.query_len, problem.past
    if past and cut.length == 1 and past // width >= cut.before:
        return scores  # each class has one query, and all keys are before it
    position = torch.arange(-cut.before, cut.length + cut.after, device=scores.device)
    back = torch.arange(cut.length, device=scores.device)[:, None] - position
    outside = (back <= 1) if problem.causal else (back.abs() <= 1)
    differ = queries % width or past % width
    residue = torch.arange(min(width, queries) if differ else 1, device=scores.device).view(-1, 1, 1)
    token = position * width + residue
    outside = outside | (token >= queries)
    return hide_merged(scores, outside | (token < -past) if past else outside)


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Causal: eager blocks and classes are multiplied whole, about twice the pairs required; see the patterns' forms.

    A union multiplies the pairs that its two patterns share twice: two of every class's row, c of every block's.
    """
    if params["heads"] == "split":
        return _mixed.cost(problem, parts(problem, params), mode)
    if params["kind"] == "fixed":
        return _fixed.union_cost(problem, fixed_params(problem, params), mode)
    width, past, queries = stride(problem, params), problem.past, problem.query_len
    before, after = local.sides(problem, {"window": width})
    far = _class_in_one_block(problem, width)
    executed = executed_pairs(queries, before, after, past=past) + min(width, queries) * far.pairs
    cached = past_keys(queries, before, 1, past) + past_keys(queries, problem.seq_len, width, past)
    cached -= past_keys(queries, 1, width, past)  # the window has the last of each class
    pairs = _union_pairs(problem, width, problem.seq_len) - _union_pairs(problem, width, past)
    return pair_cost(problem, mode, pairs, executed, cached, state_tokens=problem.seq_len)


def _union_pairs(problem: Problem, width: int, tokens: int) -> int:
    """Pairs of a window or a class among the first tokens."""
    before, after = local.sides(problem, {"window": width})
    shared = window_pairs(tokens, 1, min(after, 1), width)  # i − j in {0, l} and, where not causal, −l
    in_class = window_pairs(tokens, tokens, 0 if problem.causal else tokens, width)
    return window_pairs(tokens, before, after) + in_class - shared


def why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    """Split heads need two."""
    if params["heads"] == "split" and problem.heads < 2:
        return "heads: split needs at least 2 heads, one for each pattern; a single head takes heads: union"
    return None


def _cuda() -> Callable[..., Tensor]:
    from attnbench.kernels.flex import patterns
    from attnbench.kernels.flex import windows as flex

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if params["heads"] == "split":
            return _mixed.accelerated(problem, parts(problem, params), q, k, v)
        if params["kind"] == "fixed":
            return _fixed.UNION_CUDA.load()(problem, fixed_params(problem, params), q, k, v)
        n, width = problem.seq_len, stride(problem, params)
        before, after = local.sides(problem, {"window": width})
        near = flex.attend_with_lse(q, k, v, flex.window_mask(n, before, after, 1, 0, q.device))
        queries = merged(to_classes(q, width), problem.group, 1)  # [B·Hk, l·G, N/l, D]
        keys, values = (to_classes(x, width) for x in (k, v))  # [B·Hk, l, N/l, D]
        apart = patterns.distant(n, width, problem.causal, q.device, problem.group)
        each = flex.attend_with_lse(queries, keys, values, apart)
        far, lse = (separated(x, problem.group, 1) for x in each)
        lse = from_classes(lse.unsqueeze(-1), width, q).squeeze(-1)  # [B, H, N]
        return flex.merge(*near, from_classes(far, width, q), lse)

    return call


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    from attnbench.kernels.flex import windows as flex

    if params["heads"] == "split":
        return _mixed.why_not(problem, parts(problem, params), device)
    return flex.why_not(problem, problem.seq_len, 2 * problem.seq_len)


CUDA = Impl(_cuda, "FlexAttention, block masks; torch SDPA", _cuda_why_not, grouped=True)
CORE = Form(reference, make_inputs, cost, impls={"cuda": CUDA}, state=state)

OPERATOR = Operator(
    paper=Paper(
        "Child et al.",
        2019,
        "Generating Long Sequences with Sparse Transformers",
        "https://arxiv.org/abs/1904.10509",
        "sec. 4.2 and 4.3",
    ),
    forms=with_graph({"core": CORE, "layer": projected(CORE)}, "cuda"),
    complexity=lambda params: (
        Complexity(time="n^1.5", memory="n^1.5") if params["stride"] == SQRT else Complexity(time="n^2", memory="n^2")
    ),
    pairs=lambda params, causal: "fixed",
    approaches=lambda params: "stride" if params["heads"] == "union" else None,
    grouped=True,
    continues=True,
    params={
        "kind": Param("strided", "a window and every l-th token, or blocks and their summaries", ("strided", "fixed")),
        "heads": Param("split", "each pattern its own heads, or every head the union", ("split", "union")),
        "stride": Param(SQRT, "l: the window, the stride and the block", (SQRT,), minimum=1),
        "summary": Param(8, "c: the last positions of a block that later ones see (kind fixed)", minimum=1),
    },
    why_not=why_not,
)
