"""Attention of every token to a window of tokens around it, in time and memory proportional to the window.

Tokens are cut into blocks of b. A block of queries is multiplied with one slice of before + b + after keys, which
covers the windows of all its queries; keys outside a query's window are masked within that slice.
With `classes` > 1 the window steps over residue classes: tokens i and j of one class differ by a multiple of
`classes`, and the window is counted in such steps. `hubs` are the first tokens of the sequence, which every query sees
in addition to its window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.masking import hide

SMALLEST_BLOCK = 32  # smaller products are slow


@dataclass(frozen=True)
class Windows:
    """How the tokens of one class are cut into blocks, all in tokens of that class.

    Query block t holds positions t·block … (t+1)·block − 1; its `keys` positions begin at t·block − before.

    Attributes:
        length: tokens of the class.
        before, after: keys of a window before and after its query.
        block: queries of a block.
        blocks: their number.
    """

    length: int
    before: int
    after: int
    block: int
    blocks: int

    @property
    def keys(self) -> int:
        """Keys that each query is multiplied with; before + 1 + after of them are in its window."""
        return self.before + self.block + self.after

    @property
    def pairs(self) -> int:
        """Query-key pairs that are multiplied."""
        return self.blocks * self.block * self.keys


def windows(length: int, before: int, after: int) -> Windows:
    """Blocks of equal size, half the wider side of the window; one block of all tokens where windows cover most."""
    before, after = min(before, length - 1), min(after, length - 1)
    block = max(SMALLEST_BLOCK, -(-max(before, after) // 2))
    blocks = -(-length // block)
    block = -(-length // blocks)
    if before + block + after >= length:
        return Windows(length, 0, 0, length, 1)
    return Windows(length, before, after, block, blocks)


def class_length(seq_len: int, classes: int) -> int:
    """Tokens of the longest residue class."""
    return -(-seq_len // classes)


def window_pairs(seq_len: int, before: int, after: int, classes: int = 1) -> int:
    """Pairs (i, j) with i − j in {−after, …, before}·classes, both within the sequence: the definition's."""
    longer = seq_len % classes  # this many classes have one token more than the others
    short = seq_len // classes
    return longer * _band(short + 1, before, after) + (classes - longer) * _band(short, before, after)


def _band(n: int, before: int, after: int) -> int:
    """Entries of the n×n band with `before` diagonals below the main one and `after` above it."""
    b, a = min(before, n - 1), min(after, n - 1)
    return n * (1 + b + a) - (b * (b + 1) + a * (a + 1)) // 2 if n else 0


def executed_pairs(seq_len: int, before: int, after: int, classes: int = 1, hubs: int = 0) -> int:
    """Pairs that `attend` multiplies: those of the padded classes and of the slices that cover the windows."""
    cut = windows(class_length(seq_len, classes), before, after)
    return classes * (cut.pairs + cut.blocks * cut.block * hubs)


def attend(q: Tensor, k: Tensor, v: Tensor, before: int, after: int, classes: int = 1, hubs: int = 0) -> Tensor:
    """y_i = Σ_j p_ij v_j, p_i = softmax_j(q_iᵀ k_j) over i − j in {−after, …, before}·classes, and over all j < hubs.

    Args:
        q: [B, H, N, D], already scaled.
        k, v: [B, H, N, D].
        before, after: keys of a window before and after its query.
        classes: residue classes; the window is counted in steps of so many tokens.
        hubs: the first tokens, which every query sees; one inside the window is seen once.
    Returns: [B, H, N, D].
    """
    cut = windows(class_length(q.shape[-2], classes), before, after)
    scores = window_scores(q, k, cut, classes, hubs)  # [B·H, classes, blocks, block, hubs + keys]
    outside = outside_window(cut, q.shape[-2], before, after, classes, hubs, q.device)
    if outside is not None:
        scores = hide(scores, outside)
    return window_values(scores.softmax(dim=-1), v, cut, classes, hubs)


def window_scores(q: Tensor, k: Tensor, cut: Windows, classes: int = 1, hubs: int = 0) -> Tensor:
    """Every query with the hubs and its block's keys, unmasked: [B·H, classes, blocks, block, hubs + keys]."""
    queries = to_classes(q, classes, cut.blocks * cut.block)
    queries = queries.reshape(*queries.shape[:2], cut.blocks, cut.block, -1)
    return queries @ slices(k, cut, classes, hubs).transpose(-2, -1)


def window_values(weights: Tensor, v: Tensor, cut: Windows, classes: int = 1, hubs: int = 0) -> Tensor:
    """Weights of [B·H, classes, blocks, block, hubs + keys] applied to the same slices of v: [B, H, N, D]."""
    y = weights @ slices(v, cut, classes, hubs)  # [B·H, classes, blocks, block, D]
    return from_classes(y.flatten(2, 3), classes, v)


def slices(x: Tensor, cut: Windows, classes: int = 1, hubs: int = 0) -> Tensor:
    """The hubs and the keys of each block of queries: [B·H, classes, blocks, hubs + keys, D]; without hubs a view."""
    first = x[..., :hubs, :].flatten(0, 1)[:, None, None]  # [B·H, 1, 1, hubs, D]
    x = to_classes(x, classes, cut.blocks * cut.block)
    if cut.before or cut.after:
        x = pad(x, (0, 0, cut.before, cut.after))
    x = x.unfold(-2, cut.keys, cut.block).transpose(-2, -1)  # overlapping
    return torch.cat((first.expand(-1, *x.shape[1:3], -1, -1), x), dim=-2) if hubs else x


def to_classes(x: Tensor, classes: int, length: int | None = None) -> Tensor:
    """Tokens permuted so that each residue class is contiguous: [B, H, N, D] → [B·H, classes, length, D].

    Position p of class r is token p·classes + r; every class is padded with zeros.

    Args:
        x: [B, H, N, D].
        classes: residue classes.
        length: tokens of a class with its padding; None: of the longest class.
    """
    n = x.shape[-2]
    length = class_length(n, classes) if length is None else length
    x = x.flatten(0, 1)
    if length * classes > n:
        x = pad(x, (0, 0, 0, length * classes - n))
    return x.reshape(x.shape[0], length, classes, x.shape[-1]).transpose(1, 2)


def from_classes(y: Tensor, classes: int, like: Tensor) -> Tensor:
    """The inverse of `to_classes`: [B·H, classes, length, D] → the shape of `like`, [B, H, N, D]."""
    y = y.transpose(1, 2).flatten(1, 2)[:, : like.shape[-2]]
    return y.reshape(*like.shape[:3], y.shape[-1])


def outside_window(
    cut: Windows, seq_len: int, before: int, after: int, classes: int, hubs: int, device: torch.device
) -> Tensor | None:
    """True where a pair of `window_scores` is outside the window or the sequence, or repeats a hub.

    Padded queries see padded keys, so that no row is empty and no NaN reaches a gradient.

    Returns: [classes or 1, blocks, block, hubs + keys], bool; None where nothing is outside.
    """
    padded = cut.blocks * cut.block * classes > seq_len
    if cut.blocks == 1 and min(before, after) >= cut.length - 1 and not padded and not hubs:
        return None
    row = torch.arange(cut.block, device=device).view(-1, 1)
    column = torch.arange(-cut.before, cut.block + cut.after, device=device)
    back = row - column  # [block, keys]
    start = torch.arange(cut.blocks, device=device).view(1, -1, 1, 1) * cut.block
    residue = torch.arange(classes if padded or hubs else 1, device=device).view(-1, 1, 1, 1)
    query, key = (start + row) * classes + residue, (start + column) * classes + residue
    beyond = (key >= seq_len) & (query < seq_len) if padded else key >= cut.blocks * cut.block * classes
    outside = ((back > before) | (back < -after)) | beyond | (key < hubs)
    return pad(outside, (hubs, 0)) if hubs else outside
