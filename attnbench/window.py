"""Attention of every token to a window of tokens around it, in time and memory proportional to the window.

Tokens are cut into blocks of b. A block of queries is multiplied with one slice of before + b + after keys, which
covers the windows of all its queries; keys outside a query's window are masked within that slice.
With `classes` > 1 the window steps over residue classes: tokens i and j of one class differ by a multiple of
`classes`, and the window is counted in such steps. `hubs` are the first tokens of the sequence, which every query sees
in addition to its window. There may be keys before the first query, the last ones of a cache: then only the classes and
the keys that a query sees are gathered. Queries of a group of heads are rows of the same products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.grouped import group_of, hide_merged, merged, separated

SMALLEST_BLOCK = 32  # smaller products are slow


@dataclass(frozen=True)
class Windows:
    """How the queries of one class are cut into blocks, all in tokens of that class.

    Query block t holds positions t·block … (t+1)·block − 1; its `keys` positions begin at t·block − before.

    Attributes:
        length: queries of the class.
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


def windows(length: int, before: int, after: int, past: int = 0) -> Windows:
    """Blocks of equal size, half the wider side of the window; one block of all tokens where windows cover most.

    past: tokens of the class before its first query.
    """
    before, after = min(before, past + length - 1), min(after, length - 1)
    block = max(SMALLEST_BLOCK, -(-max(before, after) // 2))
    blocks = -(-length // block)
    block = -(-length // blocks)
    if before + block + after >= past + length:
        return Windows(length, past, 0, length, 1)
    return Windows(length, before, after, block, blocks)


def class_windows(queries: int, before: int, after: int, classes: int = 1, past: int = 0) -> Windows:
    """`windows` of the longest class that has queries. past: tokens before the first query, of all classes."""
    earlier = (past + min(classes, queries) - 1) // classes
    return windows(class_length(queries, classes), before, after, earlier)


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


def executed_pairs(queries: int, before: int, after: int, classes: int = 1, hubs: int = 0, past: int = 0) -> int:
    """Pairs that `attend` multiplies: those of the padded classes and of the slices that cover the windows."""
    cut = class_windows(queries, before, after, classes, past)
    return min(classes, queries) * (cut.pairs + cut.blocks * cut.block * hubs)


def past_keys(queries: int, before: int, classes: int, past: int) -> int:
    """How many tokens before the first query are in a window: those that the first query of each class sees."""
    firsts = min(classes, queries)  # none of which sees another
    return window_pairs(past + firsts, before, 0, classes) - window_pairs(past, before, 0, classes) - firsts


def attend(q: Tensor, k: Tensor, v: Tensor, before: int, after: int, classes: int = 1, hubs: int = 0) -> Tensor:
    """y_i = Σ_j p_ij v_j, p_i = softmax_j(q_iᵀ k_j) over i − j in {−after, …, before}·classes, and over all j < hubs.

    Args:
        q: [B, H, Q, D], already scaled.
        k, v: [B, Hk, past + Q, D]: of tokens before the first query, and of the queries' own.
        before, after: keys of a window before and after its query.
        classes: residue classes; the window is counted in steps of so many tokens.
        hubs: the first tokens, which every query sees; one inside the window is seen once. None where there is a past.
    Returns: [B, H, Q, D].
    """
    queries, past = q.shape[-2], k.shape[-2] - q.shape[-2]
    cut = class_windows(queries, before, after, classes, past)
    scores = window_scores(q, k, cut, classes, hubs)  # [B·Hk, classes, blocks, block·G, hubs + keys]
    outside = outside_window(cut, queries, before, after, classes, hubs, q.device, past)
    if outside is not None:
        scores = hide_merged(scores, outside)
    return window_values(scores.softmax(dim=-1), v, q, cut, classes, hubs)


def window_scores(q: Tensor, k: Tensor, cut: Windows, classes: int = 1, hubs: int = 0) -> Tensor:
    """Every query with the hubs and its block's keys, unmasked: [B·Hk, classes, blocks, block·G, hubs + keys].

    Of fewer queries than classes only those classes that have one.
    """
    past = k.shape[-2] - q.shape[-2]
    queries = to_classes(q, min(classes, q.shape[-2]), cut.blocks * cut.block)
    queries = queries.reshape(*queries.shape[:2], cut.blocks, cut.block, -1)
    return merged(queries, group_of(q, k), 3) @ slices(k, cut, classes, hubs, past).transpose(-2, -1)


def window_values(weights: Tensor, v: Tensor, q: Tensor, cut: Windows, classes: int = 1, hubs: int = 0) -> Tensor:
    """Weights of [B·Hk, classes, blocks, block·G, hubs + keys] applied to the same slices of v: [B, H, Q, D]."""
    y = weights @ slices(v, cut, classes, hubs, v.shape[-2] - q.shape[-2])  # [B·Hk, classes, blocks, block·G, D]
    y = separated(y, group_of(q, v), 3)
    return from_classes(y.flatten(2, 3), min(classes, q.shape[-2]), q)


def slices(x: Tensor, cut: Windows, classes: int = 1, hubs: int = 0, past: int = 0) -> Tensor:
    """The hubs and the keys of each block of queries: [B·Hk, classes, blocks, hubs + keys, D].

    Without hubs a view, unless keys before the first query are gathered for several classes or tokens are padded.
    """
    first = x[..., :hubs, :].flatten(0, 1)[:, None, None]  # [B·Hk, 1, 1, hubs, D]
    if past:
        x = _with_past(x, cut, classes, past)
    else:
        x = to_classes(x, min(classes, x.shape[-2]), cut.blocks * cut.block)
        if cut.before or cut.after:
            x = pad(x, (0, 0, cut.before, cut.after))
    x = x.unfold(-2, cut.keys, cut.block).transpose(-2, -1)  # overlapping
    return torch.cat((first.expand(-1, *x.shape[1:3], -1, -1), x), dim=-2) if hubs else x


def _with_past(x: Tensor, cut: Windows, classes: int, past: int) -> Tensor:
    """The positions −before … blocks·block + after − 1 of each class that has queries: [B·Hk, classes, positions, D].

    Position 0 of class r is the query r. A position before the first or after the last token holds any number.
    """
    end = cut.blocks * cut.block + cut.after
    if classes == 1:
        missing = max(0, cut.before - past), max(0, past + end - x.shape[-2])
        x = x.flatten(0, 1)[:, None, max(0, past - cut.before) : past + end]
        return pad(x, (0, 0, *missing)) if any(missing) else x
    residue = torch.arange(min(classes, x.shape[-2] - past), device=x.device).view(-1, 1)
    token = past + residue + torch.arange(-cut.before, end, device=x.device) * classes  # [classes, positions]
    rows = x.flatten(0, 1).index_select(1, token.clamp_(0, x.shape[-2] - 1).flatten())
    return rows.view(rows.shape[0], *token.shape, rows.shape[-1])


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
    cut: Windows, queries: int, before: int, after: int, classes: int, hubs: int, device: torch.device, past: int = 0
) -> Tensor | None:
    """True where a pair of `window_scores` is outside the window or the sequence, or repeats a hub.

    Padded queries see padded keys, so that no row is empty and no NaN reaches a gradient.

    Returns: [classes or 1, blocks, block, hubs + keys], bool; None where nothing is outside.
    """
    residues = min(classes, queries)  # of the classes that have a query
    padded = cut.blocks * cut.block * residues > queries
    one = cut.blocks == 1 and past // classes >= cut.before and not padded and not hubs
    if one and before >= cut.before + cut.length - 1 and after >= cut.length - 1:
        return None
    row = torch.arange(cut.block, device=device).view(-1, 1)
    column = torch.arange(-cut.before, cut.block + cut.after, device=device)
    back = row - column  # [block, keys]
    start = torch.arange(cut.blocks, device=device).view(1, -1, 1, 1) * cut.block
    differ = padded or hubs or past % classes
    residue = torch.arange(residues if differ else 1, device=device).view(-1, 1, 1, 1)
    query, key = (start + row) * classes + residue, (start + column) * classes + residue
    beyond = (key >= queries) & (query < queries) if padded else key >= cut.blocks * cut.block * classes
    outside = ((back > before) | (back < -after)) | beyond | (key < hubs - past)
    return pad(outside, (hubs, 0)) if hubs else outside
