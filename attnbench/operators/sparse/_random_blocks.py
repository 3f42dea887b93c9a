"""Random blocks of keys: drawing and gathering them, and attention to them alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from attnbench.inputs import heads
from attnbench.operator import Cost, Form, Impl, Inputs
from attnbench.operators.sparse._pairs import pair_cost
from attnbench.operators.sparse._size import size
from attnbench.problem import Mode, Params, Problem


def draw(generator: Generator, groups: int, among: Tensor, count: int) -> Tensor:
    """`count` different numbers below among[row] per group and row, all sets equally likely: [groups, rows, count].

    Floyd's algorithm: time and memory do not depend on `among`, whose entries are at least `count`.
    """
    chosen = torch.zeros(groups, len(among), 0, dtype=torch.int64, device=generator.device)
    for step in range(count):
        top = among - count + step  # [rows]
        uniform = torch.rand(groups, len(among), generator=generator, device=generator.device, dtype=torch.float64)
        candidate = (uniform * (top + 1)).long()
        repeated = (chosen == candidate[..., None]).any(dim=-1)
        chosen = torch.cat((chosen, torch.where(repeated, top, candidate)[..., None]), dim=-1)
    return chosen


def gather(x: Tensor, blocks: Tensor, block: int) -> Tensor:
    """The blocks of each row: [B, H, rows, r·block, D].

    Args:
        x: [B, Hk, M·block, D].
        blocks: [H, rows, r], of each query head its own.
    """
    b, kv_heads, n, d = x.shape
    h, rows, count = blocks.shape
    first = torch.arange(kv_heads, device=x.device).view(-1, 1, 1) * (n // block)
    first = first if h == kv_heads else first.repeat_interleave(h // kv_heads, dim=0)
    # One index into all heads' blocks: the gradient adds whole blocks.
    flat = x.reshape(b, kv_heads * (n // block), block * d).index_select(1, (blocks + first).flatten())
    return flat.view(b, h, rows, count * block, d)


def reference(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, blocks: Tensor) -> Tensor:
    """Queries of block t see the keys of blocks[h, t] and no others.

    q: [B, H, N, D]; k, v: [B, Hk, N, D]; blocks: [H, M, r].
    """
    return _attend(problem, params, (q, k, v), blocks, _eager)


def _attend(
    problem: Problem,
    params: Params,
    qkv: tuple[Tensor, Tensor, Tensor],
    blocks: Tensor,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    b, n = size(params["block"], problem.seq_len), problem.seq_len
    q, k, v = (pad(x, (0, 0, 0, -n % b)) if n % b else x for x in qkv)
    queries = q.view(*q.shape[:2], -1, b, q.shape[-1])  # [B, H, M, b, D]
    y = attend(queries, gather(k, blocks, b), gather(v, blocks, b))
    return y.flatten(2, 3)[:, :, :n]


def _eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    y = scaled_dot_product_attention(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2))  # [B, H·M, b, D]
    return y.view(q.shape)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1), and r of the whole blocks for every head and block of queries."""
    data = heads(problem, generator, "q", "k", "v")
    whole_blocks = problem.seq_len // size(params["block"], problem.seq_len)
    among = torch.full((_rows(problem, params),), whole_blocks, device=generator.device)
    return Inputs(data, choices={"blocks": draw(generator, problem.heads, among, min(params["random"], whole_blocks))})


def _rows(problem: Problem, params: Params) -> int:
    """M: the blocks of queries."""
    return -(-problem.seq_len // size(params["block"], problem.seq_len))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference executes what is required, and the padding of the last block."""
    n = problem.seq_len
    block = size(params["block"], n)
    keys = min(params["random"], n // block) * block
    # q kᵀ and p v: [N, D] with r·b keys each
    return pair_cost(problem, mode, n * keys, _rows(problem, params) * block * keys)


def _cuda() -> Callable[..., Tensor]:
    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, blocks: Tensor) -> Tensor:
        return _attend(problem, params, (q, k, v), blocks, _sdpa)

    return call


CORE = Form(
    reference,
    make_inputs,
    cost,
    impls={"cuda": Impl(_cuda, "gathered blocks and torch SDPA", lambda problem, params, device: None, grouped=True)},
)
