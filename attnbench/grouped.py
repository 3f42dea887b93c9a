"""Groups of G = H / Hk query heads that read one head of keys and values (Ainslie et al. 2023, "GQA",
https://arxiv.org/abs/2305.13245): the queries of a group become rows, so that no key or value is repeated in memory.

Consecutive heads are a group: query head h reads head ⌊h / G⌋ of keys and values.
"""

from __future__ import annotations

from torch import Tensor

from attnbench.masking import hide


def folded(q: Tensor, keys: Tensor) -> Tensor:
    """The queries of each group one after the other: [B, H, Q, D] → [B, Hk, G · Q, D]; a view where q is contiguous.

    keys: any tensor of keys or values: its second axis is Hk.
    """
    return q if q.shape[1] == keys.shape[1] else q.reshape(q.shape[0], keys.shape[1], -1, q.shape[-1])


def unfolded(y: Tensor, q: Tensor) -> Tensor:
    """The opposite, for outputs: [B, Hk, G · Q, D] → [B, H, Q, D]. q: the queries that were folded."""
    return y if y.shape[1] == q.shape[1] else y.reshape(*q.shape[:3], y.shape[-1])


def hide_for_each(scores: Tensor, outside: Tensor) -> Tensor:
    """`hide` of a mask [Q, …] in scores of folded queries, [B, Hk, G · Q, …], without a copy of it for each of G."""
    if scores.shape[-2] == outside.shape[-2]:
        return hide(scores, outside)
    hide(scores.unflatten(-2, (-1, outside.shape[-2])), outside)  # a view
    return scores


def group_of(q: Tensor, keys: Tensor) -> int:
    """G, of queries and of keys or values."""
    return q.shape[1] // keys.shape[1]


def merged(x: Tensor, group: int, dim: int, heads: int = 0) -> Tensor:
    """The queries of a group of heads one after the other: [B·H, …, n, …] → [B·Hk, …, n·G, …], n the axis `dim`.

    heads: the axis of the heads, with or without the batch, before `dim`.
    """
    if group == 1:
        return x
    rows: Tensor = x.unflatten(heads, (-1, group)).movedim(heads + 1, dim + 1).flatten(dim, dim + 1)
    return rows


def separated(y: Tensor, group: int, dim: int, heads: int = 0) -> Tensor:
    """The opposite of `merged`: [B·Hk, …, n·G, …] → [B·H, …, n, …]."""
    if group == 1:
        return y
    rows: Tensor = y.unflatten(dim, (-1, group)).movedim(dim + 1, heads + 1).flatten(heads, heads + 1)
    return rows


def hide_merged(scores: Tensor, outside: Tensor) -> Tensor:
    """`hide` of a mask [… n or 1, keys] in scores of merged queries, [… n·G, keys], without a copy for each of G."""
    if outside.shape[-2] in (1, scores.shape[-2]):
        return hide(scores, outside)
    hide(scores.unflatten(-2, (outside.shape[-2], -1)), outside.unsqueeze(-2))  # a view
    return scores
