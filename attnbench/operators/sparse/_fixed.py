"""Fixed attention (Child 2019, sec. 4.2): a token's own block of l, the last c positions of every block, or both.

Positions t·l + l − c … t·l + l − 1 are the summary of block t; they are ordinary tokens. Causal: j ≤ i throughout.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from attnbench.cost import product, traffic
from attnbench.inputs import heads
from attnbench.masking import hide
from attnbench.operator import Cost, Form, Impl, Inputs
from attnbench.problem import Mode, Params, Problem


def block(problem: Problem, params: Params) -> int:
    """l: a number here, at most the sequence."""
    return min(params["block"], problem.seq_len)


def block_count(problem: Problem, params: Params) -> int:
    """Blocks, the last one possibly shorter."""
    return -(-problem.seq_len // block(problem, params))


def summary_width(problem: Problem, params: Params) -> int:
    """c, at most the block."""
    return min(params["summary"], block(problem, params))


def summary_positions(problem: Problem, params: Params, device: torch.device) -> Tensor:
    """The tokens that are a summary, in order: [S]."""
    width = summary_width(problem, params)
    first = torch.arange(block_count(problem, params), device=device) * block(problem, params)
    within = torch.arange(block(problem, params) - width, block(problem, params), device=device)
    return (first[:, None] + within).flatten()[: summary_count(problem, params)]


def summary_count(problem: Problem, params: Params) -> int:
    """S: c for every whole block, and the part of the last block's summary within the sequence."""
    whole_blocks, last_tokens = divmod(problem.seq_len, block(problem, params))
    width = summary_width(problem, params)
    return whole_blocks * width + max(0, last_tokens - (block(problem, params) - width))


def to_blocks(problem: Problem, params: Params, x: Tensor) -> Tensor:
    """[B, H, N, D] → [B, H, M, l, D], zeros at the end."""
    size = block(problem, params)
    missing = -problem.seq_len % size
    x = pad(x, (0, 0, 0, missing)) if missing else x
    return x.reshape(*x.shape[:2], -1, size, x.shape[-1])


def outside_block(problem: Problem, params: Params, device: torch.device) -> Tensor | None:
    """True for pairs of a block that are not allowed: [l, l] where causal, [M, 1, l] where only padding is left out.

    Padding tokens see every key, so that no row is empty.
    """
    size = block(problem, params)
    if problem.causal:  # padding is later than every token
        return torch.ones(size, size, dtype=torch.bool, device=device).triu_(1)
    if problem.seq_len % size == 0:
        return None
    token = torch.arange(block_count(problem, params) * size, device=device)
    return (token >= problem.seq_len).view(-1, 1, size)


def own_block(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to the tokens of the same block. q, k, v: [B, H, N, D]. Returns [B, H, N, D]."""
    queries, keys, values = (to_blocks(problem, params, x) for x in (q * problem.head_dim**-0.5, k, v))
    scores = queries @ keys.transpose(-2, -1)  # [B, H, M, l, l]
    outside = outside_block(problem, params, q.device)
    if outside is not None:
        scores = hide(scores, outside)
    return (scores.softmax(dim=-1) @ values).flatten(2, 3)[:, :, : problem.seq_len]


def summaries(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to all summary positions; causal: y_i = 0 for i < l − c, which sees none. q, k, v: [B, H, N, D]."""
    positions = summary_positions(problem, params, q.device)
    keys, values = (x.index_select(2, positions) for x in (k, v))  # [B, H, S, D]
    empty = empty_rows(problem, params)
    scores = (q[:, :, empty:] * problem.head_dim**-0.5) @ keys.transpose(-2, -1)  # [B, H, N − empty, S]
    if problem.causal:
        token = torch.arange(empty, problem.seq_len, device=q.device)[:, None]
        scores = hide(scores, positions > token)
    y = scores.softmax(dim=-1) @ values
    return pad(y, (0, 0, empty, 0)) if empty else y


def empty_rows(problem: Problem, params: Params) -> int:
    """Tokens before the first summary position."""
    return block(problem, params) - summary_width(problem, params) if problem.causal else 0


def union(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to a token's block and the summaries of other blocks (causal: earlier). q, k, v: [B, H, N, D]."""
    queries, keys, values = (to_blocks(problem, params, x) for x in (q * problem.head_dim**-0.5, k, v))
    positions = summary_positions(problem, params, q.device)
    # Every block has the summaries beside its own keys: a copy of S keys per block, where scores would be two of l·S.
    keys, values = (
        torch.cat((rows, x.index_select(2, positions)[:, :, None].expand(-1, -1, rows.shape[2], -1, -1)), dim=3)
        for rows, x in ((keys, k), (values, v))
    )
    scores = queries @ keys.transpose(-2, -1)  # [B, H, M, l, l + S]
    scores = hide(scores, _outside_union(problem, params, positions))
    return (scores.softmax(dim=-1) @ values).flatten(2, 3)[:, :, : problem.seq_len]


def _outside_union(problem: Problem, params: Params, positions: Tensor) -> Tensor:
    """True for pairs that are not allowed, the summaries of the own block among them: [M, l, l + S]."""
    size, rows = block(problem, params), block_count(problem, params)
    in_block = outside_block(problem, params, positions.device)
    in_block = torch.zeros(size, size, dtype=torch.bool, device=positions.device) if in_block is None else in_block
    row, column = torch.arange(rows, device=positions.device).view(-1, 1, 1), positions // size
    in_summary = column >= row if problem.causal else column == row  # [M, 1, S]
    return torch.cat((in_block.expand(rows, size, -1), in_summary.expand(-1, size, -1)), dim=-1)


def own_pairs(problem: Problem, params: Params) -> int:
    """Pairs within blocks."""
    whole_blocks, last_tokens = divmod(problem.seq_len, block(problem, params))
    size = block(problem, params)
    if problem.causal:
        return whole_blocks * (size * (size + 1) // 2) + last_tokens * (last_tokens + 1) // 2
    return whole_blocks * size * size + last_tokens * last_tokens


def summary_pairs(problem: Problem, params: Params) -> int:
    """Pairs with a summary position, the own block's among them."""
    n, size, c = problem.seq_len, block(problem, params), summary_width(problem, params)
    if not problem.causal:
        return n * summary_count(problem, params)
    m = n // size
    last_summary = summary_count(problem, params) - m * c
    # Position t·l + l − c + u is seen by the N − (t·l + l − c + u) tokens from it on: summed over t, then u.
    pairs = m * c * (n - (size - c)) - size * c * (m * (m - 1) // 2) - m * (c * (c - 1) // 2)
    return pairs + last_summary * (last_summary + 1) // 2


def shared_pairs(problem: Problem, params: Params) -> int:
    """Pairs with a summary position of the own block, which a union counts once."""
    size, c = block(problem, params), summary_width(problem, params)
    whole_blocks, last_tokens = divmod(problem.seq_len, size)
    reached = max(0, last_tokens - (size - c))
    if problem.causal:
        return whole_blocks * (c * (c + 1) // 2) + reached * (reached + 1) // 2
    return whole_blocks * size * c + last_tokens * reached


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the logits have variance 1."""
    return Inputs(heads(problem, generator, "q", "k", "v"))


def own_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """All pairs of a block are multiplied (causal: less than twice the required), and the last block's padding."""
    executed = block_count(problem, params) * block(problem, params) ** 2
    return pair_cost(problem, mode, own_pairs(problem, params), executed)


def summary_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Causal: all summaries are multiplied with every query that sees any, about twice the required ones."""
    executed = (problem.seq_len - empty_rows(problem, params)) * summary_count(problem, params)
    return pair_cost(problem, mode, summary_pairs(problem, params), executed)


def union_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The costs of block and summaries; the summaries of a token's block are multiplied twice."""
    rows = block_count(problem, params) * block(problem, params)
    pairs = own_pairs(problem, params) + summary_pairs(problem, params) - shared_pairs(problem, params)
    return pair_cost(problem, mode, pairs, rows * (block(problem, params) + summary_count(problem, params)))


def pair_cost(problem: Problem, mode: Mode, pairs: int, executed: int) -> Cost:
    """Attention over so many query-key pairs of each head."""
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    size = b * h * n * d
    return Cost(
        flops=2 * product(b * h * pairs * d, mode),  # q kᵀ and p v over the pairs
        reference_flops=2 * product(b * h * executed * d, mode),
        elementwise=4 * b * h * pairs * (1 if mode == "fwd" else 2),  # max, subtract, exp, divide
        bytes_required=traffic(problem, mode, read=3 * size, written=size),
        passes=1,
    )


def _own_cuda() -> Callable[..., Tensor]:
    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys, values = (to_blocks(problem, params, x).flatten(1, 2) for x in (q, k, v))  # [B, H·M, l, D]
        outside = None if problem.causal else outside_block(problem, params, q.device)
        inside = None if outside is None else ~outside.repeat(problem.heads, 1, 1)  # [H·M, 1, l]
        y = scaled_dot_product_attention(queries, keys, values, attn_mask=inside, is_causal=problem.causal)
        return y.reshape(*q.shape[:2], -1, q.shape[-1])[:, :, : problem.seq_len]

    return call


def _summaries_cuda() -> Callable[..., Tensor]:
    from attnbench.kernels.flex import patterns, windows

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        positions = summary_positions(problem, params, q.device)
        keys, values = (x.index_select(2, positions) for x in (k, v))  # [B, H, S, D]
        if not problem.causal:
            return scaled_dot_product_attention(q, keys, values)
        return windows.attend(q, keys, values, patterns.summaries(*_mask(problem, params, False), q.device))

    return call


def _union_cuda() -> Callable[..., Tensor]:
    from attnbench.kernels.flex import patterns, windows

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        positions = summary_positions(problem, params, q.device)
        missing = patterns.tokens_start(len(positions)) - len(positions)
        keys, values = (  # summaries, up to a whole tile, then all tokens
            torch.cat((pad(x.index_select(2, positions), (0, 0, 0, missing)), x), dim=2) for x in (k, v)
        )
        return windows.attend(q, keys, values, patterns.summaries(*_mask(problem, params, True), q.device))

    return call


def _mask(problem: Problem, params: Params, with_tokens: bool) -> tuple[int, int, int, int, bool, bool]:
    sizes = block(problem, params), summary_width(problem, params), summary_count(problem, params)
    return problem.seq_len, *sizes, with_tokens, problem.causal


def _flex_why_not(problem: Problem, params: Params, device: str) -> str | None:
    from attnbench.kernels.flex import windows

    return windows.why_not(problem, problem.seq_len, 2 * problem.seq_len)


OWN_CUDA = Impl(_own_cuda, "torch SDPA, its choice", lambda problem, params, device: None)
SUMMARIES_CUDA = Impl(_summaries_cuda, "FlexAttention, block mask", _flex_why_not)
UNION_CUDA = Impl(_union_cuda, "FlexAttention, block mask", _flex_why_not)

OWN = Form(own_block, make_inputs, own_cost, impls={"cuda": OWN_CUDA})
SUMMARIES = Form(summaries, make_inputs, summary_cost, impls={"cuda": SUMMARIES_CUDA})
