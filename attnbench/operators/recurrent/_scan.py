"""S_i = Diag(e^{g_i}) S_{i−1} + k_i v_iᵀ and y_i = S_iᵀ q_i, S of [K, V]: the decayed scan, by chunks of tokens.

g_i ≤ 0 is one number per head and token, or one per channel of the keys; S_i includes token i, which has not decayed.
With G the sum of g within a chunk, a chunk's tokens see each other with the weights e^{G_i − G_j}, and what was before
it with e^{G_i}. No exponent is above 0, so that nothing overflows however much is forgotten. The states before each
chunk are themselves such sums, over chunks, so they are added up the same way, group by group: there is no loop over
tokens or chunks, and nothing of size N·K·V is ever held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnbench.cost import product
from attnbench.grouped import group_of
from attnbench.masking import ahead
from attnbench.operators.kernelized._contraction import (
    before_chunks,
    in_chunks,
    query_chunks,
    tokens_of,
)
from attnbench.operators.recurrent._core import Sizes, answer, by_head, by_qk_head, chunk_of
from attnbench.problem import Mode

GROUP = 16
"""States added up by one triangular product: these products are then at most GROUP/chunk of those with the states."""


def scan(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float, state: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    """The scan of a core's tensors, in float32 at least.

    Args:
        q, k: [B, qk_heads, Q, K].
        v: [B, H, Q, V].
        log_decay: g, [B, H, Q, 1 or K].
        scale: of y.
        state: S before these tokens, [B, H, K, V].

    Returns: y, [B, H, Q, V], in the dtype of v, and S after the tokens where one was given.
    """
    heads, batch, dtype, c = q.shape[1], v.shape[0], v.dtype, chunk_of(v.shape[2])
    q, k, v, log_decay = (by_qk_head(x, heads) for x in (q, k, v, log_decay))
    state = None if state is None else by_qk_head(state, heads)
    return answer(*scanned(q * scale, k, v, c, log_decay, state=state), dtype, batch)


def scan_state(k: Tensor, v: Tensor, log_decay: Tensor) -> dict[str, Tensor]:
    """`Inputs.state` after these tokens: S, [B, H, K, V]. Arguments: as of `scan`."""
    heads, batch = k.shape[1], v.shape[0]
    return {"state": by_head(last_state(*(by_qk_head(x, heads) for x in (k, v, log_decay))), batch)}


def scanned(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    c: int,
    log_keep: Tensor,
    log_take: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The scan of Q tokens, from a state where there is one.

    Heads of q may be several for each of k (groups of queries); or v and log_keep have several for the one of q and k.

    Args:
        q, k: [B, H, Q, K] and [B, Hk, Q, K].
        v: [B, Hv, Q, V].
        c: tokens in a chunk; with a g of each channel a power of two.
        log_keep: g, [B, Hv, Q, 1], or of each channel [B, Hv, Q, K], K > 1.
        log_take: log of a weight of each k_j v_jᵀ, [B, Hv, Q, 1]; None: all are 1.
        state: S before the first token, [B, Hv, K, V].

    Returns: y, [B, H or Hv, Q, V], and S after the last token where one was given.
    """
    group, queries = group_of(q, k), q
    q, k, v = query_chunks(q, k, c), in_chunks(k, c), in_chunks(v, c)  # [B, Hk, chunks, group·c, K], …
    along = in_chunks(log_keep, c).cumsum(dim=-2)  # [B, Hv, chunks, c, 1 or K]
    left = -along if log_take is None else in_chunks(log_take, c) - along
    if along.shape[-1] == 1:
        weights = lower(along.squeeze(-1), left.squeeze(-1)).to(v.dtype)
        y = (q @ k.transpose(-2, -1)) * _for_group(weights, group) @ v
    else:
        tokens = along.unsqueeze(-2)
        y = decayed_scores(q.unsqueeze(-2), k.unsqueeze(-2), tokens, tokens, own=1)[..., 0, 0, :, :] @ v
    taken = None if state is not None else -1  # without a state, that after the last chunk is not wanted
    remaining = (left + along[..., -1:, :]).exp()[:, :, :taken].to(v.dtype)
    added = (k[:, :, :taken] * remaining).transpose(-2, -1) @ v[:, :, :taken]  # [B, Hv, chunks, K, V]
    first = 0 if state is not None else 1  # the chunk from which on there is a state before it
    reading = q[:, :, first:] * _for_group(along.exp()[:, :, first:].to(v.dtype), group)
    if state is None:
        y[:, :, 1:] += reading @ _states(added, along[:, :, :-1, -1])
    else:
        before, state = before_chunks(_after_chunks(added, along[..., -1, :], state), state)
        y += reading @ before
    return tokens_of(y, queries, c), state


def _after_chunks(added: Tensor, log_keep: Tensor, state: Tensor) -> Tensor:
    """The state after each chunk, from what each adds, which is overwritten, and the state before all."""
    if added.shape[2] > 1:
        added = _states(added, log_keep)
    share = log_keep.cumsum(dim=-2).exp().to(added.dtype).unsqueeze(-1)  # [B, H, chunks, 1 or K, 1]
    return added.addcmul_(share, state.unsqueeze(2))


def _states(added: Tensor, log_keep: Tensor) -> Tensor:
    """The sums of what chunks add: [B, H, chunks, K, V], from log_keep of [B, H, chunks, 1 or K]."""
    if log_keep.shape[-1] == 1:
        return sums(added.flatten(-2), log_keep.squeeze(-1)).view_as(added)
    rows = added.transpose(2, 3).flatten(1, 2)  # [B, H·K, chunks, V]
    return sums(rows, log_keep.transpose(2, 3).flatten(1, 2)).unflatten(1, (added.shape[1], -1)).transpose(2, 3)


def last_state(k: Tensor, v: Tensor, log_keep: Tensor, log_take: Tensor | None = None) -> Tensor:
    """S after these tokens, [B, Hv, K, V]. Arguments: as of `scanned`."""
    along = log_keep.cumsum(dim=-2)
    left = along[..., -1:, :] - along
    weights = (left if log_take is None else left + log_take).exp()
    return (k * weights).transpose(-2, -1) @ v


def _for_group(x: Tensor, group: int) -> Tensor:
    """A factor of each of a chunk's tokens, for the queries of a group of heads: […, c, X] → […, group·c, X]."""
    return x if group == 1 else x.repeat(*[1] * (x.dim() - 2), group, 1)


def sums(x: Tensor, log_keep: Tensor) -> Tensor:
    """s_g = exp(log_keep_g) s_{g−1} + x_g. x: [B, H, G, X]. log_keep: [B, H, G]. Returns [B, H, G, X]."""
    n = x.shape[2]
    if n <= GROUP:
        along = log_keep.cumsum(dim=-1)
        return lower(along, -along).to(x.dtype) @ x
    x = in_chunks(x, GROUP)
    along = in_chunks(log_keep.unsqueeze(-1), GROUP).squeeze(-1).cumsum(dim=-1)
    within = lower(along, -along).to(x.dtype) @ x  # [B, H, groups, GROUP, X]
    before = sums(within[:, :, :-1, -1], along[:, :, :-1, -1])
    carried = along[:, :, 1:].exp().to(x.dtype).unsqueeze(-1) * before.unsqueeze(-2)
    return torch.cat((within[:, :, :1], within[:, :, 1:] + carried), dim=2).flatten(2, 3)[:, :, :n]


def lower(rows: Tensor, columns: Tensor) -> Tensor:
    """exp(rows_i + columns_j) where j ≤ i, else 0: [..., c] and [..., c] → [..., c, c]."""
    later = ahead(rows.shape[-1], rows.shape[-1], rows.device)
    exponent = rows.unsqueeze(-1) + columns.unsqueeze(-2)
    return exponent.masked_fill(later, float("-inf")).exp()  # masked first: ahead, the exponent may overflow


def decayed_scores(rows: Tensor, columns: Tensor, reached: Tensor, along: Tensor, own: int) -> Tensor:
    """Σ_x q_ix k_jx exp(R_ix − G_jx) where j < i, else 0, of a chunk's tokens, for each of P queries q and M keys k of
    a token; of the first `own` queries also where j = i, which has not decayed.

    Blocks of one token are joined in pairs, to blocks of two, four … tokens. What the right one of a pair sees of the
    left one is a product of both relative to the pair's border, to which and from which the exponents are ≤ 0.

    Args:
        rows: queries, [..., c, P, K], c a power of two.
        columns: keys, [..., c, M, K].
        reached: R, [..., c, 1 or P, K], between G_{i−1} and G_i.
        along: G, decreasing along the tokens, [..., c, 1, K].

    Returns: [..., P, M, c, c].
    """
    rows, columns = _following(rows, reached), _following(columns, -along)
    reached, along = reached.detach(), along.detach()
    pairs = (rows[..., :own, :].unsqueeze(-2) * columns.unsqueeze(-3)).sum(dim=-1)  # [..., c, own, M]
    blocks = []
    size = 1
    while (n := rows.shape[-3] // (2 * size)) > 0:
        halves = (x.unflatten(-3, (n, 2, size)).unbind(-4) for x in (rows, reached, columns, along))
        (_, right), (_, until), (left, _), (since, _) = halves  # [..., n, size, …, K]
        border = since[..., -1:, :, :]
        right = (right * (until - border).exp_()).flatten(-3, -2)
        left = (left * (border - since).exp_()).flatten(-3, -2)
        blocks.append(right @ left.transpose(-2, -1))
        size *= 2
    shape = rows.shape[-2], columns.shape[-2], along.shape[:-2]
    scores: Tensor = _Joined.apply(shape, pairs, *blocks)  # type: ignore[no-untyped-call]
    return scores


class _Joined(torch.autograd.Function):
    """Matrices of what their blocks below the diagonal are, each at its place; 0 above."""

    @staticmethod
    def forward(ctx: Any, shape: tuple[int, int, torch.Size], pairs: Tensor, *blocks: Tensor) -> Tensor:
        """shape: P, M and […, c]. pairs: of the diagonal, [..., c, own, M]. blocks: [..., n, size·P, size·M] of sizes
        1, 2, 4 … Returns [..., P, M, c, c].
        """
        queries, keys, (*batch, c) = shape
        ctx.own, ctx.pairs = pairs.shape[-2], pairs.shape
        joined = pairs.new_zeros(*batch, queries, keys, c, c)
        _diagonals(joined, ctx.own).copy_(pairs)
        for block in blocks:
            by_pair = block.unflatten(-1, (-1, keys)).unflatten(-3, (-1, queries))  # [..., n, size, P, size, M]
            corners(joined, by_pair.shape[-2]).copy_(by_pair.movedim((-3, -1), (-5, -4)))
        return joined

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        c = gradient.shape[-1]
        sizes = [1 << power for power in range(c.bit_length() - 1)]
        by_pair = [corners(gradient, size).movedim((-5, -4), (-3, -1)) for size in sizes]
        return (
            None,
            _diagonals(gradient, ctx.own).sum_to_size(ctx.pairs),
            *(block.flatten(-4, -3).flatten(-2, -1) for block in by_pair),
        )


def _diagonals(matrices: Tensor, own: int) -> Tensor:
    """[..., P, M, c, c] → [..., c, own, M], a view."""
    return matrices[..., :own, :, :, :].diagonal(dim1=-2, dim2=-1).movedim(-1, -3)


def corners(matrices: Tensor, size: int) -> Tensor:
    """What is below the diagonal of each block of 2·size: [..., c, c] → [..., n, size, size], a view."""
    n = matrices.shape[-1] // (2 * size)
    by_block = matrices.unflatten(-2, (n, 2, size)).unflatten(-1, (n, 2, size))
    return by_block[..., 1, :, :, 0, :].diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def _following(x: Tensor, exponent: Tensor) -> Tensor:
    """x, with the gradient that x ⊙ exp(exponent) has by the exponent, where that is a constant in what follows.

    It is x ⊙ the gradient of x: the exponentials of every level need none of their own.
    """
    return x * (1 + (exponent - exponent.detach())) if exponent.requires_grad else x


@dataclass(frozen=True)
class Scan:
    """The sizes of a scan, in numbers of elements.

    Attributes:
        pairs: heads of which the products of queries and keys are computed, all samples together.
        reads: heads of outputs.
        states: heads of states.
        tokens: Q.
        chunk: c.
        rows, columns: K and V.
        continues: whether there is a state before.
        by_channel: whether each channel of the keys has its own decay.
        fixed: whether the decays are not differentiated.
    """

    pairs: int
    reads: int
    states: int
    tokens: int
    chunk: int
    rows: int
    columns: int
    continues: bool
    by_channel: bool = False
    fixed: bool = False

    @property
    def chunks(self) -> int:
        """Chunks, the last one padded."""
        return -(-self.tokens // self.chunk)

    @property
    def carried(self) -> int:
        """Chunks whose state is wanted."""
        return self.chunks - (0 if self.continues else 1)


def executed_scan(scan: Scan, mode: Mode) -> int:
    """FLOPs of `scanned`: c·(K + V) multiply-adds per token more than the 2·K·V required (c·(K/2 + V) by channel), and
    in addition GROUP·K·V per state that is added up, with a fifteenth of that for the sums of groups.
    """
    c, state = scan.chunk, scan.rows * scan.columns
    scores = scan.reads * scan.rows * c * (c - 1) // 2 if scan.by_channel else scan.pairs * scan.rows * c * c
    summed = _triangular(scan.carried) if scan.carried > 1 or not scan.continues else 0
    return (
        product(scan.chunks * scores, mode)  # scores: [c, K] × [K, c] in each chunk, or blocks of its lower half
        + product(scan.chunks * scan.reads * c * c * scan.columns, mode)  # scores v: [c, c] × [c, V]
        + product(scan.carried * (scan.reads + scan.states) * c * state, mode)  # states: [K, c] × [c, V]; their use
        + product(scan.states * summed * state, mode, gradients=1 if scan.fixed else 2)  # [GROUP, GROUP] × [GROUP, K·V]
    )


def executed_of(sizes: Sizes, mode: Mode, by_channel: bool = False, fixed: bool = False) -> int:
    """FLOPs of `scan`. by_channel, fixed: as of Scan."""
    heads = sizes.batch * sizes.heads
    inner = sizes.tokens, sizes.chunk, sizes.rows, sizes.columns, sizes.continues, by_channel and sizes.rows > 1, fixed
    return executed_scan(Scan(sizes.batch * sizes.qk_heads, heads, heads, *inner), mode)


def _triangular(states: int) -> int:
    """Multiply-adds of `sums` for each number of a state."""
    if states <= GROUP:
        return states * states
    groups = -(-states // GROUP)
    return groups * GROUP * GROUP + _triangular(groups - 1)
