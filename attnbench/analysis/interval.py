"""Intervals from rounds: what the next run of fresh processes may show, not what one process repeats.

Model of one visit, in logs: log y = cell + process + own. `process` is an offset shared by everything that one
worker measured; `own` is what is left for one cell in one process. Absolute values carry both. In the ratio of two
cells that the same workers measured, `process` cancels.

own: a cell's variance from 2 or 3 rounds alone is nearly worthless, one variance for all cells is unfair where some
are noisier. Between the two stands the moderated variance of Smyth 2004 ("Linear Models and Empirical Bayes Methods
for Assessing Differential Expression in Microarray Experiments", sections 3 and 6.2,
https://doi.org/10.2202/1544-6115.1027): the cells' variances are draws from a scaled inverse χ², whose freedom d₀ is
estimated from how much log s² varies over the cells beyond what χ² explains. Like cells give d₀ = ∞, which is plain
pooling; unlike cells give a small d₀, and each cell then speaks for itself. That is the check that pooling is fair.

process: its variance is known from as many draws as there were workers, however many cells each measured. Both parts
keep their own t quantile, and the squared half widths add up (Banerjee 1960, "Approximate confidence interval for
linear functions of means of k populations when the population variances are not equal", Sankhyā 22: never below the
nominal coverage). So two rounds that differ as a whole give a wide interval, rightly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from attnbench.analysis.distributions import digamma, student, tetragamma, trigamma

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95

POOLED_SHARE = 0.6
"""Of the cells' freedom, what a moderated variance may claim. Simulated: 8 unlike cells in 2 rounds need it to reach
93 % coverage, and 24 cells hardly notice."""


def quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """The two-sided t quantile; infinite freedom is the normal one."""
    return student(freedom, confidence)


@dataclass(frozen=True)
class Estimate:
    """The level of one cell and how well it is known, in natural logs.

    level: log of the value, process offsets taken out. own, own_freedom: variance of `level` from what concerns this
    cell alone. shared, shared_freedom: the same from process offsets. Both are nan where nothing tells: in a run of
    one round, and for a cell of one round among cells too unlike to lend it theirs.
    """

    level: float
    own: float
    own_freedom: float
    shared: float
    shared_freedom: float
    rounds: int

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.own)

    @property
    def half_width(self) -> float:
        """Half the interval of the absolute value, in logs; nan from one round."""
        own = quantile(self.own_freedom) ** 2 * self.own if self.own > 0 else self.own
        shared = quantile(self.shared_freedom) ** 2 * self.shared if self.shared > 0 else 0.0
        return math.sqrt(own + shared)


def ratio_half_width(a: Estimate, b: Estimate) -> float:
    """Half the interval of log(a / b), both measured by the same processes; nan where either has one round."""
    return math.sqrt(sum(quantile(x.own_freedom) ** 2 * x.own if x.own > 0 else x.own for x in (a, b)))


def ratio(a: Estimate, b: Estimate) -> tuple[float, float, float]:
    """a / b, with the ends of its interval (nan from one round)."""
    level, half = a.level - b.level, ratio_half_width(a, b)
    return math.exp(level), math.exp(level - half), math.exp(level + half)


def intervals(visits: pd.DataFrame, column: str) -> pd.DataFrame:
    """The value of a column per key with its 95 % interval: value, low, high, rounds, indexed by key.

    visits: one row per visit with key, round, process, status and `column` (a positive quantity; base units). Round 0
    and visits that are not ok are left out. Where nothing tells a variance (one round), low and high are nan.
    """
    rows = {
        key: (math.exp(e.level), math.exp(e.level - e.half_width), math.exp(e.level + e.half_width), e.rounds)
        for key, e in estimates(visits, column).items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high", "rounds"])
    table.index.name = "key"
    return table


def estimates(visits: pd.DataFrame, column: str) -> dict[str, Estimate]:
    """An Estimate per key, from the timed rounds of a run (or of both sides of a comparison taken together)."""
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
        own, own_freedom = moderate(fit.variance, fit.freedom)
        # Once more with the noisy cells counting less in the processes' offsets.
        fit = _fit(logs, cells, processes, np.where(own > 0, own, 1.0))
        own, own_freedom = moderate(fit.variance, fit.freedom)
    else:
        own, own_freedom = np.full(len(keys), np.nan), np.zeros(len(keys))
    return {
        str(key): Estimate(
            level=float(fit.level[i]),
            own=float(own[i] / fit.rounds[i]) if own_freedom[i] > 0 else math.nan,
            own_freedom=float(own_freedom[i]),
            shared=float(fit.shared / fit.rounds[i]) if own_freedom[i] > 0 else math.nan,
            shared_freedom=fit.shared_freedom,
            rounds=int(fit.rounds[i]),
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
    # Workers that measured hardly more than one cell each leave nothing to tell their offsets from the cells' own.
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
    # Adjusted levels: a cell that missed a round is not credited with that round's offset.
    level = np.bincount(cells, weights=logs - offset[processes]) / rounds
    freedom = np.asarray((rounds - 1) * ((spare - rank) / spare if spare else 0.0), dtype=np.float64)
    squares = np.bincount(cells, weights=residual**2)
    variance = squares / np.where(freedom > 0, freedom, 1.0)
    return _Fit(level, rounds, variance, freedom, shared, shared_freedom)


def _gauge(normal: Floats, offset: Floats, visits: Floats) -> Floats:
    """What to subtract so that the offsets of processes that share cells, directly or not, average 0 over visits."""
    values, vectors = np.linalg.eigh(normal)
    free = vectors[:, values <= 1e-9 * max(values[-1], 1e-300)]  # constant on each connected group of processes
    weighted = free * visits[:, None]
    return np.asarray(free @ np.linalg.solve(free.T @ weighted, weighted.T @ offset), dtype=np.float64)


def moderate(variance: Floats, freedom: Floats) -> tuple[Floats, Floats]:
    """Smyth's moderated variance of each cell and its freedom.

    variance, freedom: s² and d per cell; cells with d = 0 get the prior's. Where every s² is 0 the result is 0 with
    infinite freedom: the quantity repeats exactly.
    """
    seen = freedom > 0
    if not seen.any() or not (variance[seen] > 0).any():
        return np.zeros_like(variance), np.full_like(variance, np.inf)
    s2, d = variance[seen], freedom[seen]
    total = float(d.sum())
    s2 = np.maximum(s2, 1e-5 * np.median(s2[s2 > 0]))  # two equal times are luck, not a variance of 0
    unique, where = np.unique(d, return_inverse=True)
    log_s2 = np.log(s2) - np.array([digamma(x / 2) for x in unique])[where] + np.log(d / 2)
    centre = float(log_s2.mean())
    excess = float("inf")
    if len(s2) > 1:
        excess = float(log_s2.var(ddof=1) - np.array([trigamma(x / 2) for x in unique])[where].mean())
    if excess <= 0:
        prior_freedom, prior = np.inf, float((s2 * d).sum() / total)
    elif not math.isfinite(excess):
        prior_freedom, prior = 0.0, float(s2[0])
    else:
        prior_freedom = 2 * _inverse_trigamma(excess)
        prior = math.exp(centre + digamma(prior_freedom / 2) - math.log(prior_freedom / 2))
    floored = np.where(seen, np.maximum(variance, s2.min()), 0.0)
    if math.isinf(prior_freedom):
        moderated = np.full_like(variance, prior)
    else:
        moderated = (prior_freedom * prior + freedom * floored) / np.maximum(prior_freedom + freedom, 1e-12)
    # The prior itself is an estimate from the same cells: pooling knows less than all of them together.
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
