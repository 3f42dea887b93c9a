"""The round counts at which a run may stop, and the confidence of an interval at each of them.

A run that stops as soon as its intervals are narrow enough looks at its data several times. The looks are fixed before
the first round, and all have the same nominal confidence, so high that with probability 95 % the intervals of all looks
hold the truth (Pocock 1977, "Group sequential methods in the design and analysis of clinical trials", Biometrika 64).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from attnbench.analysis.distributions import CONFIDENCE, normal

MOST_LOOKS = 4


def looks(rounds: int, max_rounds: int) -> tuple[int, ...]:
    """The round counts at which a run may stop: the first, then at least two rounds apart, at most MOST_LOOKS.

    Args:
        rounds: the first look.
        max_rounds: the last; `rounds` or less: one look.
    """
    step = max(2, -(-(max_rounds - rounds) // (MOST_LOOKS - 1)))
    return (*range(rounds, max_rounds, step), max(rounds, max_rounds))


@lru_cache(maxsize=256)
def confidence_at(stops: tuple[int, ...], confidence: float = CONFIDENCE) -> float:
    """The confidence of the interval at each look, such that the intervals of all looks together have another.

    A run that ended between two looks, for its budget, has looked as often as one that went on to the next.

    The sum of the rounds walks from look to look, and what has not yet left ± z √rounds is integrated numerically
    (Armitage, McPherson and Rowe 1969, "Repeated significance tests on accumulating data"; Jennison and Turnbull 2000,
    "Group Sequential Methods", section 19.2; their section 4.4 for the step from normal to t quantiles).

    Args:
        stops: the looks; one: a run of a fixed length.
        confidence: that all looks hold the truth.
    """
    if len(stops) == 1:
        return confidence
    low, high = confidence, 1 - (1 - confidence) / len(stops)
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if _all_hold(stops, normal(0.5 + middle / 2)) < confidence else (low, middle)
    return high


def _all_hold(stops: tuple[int, ...], z: float) -> float:
    """The probability that a standard normal random walk lies within ± z √n at every look n."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    points, masses = np.zeros(1), np.ones(1)
    for before, now in zip((0, *stops), stops, strict=False):
        end, variance = z * now**0.5, now - before
        reached = end * nodes
        density = np.exp(-((reached[:, None] - points) ** 2) / (2 * variance)) / (2 * np.pi * variance) ** 0.5
        points, masses = reached, end * weights * (density @ masses)
    return float(masses.sum())
