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

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.masking import hide
from attnbench.operator import Complexity, Cost, Form, Impl, Operator, Paper, Param
from attnbench.operators.sparse import _fixed, _mixed, local, strided
from attnbench.operators.sparse._fixed import make_inputs, pair_cost
from attnbench.operators.sparse._mixed import Part
from attnbench.operators.sparse._size import SQRT, size
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.projection import projected
from attnbench.window import (
    class_length,
    executed_pairs,
    from_classes,
    outside_window,
    to_classes,
    window_pairs,
    window_scores,
    window_values,
    windows,
)


def reference(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: [B, H, N, D]. Returns [B, H, N, D]."""
    if params["heads"] == "split":
        return _mixed.reference(problem, parts(problem, params), q, k, v)
    if params["kind"] == "fixed":
        return _fixed.union(problem, fixed_params(problem, params), q, k, v)
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
        return Part(_fixed.OWN, inner), Part(_fixed.SUMMARIES, inner)
    width = stride(problem, params)
    return Part(local.CORE, {"window": width}), Part(strided.CORE, {"stride": width, "reach": "all"})


def _window_and_stride(problem: Problem, width: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One softmax over the scores of the window and those of the residue class, put in the order of tokens."""
    n = problem.seq_len
    q = q * problem.head_dim**-0.5
    before, after = local.sides(problem, {"window": width})
    near, far = windows(n, before, after), windows(class_length(n, width), n, n)  # far: each class in one block
    near_scores = window_scores(q, k, near)  # [B·H, 1, blocks, block, keys]
    outside = outside_window(near, n, before, after, 1, 0, q.device)
    if outside is not None:
        near_scores = hide(near_scores, outside)
    far_scores = window_scores(q, k, far, width)[:, :, 0]  # [B·H, l, N/l, N/l]
    far_scores = hide(far_scores, _outside_far(problem, width, q.device))
    in_order = from_classes(far_scores, width, q)  # [B, H, N, N/l]
    in_order = pad(in_order, (0, 0, 0, near.blocks * near.block - n)).view(*near_scores.shape[:-1], -1)
    weights = torch.cat((near_scores, in_order), dim=-1).softmax(dim=-1)
    near_weights, in_order = weights.split((near_scores.shape[-1], in_order.shape[-1]), dim=-1)
    in_order = in_order.reshape(*q.shape[:2], near.blocks * near.block, -1)[:, :, :n]
    far_weights = to_classes(in_order, width)[:, :, None]  # [B·H, l, 1, N/l, N/l]
    return window_values(near_weights, v, q, near) + window_values(far_weights, v, q, far, width)


def _outside_far(problem: Problem, width: int, device: torch.device) -> Tensor:
    """True for pairs of a class that the window has, that are not allowed or beyond N: [l or 1, N/l, N/l]."""
    length = class_length(problem.seq_len, width)
    position = torch.arange(length, device=device)
    back = position[:, None] - position
    outside = (back <= 1) if problem.causal else (back.abs() <= 1)
    residue = torch.arange(width if problem.seq_len % width else 1, device=device).view(-1, 1, 1)
    return outside | (position * width + residue >= problem.seq_len)


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Causal: eager blocks and classes are multiplied whole, about twice the pairs required; see the patterns' forms.

    A union multiplies the pairs that its two patterns share twice: two of every class's row, c of every block's.
    """
    if params["heads"] == "split":
        return _mixed.cost(problem, parts(problem, params), mode)
    if params["kind"] == "fixed":
        return _fixed.union_cost(problem, fixed_params(problem, params), mode)
    n, width = problem.seq_len, stride(problem, params)
    before, after = local.sides(problem, {"window": width})
    shared = window_pairs(n, 1, min(after, 1), width)  # i − j in {0, l} and, where not causal, −l
    pairs = window_pairs(n, before, after) + window_pairs(n, n, 0 if problem.causal else n, width) - shared
    return pair_cost(problem, mode, pairs, executed_pairs(n, before, after) + executed_pairs(n, n, n, width))


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
        queries, keys, values = (to_classes(x, width) for x in (q, k, v))  # [B·H, l, N/l, D]
        apart = patterns.distant(n, width, problem.causal, q.device)
        far, lse = flex.attend_with_lse(queries, keys, values, apart)
        lse = from_classes(lse.unsqueeze(-1), width, q).squeeze(-1)  # [B, H, N]
        return flex.merge(*near, from_classes(far, width, q), lse)

    return call


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    from attnbench.kernels.flex import windows as flex

    if params["heads"] == "split":
        return _mixed.why_not(problem, parts(problem, params), device)
    return flex.why_not(problem, problem.seq_len, 2 * problem.seq_len)


CORE = Form(
    reference, make_inputs, cost, impls={"cuda": Impl(_cuda, "FlexAttention, block masks; torch SDPA", _cuda_why_not)}
)

OPERATOR = Operator(
    paper=Paper(
        "Child et al.",
        2019,
        "Generating Long Sequences with Sparse Transformers",
        "https://arxiv.org/abs/1904.10509",
        "sec. 4.2 and 4.3",
    ),
    forms={"core": CORE, "layer": projected(CORE)},
    complexity=lambda params: (
        Complexity(time="n^1.5", memory="n^1.5") if params["stride"] == SQRT else Complexity(time="n^2", memory="n^2")
    ),
    params={
        "kind": Param("strided", "a window and every l-th token, or blocks and their summaries", ("strided", "fixed")),
        "heads": Param("split", "each pattern its own heads, or every head the union", ("split", "union")),
        "stride": Param(SQRT, "l: the window, the stride and the block", (SQRT,), minimum=1),
        "summary": Param(8, "c: the last positions of a block that later ones see (kind fixed)", minimum=1),
    },
    why_not=why_not,
)
