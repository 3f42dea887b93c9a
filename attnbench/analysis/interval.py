"""Intervals from rounds: they cover the next run's fresh processes, not the repetitions within one process.

Model of one visit, in logs: log y = cell + process + own. `process` is an offset common to all cells that one worker
measured; `own` is the residual of one cell in one process. Absolute values vary with both. In the ratio of two cells
that the same workers measured, `process` cancels.

own: the variance of a cell from 2 or 3 rounds alone is nearly worthless, and one variance for all cells is wrong where
some are noisier. The moderated variance of Smyth 2004 ("Linear Models and Empirical Bayes Methods for Assessing
Differential Expression in Microarray Experiments", sections 3 and 6.2, https://doi.org/10.2202/1544-6115.1027) is a
compromise: the cells' variances are draws from a scaled inverse χ², whose freedom d₀ is estimated from how much log s²
varies over the cells beyond what χ² explains. Similar cells give d₀ = ∞, which is plain pooling; dissimilar cells give
a small d₀, and each cell then mostly uses its own variance. So pooling is applied only as far as the data support it.

process: its variance is estimated from as many draws as there were workers, however many cells each measured. Each
part has its own t quantile, and the squared half widths add up (Banerjee 1960, "Approximate confidence interval for
linear functions of means of k populations when the population variances are not equal", Sankhyā 22: never below the
nominal coverage). So two rounds that differ as a whole give a wide interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from attnbench.analysis.distributions import CONFIDENCE, digamma, t_quantile, tetragamma, trigamma

Floats = npt.NDArray[np.float64]

POOLED_SHARE = 0.6
"""The share of all cells' freedom that a moderated variance may claim. In simulations 8 dissimilar cells in 2 rounds
need it to reach 93 % coverage; for 24 cells it hardly matters."""


@dataclass(frozen=True)
class Estimate:
    """The level of one cell and its uncertainty, in natural logs.

    Attributes:
        level: log of the value, adjusted for process offsets.
        own, own_freedom: variance of `level` from this cell's residuals, and its degrees of freedom.
        shared, shared_freedom: the same from process offsets.
        rounds: visits of the cell.
        confidence: of its interval; where a run may stop at several looks, what each of them has.

    Both variances are nan where they cannot be estimated: in a run of one round, and for a cell of one round among
    cells too dissimilar to pool with.
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
        """Half the interval, in logs, of what is left where process offsets cancel; nan from one round."""
        return math.sqrt(t_quantile(self.own_freedom, self.confidence) ** 2 * self.own if self.own > 0 else self.own)

    @property
    def half_width(self) -> float:
        """Half the interval of the absolute value, in logs; nan from one round."""
        shared_squared = t_quantile(self.shared_freedom, self.confidence) ** 2 * self.shared if self.shared > 0 else 0.0
        return math.hypot(self.own_half_width, math.sqrt(shared_squared))


def ratio_half_width(a: Estimate, b: Estimate) -> float:
    """Half the interval of log(a / b), both measured by the same processes; nan where either has one round."""
    return math.hypot(a.own_half_width, b.own_half_width)


def ratio(a: Estimate, b: Estimate) -> tuple[float, float, float]:
    """a / b, with the ends of its interval (nan from one round)."""
    level, half = a.level - b.level, ratio_half_width(a, b)
    return math.exp(level), math.exp(level - half), math.exp(level + half)


def intervals(visits: pd.DataFrame, column: str) -> pd.DataFrame:
    """The value of a column per key with its 95 % interval.

    Args:
        visits: one row per visit with key, round, process, status and the column. Round 0 and visits that are not ok
            are ignored.
        column: a positive quantity, in base units.
    Returns: value, low, high and rounds, indexed by key; low and high are nan from one round.
    """
    rows = {
        key: (math.exp(e.level), math.exp(e.level - e.half_width), math.exp(e.level + e.half_width), e.rounds)
        for key, e in estimates(visits, column).items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high", "rounds"])
    table.index.name = "key"
    return table


def estimates(visits: pd.DataFrame, column: str, confidence: float = CONFIDENCE) -> dict[str, Estimate]:
    """An Estimate per key, from the timed rounds of a run, or of both sides of a comparison together.

    Args:
        visits: as in `intervals`.
        column: a positive quantity, in base units.
        confidence: of the interval of each.
    """
    if column not in visits:
        return {}
    usable = visits[(visits["round"] > 0) & (visits["status"] == "ok") & (visits[column] > 0)]
    if usable.empty:
        return {}
    cells, keys = pd.factorize(usable["key"])
    processes = pd.factorize(usable["process"])[0]
    logs = np.log(usable[column].to_numpy(dtype=np.float64))
    fit = _fit(logs, cells, processes, np.ones(len(keys)))
    if fit.freedom.sum() > 0:
        variance, freedom = moderate(fit.variance, fit.freedom)
        # Again with less weight for noisy cells in the offsets of processes.
        fit = _fit(logs, cells, processes, np.where(variance > 0, variance, 1.0))
        variance, freedom = moderate(fit.variance, fit.freedom)
    else:
        variance, freedom = np.full(len(keys), np.nan), np.zeros(len(keys))
    return {
        str(key): Estimate(
            level=float(fit.level[i]),
            own=float(variance[i] / fit.rounds[i]) if freedom[i] > 0 else math.nan,
            own_freedom=float(freedom[i]),
            shared=float(fit.shared / fit.rounds[i]) if freedom[i] > 0 else math.nan,
            shared_freedom=fit.shared_freedom,
            rounds=int(fit.rounds[i]),
            confidence=confidence,
        )
        for i, key in enumerate(keys)
    }


@dataclass(frozen=True)
class _Fit:
    level: Floats  # [cells]
    rounds: npt.NDArray[np.int64]  # [cells]
    variance: Floats  # [cells], of one visit around cell and process
    freedom: Floats  # [cells]
    shared: float  # variance of one visit that processes explain
    shared_freedom: float


def _fit(logs: Floats, cells: npt.NDArray[np.int64], processes: npt.NDArray[np.int64], cell_variance: Floats) -> _Fit:
    """Weighted least squares of logs = cell + process; `cell_variance` gives each cell's weight."""
    rounds = np.bincount(cells)
    spare = len(logs) - len(rounds)
    weight = 1.0 / cell_variance[cells]

    def centred(x: Floats) -> Floats:
        return x - (np.bincount(cells, weights=x) / rounds)[cells]

    y = centred(logs)
    incidence = np.stack([centred((processes == p).astype(np.float64)) for p in range(processes.max() + 1)], axis=1)
    normal = incidence.T @ (weight[:, None] * incidence)  # [processes, processes]
    rank = int(np.linalg.matrix_rank(normal)) if spare else 0
    # Where workers measured hardly more than one cell each, their offsets cannot be separated from the residuals.
    separable = 0 < rank <= 0.75 * spare
    offset = np.zeros(normal.shape[0])
    shared = shared_freedom = 0.0
    if separable:
        right = incidence.T @ (weight * y)
        offset = np.linalg.pinv(normal) @ right
        # Henderson 1953, method 3: E[right · offset] = rank + trace(normal) · variance of a process.
        shared, shared_freedom = float(right @ offset) / float(np.trace(normal)), float(rank)
    else:
        rank = 0
    residual = y - incidence @ offset
    offset = offset - _gauge(normal, offset, np.bincount(processes).astype(np.float64))
    # Adjusted levels: a cell that missed a round is not shifted by that round's offset.
    level = np.bincount(cells, weights=logs - offset[processes]) / rounds
    freedom = np.asarray((rounds - 1) * ((spare - rank) / spare if spare else 0.0), dtype=np.float64)
    squares = np.bincount(cells, weights=residual**2)
    variance = squares / np.where(freedom > 0, freedom, 1.0)
    return _Fit(level, rounds, variance, freedom, shared, shared_freedom)


def _gauge(normal: Floats, offset: Floats, visits: Floats) -> Floats:
    """The shift that makes offsets average 0 over the visits of each group of processes connected by common cells."""
    values, vectors = np.linalg.eigh(normal)
    free = vectors[:, values <= 1e-9 * max(values[-1], 1e-300)]  # constant on each connected group of processes
    weighted = free * visits[:, None]
    return np.asarray(free @ np.linalg.solve(free.T @ weighted, weighted.T @ offset), dtype=np.float64)


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
    unique, index = np.unique(d, return_inverse=True)
    log_s2 = np.log(s2) - np.array([digamma(x / 2) for x in unique])[index] + np.log(d / 2)
    centre = float(log_s2.mean())
    excess = float("inf")
    if len(s2) > 1:
        excess = float(log_s2.var(ddof=1) - np.array([trigamma(x / 2) for x in unique])[index].mean())
    if excess <= 0:
        prior_freedom, prior = np.inf, float((s2 * d).sum() / total)
    elif not math.isfinite(excess):
        prior_freedom, prior = 0.0, float(s2[0])
    else:
        prior_freedom = 2 * _inverse_trigamma(excess)
        prior = math.exp(centre + digamma(prior_freedom / 2) - math.log(prior_freedom / 2))
    at_least = np.where(estimated, np.maximum(variance, s2.min()), 0.0)
    if math.isinf(prior_freedom):
        moderated = np.full_like(variance, prior)
    else:
        moderated = (prior_freedom * prior + freedom * at_least) / np.maximum(prior_freedom + freedom, 1e-12)
    # The prior is itself estimated from these cells, so pooling has fewer degrees of freedom than all of them.
    return moderated, np.minimum(prior_freedom + freedom, np.maximum(POOLED_SHARE * total, freedom))


def _inverse_trigamma(y: float) -> float:
    """x with trigamma(x) = y > 0, by Newton on 1 / trigamma (Smyth 2004, appendix)."""
    if y > 1e7:
        return 1 / math.sqrt(y)
    if y < 1e-6:
        return 1 / y
    x = 0.5 + 1 / y
    for _ in range(50):
        value = trigamma(x)
        step = value * (1 - value / y) / tetragamma(x)
        x += step
        if -step / x < 1e-8:
            break
    return x
