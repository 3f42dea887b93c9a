"""What a causal operator has of earlier tokens where it continues: caches of keys and values, or states of fixed size.

A cache has room for the Q new tokens at its end; a call writes its own there, the same slots every time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from torch import Generator, Tensor
from torch.nn.functional import pad

from attnbench.inputs import normal
from attnbench.operator import Inputs
from attnbench.problem import Params, Problem

CACHES = ("k_cache", "v_cache")

MOST_DRAWN = 1024
"""A state of fixed size is made of at most so many tokens where inputs are drawn: its size and cost are the same."""


def drawn_caches(
    problem: Problem, generator: Generator, k: Tensor, v: Tensor, most: int | None = None
) -> dict[str, Tensor]:
    """N(0, 1) caches [B, Hk, rows + Q, D] of the last `most` tokens (None: all) before the new ones; {} where Q = N.

    k, v: the new ones, [B, Hk, Q, D], which are there already, so that a call leaves its inputs as they were drawn.
    """
    if not problem.past:
        return {}
    shape = (problem.batch, problem.kv_heads, cached_rows(problem, most) + problem.query_len, problem.head_dim)
    return {name: appended(normal(problem, generator, *shape), new) for name, new in zip(CACHES, (k, v), strict=True)}


def cached_rows(problem: Problem, most: int | None = None) -> int:
    """How many of the tokens before the new ones a cache of the last `most` holds (None: of all)."""
    return problem.past if most is None else min(problem.past, most)


def with_room(problem: Problem, x: Tensor, most: int | None = None) -> Tensor:
    """The last `most` tokens (None: all) of x, and room for the new ones: [B, Hk, P, D] → [B, Hk, rows + Q, D]."""
    rows = cached_rows(problem, most)
    return pad(x[..., x.shape[-2] - rows :, :], (0, 0, 0, problem.query_len))


def caches(problem: Problem, k: Tensor, v: Tensor, most: int | None = None) -> dict[str, Tensor]:
    """`Inputs.state` of an operator that keeps the keys and values of the last `most` tokens (None: of all)."""
    return dict(zip(CACHES, (with_room(problem, x, most) for x in (k, v)), strict=True))


def appended(cache: Tensor | None, new: Tensor) -> Tensor:
    """The cache with the new tokens in its last rows; without a cache the new tokens, which then are all there are."""
    if cache is None:
        return new
    cache[..., cache.shape[-2] - new.shape[-2] :, :] = new
    return cache


def causal_pairs(problem: Problem) -> int:
    """Pairs (i, j) with j ≤ i of the new tokens i with all: Q (N − Q) + Q (Q + 1) / 2."""
    q = problem.query_len
    return q * problem.past + q * (q + 1) // 2


def cache_bytes(problem: Problem, tokens: int) -> int:
    """Bytes of the keys and values of so many tokens."""
    return 2 * problem.batch * tokens * problem.kv_channels * problem.item_bytes


def drawn_state(
    make_inputs: Callable[..., Inputs],
    state: Callable[..., dict[str, Tensor]],
    problem: Problem,
    params: Params,
    generator: Generator,
    shared: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """A state of fixed size as the form leaves it after (at most MOST_DRAWN) tokens; {} where Q = N.

    Args:
        make_inputs, state: of the form.
        shared: parameters and choices, the same for the tokens before as for the new ones.
    """
    if not problem.past:
        return {}
    short = replace(problem, seq_len=min(problem.past, MOST_DRAWN) + problem.query_len, height=None, width=None)
    before = make_inputs(short.before, params, generator)
    return state(short, params, **{**before.tensors(), **shared})
