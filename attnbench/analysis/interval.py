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
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from attnbench.analysis.device_term import connected, device_term
from attnbench.analysis.distributions import CONFIDENCE, t_quantile
from attnbench.analysis.looks import confidence_after
from attnbench.analysis.moderation import Floats, Indices, level_variances, moderate
from attnbench.problem import CELL_COLUMNS

Bools = npt.NDArray[np.bool_]

ODD = 0.01
"""How rarely a trend, or a slow round, is seen where rounds vary by chance alone."""

TURNS_SINCE = 3
"""The first timing contract whose blocks are measured in turns."""

MEMBER_COLUMNS = ("operator", "impl", "params")
"""In what the members of a block differ."""


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
    """Half the t interval of a sum; nan where a part is.

    Each part keeps its t quantile and the squared half widths add up (Banerjee 1960, "Approximate confidence interval
    for linear functions of means of k populations when the population variances are not equal", Sankhyā 22: never below
    the nominal coverage, also where moderation makes the parts' variances alike).

    Args:
        confidence: of the interval.
        parts: variance and degrees of freedom of each summand.
    """
    return math.sqrt(sum(t_quantile(freedom, confidence) ** 2 * x if x > 0 else x for x, freedom in parts))


def ratio_half_width(a: Estimate, b: Estimate, confidence: float | None = None, together: int = 1) -> float:
    """Half the interval of log(a / b), both measured in the same groups; nan where either has one round.

    Args:
        confidence: None: their own.
        together: intervals that have it together (Šidák).
    """
    a, b = (replace(each, confidence=(confidence or each.confidence) ** (1 / together)) for each in (a, b))
    return math.hypot(a.own_half_width, b.own_half_width)


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
    usable = visits[(visits["round"] > 0) & (visits["status"] == "ok") & (visits[column] > 0)]
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
        own = own + np.where(_split(fit, cells, blocks, groups), common, 0.0)
    columns = (fit.level, own, freedom, common, fit.rounds, last)
    return [
        Estimate(a, b, c, d, shared_freedom, n, confidences[r])
        for a, b, c, d, n, r in zip(*(column.tolist() for column in columns), strict=True)
    ]


def in_turns(visits: pd.DataFrame) -> bool:
    """Whether the blocks of a run's visits were measured in turns."""
    version, *_ = (visits["contract"].iloc[0] if "contract" in visits else "").split(" ")
    return version.isdecimal() and int(version) >= TURNS_SINCE


def _blocks(usable: pd.DataFrame, cells: Indices) -> Indices:
    """The block of each visit, numbered."""
    columns = [name for name in CELL_COLUMNS if name in usable and name not in MEMBER_COLUMNS]
    first = usable.iloc[np.unique(cells, return_index=True)[1]]
    blocks = first.groupby(columns, dropna=False, sort=False).ngroup().to_numpy()[cells]
    return np.asarray(blocks, dtype=np.int64)


def _numbered(columns: Indices) -> Indices:
    """[visits] from [columns, visits]: the same number for equal columns, in their order."""
    return np.asarray(np.unique(columns, axis=1, return_inverse=True)[1].ravel(), dtype=np.int64)


def _split(fit: _Fit, cells: Indices, blocks: Indices, groups: Indices) -> Bools:
    """By cell, whether its block was measured in sets of groups that no cell connects, so that their offsets do not
    cancel in the ratio of two of its cells.
    """
    split = np.zeros(len(fit.level), dtype=bool)
    for block in range(blocks.max() + 1):
        here = (blocks == block) & ~np.isnan(fit.offset)
        split[cells[here]] = here.any() and connected(cells[here], groups[here]) > 1
    return split


@dataclass(frozen=True)
class _Fit:
    level: Floats  # [cells]
    rounds: Indices  # [cells]
    variance: Floats  # [cells], of one visit around cell and group
    freedom: Floats  # [cells]
    offset: Floats  # [visits], of its group; nan outside every group
    leverage: Floats  # [visits], on the offset
    share: Floats  # [visits], of a group's variance in the mean of the groups that it is compared with


def _fit(logs: Floats, cells: Indices, blocks: Indices, groups: Indices, cell_variance: Floats, typical: Bools) -> _Fit:
    """Least squares of logs = cell + group, weighted by `cell_variance`; offsets of `typical` groups average 0."""
    rounds = np.bincount(cells)
    offset, leverage, share = np.full(len(logs), np.nan), np.zeros(len(logs)), np.zeros(len(logs))
    for block in range(blocks.max() + 1):  # no cell is in two
        here = np.flatnonzero(blocks == block)
        weight = 1 / cell_variance[cells[here]]
        fitted = _offsets(logs[here], cells[here], groups[here], weight, typical[here])
        offset[here], leverage[here], share[here] = fitted
    adjusted = logs - np.nan_to_num(offset)
    # Adjusted levels: a cell that missed a round is not shifted by that round's offset.
    level = np.bincount(cells, weights=adjusted) / rounds
    left = rounds - 1.0 - np.bincount(cells, weights=leverage)
    freedom = np.where(left > 1e-6, left, 0.0)
    variance = np.bincount(cells, weights=(adjusted - level[cells]) ** 2) / np.where(freedom > 0, freedom, 1.0)
    return _Fit(level, rounds, variance, freedom, offset, leverage, share)


def _offsets(
    logs: Floats, cells: Indices, groups: Indices, weight: Floats, typical: Bools
) -> tuple[Floats, Floats, Floats]:
    """The offset, leverage and share of each visit of a block; see `_Fit`. Leverage is the freedom its residual loses.

    A visit alone in its group has none (nan); nor has any where workers measured hardly more than one cell each, whose
    offsets cannot be separated from the residuals.
    """
    cells, groups = (np.unique(x, return_inverse=True)[1] for x in (cells, groups))
    rounds, visits = np.bincount(cells), np.bincount(groups)
    common = np.flatnonzero(visits > 1)
    spare = len(logs) - len(rounds)

    def centred(x: Floats) -> Floats:
        return x - (np.stack([np.bincount(cells, weights=column) for column in x.T]) / rounds)[:, cells].T

    none = np.full(len(logs), np.nan), np.zeros(len(logs)), np.zeros(len(logs))
    if not (spare and len(common)):
        return none
    member = (groups[:, None] == common).astype(np.float64)  # [visits, groups]
    incidence = centred(member)
    values, vectors = np.linalg.eigh(incidence.T @ (weight[:, None] * incidence))
    known = values > 1e-9 * values[-1]
    if not 0 < known.sum() <= 0.75 * spare:
        return none
    leverage = weight * ((incidence @ vectors[:, known]) ** 2 / values[known]).sum(axis=1)
    right = incidence.T @ (weight * centred(logs[:, None])[:, 0])
    offset = vectors[:, known] @ ((vectors[:, known].T @ right) / values[known])
    # Offsets average 0 over each set of groups that common cells connect, on which the free vectors are constant.
    free = vectors[:, ~known]
    counted = free * (typical @ member > 0)[:, None]
    mean = free @ np.linalg.pinv(free.T @ counted, hermitian=True)
    offset -= mean @ (counted.T @ offset)
    share = np.maximum((mean * free).sum(axis=1), (free**2).sum(axis=1))
    return np.where(visits[groups] > 1, member @ offset, np.nan), leverage, member @ share


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
