"""What sinkhorn's causal form does for new tokens after others: balances more rows, and attends within cut blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.masking import ahead, hide


def balanced_rows(log: Tensor, iterations: int, column_sums: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rows that follow others of a matrix whose columns are balanced by running sums.

    Args:
        log: logits over the temperature of the new rows, [B, H, rows, columns]; the last row has an entry in each.
        iterations: T, rounds of dividing rows by their sums, then entries by their column's sum so far.
        column_sums: logarithms of each column's sum over the rows before, in each round: [B, H, T, earlier columns];
            None: these rows are the first.

    Returns: the balanced rows, as logarithms, and `column_sums` after them, [B, H, T, columns].
    """
    rows, columns = log.shape[-2:]
    hidden = ahead(rows, columns, log.device)
    log = log.masked_fill(hidden, float("-inf"))
    sums = []
    for round_number in range(iterations):
        log = log - log.logsumexp(dim=-1, keepdim=True)
        if column_sums is None:
            above = log.new_full(log[:, :, :1].shape, float("-inf"))
        else:
            above = column_sums[:, :, round_number : round_number + 1]
            above = pad(above, (0, columns - above.shape[-1]), value=float("-inf"))
        largest = torch.maximum(log.amax(dim=-2, keepdim=True), above)
        so_far = ((log - largest).exp().cumsum(dim=-2) + (above - largest).exp()).masked_fill(hidden, 1)
        log_so_far = so_far.clamp_min(torch.finfo(log.dtype).tiny).log() + largest
        sums.append(log_so_far[:, :, -1])
        log = log - log_so_far
    return log, torch.stack(sums, dim=2)


@dataclass(frozen=True)
class Piece:
    """New tokens whose blocks have as many tokens before them, and as many new ones: the end of a block that has begun,
    whole blocks, or the beginning of one.

    Args:
        block: the number of the first block.
        blocks: how many there are.
        before: tokens of each block before the new ones.
        new: new tokens of each block.
    """

    block: int
    blocks: int
    before: int
    new: int

    @property
    def tokens(self) -> int:
        """New tokens of all its blocks."""
        return self.blocks * self.new

    def pairs(self, b: int) -> int:
        """Queries times the keys of their own and of their sorted block."""
        return self.tokens * (self.before + self.new + (b if self.block else 0))


def pieces(past: int, seq_len: int, b: int) -> Iterator[Piece]:
    """The tokens from `past` on, of seq_len, cut at multiples of b."""
    first = min(-past % b, seq_len - past)
    full, last = divmod(seq_len - past - first, b)
    block = -(-past // b)
    for piece in (Piece(past // b, 1, past % b, first), Piece(block, full, 0, b), Piece(block + full, 1, 0, last)):
        if piece.tokens:
            yield piece


def attend(
    q: Tensor, k: Tensor, v: Tensor, sorted_k: Tensor | None, sorted_v: Tensor | None, past: int, b: int
) -> Tensor:
    """Each new query's softmax over its own block, up to itself, and its sorted block.

    Args:
        q: of the new tokens, scaled: [B, H, Q, D].
        k, v: of all tokens, [B, H, N, D].
        sorted_k, sorted_v: of all blocks that have new tokens, but block 0, for which nothing is sorted:
            [B, H, blocks, b, D]; None: there is no other.
    """
    outputs, done, first = [], 0, max(1, past // b)
    for piece in pieces(past, k.shape[2], b):
        queries = q[:, :, done : done + piece.tokens].unflatten(2, (piece.blocks, piece.new))
        start, stop = piece.block * b, past + done + piece.tokens
        keys, values = (x[:, :, start:stop].unflatten(2, (piece.blocks, -1)) for x in (k, v))  # [B, H, blocks, s, D]
        scores = queries @ keys.mT
        if piece.new > 1:
            outside = ahead(piece.new, scores.shape[-1], q.device)
            scores = hide(scores, outside)
        if piece.block and sorted_k is not None and sorted_v is not None:
            rows = slice(piece.block - first, piece.block - first + piece.blocks)
            weights = torch.cat([queries @ sorted_k[:, :, rows].mT, scores], dim=-1).softmax(dim=-1)
            y = weights[..., :b] @ sorted_v[:, :, rows] + weights[..., b:] @ values
        else:
            y = scores.softmax(dim=-1) @ values
        outputs.append(y.flatten(2, 3))
        done += piece.tokens
    return torch.cat(outputs, dim=2)
