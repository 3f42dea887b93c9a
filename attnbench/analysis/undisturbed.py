"""The undisturbed time of a visit: what a call takes while nothing else runs."""

from __future__ import annotations

from collections.abc import Sequence

SHARE = 0.1
"""Of the samples, those that lie below the undisturbed time."""


def undisturbed(samples: Sequence[float]) -> float:
    """The lowest decile of a visit's samples: one sample in ten is faster.

    What else runs on a machine only ever adds time, in episodes, so the low samples are those that tell one call from
    another. A minimum falls with the number of samples; a quantile does not, so that a baseline sampled three times as
    often as its series is not called faster. The estimator is nearly median-unbiased whatever the distribution
    (Hyndman and Fan 1996, "Sample Quantiles in Statistical Packages", definition 8); below 7 samples it is the minimum.

    Args:
        samples: seconds, one or more.
    """
    ordered = sorted(samples)
    position = SHARE * (len(ordered) + 1 / 3) + 1 / 3 - 1
    if position <= 0:
        return ordered[0]
    below = int(position)
    return ordered[below] + (position - below) * (ordered[below + 1] - ordered[below])
