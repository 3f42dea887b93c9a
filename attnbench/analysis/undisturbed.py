"""The undisturbed time of a visit: what a call takes while nothing else runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

SHARE = 0.1
"""Of the samples, those that are faster than the undisturbed time."""


def undisturbed(*members: Sequence[float]) -> float:
    """The lowest decile of a visit's samples: one sample in ten is faster; of fewer than ten it is the fastest.

    What else runs on a machine only ever adds time, in episodes, so the low samples tell one call from another. A
    quantile depends less than a minimum on how many samples a call is short enough for; the rank is SHARE · (n + 1)
    (Weibull 1939; Hyndman and Fan 1996, "Sample Quantiles in Statistical Packages", definition 6).

    A baseline that every turn samples three times is three members whose logs are averaged, so that it has the same
    expectation as with one, and it is not called faster for being sampled more often.

    Args:
        members: the samples in seconds, one or more; of a baseline, those of each of its members.
    """
    return math.exp(sum(math.log(_decile(samples)) for samples in members) / len(members))


def _decile(samples: Sequence[float]) -> float:
    ordered = sorted(samples)
    below = max(SHARE * (len(ordered) + 1) - 1, 0.0)
    first = int(below)
    return ordered[first] + (below - first) * (ordered[min(first + 1, len(ordered) - 1)] - ordered[first])
