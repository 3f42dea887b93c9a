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
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from attnbench.analysis.distributions import CONFIDENCE, digamma, t_quantile, trigamma
from attnbench.analysis.looks import confidence_after
from attnbench.problem import CELL_COLUMNS

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

POOLED_SHARE = 0.6
"""The share of all cells' freedom that a moderated variance may claim. In simulations 8 dissimilar cells in 2 rounds
need it to reach 93 % coverage; for 24 cells it hardly matters."""

PRIOR_SHARE = 0.8
"""The share of the prior's freedom that a moderated variance claims, as it is estimated itself, and cells may be less
like draws from a χ² than assumed. In simulations it is worth 1 % of coverage where cells are unlike."""

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
    visits: pd.DataFrame, column: str, confidence: float = CONFIDENCE, stops: tuple[int, ...] = ()
) -> dict[str, Estimate]:
    """An Estimate per key, from the timed rounds of a run, or of both sides of a comparison together.

    Args:
        visits: one row per visit with key, round, process, status and the column; with contract, CELL_COLUMNS and part
            where blocks were measured in turns. Round 0 and visits that are not ok are ignored.
        column: a positive quantity, in base units.
        confidence: of the interval of each; of several looks, of those of all of them together.
        stops: the looks, where the run may stop at several (`analysis.looks`).
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
) -> list[Estimate]:
    """An Estimate per cell of the visits of one run, at least one; all arrays are [visits].

    Args:
        logs: of the figure.
        cells, processes: numbered without a gap, in the order in which they occur.
        blocks, parts: the block of each visit, numbered from 0, and its part; both None: a run is one block, which was
            not measured in turns.
        rounds: from 1.
        confidence, stops: as `estimates`.
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
    own = np.where(estimated, _own(variance, fit.rounds, cells, blocks, groups), np.nan)
    last = np.zeros(count, dtype=np.int64)
    np.maximum.at(last, cells, rounds)
    end = int(last.max())
    confidences = {r: confidence_after(stops, r, end, confidence) for r in set(last.tolist())}
    common = np.where(estimated, shared * np.bincount(cells, weights=fit.share) / fit.rounds, np.nan)
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


def _own(variance: Floats, rounds: Indices, cells: Indices, blocks: Indices, groups: Indices) -> Floats:
    """Variances of levels from the cells' own residuals, such that the sum of two is at least that of their difference.

    Where all cells of a block have the same groups that is a visit's variance over the rounds. Else a cell of few
    rounds is compared, in these, with what then is known of cells of more, and its own variance takes what this adds.
    """
    own = variance / rounds
    if not (variance > 0).all():
        return own
    for block in range(blocks.max() + 1):
        here = blocks == block
        members, cell = np.unique(cells[here], return_inverse=True)
        group = np.unique(groups[here], return_inverse=True)[1]
        weight = np.zeros((len(members), group.max() + 1))
        weight[cell, group] = 1 / variance[members[cell]]
        if (weight > 0).all():
            continue
        information = np.diag(weight.sum(axis=1)) - weight / weight.sum(axis=0) @ weight.T
        inverse = np.linalg.pinv(information, hermitian=True)
        variances = np.diag(inverse)
        missing = variances[:, None] + variances - 2 * inverse - own[members][:, None] - own[members]
        added = np.zeros(len(members))
        order = np.argsort(-rounds[members], kind="stable")
        for at, i in enumerate(order[1:], 1):
            added[i] = max(0.0, (missing[i, order[:at]] - added[order[:at]]).max())
        own[members] += added
    return own


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
