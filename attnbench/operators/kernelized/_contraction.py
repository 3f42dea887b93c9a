"""y_i = φ(q_i)ᵀ (Σ_j φ(k_j) v_jᵀ) / (φ(q_i)ᵀ Σ_j φ(k_j) + ε), from features already computed; causal: over j ≤ i.

Shared by the operators of this family, which differ in φ. The causal sums run over chunks of tokens: within a chunk
all pairs are scored and those ahead dropped, and the sums before a chunk are one [m, D] state per chunk, so that
nothing of size N·m·D is ever held.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from attnbench.cost import product
from attnbench.problem import Mode, Problem


def full(fq: Tensor, fk: Tensor, v: Tensor, epsilon: float = 0.0) -> Tensor:
    """fq, fk: features [B, H, N, m]. v: [B, H, N, D]. Returns [B, H, N, D]."""
    normaliser = fq @ fk.sum(dim=-2).unsqueeze(-1)  # [B, H, N, 1]
    return fq @ (fk.transpose(-2, -1) @ v) / (normaliser + epsilon)


def causal(fq: Tensor, fk: Tensor, v: Tensor, epsilon: float = 0.0) -> Tensor:
    """As `full`, with the sums over j ≤ i."""
    n, d = v.shape[-2:]
    fq, fk, v = (in_chunks(x, chunk(d)) for x in (fq, fk, v))
    scores = (fq @ fk.transpose(-2, -1)).tril_()  # [B, H, G, c, c]
    y, normaliser = scores @ v, scores.sum(dim=-1, keepdim=True)
    states = fk[:, :, :-1].transpose(-2, -1) @ v[:, :, :-1]  # [B, H, G-1, m, D]
    totals = fk[:, :, :-1].sum(dim=-2)  # [B, H, G-1, m]
    y[:, :, 1:] += fq[:, :, 1:] @ states.cumsum(dim=2)
    normaliser[:, :, 1:] += fq[:, :, 1:] @ totals.cumsum(dim=2).unsqueeze(-1)
    # Tokens of the padding have no features, so their normaliser is 0: they go before the division.
    return y.flatten(2, 3)[:, :, :n] / (normaliser.flatten(2, 3)[:, :, :n] + epsilon)


def chunk(head_dim: int) -> int:
    """Tokens in a chunk: the power of two from head_dim up, at least 16 and at most 128.

    The states then hold no more than the features do (up to D = 128).
    """
    return min(max(16, 1 << (head_dim - 1).bit_length()), 128)


def in_chunks(x: Tensor, c: int) -> Tensor:
    """[B, H, N, X] → [B, H, G, c, X], with zeros after the last token."""
    b, h, n, width = x.shape
    groups = -(-n // c)
    return pad(x, (0, 0, 0, groups * c - n)).view(b, h, groups, c, width)


def required(problem: Problem, m: int, mode: Mode) -> int:
    """FLOPs that the definition requires after the features, causal or not: the causal sums run along."""
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    return (
        product(b * h * m * n * d, mode)  # Σ φ(k) vᵀ: [m, N] × [N, D]
        + product(b * h * n * m * d, mode)  # φ(q)ᵀ Σ: [N, m] × [m, D]
        + product(b * h * n * m, mode)  # normaliser: [N, m] × [m, 1]
    )


def executed(problem: Problem, m: int, mode: Mode) -> int:
    """FLOPs of `full` and of `causal`.

    Causal: c·(m + D) more multiply-adds per token than the 2·m·D required, that is at most 1 + c/D times as many
    where m ≥ D (2 for D a power of two from 16 to 128), beside the padding of the last chunk.
    """
    if not problem.causal:
        return required(problem, m, mode)
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    c = chunk(d)
    groups = -(-n // c)
    before = b * h * (groups - 1)
    return (
        product(b * h * groups * c * m * c, mode)  # scores: [c, m] × [m, c] in each chunk
        + product(b * h * groups * c * c * d, mode)  # scores v: [c, c] × [c, D]
        + 2 * product(before * c * m * d, mode)  # states: [m, c] × [c, D]; their use: [c, m] × [m, D]
        + product(before * c * m, mode)  # normaliser: [c, m] × [m, 1]
    )
