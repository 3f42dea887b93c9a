"""Fixed attention (Child 2019, sec. 4.2): a token's own block of l, the last c positions of every block, or both.

Positions t·l + l − c … t·l + l − 1 are the summary of block t; they are ordinary tokens. Causal: j ≤ i throughout.
Where Q < N the first queries are in a block that has begun, the others in blocks of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from attnbench.grouped import folded, group_of, hide_for_each, hide_merged, merged, separated, unfolded
from attnbench.inputs import heads, normal
from attnbench.masking import ahead
from attnbench.operator import Cost, Form, Impl, Inputs
from attnbench.operators.sparse._pairs import pair_cost
from attnbench.problem import Mode, Params, Problem
from attnbench.state import CACHES, appended, caches, drawn_caches


@dataclass(frozen=True)
class Blocks:
    """Tokens cut into blocks.

    Attributes:
        tokens: how many, from the first of a block on.
        size: l, tokens of a block; the last one possibly shorter.
        width: c, tokens of its summary.
        causal: whether pairs are of j ≤ i only.
    """

    tokens: int
    size: int
    width: int
    causal: bool

    @property
    def whole_blocks(self) -> int:
        """Blocks that all their tokens are there of."""
        return self.tokens // self.size

    @property
    def last_tokens(self) -> int:
        """Tokens of the block that is not whole."""
        return self.tokens % self.size

    @property
    def count(self) -> int:
        """Blocks, the last one possibly shorter."""
        return -(-self.tokens // self.size)

    @property
    def last_summaries(self) -> int:
        """Of the block that is not whole, the part of its summary that is there."""
        return max(0, self.last_tokens - (self.size - self.width))

    @property
    def summaries(self) -> int:
        """S: c for every whole block, and the part of the last block's summary that is there."""
        return self.whole_blocks * self.width + self.last_summaries

    @property
    def own_pairs(self) -> int:
        """Pairs within blocks."""
        if self.causal:
            return (
                self.whole_blocks * (self.size * (self.size + 1) // 2) + self.last_tokens * (self.last_tokens + 1) // 2
            )
        return self.whole_blocks * self.size * self.size + self.last_tokens * self.last_tokens

    @property
    def summary_pairs(self) -> int:
        """Pairs with a summary position, the own block's among them."""
        n, m, size, c = self.tokens, self.whole_blocks, self.size, self.width
        if not self.causal:
            return n * self.summaries
        # Position t·l + l − c + u is seen by the N − (t·l + l − c + u) tokens from it on: summed over t, then u.
        pairs = m * c * (n - (size - c)) - size * c * (m * (m - 1) // 2) - m * (c * (c - 1) // 2)
        return pairs + self.last_summaries * (self.last_summaries + 1) // 2

    @property
    def shared_pairs(self) -> int:
        """Pairs with a summary position of the own block, which a union counts once."""
        c, last = self.width, self.last_summaries
        if self.causal:
            return self.whole_blocks * (c * (c + 1) // 2) + last * (last + 1) // 2
        return self.whole_blocks * self.size * c + self.last_tokens * last


def blocks_of(problem: Problem, params: Params) -> Blocks:
    """All N tokens. l is a number here, at most N; c at most l."""
    size = min(params["block"], problem.seq_len)
    return Blocks(problem.seq_len, size, min(params["summary"], size), problem.causal)


def earlier_of(problem: Problem, params: Params) -> Blocks:
    """The N − Q tokens before the new ones, in blocks of the same size."""
    return replace(blocks_of(problem, params), tokens=problem.past)


def later_of(problem: Problem, params: Params) -> Blocks:
    """Where Q < N those of the new tokens that are after the block that has begun, or after the first new block."""
    cut = blocks_of(problem, params)
    later = max(0, problem.query_len - first_queries(problem, params))
    return replace(cut, tokens=later, size=max(1, min(cut.size, later)))


def first_queries(problem: Problem, params: Params) -> int:
    """Where Q < N how many of the new tokens are in the block that has begun, or in the first new one."""
    earlier = earlier_of(problem, params)
    return min(problem.query_len, earlier.size - earlier.last_tokens)


def summary_positions(cut: Blocks, device: torch.device, start: int = 0) -> Tensor:
    """The tokens that are a summary, in order, without the first `start` of them: [S − start]."""
    index = torch.arange(start, cut.summaries, device=device)
    return index // cut.width * cut.size + cut.size - cut.width + index % cut.width


def to_blocks(cut: Blocks, x: Tensor) -> Tensor:
    """[B, H, tokens, D] → [B, H, M, l, D], zeros at the end."""
    missing = -cut.tokens % cut.size
    x = pad(x, (0, 0, 0, missing)) if missing else x
    return x.reshape(*x.shape[:2], -1, cut.size, x.shape[-1])


def outside_block(cut: Blocks, device: torch.device) -> Tensor | None:
    """True for pairs of a block that are not allowed: [l, l] where causal, [M, 1, l] where only padding is left out.

    Padding tokens see every key, so that no row is empty.
    """
    if cut.causal:  # padding is later than every token
        return ahead(cut.size, cut.size, device)
    if cut.last_tokens == 0:
        return None
    token = torch.arange(cut.count * cut.size, device=device)
    return (token >= cut.tokens).view(-1, 1, cut.size)


def own_block(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
) -> Tensor:
    """Attention to the tokens of the same block.

    Args:
        q: [B, H, Q, D].
        k, v: [B, Hk, Q, D].
        k_cache, v_cache: of the block that has begun, where Q < N.

    Returns: [B, H, Q, D].
    """
    k, v = appended(k_cache, k), appended(v_cache, v)
    q, cut = q * problem.head_dim**-0.5, blocks_of(problem, params)
    if not problem.past:
        return _within_blocks(cut, q, k, v)
    first = first_queries(problem, params)
    keys_of_first = earlier_of(problem, params).last_tokens + first
    y = _last_rows(q[:, :, :first], k[:, :, :keys_of_first], v[:, :, :keys_of_first])
    if first == problem.query_len:
        return y
    later = _within_blocks(later_of(problem, params), *(x[:, :, -(problem.query_len - first) :] for x in (q, k, v)))
    return torch.cat((y, later), dim=2)


def _within_blocks(cut: Blocks, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    queries, keys, values = (to_blocks(cut, x) for x in (q, k, v))
    scores = merged(queries, group_of(q, k), 3, heads=1) @ keys.transpose(-2, -1)  # [B, Hk, M, l·G, l]
    outside = outside_block(cut, q.device)
    if outside is not None:
        scores = hide_merged(scores, outside)
    y = separated(scores.softmax(dim=-1) @ values, group_of(q, k), 3, heads=1)
    return y.flatten(2, 3)[:, :, : cut.tokens]


def _last_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of queries that are the last of the keys' tokens. q: [B, H, R, D], scaled; k, v: [B, Hk, M, D].

    Returns [B, H, R, D].
    """
    scores = folded(q, k) @ k.transpose(-2, -1)  # [B, Hk, G·R, M]
    if q.shape[-2] > 1:
        outside = ahead(q.shape[-2], k.shape[-2], q.device)
        scores = hide_for_each(scores, outside)
    return unfolded(scores.softmax(dim=-1) @ v, q)


def summaries(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
) -> Tensor:
    """Attention to all summary positions; causal: y_i = 0 for i < l − c, which sees none.

    Args:
        q: [B, H, Q, D].
        k, v: [B, Hk, Q, D].
        k_cache, v_cache: [B, Hk, S, D], of the summary positions alone, where Q < N.

    Returns: [B, H, Q, D].
    """
    cut, group = blocks_of(problem, params), problem.group
    new = new_summaries(problem, params, q.device)
    keys, values = (appended(c, x.index_select(2, new)) for c, x in ((k_cache, k), (v_cache, v)))  # [B, Hk, S, D]
    empty = empty_rows(problem, params)
    scores = merged(q[:, :, empty:] * problem.head_dim**-0.5, group, 2, heads=1) @ keys.transpose(-2, -1)
    if problem.causal and problem.query_len > 1:
        token = torch.arange(problem.past + empty, problem.seq_len, device=q.device)[:, None]
        scores = hide_merged(scores, summary_positions(cut, q.device) > token)  # [B, Hk, (Q − empty)·G, S]
    y = separated(scores.softmax(dim=-1) @ values, group, 2, heads=1)
    return pad(y, (0, 0, empty, 0)) if empty else y


def new_summaries(problem: Problem, params: Params, device: torch.device) -> Tensor:
    """Which of the new tokens are summary positions, counted from the first new one."""
    start = earlier_of(problem, params).summaries
    return summary_positions(blocks_of(problem, params), device, start) - problem.past


def empty_rows(problem: Problem, params: Params) -> int:
    """New tokens before the first summary position."""
    cut = blocks_of(problem, params)
    return min(problem.query_len, max(0, cut.size - cut.width - problem.past)) if problem.causal else 0


def union(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
) -> Tensor:
    """Attention to a token's block and the summaries of other blocks (causal: earlier).

    Args:
        q: [B, H, Q, D].
        k, v: [B, Hk, Q, D].
        k_cache, v_cache: where Q < N, the summaries of whole blocks, then the block that has begun.

    Returns: [B, H, Q, D].
    """
    k, v = appended(k_cache, k), appended(v_cache, v)
    q, cut = q * problem.head_dim**-0.5, blocks_of(problem, params)
    if not problem.past:
        positions = summary_positions(cut, q.device)
        keys, values = (_beside(to_blocks(cut, x), x.index_select(2, positions)) for x in (k, v))
        return _union_rows(cut, q, keys, values, positions // cut.size)
    earlier, first = earlier_of(problem, params), first_queries(problem, params)
    far = earlier.whole_blocks * cut.width  # then come the tokens of the block that has begun, and of those after it
    keys_of_first = far + earlier.last_tokens + first
    y = _last_rows(q[:, :, :first], k[:, :, :keys_of_first], v[:, :, :keys_of_first])
    if first == problem.query_len:
        return y
    later, tail = later_of(problem, params), _from_begun(problem, params)
    positions = summary_positions(tail, q.device)
    keys, values = (
        _beside(
            to_blocks(later, x[:, :, far + cut.size :]),
            torch.cat((x[:, :, :far], x[:, :, far:].index_select(2, positions)), dim=2),
        )
        for x in (k, v)
    )
    block = pad(positions // cut.size, (far, 0)) - 1  # 0: the first of `later`
    return torch.cat((y, _union_rows(later, q[:, :, first:], keys, values, block)), dim=2)


def _from_begun(problem: Problem, params: Params) -> Blocks:
    """Where Q < N the tokens of the block that has begun, and the new ones."""
    tokens = earlier_of(problem, params).last_tokens + problem.query_len
    return replace(blocks_of(problem, params), tokens=tokens)


def _beside(rows: Tensor, far: Tensor) -> Tensor:
    """Every block has the summaries beside its own keys: a copy of S keys per block, where scores would be two of l·S.

    rows: [B, Hk, M, l, D]; far: [B, Hk, S, D]. Returns [B, Hk, M, l + S, D].
    """
    return torch.cat((rows, far[:, :, None].expand(-1, -1, rows.shape[2], -1, -1)), dim=3)


def _union_rows(cut: Blocks, q: Tensor, keys: Tensor, values: Tensor, column: Tensor) -> Tensor:
    """q: [B, H, tokens, D], scaled; keys, values: `_beside`; column: the block of each summary."""
    queries = merged(to_blocks(cut, q), group_of(q, keys), 3, heads=1)
    scores = queries @ keys.transpose(-2, -1)  # [B, Hk, M, l·G, l + S]
    scores = hide_merged(scores, _outside_union(cut, column))
    y = separated(scores.softmax(dim=-1) @ values, group_of(q, keys), 3, heads=1)
    return y.flatten(2, 3)[:, :, : cut.tokens]


def _outside_union(cut: Blocks, column: Tensor) -> Tensor:
    """True for pairs that are not allowed, the summaries of the own block among them: [M, l, l + S]."""
    size, rows = cut.size, cut.count
    in_block = outside_block(cut, column.device)
    in_block = torch.zeros(size, size, dtype=torch.bool, device=column.device) if in_block is None else in_block
    row = torch.arange(rows, device=column.device).view(-1, 1, 1)
    in_summary = column >= row if cut.causal else column == row  # [M, 1, S]
    return torch.cat((in_block.expand(rows, size, -1), in_summary.expand(-1, size, -1)), dim=-1)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the logits have variance 1."""
    return Inputs(heads(problem, generator, "q", "k", "v"))


def own_state(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Keys and values of the block that has begun."""
    return caches(problem, k, v, earlier_of(problem, params).last_tokens)


def summary_state(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Keys and values of the summary positions, and room for the new ones among them."""
    positions = summary_positions(earlier_of(problem, params), k.device)
    room = blocks_of(problem, params).summaries - len(positions)
    return {name: pad(x.index_select(2, positions), (0, 0, 0, room)) for name, x in zip(CACHES, (k, v), strict=True)}


def union_state(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Keys and values of the summaries of whole blocks, then of the block that has begun."""
    earlier = earlier_of(problem, params)
    positions = summary_positions(earlier, k.device)[: earlier.whole_blocks * earlier.width]
    k, v = (
        torch.cat((x.index_select(2, positions), x[:, :, problem.past - earlier.last_tokens :]), dim=2) for x in (k, v)
    )
    return caches(problem, k, v, k.shape[2])


def own_drawn(problem: Problem, params: Params, generator: Generator, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """A state of `own_block`, drawn. k, v: the new ones."""
    return drawn_caches(problem, generator, k, v, earlier_of(problem, params).last_tokens)


def summary_drawn(problem: Problem, params: Params, generator: Generator, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """A state of `summaries`, drawn. k, v: the new ones."""
    new = new_summaries(problem, params, k.device)
    shape = (problem.batch, problem.kv_heads, blocks_of(problem, params).summaries, problem.head_dim)
    return {
        name: appended(normal(problem, generator, *shape), x.index_select(2, new))
        for name, x in zip(CACHES, (k, v), strict=True)
    }


def union_drawn(problem: Problem, params: Params, generator: Generator, k: Tensor, v: Tensor) -> dict[str, Tensor]:
    """A state of `union`, drawn. k, v: the new ones."""
    return drawn_caches(problem, generator, k, v, _union_state_tokens(earlier_of(problem, params)))


def _union_state_tokens(cut: Blocks) -> int:
    return cut.whole_blocks * cut.width + cut.last_tokens


def own_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """All pairs of a block are multiplied (causal: less than twice the required), and the last block's padding."""
    cut, earlier = blocks_of(problem, params), earlier_of(problem, params)
    executed = cut.count * cut.size**2
    if problem.past:
        first, later = first_queries(problem, params), later_of(problem, params)
        executed = first * (earlier.last_tokens + first) + later.count * later.size**2
    return pair_cost(
        problem, mode, cut.own_pairs - earlier.own_pairs, executed, earlier.last_tokens, state_tokens=cut.last_tokens
    )


def summary_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Causal: all summaries are multiplied with every query that sees any, about twice the required ones."""
    cut, earlier = blocks_of(problem, params), earlier_of(problem, params)
    executed = (problem.query_len - empty_rows(problem, params)) * cut.summaries
    pairs, new = cut.summary_pairs - earlier.summary_pairs, cut.summaries - earlier.summaries
    return pair_cost(problem, mode, pairs, executed, earlier.summaries, state_tokens=cut.summaries, new=new)


def union_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The costs of block and summaries; the summaries of a token's block are multiplied twice."""
    cut, earlier = blocks_of(problem, params), earlier_of(problem, params)
    pairs, past_pairs = (x.own_pairs + x.summary_pairs - x.shared_pairs for x in (cut, earlier))
    executed = cut.count * cut.size * (cut.size + cut.summaries)
    cached = _union_state_tokens(earlier)
    if problem.past:
        first, later = first_queries(problem, params), later_of(problem, params)
        far = earlier.whole_blocks * cut.width + _from_begun(problem, params).summaries
        executed = first * (cached + first) + later.count * later.size * (later.size + far)
    return pair_cost(problem, mode, pairs - past_pairs, executed, cached, state_tokens=_union_state_tokens(cut))


def _own_cuda() -> Callable[..., Tensor]:
    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cut, group = blocks_of(problem, params), problem.group
        queries, keys, values = (to_blocks(cut, x).flatten(0, 1) for x in (q, k, v))  # [B·H, M, l, D]
        queries = merged(queries, group, 1)  # [B·Hk, M·G, l, D]
        outside = None if problem.causal else outside_block(cut, q.device)
        inside = None if outside is None else ~outside.repeat_interleave(group, dim=0)  # [M·G, 1, l]
        y = scaled_dot_product_attention(
            queries, keys, values, attn_mask=inside, is_causal=problem.causal, enable_gqa=group > 1
        )
        return separated(y, group, 1).reshape(*q.shape[:2], -1, q.shape[-1])[:, :, : problem.seq_len]

    return call


def _summaries_cuda() -> Callable[..., Tensor]:
    from attnbench.kernels.flex import patterns, windows

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        positions = summary_positions(blocks_of(problem, params), q.device)
        keys, values = (x.index_select(2, positions) for x in (k, v))  # [B, Hk, S, D]
        if not problem.causal:
            return scaled_dot_product_attention(q, keys, values, enable_gqa=problem.group > 1)
        return windows.attend(q, keys, values, patterns.summaries(*_mask(problem, params, False), q.device))

    return call


def _union_cuda() -> Callable[..., Tensor]:
    from attnbench.kernels.flex import patterns, windows

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        positions = summary_positions(blocks_of(problem, params), q.device)
        missing = patterns.tokens_start(len(positions)) - len(positions)
        keys, values = (  # summaries, up to a whole tile, then all tokens
            torch.cat((pad(x.index_select(2, positions), (0, 0, 0, missing)), x), dim=2) for x in (k, v)
        )
        return windows.attend(q, keys, values, patterns.summaries(*_mask(problem, params, True), q.device))

    return call


def _mask(problem: Problem, params: Params, with_tokens: bool) -> tuple[int, int, int, int, bool, bool]:
    cut = blocks_of(problem, params)
    return cut.tokens, cut.size, cut.width, cut.summaries, with_tokens, cut.causal


def _flex_why_not(problem: Problem, params: Params, device: str) -> str | None:
    from attnbench.kernels.flex import windows

    return windows.why_not(problem, problem.seq_len, 2 * problem.seq_len)


OWN_CUDA = Impl(_own_cuda, "torch SDPA, its choice", lambda problem, params, device: None, grouped=True)
SUMMARIES_CUDA = Impl(_summaries_cuda, "FlexAttention, block mask", _flex_why_not, grouped=True)
UNION_CUDA = Impl(_union_cuda, "FlexAttention, block mask", _flex_why_not, grouped=True)

OWN = Form(own_block, make_inputs, own_cost, impls={"cuda": OWN_CUDA}, state=own_state)
SUMMARIES = Form(summaries, make_inputs, summary_cost, impls={"cuda": SUMMARIES_CUDA}, state=summary_state)
