"""Intervals from rounds: they cover the next run's fresh processes, not the repetitions within one process.

Model of one visit, in logs: log y = cell + group + own. A group is what was measured in turns: one block in one
process, and before contract 3, where blocks had no turns, one process. Its offset is common to all cells in it, and
cancels in the ratio of two of them. `own` is the residual of one cell in one group. Absolute values vary with both.

own: the variance of a cell from 2 or 3 rounds alone is nearly worthless, and one variance for all cells is wrong where
some are noisier. The moderated variance of Smyth 2004 ("Linear Models and Empirical Bayes Methods for Assessing
Differential Expression in Microarray Experiments", https://doi.org/10.2202/1544-6115.1027) is a compromise: the cells'
variances are draws from a scaled inverse χ², whose freedom d₀ comes from how much log s² varies over the cells beyond
what χ² explains. Similar cells give d₀ = ∞, plain pooling; of dissimilar ones each mostly uses its own variance.

group: offset = process + block in the process, a nested model: as far as whole processes differ, there are only as many
draws as processes; as far as blocks differ within one, as many as groups. The freedom of a sum of variances is
Satterthwaite's (1946, "An Approximate Distribution of Estimates of Variance Components", Biometrics Bulletin 2).

device: rounds on one device have in common how it differs from others of its model, for a cell as for a group; where a
run was measured on several, both parts are at least what follows from the means of devices (`analysis.device_term`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from attnbench.analysis.device_term import connected, device_term
from attnbench.analysis.distributions import CONFIDENCE, Floats, Indices, t_quantile, t_quantiles
from attnbench.analysis.looks import confidence_after
from attnbench.analysis.moderation import EQUAL, level_variances, moderate, numbered_within
from attnbench.contract import has_turns
from attnbench.groups import groups_of
from attnbench.problem import CELL_COLUMNS

Bools = npt.NDArray[np.bool_]

ODD = 0.01
"""How rarely a trend, or a slow round, is seen where rounds vary by chance alone."""

WIDEST = 100.0
"""In logs, half an interval that says nothing, and is still a number: few degrees of freedom where rounds differ
tenfold give far more than a float holds."""

MEMBER_COLUMNS = ("operator", "impl", "params")
"""In what the members of a block differ."""

_NEEDED = ("key", "round", "process", "status", "contract", "part", "device_id", *CELL_COLUMNS)
"""Columns of visits that are read beside that of the figure."""


@dataclass(frozen=True)
class Estimate:
    """The level of one cell and its uncertainty, in natural logs.

    Attributes:
        level: log of the value, adjusted for group offsets.
        own, own_freedom: variance of `level` from this cell's residuals, and its degrees of freedom.
        shared, shared_freedom: the same from group offsets.
        rounds: visits.
        confidence: of its interval; higher where the run may stop at several looks.

    Both variances are nan where they cannot be estimated: from one round, unless the cell may be pooled with others.
    """

    level: float
    own: float
    own_freedom: float
    shared: float
    shared_freedom: float
    rounds: int
    confidence: float = CONFIDENCE

    @property
    def has_interval(self) -> bool:
        """Whether the variance could be estimated, so that there is an interval."""
        return not math.isnan(self.own)

    @property
    def own_half_width(self) -> float:
        """Half the interval, in logs, of what is left where group offsets cancel; nan from one round."""
        return half_width(self.confidence, (self.own, self.own_freedom))

    @property
    def half_width(self) -> float:
        """Half the interval of the absolute value, in logs; nan from one round."""
        return half_width(self.confidence, (self.own, self.own_freedom), (self.shared, self.shared_freedom))


def half_width(confidence: float, *parts: tuple[float, float]) -> float:
    """Half the t interval of a sum, at most WIDEST; nan where a part is.

    Each part keeps its t quantile and the squared half widths add up (Banerjee 1960, "Approximate confidence interval
    for linear functions of means of k populations when the population variances are not equal", Sankhyā 22: never below
    the nominal coverage, also where moderation makes the parts' variances alike).

    Args:
        confidence: of the interval.
        parts: variance and degrees of freedom of each summand.
    """
    half = math.sqrt(sum(t_quantile(freedom, confidence) ** 2 * x if x > 0 else x for x, freedom in parts))
    return min(half, WIDEST)


def half_widths(estimates: Sequence[Estimate]) -> Floats:
    """`Estimate.half_width` of each, all at once."""
    widths = np.full(len(estimates), np.nan)
    for confidence, at in groups_of((each.confidence, i) for i, each in enumerate(estimates)).items():
        fields = ((e.own, e.own_freedom, e.shared, e.shared_freedom) for e in (estimates[i] for i in at))
        own, own_freedom, shared, shared_freedom = np.array(list(fields)).T
        square = np.zeros(len(at))
        for variance, freedom in ((own, own_freedom), (shared, shared_freedom)):
            different, which = np.unique(np.where(variance > 0, freedom, np.inf), return_inverse=True)
            square += np.where(variance > 0, t_quantiles(different, confidence)[which] ** 2 * variance, variance)
        widths[at] = np.minimum(np.sqrt(square), WIDEST)
    return widths


def ratio_half_width(a: Estimate, b: Estimate, confidence: float | None = None, together: int = 1) -> float:
    """Half the interval of log(a / b), both measured in the same groups; nan where either has one round.

    Args:
        confidence: None: their own.
        together: intervals that have it together (Šidák).
    """
    return math.hypot(
        *(
            half_width((confidence or each.confidence) ** (1 / together), (each.own, each.own_freedom))
            for each in (a, b)
        )
    )


def ratio(a: Estimate, b: Estimate) -> tuple[float, float, float]:
    """a / b, with the ends of its interval (nan from one round)."""
    level, half = a.level - b.level, ratio_half_width(a, b)
    return math.exp(level), math.exp(level - half), math.exp(level + half)


def estimates(
    visits: pd.DataFrame,
    column: str,
    confidence: float = CONFIDENCE,
    stops: tuple[int, ...] = (),
    *,
    sides: bool = False,
) -> dict[str, Estimate]:
    """An Estimate per key, from the timed rounds of a run, or of both sides of a comparison together.

    Args:
        visits: one row per visit with key, round, process, status and the column; with contract, CELL_COLUMNS and part
            where blocks were measured in turns; device_id where it is stored. Round 0, and what is not ok, is ignored.
        column: a positive quantity, in base units.
        confidence: of the interval of each; of several looks, of those of all of them together.
        stops: the looks, where the run may stop at several (`analysis.looks`).
        sides: whether these are two runs, and whoever compares them takes apart what the cells of a block share.
    """
    if column not in visits:
        return {}
    usable = visits[[name for name in (*_NEEDED, column) if name in visits]]  # a frame has a hundred columns
    usable = usable[(usable["round"] > 0) & (usable["status"] == "ok") & (usable[column] > 0)]
    if usable.empty:
        return {}
    cells, keys = pd.factorize(usable["key"])
    found = estimates_of(
        np.log(usable[column].to_numpy(dtype=np.float64)),
        cells,
        _blocks(usable, cells) if in_turns(usable) else None,
        pd.factorize(usable["process"])[0],
        usable["part"].to_numpy(dtype=np.int64) if in_turns(usable) else None,
        usable["round"].to_numpy(dtype=np.int64),
        confidence,
        stops,
        devices=pd.factorize(usable["device_id"])[0] if "device_id" in usable else None,
        sides=sides,
    )
    return {str(key): estimate for key, estimate in zip(keys, found, strict=True)}


def estimates_of(
    logs: Floats,
    cells: Indices,
    blocks: Indices | None,
    processes: Indices,
    parts: Indices | None,
    rounds: Indices,
    confidence: float = CONFIDENCE,
    stops: tuple[int, ...] = (),
    *,
    devices: Indices | None = None,
    sides: bool = False,
) -> list[Estimate]:
    """An Estimate per cell of the visits of one run, at least one; all arrays are [visits].

    Args:
        logs: of the figure.
        cells, processes: numbered without a gap, in the order in which they occur.
        blocks, parts: the block of each visit, numbered from 0, and its part; both None: a run is one block, which was
            not measured in turns.
        rounds: from 1.
        confidence, stops, sides: as `estimates`.
        devices: numbered from 0; None: all were made on one.
    """
    count = int(cells.max()) + 1
    if blocks is None or parts is None:
        blocks, groups = np.zeros_like(processes), processes
    else:
        groups = _numbered(np.stack([blocks, processes, parts]))
    typical = np.ones(len(logs), dtype=bool)
    fit = _fit(logs, cells, blocks, groups, np.ones(count), typical)
    variance, freedom = np.full(count, np.nan), np.zeros(count)
    if fit.freedom.sum() > 0:
        variance, _ = moderate(fit.variance, fit.freedom)
        typical = processes != _between(fit, blocks, groups, processes, typical)[2]
        # Again with less weight for noisy cells in the offsets of groups.
        fit = _fit(logs, cells, blocks, groups, np.where(variance > 0, variance, 1.0), typical)
        variance, freedom = moderate(fit.variance, fit.freedom)
    shared, shared_freedom, _ = _between(fit, blocks, groups, processes, typical)
    estimated = freedom > 0
    own = np.where(estimated, level_variances(variance, fit.rounds.astype(np.float64), cells, blocks, groups), np.nan)
    last = np.zeros(count, dtype=np.int64)
    np.maximum.at(last, cells, rounds)
    end = int(last.max())
    confidences = {r: confidence_after(stops, r, end, confidence) for r in set(last.tolist())}
    common = np.where(estimated, shared * np.bincount(cells, weights=fit.share) / fit.rounds, np.nan)
    if devices is not None and devices.any():
        residual = logs - np.nan_to_num(fit.offset) - fit.level[cells]
        offset = np.where(typical, fit.offset, np.nan)
        term = device_term(residual, offset, fit.leverage, cells, blocks, groups, devices)
        if term is not None:
            own, freedom = np.fmax(own, term.own), np.where(estimated, term.own_freedom, freedom)
            common, shared_freedom = np.fmax(common, term.shared), min(shared_freedom, term.shared_freedom)
    if parts is not None and not sides:
        own = own + np.where(fit.split, common, 0.0)  # offsets do not cancel in the ratio of two of its cells
    columns = (fit.level, own, freedom, common, fit.rounds, last)
    return [
        Estimate(a, b, c, d, shared_freedom, n, confidences[r])
        for a, b, c, d, n, r in zip(*(column.tolist() for column in columns), strict=True)
    ]


def in_turns(visits: pd.DataFrame) -> bool:
    """Whether the blocks of a run's visits were measured in turns."""
    return has_turns(visits["contract"].iloc[0] if "contract" in visits else "")


def _blocks(usable: pd.DataFrame, cells: Indices) -> Indices:
    """The block of each visit, numbered."""
    first = usable.iloc[np.unique(cells, return_index=True)[1]]
    columns = [name for name in CELL_COLUMNS if name in usable and name not in MEMBER_COLUMNS]
    numbered = (pd.factorize(first[name])[0].tolist() for name in columns)  # missing values are alike
    blocks: dict[tuple[int, ...], int] = {}
    of_cells = [blocks.setdefault(block, len(blocks)) for block in zip(*numbered, strict=True)]
    return np.array(of_cells, dtype=np.int64)[cells]


def _numbered(columns: Indices) -> Indices:
    """[visits] from [columns, visits]: the same number for equal columns, in their order."""
    joint = columns[0]
    for column in columns[1:]:
        joint = joint * (int(column.max()) + 1) + column
    return np.asarray(np.unique(joint, return_inverse=True)[1], dtype=np.int64)


def _first(labels: Indices, values: Indices) -> Indices:
    """By label, numbered without a gap, the value of the first that has it."""
    return np.asarray(values[np.unique(labels, return_index=True)[1]], dtype=np.int64)


@dataclass(frozen=True)
class _Fit:
    level: Floats  # [cells]
    rounds: Indices  # [cells]
    variance: Floats  # [cells], of one visit around cell and group
    freedom: Floats  # [cells]
    offset: Floats  # [visits], of its group; nan outside every group
    leverage: Floats  # [visits], on the offset
    share: Floats  # [visits], of a group's variance in the mean of the groups that it is compared with
    split: Bools  # [cells], whether its block was measured in sets of groups that no cell connects


def _fit(logs: Floats, cells: Indices, blocks: Indices, groups: Indices, cell_variance: Floats, typical: Bools) -> _Fit:
    """Least squares of logs = cell + group, weighted by `cell_variance`; offsets of `typical` groups average 0."""
    rounds = np.bincount(cells)
    offset, leverage, share, split = _offsets(logs, cells, blocks, groups, 1 / cell_variance, typical)
    offset[np.abs(offset) < EQUAL] = 0.0
    adjusted = logs - np.nan_to_num(offset)
    # Adjusted levels: a cell that missed a round is not shifted by that round's offset.
    level = np.bincount(cells, weights=adjusted) / rounds
    left = rounds - 1.0 - np.bincount(cells, weights=leverage)
    freedom = np.where(left > 1e-6, left, 0.0)
    variance = np.bincount(cells, weights=(adjusted - level[cells]) ** 2) / np.where(freedom > 0, freedom, 1.0)
    variance[variance < EQUAL**2] = 0.0
    return _Fit(level, rounds, variance, freedom, offset, leverage, share, split)


def _offsets(
    logs: Floats, cells: Indices, blocks: Indices, groups: Indices, weight: Floats, typical: Bools
) -> tuple[Floats, Floats, Floats, Bools]:
    """The offset, leverage and share of each visit, and `split` of each cell; see `_Fit`. Leverage is the freedom that
    its residual loses.

    A visit alone in its group has none (nan); nor has any of a block where workers measured hardly more than one cell
    each, whose offsets cannot be separated from the residuals. All blocks are solved at once, in matrices as large as
    the largest needs.

    weight: [cells].
    """
    rounds, mine, count = np.bincount(cells), weight[cells], int(blocks.max()) + 1
    member, block_of = numbered_within(cells, blocks)
    visits = np.bincount(groups)
    common = visits[groups] > 1
    column = np.zeros(len(logs), dtype=np.int64)
    column[common], group_block = numbered_within(_numbered(groups[common][None]), blocks[common])
    size, held = np.bincount(block_of, minlength=count), np.bincount(group_block, minlength=count)
    there = np.arange(held.max(initial=1)) < held[:, None]  # [blocks, groups]
    shape = (count, int(size.max()), there.shape[1])
    centred = logs - (np.bincount(cells, weights=logs) / rounds)[cells]

    def summed(values: Floats | Bools) -> Floats:
        """[blocks, groups]: of the visits of each group that has several."""
        at = (blocks * shape[2] + column)[common]
        totals: Floats = np.bincount(at, weights=values[common], minlength=count * shape[2]).astype(np.float64)
        return totals.reshape(count, shape[2])

    # Of each cell the share of its visits that is in each group; what a visit's row lacks to its group alone.
    at = ((blocks * shape[1] + member) * shape[2] + column)[common]
    shares: Floats = np.bincount(at, 1 / rounds[cells[common]], math.prod(shape)).astype(np.float64).reshape(shape)
    scale = np.zeros(shape[:2])
    scale[block_of, _first(cells, member)] = weight * rounds
    of_groups = summed(mine)
    information = np.einsum("bg,gh->bgh", of_groups, np.eye(shape[2]))
    information -= (shares * scale[:, :, None]).swapaxes(1, 2) @ shares
    largest = information.diagonal(axis1=1, axis2=2).max(axis=1, initial=0.0) + 1.0
    information -= np.einsum("bg,gh->bgh", ~there * largest[:, None], np.eye(shape[2]))  # apart from what is there
    values, vectors = np.linalg.eigh(information)
    known = values > np.maximum(1e-9 * values[:, -1:], 1e-13 * of_groups.max(axis=1, keepdims=True))
    solved = (known.sum(axis=1) > 0) & (known.sum(axis=1) <= 0.75 * (np.bincount(blocks, minlength=count) - size))
    spread = vectors * np.where(known, 1 / np.where(known, values, 1.0), 0.0)[:, None]
    inverse = spread @ vectors.swapaxes(1, 2)
    offset = (inverse @ summed(mine * centred)[:, :, None])[:, :, 0]
    away = shares @ inverse  # [blocks, members, groups]
    leverage = mine * (
        common * (inverse[blocks, column, column] - 2 * away[blocks, member, column])
        + (away * shares).sum(axis=2)[blocks, member]
    )
    # Offsets average 0 over each set of groups that common cells connect, on which the free vectors are constant.
    free = vectors * (~known & (values > -largest[:, None] / 2))[:, None]
    same = (free @ free.swapaxes(1, 2) > 0.5 / shape[2]).astype(np.float64)
    counted = there & (summed(typical) > 0)
    averaged, every = (np.einsum("bgh,bh->bg", same, each.astype(np.float64)) for each in (counted, there))
    offset -= np.einsum("bgh,bh->bg", same, offset * counted) / np.maximum(averaged, 1)
    share = (every > 0) / np.maximum(np.where(averaged > 0, averaged, every), 1)  # 0: a group of one visit is its zero
    split = solved & ((shares > 0).sum(axis=(1, 2)) < size * held)  # else every cell connects all groups
    for block in np.flatnonzero(split):
        here = common & (blocks == block)
        split[block] = connected(cells[here], groups[here]) > 1
    own = solved[blocks]
    return (
        np.where(own & common, offset[blocks, column], np.nan),
        np.where(own & (leverage > 1e-9), leverage, 0.0),
        np.where(own & common, share[blocks, column], 0.0),
        split[block_of],
    )


def _between(
    fit: _Fit, blocks: Indices, groups: Indices, processes: Indices, typical: Bools
) -> tuple[float, float, int]:
    """The variance of the offsets of typical groups and its degrees of freedom, and the slow process; −1: none is.

    A nested model: the squares of means of processes have one freedom less than there are processes, what is left
    around them the rest. A trend over the processes takes another, where there is one. That and a slow process are
    contrasts of the means, tested with what they leave (of the slowest as an outlier, one-sided, by Bonferroni).
    """
    freedoms = np.bincount(blocks, weights=fit.leverage)
    most, total = float(freedoms.max()), float(freedoms.sum())
    if not total > 0:
        return 0.0, 0.0, -1
    first = np.unique(groups, return_index=True)[1]
    first = first[~np.isnan(fit.offset[first])]
    left = 1 - (not typical[first].all()) / most
    first = first[typical[first]]
    names, process, count = np.unique(processes[first], return_inverse=True, return_counts=True)
    mean = np.bincount(process, weights=fit.offset[first]) / count
    freedom, rest_freedom = most * left, (total - most) * left
    common, common_freedom = float(count @ mean**2), freedom
    rest = float(fit.offset[first] @ fit.offset[first]) - common
    noise = rest / rest_freedom if rest_freedom > 0.5 else 0.0

    def explained(contrast: Floats, error: float) -> float:
        centred = contrast - np.average(contrast, weights=count)
        square = float((count * centred) @ mean) ** 2 / float(count @ centred**2)
        around = max((common - square) / (freedom - 1), noise)
        return square if square > t_quantile(freedom - 1, 1 - error) ** 2 * around else 0.0

    slow, at = -1, int(np.argmax(mean))
    if freedom > 1.5:
        slow = int(names[at]) if explained(np.eye(len(names))[at], 2 * ODD / len(names)) else -1
        trend = explained(names.astype(np.float64), ODD)
        if trend:
            common, common_freedom = (common - trend) / (freedom - 1) * freedom, freedom - 1
    if rest_freedom > 0.5:  # processes differ at least as much as blocks within one
        common = max(common, noise * freedom)
    else:
        common, rest, rest_freedom = common + rest, 0.0, 1.0
    spread = common**2 / common_freedom + rest**2 / rest_freedom
    return (common + rest) / (total * left), (common + rest) ** 2 / spread if spread else total, slow
