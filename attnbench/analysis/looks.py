"""The round counts at which a run may stop, and the confidence of an interval after them.

The looks are fixed before the first round, and the intervals of all of them hold the truth together with 95 %. A run
spends the error in proportion to its rounds: up to round n an interval was ever wrong with probability α n / n_max (Lan
and DeMets 1983, "Discrete sequential boundaries for clinical trials", Biometrika 70). That its budget ends does not
depend on its times: the intervals of its last rounds may spend all that is left. A gate, which mostly ends early, has
the same confidence at each look (Pocock 1977, "Group sequential methods in the design and analysis of clinical
trials", Biometrika 64).

The sum of the rounds walks from look to look, and what has not yet left its bounds is integrated numerically (Jennison
and Turnbull 2000, "Group Sequential Methods", section 19.2; 4.4 for the step from normal to t quantiles).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from attnbench.analysis.distributions import CONFIDENCE, Floats, normal

BISECTIONS = 24
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def looks(rounds: int, max_rounds: int) -> tuple[int, ...]:
    """The round counts at which a run may stop: the first, then half as many more each time, at least two.

    Args:
        rounds: the first look.
        max_rounds: the last; `rounds` or less: one look.
    """
    stops = [rounds]
    while stops[-1] < max_rounds:
        stops.append(min(max(stops[-1] + 2, (3 * stops[-1] + 1) // 2), max_rounds))
    return tuple(stops)


def confidence_after(stops: tuple[int, ...], last: int, end: int, confidence: float = CONFIDENCE) -> float:
    """The confidence of the interval of a cell.

    Args:
        stops: the looks of its run; none: it is of a fixed length.
        last: the last round of the cell.
        end: the last round of the run; between two looks: the budget ended it.
        confidence: that the intervals of all looks hold the truth.
    """
    earlier = tuple((stop, stop / stops[-1]) for stop in stops if stop < last)
    look = next((stop for stop in stops if last <= stop <= end), None)
    now = (last, 1.0) if look is None else (look, look / stops[-1])
    return _spending((*earlier, now), confidence)[0] if earlier or now[1] < 1 else confidence


@lru_cache(maxsize=256)
def _spending(spent: tuple[tuple[int, float], ...], confidence: float) -> tuple[float, Floats, Floats]:
    """The confidence at the last of some looks, and what of the walk is left after it, as points and their masses.

    spent: the looks, each with the share of the error of all of them that is spent up to it.
    """
    if not spent:
        return 1.0, np.zeros(1), np.ones(1)
    *earlier, (now, share) = spent
    _, points, masses = _spending(tuple(earlier), confidence)
    before = earlier[-1][0] if earlier else 0
    low, high = 0.0, 8.0
    for _ in range(BISECTIONS):
        z = (low + high) / 2
        holds = _inside(points, masses, before, now, z)[1].sum() >= 1 - (1 - confidence) * share
        low, high = (low, z) if holds else (z, high)
    return math.erf(high / 2**0.5), *_inside(points, masses, before, now, high)


@lru_cache(maxsize=256)
def confidence_at(stops: tuple[int, ...], confidence: float = CONFIDENCE) -> float:
    """The confidence of the interval at each look, the same at all, such that all looks together have `confidence`."""
    low, high = confidence, 1 - (1 - confidence) / len(stops)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        points, masses = np.zeros(1), np.ones(1)
        for before, now in zip((0, *stops), stops, strict=False):
            points, masses = _inside(points, masses, before, now, normal(0.5 + middle / 2))
        low, high = (middle, high) if masses.sum() < confidence else (low, middle)
    return high


def _inside(points: Floats, masses: Floats, before: int, now: int, z: float) -> tuple[Floats, Floats]:
    """What of a standard normal random walk lies within ± z √now after `now` steps, from what it was `before`."""
    end, variance = z * now**0.5, now - before
    reached = end * _NODES
    density = np.exp(-((reached[:, None] - points) ** 2) / (2 * variance)) / (2 * np.pi * variance) ** 0.5
    return reached, end * _WEIGHTS * (density @ masses)
