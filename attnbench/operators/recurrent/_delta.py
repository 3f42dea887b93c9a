"""S_i = (Diag(e^{g_i}) + b_i a_iᵀ) S_{i−1} + k_i v_iᵀ and y_i = S_iᵀ q_i, S of [K, V]: the delta scan, by chunks.

a_i reads the state before it decays, and b_i writes what was read. With z_i = a_iᵀ S_{i−1}, a row, the tokens of a
chunk with the state S before it have z_i = (a_i ⊙ e^{G_{i−1}})ᵀ S + Σ_{j < i} (a_i·(b_j ⊙ e^{G_{i−1} − G_j})) z_j
+ (a_i·(k_j ⊙ e^{G_{i−1} − G_j})) v_j: a system with a unit lower triangular matrix, whose inverse is the UT transform
(Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", sec. 3.2,
https://arxiv.org/abs/2406.06484). Then chunk after chunk, whose number of states autograd keeps, none per token. The
inverse is merged from blocks: powers of the matrix, which also give it, grow beyond any precision where keys are alike.

The delta rule is a = e^{g} ⊙ k, b = −β k and a written β k vᵀ: with u = β (v − z) the state gains k uᵀ, so that two
matrices of scores do for what takes four in general.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.cost import product
from attnbench.operators.kernelized._contraction import in_chunks
from attnbench.operators.recurrent._core import Sizes, answer, by_qk_head, chunk_of
from attnbench.operators.recurrent._scan import corners, decayed_scores, lower
from attnbench.problem import Mode

Answer = Tensor | tuple[Tensor, ...]

SEGMENT = 512
"""Chunks after each other at most: of more, segments go side by side, which takes three times the products with states
but no thousands of steps.
"""


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, scale: float, state: Tensor | None = None
) -> Answer:
    """S_i = (I − β_i k_i k_iᵀ) Diag(e^{g_i}) S_{i−1} + β_i k_i v_iᵀ, in float32 at least.

    Args:
        q, k: [B, qk_heads, Q, K].
        v: [B, H, Q, V].
        log_decay: g, [B, H, Q, 1 or K].
        beta: [B, H, Q, 1].
        scale: of y.
        state: S before these tokens, [B, H, K, V].

    Returns: y, [B, H, Q, V], in the dtype of v, and S after the tokens where one was given.
    """
    heads, dtype = q.shape[1], v.dtype
    batch, tokens, c = v.shape[0], v.shape[2], chunk_of(v.shape[2])
    q, k, v, log_decay, beta = (in_chunks(by_qk_head(x, heads), c) for x in (q * scale, k, v, log_decay, beta))
    along = log_decay.cumsum(dim=-2)  # [b, H / qk_heads, chunks, c, 1 or K]
    later = slice(1 if state is None else 0, None)  # the chunks that have a state before them
    scores, key_scores = _pairs(q, k, along)
    written, erased = beta * v, (-beta * k * along.exp())[:, :, later]
    if key_scores is not None:
        inverse = inverted(beta * key_scores)
        written, erased = inverse @ written, inverse[:, :, later] @ erased
    remaining = k * (along[..., -1:, :] - along).exp()
    state = None if state is None else by_qk_head(state, heads)
    u, before, last = _along_chunks(written, erased, remaining, along[..., -1, :].exp(), state)
    y = _read(scores @ u, q * along.exp(), before, later)
    return answer(y.flatten(2, 3)[:, :, :tokens], last, dtype, batch)


def delta_rule_state(k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> dict[str, Tensor]:
    """`Inputs.state` after these tokens: S, [B, H, K, V]. Arguments: as of `delta_rule`."""
    return {"state": delta_rule(k, k, v, log_decay, beta, 1.0, _nothing(k, v))[1]}


def _pairs(q: Tensor, k: Tensor, along: Tensor) -> tuple[Tensor, Tensor | None]:
    """q_i·(k_j ⊙ e^{G_i − G_j}) where j ≤ i, else 0: [b, H / qk_heads, chunks, c, c]; and k_i·(k_j ⊙ e^{G_i − G_j}) for
    j < i, whatever else: None of chunks of one token.
    """
    alone = k.shape[-2] == 1
    if along.shape[-1] > 1:
        tokens, rows = along.unsqueeze(-2), torch.stack((q,) if alone else (q, k), dim=-2)
        scores, *key_scores = decayed_scores(rows, k.unsqueeze(-2), tokens, tokens, own=1).squeeze(-3).unbind(-3)
        return scores, None if alone else key_scores[0]
    decays, keys = lower(along.squeeze(-1), -along.squeeze(-1)), k.transpose(-2, -1)
    return (q @ keys) * decays, None if alone else (k @ keys) * decays


def delta_scan(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, a: Tensor, b: Tensor, state: Tensor | None = None
) -> Answer:
    """The general form, in float32 at least.

    Args:
        q, k, a, b: [B, H, Q, K].
        v: [B, H, Q, V].
        log_decay: g, [B, H, Q, K].
        state: S before these tokens, [B, H, K, V].

    Returns: as `delta_rule`.
    """
    heads, dtype = v.shape[1], v.dtype
    batch, tokens, c = v.shape[0], v.shape[2], general_chunk(v.shape[2], state is not None)
    q, k, v, log_decay, a, b = (in_chunks(by_qk_head(x, heads), c) for x in (q, k, v, log_decay, a, b))
    along = log_decay.cumsum(dim=-2)  # [b, 1, chunks, c, K]
    since = along - log_decay  # G_{i−1}
    later = slice(1 if state is None else 0, None)  # the chunks that have a state before them
    reads = (a * since.exp())[:, :, later]
    rows, reached = torch.stack((q, a), dim=-2), torch.stack((along, since), dim=-2)
    scores = decayed_scores(rows, torch.stack((k, b), dim=-2), reached, along.unsqueeze(-2), own=1)
    (qk, qb), (ak, ab) = (x.unbind(-3) for x in scores.unbind(-4))  # [b, 1, chunks, c, c] each
    if c == 1:
        written = torch.zeros_like(v)  # the chunk's only token reads what was before it
    else:
        inverse = inverted(-ab)
        written = inverse @ (ak @ v)
        reads = inverse[:, :, later] @ reads
    remaining = (along[..., -1:, :] - along).exp()
    taken = slice(None if state is not None else -1)  # the chunks whose state is wanted
    added = (k * remaining)[:, :, taken].transpose(-2, -1) @ v[:, :, taken]
    state = None if state is None else by_qk_head(state, heads)
    z, before, last = _along_chunks(written, reads, b * remaining, along[..., -1, :].exp(), state, added)
    y = _read(qk @ v + qb @ z, q * along.exp(), before, later)
    return answer(y.flatten(2, 3)[:, :, :tokens], last, dtype, batch)


def delta_scan_state(k: Tensor, v: Tensor, log_decay: Tensor, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """`Inputs.state` after these tokens: S, [B, H, K, V]. Arguments: as of `delta_scan`."""
    return {"state": delta_scan(k, k, v, log_decay, a, b, _nothing(k, v))[1]}


def general_chunk(tokens: int, continues: bool) -> int:
    """Tokens in a chunk of `delta_scan`: two at least where nothing was before, so that every input has a gradient."""
    return chunk_of(tokens) if continues else max(2, chunk_of(tokens))


def _nothing(k: Tensor, v: Tensor) -> Tensor:
    """S before the first token, in float32 at least."""
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    return torch.zeros(*v.shape[:2], k.shape[-1], v.shape[-1], dtype=dtype, device=v.device)


def _along_chunks(
    written: Tensor, reads: Tensor, remaining: Tensor, keep: Tensor, state: Tensor | None, added: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """u = written + reads S and S ← keep ⊙ S + remainingᵀ u (+ added), from one chunk to the next.

    Args:
        written: [b, r, chunks, c, V].
        reads: [b, r, chunks that have a state before them, c, K].
        remaining: [b, 1 or r, chunks, c, K].
        keep: [b, r, chunks, 1 or K].
        state: S before the first chunk, [b, r, K, V]; None: there is none, and the last is not wanted.
        added: [b, r, chunks whose state is wanted, K, V]; None: 0.

    Returns: u of all chunks, S before each that has one (None: none has), and the last S where one was given.
    """
    remaining = remaining.expand(*written.shape[:3], *remaining.shape[3:])
    if written.shape[2] > SEGMENT:
        return _along_segments(written, reads, remaining, keep, state, added)
    return _chunk_after_chunk(written, reads, remaining, keep, state, added)


def _along_segments(
    written: Tensor, reads: Tensor, remaining: Tensor, keep: Tensor, state: Tensor | None, added: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same, SEGMENT chunks after each other and the segments side by side: first what each makes of a state,
    R + P S, by S = [0, I] before it, then S before each, then the chunks.
    """
    shape, heads, chunks = written.shape[-2:], written.shape[1], written.shape[2]
    first, segments = chunks - reads.shape[2], -(-chunks // SEGMENT)

    def split(x: Tensor, before: int = 0, value: float = 0.0) -> Tensor:
        """[b, r, chunks, …] → [b, r, segments, SEGMENT, …], with chunks that change nothing at the ends."""
        after = segments * SEGMENT - before - x.shape[2]
        ends = (*[0, 0] * (x.dim() - 3), before, after)
        return pad(x, ends, value=value).unflatten(2, (segments, SEGMENT))

    parts = [split(written), split(reads, first), split(remaining), split(keep, value=1.0)]
    more = None if added is None else split(added)
    k, v = reads.shape[-1], shape[-1]
    one = torch.eye(k, v + k, dtype=written.dtype, device=written.device).roll(v, dims=-1)
    maps = _last_of(parts, more, one, k)  # [b, r, segments - 1, K, V + K]
    s = torch.zeros_like(maps[:, :, 0, :, :v]) if state is None else state
    starts = [s]
    for i in range(segments - 1):
        s = maps[:, :, i, :, :v] + maps[:, :, i, :, v:] @ s
        starts.append(s)
    written, reads, remaining, keep = (x.flatten(1, 2) for x in parts)
    added = None if more is None else more.flatten(1, 2)
    state_of_each = torch.stack(starts, dim=2).flatten(1, 2)
    u, before, last = _chunk_after_chunk(written, reads, remaining, keep, state_of_each, added)
    assert before is not None
    assert last is not None
    u, before = (x.unflatten(1, (heads, segments)).flatten(2, 3)[:, :, :chunks] for x in (u, before))
    return u, before[:, :, first:], None if state is None else last.unflatten(1, (heads, segments))[:, :, -1]


def _last_of(parts: list[Tensor], added: Tensor | None, start: Tensor, more: int) -> Tensor:
    """S after each segment but the last, from the same S of V + `more` columns before each.

    parts, added: [b, r, segments, SEGMENT, …].
    """
    (written, reads, remaining, keep), heads = (x[:, :, :-1].flatten(1, 2) for x in parts), parts[0].shape[1]
    if added is not None:
        added = pad(added[:, :, :-1].flatten(1, 2), (0, more))
    s = start.expand(*written.shape[:2], *start.shape)
    last = _chunk_after_chunk(pad(written, (0, more)), reads, remaining, keep, s, added, last_only=True)[2]
    assert last is not None
    return last.unflatten(1, (heads, -1))


def _chunk_after_chunk(
    written: Tensor,
    reads: Tensor,
    remaining: Tensor,
    keep: Tensor,
    state: Tensor | None,
    added: Tensor | None,
    last_only: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`_along_chunks` in a loop. last_only: of the returned tensors only the last S is wanted."""
    shape, chunks = written.shape, written.shape[2]
    first, wanted = (0, chunks) if state is not None else (1, chunks - 1)
    outs = remaining.flatten(0, 1).transpose(-2, -1).unbind(1)
    own, keeps, reading = (x.flatten(0, 1).unbind(1) for x in (written, keep.unsqueeze(-1), reads))
    more = None if added is None else added.flatten(0, 1).unbind(1)
    s = None if state is None else state.flatten(0, 1)
    us, before = [], []
    for i in range(chunks):
        u = own[i] if s is None else torch.baddbmm(own[i], reading[i - first], s)
        if not last_only:
            us.append(u)
            before += [] if s is None else [s]
        if i < wanted:
            carried = None if s is None else keeps[i] * s
            if more is not None:
                carried = more[i] if carried is None else carried + more[i]
            s = outs[i] @ u if carried is None else torch.baddbmm(carried, outs[i], u)
    befores = torch.stack(before, dim=1).unflatten(0, shape[:2]) if before else None
    last = None if state is None or s is None else s.unflatten(0, shape[:2])
    return torch.stack(us, dim=1).view(shape) if us else written, befores, last


def _read(y: Tensor, reading: Tensor, before: Tensor | None, later: slice) -> Tensor:
    """y, with what its chunks read of the states before them."""
    if before is not None:
        y[:, :, later] += reading[:, :, later] @ before
    return y


def inverted(lower_part: Tensor) -> Tensor:
    """(I + A)^{−1}, A what of a matrix [..., c, c] is below its diagonal, c a power of two; merged from blocks."""
    inverse: Tensor = _Inverse.apply(lower_part)  # type: ignore[no-untyped-call]
    return inverse


class _Inverse(torch.autograd.Function):
    """[[X, 0], [C, Y]]^{−1} = [[X^{−1}, 0], [−Y^{−1} C X^{−1}, Y^{−1}]], from blocks of one; and −Tᵀ dT Tᵀ for dA."""

    @staticmethod
    def forward(ctx: Any, lower_part: Tensor) -> Tensor:
        inverse = torch.zeros_like(lower_part)
        inverse.diagonal(dim1=-2, dim2=-1).fill_(1)
        size = 1
        while size < lower_part.shape[-1]:
            corner = corners(lower_part, size)
            if size > 1:
                x, y = _of_diagonal(inverse, size).unflatten(-3, (-1, 2)).unbind(-3)
                corner = y @ corner @ x
            corners(inverse, size).copy_(-corner)
            size *= 2
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        transposed = ctx.saved_tensors[0].transpose(-2, -1)
        return (transposed @ gradients[0] @ transposed).neg_().tril_(-1)


def _of_diagonal(matrices: Tensor, size: int) -> Tensor:
    """The blocks on the diagonal: [..., c, c] → [..., c / size, size, size], a view."""
    n = matrices.shape[-1] // size
    by_block = matrices.unflatten(-2, (n, size)).unflatten(-1, (n, size))
    return by_block.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def executed_delta_rule(sizes: Sizes, mode: Mode, by_channel: bool = False) -> int:
    """FLOPs of `delta_rule`: c·(3K + 2V) multiply-adds per token more than the 3·K·V required (c·(2K + 2V) by channel),
    and for the inverse c²/3, with gradients 2·c² more.
    """
    c, k = sizes.chunk, sizes.rows
    matrices = 1 if c == 1 else 2  # of scores: of one token there is no earlier one
    pairs = sizes.batch * (sizes.heads * k * c * (c - 1) // 2 if by_channel and k > 1 else sizes.qk_heads * k * c * c)
    return product(matrices * sizes.chunks * pairs, mode) + _executed(sizes, c, mode, scores=1, written=1, moved=3)


def executed_delta_scan(sizes: Sizes, mode: Mode) -> int:
    """FLOPs of `delta_scan`: c·(3K + 4V) multiply-adds per token more than the 4·K·V required, and for the inverse
    c²/3, with gradients 2·c² more.
    """
    c = general_chunk(sizes.tokens, sizes.continues)
    chunks = -(-sizes.tokens // c)
    scores = product(4 * sizes.batch * sizes.heads * chunks * sizes.rows * c * (c - 1) // 2, mode)
    return scores + _executed(sizes, c, mode, scores=2, written=2, moved=4)


def _executed(sizes: Sizes, c: int, mode: Mode, scores: int, written: int, moved: int) -> int:
    """Of what both have in common, after the scores.

    Args:
        scores: products [c, c] × [c, V] of all scores with what they weigh.
        written: those of what a chunk writes, where it has more tokens than one.
        moved: products of K × V numbers for each token of a chunk that has a state before it.
    """
    heads, k, v, chunks = sizes.batch * sizes.heads, sizes.rows, sizes.columns, -(-sizes.tokens // c)
    carried = chunks - (0 if sizes.continues else 1)
    solved = 0 if c == 1 else chunks * written * c * c * v + carried * c * c * k
    gradient = 2 * c**3 if mode == "fwd_bwd" and c > 1 else 0  # [c, c] × [c, c] twice
    inverse = product(heads * chunks * (_inverse(c) + gradient), "fwd")
    outside = solved + chunks * scores * c * c * v + carried * (moved - 2) * c * k * v
    if chunks <= SEGMENT:
        return inverse + product(heads * (outside + 2 * carried * c * k * v), mode)
    segments = -(-chunks // SEGMENT)
    pairs = (segments - 1) * SEGMENT * c * k * (v + k)  # of chunks with states of V + K columns
    return (
        inverse
        + product(heads * outside, mode)
        + product(heads * (2 * pairs - pairs // SEGMENT), mode)  # [c, K] × [K, V + K] and its opposite
        + product(heads * pairs // SEGMENT, mode, gradients=1)  # of a segment's first chunk, with [0, I]
        + product(heads * (segments - 2) * k * k * v, mode)  # [K, K] × [K, V] of each segment but the last
        + product(heads * k * k * v, mode, gradients=1)  # of the first, with 0
        + product(heads * segments * (2 * SEGMENT - 1) * c * k * v, mode)  # chunks with states of V columns
        + product(heads * segments * c * k * v, mode, gradients=0)  # the last of each, which nothing follows
    )


def _inverse(c: int) -> int:
    """Multiply-adds of `inverted`: for blocks of 2, 4 … two products of each pair."""
    return sum(c * size * size for size in (1 << power for power in range(1, c.bit_length() - 1)))
