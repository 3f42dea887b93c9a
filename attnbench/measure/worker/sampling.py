"""When to stop sampling, and the interval of the median that decides it.

The interval is distribution-free: of n sorted samples, the l-th smallest and the l-th largest enclose the median with
probability 1 − 2 P(Binomial(n, ½) < l), whatever the distribution (David and Nagaraja 2003, "Order Statistics",
3rd ed., section 7.1; Le Boudec 2010, "Performance Evaluation of Computer and Communication Systems", theorem 2.1).

Looking often and stopping when the interval happens to be narrow would make it cover less than it says. So the
interval is looked at only after 8, 16, 32 … samples, and look j = 1, 2, … may err with probability α_j = 0.05 · 2^−j
only; the α_j sum to 0.05, so by the union bound the interval at whatever look ends the visit covers the median in at
least 95 % of visits (alpha spending: Lan and DeMets 1983, "Discrete sequential boundaries for clinical trials",
Biometrika 70, https://doi.org/10.1093/biomet/70.3.659). Samples of one process are taken to be independent; what
processes do not share is the business of rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

from attnbench.plan.settings import Measure

CONFIDENCE = 0.95
FIRST_LOOK = 8
"""The fewest samples whose two extremes enclose the median with the first look's confidence."""


@dataclass(frozen=True)
class Centre:
    """The median of samples with its interval; low and high are None while there are too few samples for one."""

    median: float
    low: float | None
    high: float | None

    @property
    def half_width(self) -> float:
        """Half the interval over the median; infinite where there is none."""
        if self.low is None or self.high is None:
            return math.inf
        return (self.high - self.low) / 2 / self.median if self.median > 0 else 0.0


def order_statistic(n: int, error: float) -> int:
    """The largest l whose pair of l-th extremes misses the median with probability ≤ error; 0 if none does."""
    if n > 1000:  # 2^n would overflow; here the normal quantile is right to less than one rank, and is rounded down
        z = NormalDist().inv_cdf(1 - error / 2)
        return math.floor((n - z * math.sqrt(n)) / 2)
    allowed = error * 2.0**n / 2
    tail, rank, term = 0.0, 0, 1.0  # of 2 P(Binomial(n, ½) < rank) ≤ error, in units of 2^−n
    while rank < n // 2 and tail + term <= allowed:
        tail += term
        rank += 1
        term *= (n - rank + 1) / rank
    return rank


def look_of(n: int) -> int:
    """The number j of the look that n samples belong to: the first one that n has not gone beyond, 1 at least."""
    return max(1, math.ceil(math.log2(n / FIRST_LOOK)) + 1) if n > 0 else 1


def centre(samples: Sequence[float]) -> Centre:
    """The median of at least one sample, with the interval of its look."""
    ordered = sorted(samples)
    rank = order_statistic(len(ordered), (1 - CONFIDENCE) * 2.0 ** -look_of(len(ordered)))
    if rank == 0:
        return Centre(median(ordered), None, None)
    return Centre(median(ordered), ordered[rank - 1], ordered[-rank])


def enough(samples: Sequence[float], elapsed: float, measure: Measure) -> str | None:
    """Why to stop now ("precise", "max_samples", "max_time"), or None: go on until the next look.

    samples: seconds of the samples that count. elapsed: seconds since the first was begun.
    """
    if len(samples) < measure.min_samples:
        return None
    if len(samples) >= measure.max_samples:
        return "max_samples"
    at_look = len(samples) >= FIRST_LOOK and (len(samples) & (len(samples) - 1)) == 0
    if at_look and centre(samples).half_width <= measure.within_process_precision:
        return "precise"
    return "max_time" if elapsed >= measure.max_time_s else None
