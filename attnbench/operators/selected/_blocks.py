"""y_i = Σ_j p_ij v_j, p_i = softmax_j(q_iᵀ k_j) over the tokens j ≤ i of the blocks that query i has chosen.

As `_gather`, in its place where many queries choose among few blocks. Each (query, chosen block) is an entry of a line,
sorted by block and cut into chunks of c entries of one block, so that the keys of a block are read once for c queries.
The last chunk of a block is padded with entries of nobody. The entries of a query are merged by their largest score.
How many chunks there can be is known from the sizes alone: queries choose as many blocks as they can see, up to n.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.cost import product
from attnbench.grouped import merged, separated
from attnbench.masking import hide
from attnbench.operators.selected import _gather
from attnbench.operators.selected._gather import blocks_of, of_tile
from attnbench.problem import Mode, Problem

TILE_ELEMENTS = 1 << 22
"""Elements of a tile of queries, at least; where they are fewer, `TILE_SHARE` times those of all keys and values."""

TILE_SHARE = 8

CHUNK_ROWS = 64
"""Queries, of all heads that share a choice, that are multiplied with a block at a time."""

PADDED_SHARE = 4
"""Chunks are short enough that at most one of so many entries is nobody's."""


@dataclass(frozen=True)
class Cut:
    """How Q queries of the tokens past … past + Q − 1, with n chosen blocks of b tokens each, are cut.

    Attributes:
        tile: queries of a tile, which is computed at once.
        chunk: c, entries of a chunk; 1: the keys are gathered for each query.
    """

    queries: int
    past: int
    slots: int
    block: int
    tile: int
    chunk: int

    def tiles(self) -> Iterator[tuple[int, int]]:
        """First and last + 1 query of each tile."""
        for first in range(0, self.queries, self.tile):
            yield first, min(first + self.tile, self.queries)

    def chunks(self, first: int, end: int) -> int:
        """As many as the entries of a tile of queries can take."""
        entries = filled(self.past + first, self.past + end, self.slots, self.block)
        blocks = min(-(-(self.past + end) // self.block), entries)
        return min(entries, (entries + blocks * (self.chunk - 1)) // self.chunk)

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that are multiplied, of one head."""
        if self.chunk == 1:
            return self.queries * self.slots * self.block
        return sum(self.chunks(*tile) for tile in self.tiles()) * self.chunk * self.block

    @property
    def again(self) -> bool:
        """Whether tiles are computed again in backward."""
        return self.tile < self.queries


def filled(first: int, end: int, slots: int, block: int) -> int:
    """Blocks that the tokens first … end − 1 choose: Σ_i min(n, ⌊i/b⌋ + 1)."""
    return _filled(end, slots, block) - _filled(first, slots, block)


def _filled(tokens: int, slots: int, block: int) -> int:
    rising = min(tokens, slots * block)  # tokens that see less than n blocks, or all of them
    blocks, rest = divmod(rising, block)
    return block * blocks * (blocks + 1) // 2 + rest * (blocks + 1) + (tokens - rising) * slots


def seen_pairs(first: int, end: int, slots: int, block: int) -> int:
    """Tokens that the tokens first … end − 1 see: Σ_i (i mod b) + 1 + b·min(n − 1, ⌊i/b⌋)."""
    return _seen(end, slots, block) - _seen(first, slots, block)


def _seen(tokens: int, slots: int, block: int) -> int:
    blocks, rest = divmod(tokens, block)
    own = blocks * block * (block + 1) // 2 + rest * (rest + 1) // 2
    return own + block * (_filled(tokens, slots, block) - tokens)


def cut(q: tuple[int, ...], k: tuple[int, ...], values: int, sets: int, slots: int, block: int) -> Cut:
    """The cut of queries, from sizes alone.

    Args:
        q, k: shapes, [B, H, Q, K] and [B, Hk, N, K].
        values: V.
        sets: S, choices of a token.
        slots, block: n and b.
    """
    batch, heads, queries, keys = q
    kv_heads, tokens = k[1:3]
    sets = max(kv_heads, sets)
    rows = heads // sets
    each = batch * sets * slots * (rows * (keys + values + 2 * block) + keys + values)
    limit = max(TILE_ELEMENTS, TILE_SHARE * batch * kv_heads * tokens * (keys + values))
    tiles = max(1, -(-queries * each // limit))
    tile = -(-queries // tiles)
    entries, blocks = tile * slots, -(-tokens // block)
    chunk = max(1, min(CHUNK_ROWS // rows, entries // (PADDED_SHARE * blocks)))
    return Cut(queries, tokens - queries, slots, block, tile, chunk)


def executed(problem: Problem, sets: int, slots: int, block: int, mode: Mode) -> int:
    """FLOPs of `attend` for each head and each channel of keys and values, which have D. sets: S."""
    b, d = problem.batch, problem.head_dim
    q, k = ((b, heads, n, d) for heads, n in ((problem.heads, problem.query_len), (problem.kv_heads, problem.seq_len)))
    sizes = cut(q, k, d, sets, slots, block)
    again = 0  # of both products in backward
    if mode == "fwd_bwd":
        gathers = sizes.chunk == 1
        again = int(_gathers_again(q, k, sets, sizes)) if gathers else 2 * int(sizes.again)
    return 2 * product(sizes.pairs, mode) + again * product(sizes.pairs, "fwd")


def _gathers_again(q: tuple[int, ...], k: tuple[int, ...], sets: int, sizes: Cut) -> bool:
    """Whether the scores of gathered keys are computed again in backward."""
    queries, keys = (torch.empty(shape, device="meta") for shape in (q, k))
    keys = blocks_of(keys, sizes.block)
    chosen = torch.empty(q[0], sets, q[2], sizes.slots, device="meta")
    return _gather.tile_queries(queries, keys, keys, chosen) < q[2]


def attend(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block: int) -> Tensor:
    """The queries are the last of the tokens.

    Args:
        q: [B, H, Q, K], already scaled.
        k, v: [B, Hk, N, K], [B, Hk, N, V]: of all tokens.
        chosen: int [B, S, Q, n], S = Hk or H, the blocks of each query: token i has min(n, ⌊i/b⌋ + 1) different ones,
            its own among them, and −1 in the other slots.
        block: b.
    Returns: [B, H, Q, V].
    """
    sizes = cut(q.shape, k.shape, v.shape[-1], chosen.shape[1], chosen.shape[-1], block)
    if sizes.chunk == 1:
        return _gather.attend(q, k, v, chosen.long(), block)
    k, v = blocks_of(k, block), blocks_of(v, block)
    parts = []
    for first, end in sizes.tiles():
        arguments = (q[..., first:end, :], k, v, chosen[..., first:end, :], sizes, first)
        parts.append(of_tile(_attend_tile, *arguments, again=sizes.again))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def _attend_tile(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, sizes: Cut, first: int) -> Tensor:
    """q: [B, H, T, K] of the queries first … first + T − 1; k, v: in blocks. Returns [B, H, T, V]."""
    b, heads, queries, width = q.shape
    sets = max(k.shape[1], chosen.shape[1])
    rows = heads // sets
    line = sorted_by_block(chosen, sizes, first, k.shape[2])
    chunks = line.block.shape[-1]

    query = line.query.clamp(max=queries - 1) + _starts(line.query, queries)
    queries_by_entry = merged(q, rows, 2, heads=1).reshape(-1, rows * width).index_select(0, query.flatten())
    queries_by_entry = queries_by_entry.view(b * sets * chunks, sizes.chunk * rows, width)
    # [B·S·chunks, b, K], [B·S·chunks, b, V]
    keys, values = (x.reshape(-1, x.shape[-2] * x.shape[-1]).index_select(0, _blocks(x, line.block)) for x in (k, v))
    keys, values = keys.view(-1, *k.shape[-2:]), values.view(-1, *v.shape[-2:])

    scores = queries_by_entry @ keys.transpose(-2, -1)  # [B·S·chunks, c·G, b]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).view(b, sets, chunks, sizes.chunk, rows, -1)
    last = line.query.view(b, sets, chunks, -1) + (sizes.past + first) - line.block.unsqueeze(-1) * sizes.block
    offset = torch.arange(sizes.block, device=q.device)
    outside = (offset > last.unsqueeze(-1)).unsqueeze(-2)
    if rows > 1:
        scores = hide(scores, outside)
    else:  # what `hide` adds would be as large as the scores; a weight of 0 passes no gradient on
        with torch.no_grad():
            scores.masked_fill_(outside, float("-inf"))

    largest = scores.detach().amax(dim=-1).view(b, sets, -1, rows)  # of each entry
    largest = _of_queries(largest, line.place, sizes.slots, float("-inf")).amax(dim=3)  # [B, S, T, G], of each query
    by_entry = largest.view(-1, rows).index_select(0, query.flatten()).view(*scores.shape[:-1], 1)
    weights = scores.sub_(by_entry).exp_()
    total = _of_queries(weights.sum(dim=-1).view(b, sets, -1, rows), line.place, sizes.slots, 0.0).sum(
        dim=3
    )  # [B, S, T, G]
    y = weights.to(v.dtype).view(b * sets * chunks, -1, sizes.block) @ values  # [B·S·chunks, c·G, V]
    y = y.to(total.dtype).view(b * sets * chunks * sizes.chunk, -1)
    target = line.query + _starts(line.query, queries + 1)  # a last row for nobody
    y = y.new_zeros(b * sets * (queries + 1), y.shape[-1]).index_add(0, target.flatten(), y)
    y = y.view(b, sets, queries + 1, rows, -1)[:, :, :queries] / total.unsqueeze(-1)
    return separated(y.flatten(2, 3).to(v.dtype), rows, 2, heads=1)


@dataclass(frozen=True)
class Line:
    """The entries of a tile of T queries, sorted by block, in chunks of c.

    Attributes:
        block: [B, S, chunks], of each chunk.
        query: [B, S, chunks · c], of each entry; T where it is nobody's.
        place: [B, S, T · n], the entry of each slot; chunks · c where the slot is empty.
    """

    block: Tensor
    query: Tensor
    place: Tensor


def sorted_by_block(chosen: Tensor, sizes: Cut, first: int, blocks: int) -> Line:
    """The line of the queries first … first + T − 1. chosen: [B, S, T, n], of `blocks` blocks."""
    *sets, queries, slots = chosen.shape
    c, chunks = sizes.chunk, sizes.chunks(first, first + queries)
    ids = chosen.flatten(2).long()
    ids = torch.where(ids < 0, blocks, ids)  # empty slots are last
    order = ids.argsort(dim=-1)
    ids_in_order = ids.gather(-1, order)
    counts = ids.new_zeros(*sets, blocks + 1).scatter_add_(-1, ids, torch.ones_like(ids))
    in_chunks = (counts + (c - 1)) // c
    ends = in_chunks.cumsum(dim=-1)
    shift = (ends - in_chunks) * c - (counts.cumsum(dim=-1) - counts)
    along = torch.arange(queries * slots, device=chosen.device)
    places = torch.where(ids_in_order == blocks, chunks * c, shift.gather(-1, ids_in_order) + along)
    place = torch.empty_like(places).scatter_(-1, order, places)
    query = place.new_full((*sets, chunks * c + 1), queries).scatter_(-1, place, (along // slots).expand_as(place))
    chunk = torch.arange(chunks, device=chosen.device).expand(*sets, -1).contiguous()
    block = torch.searchsorted(ends[..., :blocks].contiguous(), chunk, right=True).clamp_(max=blocks - 1)
    return Line(block, query[..., :-1].contiguous(), place)


def _starts(index: Tensor, rows: int) -> Tensor:
    """Where the `rows` rows of each choice of each sample begin: [B, S, 1]."""
    b, sets = index.shape[:2]
    return torch.arange(b * sets, device=index.device).mul_(rows).view(b, sets, 1)


def _blocks(x: Tensor, block: Tensor) -> Tensor:
    """The rows of a block of each chunk in x, [B, Hk, blocks, …]. block: [B, S, chunks], S a multiple of Hk."""
    b, heads, blocks = x.shape[:3]
    start = torch.arange(b * heads, device=x.device).mul_(blocks).view(b, heads, 1)
    return (block.unflatten(1, (heads, -1)) + start.unsqueeze(-1)).flatten()


def _of_queries(numbers: Tensor, place: Tensor, slots: int, empty: float) -> Tensor:
    """A number of each entry and row, of every slot of each query: [B, S, L, G] → [B, S, T, n, G].

    empty: of an empty slot.
    """
    b, sets, entries, rows = numbers.shape
    numbers = pad(numbers, (0, 0, 0, 1), value=empty)
    index = (place + _starts(place, entries + 1)).flatten()
    return numbers.reshape(-1, rows).index_select(0, index).view(b, sets, -1, slots, rows)
