"""How blocks are chosen by their scores, tile after tile of queries; and the param that says when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from attnbench.operator import Param
from attnbench.problem import Params, Scope

SELECTION = Param("inside", "blocks chosen in the call, or once with the inputs", ("inside", "given"))

TILE_ELEMENTS = 1 << 21
"""Scores of a tile of queries with all blocks, at least; or TILE_SHARE times the elements of the queries."""

TILE_SHARE = 4

P = ParamSpec("P")
R = TypeVar("R")


def never_compiled(choice: Callable[P, R]) -> Callable[P, R]:
    """A function that stays eager where it is called by compiled code.

    Compiled it would add in another order, and so choose the other of two that are nearly equal. torch's compiler,
    which takes longer to import than torch, is imported only where it runs.
    """

    @wraps(choice)
    def eager(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            outside: Callable[P, R] = torch.compiler.disable(choice)
            return outside(*args, **kwargs)
        return choice(*args, **kwargs)

    return eager


def tiles_of_queries(q: Tensor, blocks: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 query of tiles of which all scores are held at once. q: [B, H, Q, D]."""
    b, h, queries, d = q.shape
    yield from tiles(b * h, queries, d, blocks)


def tiles(heads: int, queries: int, width: int, blocks: int) -> Iterator[tuple[int, int]]:
    """As `tiles_of_queries`, from sizes alone."""
    limit = max(TILE_ELEMENTS, TILE_SHARE * heads * queries * width)
    tile = max(1, limit // (heads * max(1, blocks)))
    for first in range(0, queries, tile):
        yield first, min(first + tile, queries)


def largest_blocks(scores: Tensor, allowed: Tensor, count: int) -> Tensor:
    """The allowed blocks of the largest scores: int32 […, min(count, blocks)], −1 where fewer are allowed.

    Args:
        scores: […, blocks]; changed in place.
        allowed: bool, [T, blocks] or alike.
    """
    largest, index = scores.masked_fill_(~allowed, float("-inf")).topk(min(count, scores.shape[-1]), dim=-1)
    return torch.where(largest == float("-inf"), -1, index).int()


def not_in_a_layer(params: Params, scope: Scope) -> str | None:
    """The reason that blocks cannot be chosen inside a layer, or None."""
    if scope == "layer" and params["selection"] == "inside":
        return (
            "selection: inside in a layer is not a fixed map: the projection's rounding flips the choice of blocks; "
            "use selection: given"
        )
    return None
