"""y_i = φ(q_i)ᵀ (Σ_j φ(k_j) v_jᵀ) / (φ(q_i)ᵀ Σ_j φ(k_j) + ε), from features already computed; causal: over j ≤ i.

Shared by the operators of this family, which differ in φ. The causal sums run over chunks of tokens: within a chunk
all pairs are scored and those ahead dropped, and the sums before a chunk are one [m, D] state per chunk, so that
nothing of size N·m·D is ever held. Where Q < N the sums of the tokens before are given, and those of all N returned.
With groups of query heads the sums are of each head of keys and values, once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.cost import product
from attnbench.grouped import folded, group_of, unfolded
from attnbench.problem import Mode, Problem


def full(fq: Tensor, fk: Tensor, v: Tensor, epsilon: float = 0.0) -> Tensor:
    """fq: features [B, H, N, m]; fk: [B, Hk, N, m]. v: [B, Hk, N, D]. Returns [B, H, N, D]."""
    return unfolded(_mean(folded(fq, fk) @ (fk.transpose(-2, -1) @ with_ones(v)), epsilon), fq)


def with_ones(v: Tensor) -> Tensor:
    """v and a column of ones, whose sum with the same weights is the normaliser: [..., D + 1]."""
    return pad(v, (0, 1), value=1.0)


def _mean(sums: Tensor, epsilon: float) -> Tensor:
    """Of sums with ones, [..., D + 1]: [..., D]."""
    return sums[..., :-1] / (sums[..., -1:] + epsilon)


def causal(fq: Tensor, fk: Tensor, v: Tensor, epsilon: float = 0.0) -> Tensor:
    """As `full`, with the sums over j ≤ i."""
    queries, (fq, fk, v) = fq, _chunks(chunk(v.shape[-1]), fq, fk, with_ones(v))
    scores = without_later(fq @ fk.transpose(-2, -1))
    return causal_chunks(scores, fq[:, :, 1:], fk[:, :, :-1], v, queries, epsilon)


def causal_chunks(scores: Tensor, fq: Tensor, fk: Tensor, v: Tensor, queries: Tensor, epsilon: float = 0.0) -> Tensor:
    """`causal`, from chunks of c tokens and the scores in each.

    Args:
        scores: of each chunk's queries with its keys, 0 where the key is ahead, [B, Hk, chunks, group · c, c].
        fq: features of the chunks but the first, [B, Hk, chunks − 1, group · c, m].
        fk: features of the chunks but the last, [B, Hk, chunks − 1, c, m].
        v: with ones, [B, Hk, chunks, c, D + 1].
        queries: anything of the shape [B, H, N, …].

    Returns: [B, H, N, D].
    """
    sums = scores @ v
    states = fk.transpose(-2, -1) @ v[:, :, :-1]  # [B, Hk, chunks − 1, m, D + 1]
    sums[:, :, 1:] += fq @ states.cumsum(dim=2)
    # Tokens of the padding have no features, so their normaliser is 0: they go before the division.
    return _mean(tokens_of(sums, queries, v.shape[-2]), epsilon)


SUMS = ("sums", "totals")
"""`Inputs.state` of these operators: Σ φ(k) vᵀ, [B, Hk, m, D], and Σ φ(k), [B, Hk, m], float32."""


GRAPHED = ("cuda", "cuda:fla", "reference")
"""The impls of these operators of which the first that can compute a problem is the one that `cuda:graph` replays."""


def state_of(fk: Tensor, v: Tensor) -> dict[str, Tensor]:
    """The state after these tokens; in at least float32. fk: [B, Hk, P, m]. v: [B, Hk, P, D]."""
    fk, v = widened(fk), widened(v)
    return dict(zip(SUMS, (fk.transpose(-2, -1) @ v, fk.sum(dim=-2)), strict=True))


def widened(x: Tensor) -> Tensor:
    """x, half precisions as float32."""
    return x.float() if x.element_size() < 4 else x


def continued(
    fq: Tensor, fk: Tensor, v: Tensor, sums: Tensor, totals: Tensor, epsilon: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """`causal` of Q new tokens after others. A chunk has no more tokens than are new.

    Args:
        fq, fk, v: of the new tokens.
        sums, totals: the state after those before.

    Returns: y, [B, H, Q, D], and the state after all.
    """
    dtype, c = v.dtype, min(chunk(v.shape[-1]), v.shape[-2])
    queries, (fq, fk, v) = fq, _chunks(c, *map(widened, (fq, fk, v)))
    scores = without_later(fq @ fk.transpose(-2, -1))
    y, sums, totals = continued_chunks(scores, fq, fk, v, queries, sums, totals, epsilon)
    return y.to(dtype), sums, totals


def continued_chunks(
    scores: Tensor,
    fq: Tensor,
    fk: Tensor,
    v: Tensor,
    queries: Tensor,
    sums: Tensor,
    totals: Tensor,
    epsilon: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """`continued`, from chunks and scores as `causal_chunks` takes them, but features of all chunks and v alone."""
    c = v.shape[-2]
    states, counts = fk.transpose(-2, -1) @ v, fk.sum(dim=-2)  # [B, Hk, chunks, m, D], [B, Hk, chunks, m]
    sums, new_sums = before_chunks(_after_chunks(states, sums), sums)
    totals, new_totals = before_chunks(_after_chunks(counts, totals), totals)
    y = scores @ v + fq @ sums
    normaliser = scores.sum(dim=-1, keepdim=True) + fq @ totals.unsqueeze(-1)
    y, normaliser = tokens_of(y, queries, c), tokens_of(normaliser, queries, c)
    return y / (normaliser + epsilon), new_sums, new_totals


def _after_chunks(added: Tensor, state: Tensor) -> Tensor:
    """The state after each chunk, from what each adds, which is overwritten, and the state before all."""
    return (added.cumsum(dim=2) if added.shape[2] > 1 else added).add_(state.unsqueeze(2))


def before_chunks(after: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk, and that after the last.

    after: the state after each chunk, [B, Hk, chunks, …]. state: that before all, [B, Hk, …].
    """
    state, last = state.unsqueeze(2), after[:, :, -1].contiguous()
    return torch.cat((state, after[:, :, :-1]), dim=2) if after.shape[2] > 1 else state, last


def _chunks(c: int, fq: Tensor, fk: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In chunks of c tokens."""
    return query_chunks(fq, fk, c), in_chunks(fk, c), in_chunks(v, c)


def query_chunks(fq: Tensor, fk: Tensor, c: int) -> Tensor:
    """In chunks of c tokens, queries of a group of heads one after the other: [B, H, N, m] → [B, Hk, G, group · c, m].

    fk: features of keys, of any number of tokens.
    """
    group = group_of(fq, fk)
    fq = in_chunks(fq, c)
    return fq if group == 1 else fq.unflatten(1, (-1, group)).transpose(2, 3).flatten(3, 4)


def without_later(scores: Tensor) -> Tensor:
    """Scores of each chunk's queries with its keys, in place, with 0 where the key is ahead: […, group · c, c]."""
    c = scores.shape[-1]
    if scores.shape[-2] == c:
        return scores.tril_()
    return scores.unflatten(-2, (-1, c)).tril().flatten(-3, -2)


def tokens_of(y: Tensor, queries: Tensor, c: int) -> Tensor:
    """The opposite of `query_chunks` for what queries give: [B, Hk, chunks, group · c, X] → [B, H, Q, X]."""
    if y.shape[-2] > c:
        y = y.unflatten(-2, (-1, c)).transpose(2, 3).flatten(1, 2)
    return y.flatten(2, 3)[:, :, : queries.shape[-2]]


def chunk(head_dim: int) -> int:
    """Tokens in a chunk: the power of two from head_dim up, at least 16 and at most 128.

    The states then hold no more than the features do (up to D = 128).
    """
    return min(max(16, 1 << (head_dim - 1).bit_length()), 128)


def chunk_length(problem: Problem, longest: int | None = None) -> int:
    """Tokens in a chunk of a problem's causal form: `longest` (None: `chunk`), where Q < N no more than are new."""
    c = longest or chunk(problem.head_dim)
    return min(c, problem.query_len) if problem.past else c


def in_chunks(x: Tensor, c: int) -> Tensor:
    """[B, H, N, X] → [B, H, G, c, X], with zeros after the last token."""
    b, h, n, width = x.shape
    groups = -(-n // c)
    return pad(x, (0, 0, 0, groups * c - n)).view(b, h, groups, c, width)


def required(problem: Problem, m: int, mode: Mode) -> int:
    """FLOPs that the definition requires after the features, causal or not: the causal sums run along."""
    b, h, q, d = problem.batch, problem.heads, problem.query_len, problem.head_dim
    return (
        product(b * problem.kv_heads * m * q * d, mode)  # Σ φ(k) vᵀ: [m, Q] × [Q, D]
        + product(b * h * q * m * d, mode)  # φ(q)ᵀ Σ: [Q, m] × [m, D]
        + product(b * h * q * m, mode)  # normaliser: [Q, m] × [m, 1]
    )


def state_bytes(problem: Problem, m: int) -> int:
    """Of the state, in float32 at least, however many tokens it is of."""
    return problem.batch * problem.kv_heads * m * (problem.head_dim + 1) * max(4, problem.item_bytes)


def state_traffic(problem: Problem, m: int) -> int:
    """Bytes of the state read and written, where there is one."""
    return 2 * state_bytes(problem, m) if problem.past else 0


def executed(problem: Problem, m: int, mode: Mode, scored: int | None = None, longest: int | None = None) -> int:
    """FLOPs of `full` and of `causal`, where the sums of φ(k) are a column of the products with v, and of `continued`.

    Causal: c·(m + D + 1) + m more multiply-adds per token than the 2·m·D + m required, that is about 1 + c/D times as
    many where m ≥ D (2 for D a power of two from 16 to 128), beside the padding of the last chunk.

    Args:
        scored: channels that a score within a chunk is a product of; None: m.
        longest: tokens in a chunk; None: `chunk`.
    """
    b, h, hk, q, d = problem.batch, problem.heads, problem.kv_heads, problem.query_len, problem.head_dim
    if not problem.causal:
        # [m, Q] × [Q, D + 1], and [Q, m] × [m, D + 1]
        return product(b * hk * m * q * (d + 1), mode) + product(b * h * q * m * (d + 1), mode)
    c = chunk_length(problem, longest)
    chunks = -(-q // c)
    after = chunks - (0 if problem.past else 1)  # chunks with a state before them
    columns = d if problem.past else d + 1
    return (
        product(b * h * chunks * c * (scored or m) * c, mode)  # scores: [c, m] × [m, c] in each chunk
        + product(b * h * chunks * c * c * columns, mode)  # scores v: [c, c] × [c, D + 1]
        + product(b * hk * after * c * m * columns, mode)  # states: [m, c] × [c, D + 1]
        + product(b * h * after * c * m * (d + 1), mode)  # their use: [c, m] × [m, D + 1], or D and 1
    )
