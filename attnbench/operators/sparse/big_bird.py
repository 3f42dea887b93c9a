"""y_i = Σ_j p_ij v_j, p_i = softmax_j(q_iᵀ k_j / √D) over the blocks t−1, t, t+1, first, last and r random, t = ⌊i/b⌋.

Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences", sec. 2 and app. D, https://arxiv.org/abs/2007.14062.
Tokens are cut into M blocks of b, the last one possibly shorter; queries of the first and of the last block see all.
A row's random blocks differ from one another and from its other blocks, so every key is seen once; they are drawn per
head and block, shared by the batch. M − 5 blocks are left to draw from in a row, so with M < r + 5 every row draws
only M − 5 (none where M ≤ 5), and attention is nearly full.
`kind` mixed_heads is the reading taught in lectures, not the paper's: a quarter of the heads sees r random blocks of
all, a quarter |i − j| ≤ b, a quarter every `stride`-th token, b of them on each side, and a quarter is global_tokens,
internal, with g = 2b.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from attnbench.grouped import folded, unfolded
from attnbench.inputs import heads
from attnbench.masking import hide
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.sparse import _mixed, _random_blocks, global_tokens, local, strided
from attnbench.operators.sparse._mixed import Part
from attnbench.operators.sparse._pairs import pair_cost
from attnbench.operators.sparse._random_blocks import draw, gather
from attnbench.operators.sparse._size import size
from attnbench.problem import Followed, Mode, Params, Problem, Scope
from attnbench.projection import projected


def reference(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, blocks: Tensor) -> Tensor:
    """q: [B, H, N, D]; k, v: [B, Hk, N, D]; blocks: the random ones of rows 1 … M − 2, [H, M − 2, r] (mixed_heads: of
    all rows of the random heads). Returns [B, H, N, D].
    """
    if params["kind"] == "mixed_heads":
        return _mixed.reference(problem, parts(params), q, k, v, blocks=blocks)
    q = q * problem.head_dim**-0.5
    b, m = cut(problem, params)
    if m <= 2:
        return _full(q, k, v)
    inner = slice(b, (m - 1) * b)
    edges = _full(torch.cat((q[:, :, :b], q[:, :, inner.stop :]), dim=2), k, v)
    queries = q[:, :, inner].unflatten(2, (m - 2, b))  # [B, H, M − 2, b, D]
    y = (_inner if problem.group == 1 else _by_member)(problem, queries, k, v, blocks)
    return torch.cat((edges[:, :, :b], y, edges[:, :, b:]), dim=2)


def _by_member(problem: Problem, queries: Tensor, k: Tensor, v: Tensor, blocks: Tensor) -> Tensor:
    """`_inner` of one query head after the other of each group: every one has random blocks of its own."""
    group = problem.group
    each = [_inner(problem, queries[:, i::group], k, v, blocks[i::group]) for i in range(group)]
    return torch.stack(each, dim=2).flatten(1, 2)


def _inner(problem: Problem, queries: Tensor, k: Tensor, v: Tensor, blocks: Tensor) -> Tensor:
    """Rows 1 … M − 2. queries: [B, H, M − 2, b, D]; k, v: [B, H, N, D]. Returns [B, H, (M − 2)·b, D]."""
    m, b = queries.shape[2] + 2, queries.shape[3]
    keys, values = (_visible(x, blocks, b, m) for x in (k, v))  # [B, H, M − 2, (5 + r)·b, D]
    scores = queries @ keys.transpose(-2, -1)
    scores = hide(scores, _outside(problem.seq_len, b, m, keys.shape[-2], queries.device))
    return (scores.softmax(dim=-1) @ values).flatten(2, 3)


def _full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return unfolded((folded(q, k) @ k.transpose(-2, -1)).softmax(dim=-1) @ v, q)


def _visible(x: Tensor, blocks: Tensor, b: int, m: int) -> Tensor:
    """The keys of each inner block of queries: its window of three blocks, the first, the last, the random ones."""
    x = pad(x, (0, 0, 0, m * b - x.shape[2])) if m * b > x.shape[2] else x
    window = x.unfold(2, 3 * b, b).transpose(-2, -1)  # [B, H, M − 2, 3b, D], overlapping
    first, last = (x[:, :, None, start : start + b].expand(-1, -1, m - 2, -1, -1) for start in (0, (m - 1) * b))
    return torch.cat((window, first, last, gather(x, blocks, b)), dim=3)


def _outside(n: int, b: int, m: int, keys: int, device: torch.device) -> Tensor:
    """True for keys of a row that repeat the first or last block, or lie beyond N: [M − 2, 1, keys]."""
    token = torch.arange(m - 2, device=device)[:, None] * b + torch.arange(3 * b, device=device)
    window = (token < b) | (token >= (m - 1) * b)
    last = torch.arange((m - 1) * b, m * b, device=device).expand(m - 2, -1) >= n
    outside = torch.cat((window, torch.zeros_like(last), last), dim=1)
    return pad(outside, (0, keys - 5 * b))[:, None]


def cut(problem: Problem, params: Params) -> tuple[int, int]:
    """b, at most the sequence, and M, the number of blocks."""
    b = size(params["block"], problem.seq_len)
    return b, -(-problem.seq_len // b)


def random_count(problem: Problem, params: Params) -> int:
    """Random blocks of every inner row."""
    return max(0, min(params["random"], cut(problem, params)[1] - 5))


def parts(params: Params) -> tuple[Part, ...]:
    """The form and params of each group of heads of kind mixed_heads."""
    b = params["block"]
    return (
        Part(_random_blocks.CORE, {"block": b, "random": params["random"]}, takes=("blocks",)),
        Part(local.CORE, {"window": b}),
        Part(strided.CORE, {"stride": params["stride"], "reach": b}),
        Part(global_tokens.CORE, {"kind": "internal", "global_tokens": 2 * b}),
    )


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the logits have variance 1; and the random blocks."""
    data = heads(problem, generator, "q", "k", "v")
    if params["kind"] == "mixed_heads":
        part, h = parts(params)[0], _mixed.shares(problem.heads, 4)[0]
        inner = replace(problem, heads=h, channels=h * problem.head_dim, kv_heads=Followed())
        return Inputs(data, choices=part.form.make_inputs(inner, part.params, generator).choices)
    _, m = cut(problem, params)
    row = torch.arange(1, max(1, m - 1), device=generator.device)  # empty where all rows are full
    before = (row - 2).clamp(min=0)  # blocks between the first and the window, and after it, that can be drawn
    after = (m - 3 - row).clamp(min=0)
    chosen = draw(generator, problem.heads, before + after, random_count(problem, params))
    before, row = before[:, None], row[:, None]
    return Inputs(data, choices={"blocks": torch.where(chosen < before, chosen + 1, chosen - before + row + 2)})


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Inner rows are multiplied with 5 + r blocks. Two repeated ones, and the padding of the last in every row, are
    masked: less than 1 + 1/(4 + r) times what is required on sequences of many blocks.
    """
    if params["kind"] == "mixed_heads":
        return _mixed.cost(problem, parts(params), mode)
    n = problem.seq_len
    block, m = cut(problem, params)
    pairs = executed = n * n
    if m > 2:
        inner, last, drawn = m - 2, n - (m - 1) * block, random_count(problem, params) * block
        edges = (block + last) * n
        # Windows of three blocks, less the first and the last block where they reach them.
        pairs = edges + block * ((3 * inner - 2) * block + inner * (block + last + drawn))
        executed = edges + block * inner * (5 * block + drawn)
    # q kᵀ: first and last [b, D] × [D, N]; M − 2 of [b, D] × [D, (5 + r)·b]; p v: the same pairs
    return pair_cost(problem, mode, pairs, executed)


def why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    """Four patterns need four heads."""
    if params["kind"] == "mixed_heads" and problem.heads < 4:
        return "mixed_heads needs at least 4 heads, one for each pattern"
    return None


def _cuda() -> Callable[..., Tensor]:
    from attnbench.kernels.flex.patterns import block_rows
    from attnbench.kernels.flex.pieces import few_queries, with_rows
    from attnbench.kernels.flex.windows import attend, with_copies

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, blocks: Tensor) -> Tensor:
        if params["kind"] == "mixed_heads":
            return _mixed.accelerated(problem, parts(params), q, k, v, blocks=blocks)
        (b, m), n = cut(problem, params), problem.seq_len
        if m <= 2:
            return attend(q, k, v, None)
        sizes = (b, (m - 2) * b, n - (m - 1) * b)
        first, _, last = q.split(sizes, dim=2)
        edges = few_queries(torch.cat((first, last), dim=2), k, v)
        copied = 0
        if torch.is_grad_enabled():
            k, v = (with_copies(x, torch.cat(x.split(sizes, dim=2)[::2], dim=2)) for x in (k, v))
            copied = sizes[0] + sizes[2]
        y = attend(q, k, v, block_rows(blocks, n, b, copied))
        return with_rows(with_rows(y, edges[:, :, :b], 0), edges[:, :, b:], n - sizes[2])

    return call


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    from attnbench.kernels.flex import windows

    if params["kind"] == "mixed_heads":
        return _mixed.why_not(problem, parts(params), device)
    b, m = cut(problem, params)
    if m > 1 and windows.TILE % b and b % windows.TILE:
        return f"its block mask has tiles of {windows.TILE} tokens: a block of {b} neither divides nor fills them"
    # The mask is found from all pairs of blocks of every head.
    return windows.why_not(problem, m * windows.TILE, m * windows.TILE, problem.heads)


CUDA = Impl(_cuda, "FlexAttention, block mask; rows and columns of all tokens apart", _cuda_why_not, grouped=True)
CORE = Form(reference, make_inputs, cost, impls={"cuda": CUDA})

OPERATOR = Operator(
    paper=Paper(
        "Zaheer et al.",
        2020,
        "Big Bird: Transformers for Longer Sequences",
        "https://arxiv.org/abs/2007.14062",
        "sec. 2 and app. D",
    ),
    forms={"core": CORE, "layer": projected(CORE)},
    complexity=lambda params: Complexity(time="n", memory="n"),
    pairs=lambda params, causal: "fixed",
    approaches=lambda params: "block" if params["kind"] == "blocks" else None,
    params={
        "kind": Param(
            "blocks", "all heads alike, or a quarter each random, local, strided, global", ("blocks", "mixed_heads")
        ),
        "block": Param(64, "b: tokens of a block", minimum=1),
        "random": Param(3, "r: random blocks of each row", minimum=0),
        "stride": Param(8, "distance between the tokens that the strided heads see (kind mixed_heads)", minimum=1),
    },
    grouped=True,
    causal="a block sees later blocks: BigBird is an encoder's attention",
    continues="an earlier block sees later ones, so its rows are not done when new tokens come",
    why_not=why_not,
)
