"""Variances of cells that lend each other freedom, and what follows for their levels; see `analysis.interval`."""

from __future__ import annotations

import math

import numpy as np

from attnbench.analysis.distributions import Floats, Indices, digamma, trigamma

EQUAL = 1e-12
"""The largest difference of two logs that rounding explains: of the same figure. Clocks tell times apart that differ by
a millionth."""

POOLED_SHARE = 0.6
"""The share of all cells' freedom that a moderated variance may claim. In simulations 8 dissimilar cells in 2 rounds
need it to reach 93 % coverage; for 24 cells it hardly matters."""

PRIOR_SHARE = 0.8
"""The share of the prior's freedom that a moderated variance claims, as it is estimated itself, and cells may be less
like draws from a χ² than assumed. In simulations it is worth 1 % of coverage where cells are unlike."""


def level_variances(variance: Floats, rounds: Floats, cells: Indices, blocks: Indices, groups: Indices) -> Floats:
    """Variances of levels from the cells' own residuals, such that the sum of two is at least that of their difference.

    Where all cells of a block have the same groups that is a visit's variance over the rounds. Else a cell of few
    rounds is compared, in these, with what then is known of cells of more, and its own variance takes what this adds.

    Args:
        variance: of a visit of each cell.
        rounds: by cell, by how many visits its level's variance is smaller.
        cells, blocks, groups: of every visit.
    """
    own = variance / rounds
    if not (variance > 0).all():
        return own
    member, block_of = numbered_within(cells, blocks)
    column, group_block = numbered_within(
        np.unique(blocks * (groups.max() + 1) + groups, return_inverse=True)[1], blocks
    )
    size, held = (np.bincount(each, minlength=blocks.max() + 1) for each in (block_of, group_block))
    place = np.full((len(size), size.max()), -1)  # [blocks, members]: the cell
    place[blocks, member] = cells
    there = place >= 0
    weight = np.zeros((*place.shape, held.max()))
    weight[blocks, member, column] = 1 / variance[cells]
    partial = (weight > 0).sum(axis=(1, 2)) < size * held
    if not partial.any():
        return own
    place, there, weight = place[partial], there[partial], weight[partial]
    totals = weight.sum(axis=1, keepdims=True)
    sums = weight.sum(axis=2)
    sums = np.where(there, sums, sums.max(axis=1, keepdims=True))
    information = sums[:, :, None] * np.eye(sums.shape[1]) - weight / np.where(
        totals > 0, totals, 1.0
    ) @ weight.swapaxes(1, 2)
    inverse = np.linalg.pinv(information, rcond=1e-10, hermitian=True)
    variances = inverse.diagonal(axis1=1, axis2=2) - np.where(there, own[place], 0.0)
    missing = variances[:, :, None] + variances[:, None] - 2 * inverse
    missing[~(there[:, :, None] & there[:, None])] = -np.inf
    order = np.argsort(np.where(there, -rounds[place], 0.0), axis=1, kind="stable")
    missing = np.take_along_axis(np.take_along_axis(missing, order[:, :, None], 1), order[:, None], 2)
    added = np.zeros(place.shape)  # in that order
    for at in range(1, place.shape[1]):
        added[:, at] = np.maximum(0.0, (missing[:, at, :at] - added[:, :at]).max(axis=1))
    ordered, known = (np.take_along_axis(each, order, 1) for each in (place, there))
    own[ordered[known]] += added[known]
    return own


def numbered_within(labels: Indices, blocks: Indices) -> tuple[Indices, Indices]:
    """The number of every visit's label among those of its block, from 0, and the block of every label.

    Args:
        labels: of every visit, numbered without a gap; none is in two blocks.
        blocks: of every visit.
    """
    first = np.unique(labels, return_index=True)[1]
    of_label = blocks[first]
    order = np.argsort(of_label, kind="stable")
    begins = np.searchsorted(of_label[order], of_label[order])
    number = np.empty(len(first), dtype=np.int64)
    number[order] = np.arange(len(first)) - begins
    return number[labels], np.asarray(of_label, dtype=np.int64)


def moderate(variance: Floats, freedom: Floats) -> tuple[Floats, Floats]:
    """Smyth's moderated variance of each cell, and its degrees of freedom.

    Args:
        variance: s² per cell.
        freedom: d per cell; cells with d = 0 get the prior variance.
    Returns: where every s² is 0, as for figures that repeat exactly, 0 with infinite freedom.
    """
    estimated = freedom > 0
    if not estimated.any() or not (variance[estimated] > 0).any():
        return np.zeros_like(variance), np.full_like(variance, np.inf)
    s2, d = variance[estimated], freedom[estimated]
    total = float(d.sum())
    s2 = np.maximum(s2, 1e-5 * np.median(s2[s2 > 0]))  # two equal times are chance, not a variance of 0
    log_s2 = np.log(s2) - digamma(d / 2) + np.log(d / 2)
    centre = float(log_s2.mean())
    excess = float(log_s2.var(ddof=1) - trigamma(d / 2).mean()) if len(s2) > 1 else math.inf
    if excess <= 0:
        prior_freedom, prior = np.inf, float((s2 * d).sum() / total)
    elif not math.isfinite(excess):
        prior_freedom, prior = 0.0, float(s2[0])
    else:
        half = _inverse_trigamma(excess)
        prior_freedom, prior = PRIOR_SHARE * 2 * half, math.exp(centre + digamma(half) - math.log(half))
    at_least = np.where(estimated, np.maximum(variance, s2.min()), 0.0)
    moderated = np.full_like(variance, prior)
    if math.isfinite(prior_freedom):
        moderated = (prior_freedom * prior + freedom * at_least) / np.maximum(prior_freedom + freedom, 1e-12)
    # The prior is itself estimated from these cells, so pooling has fewer degrees of freedom than all of them.
    return moderated, np.minimum(prior_freedom + freedom, np.maximum(POOLED_SHARE * total, freedom))


def _inverse_trigamma(y: float) -> float:
    """x with trigamma(x) = y > 0: between where 1 / x and where 1 / x + 1 / x² are y."""
    low, high = 1 / y, (1 + math.sqrt(1 + 4 * y)) / (2 * y)
    for _ in range(40):
        x = (low + high) / 2
        low, high = (x, high) if trigamma(x) > y else (low, x)
    return high
