"""Quantiles and gamma functions for intervals, without scipy, whose import takes longer than `show` may."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
"""Of the intervals that are shown."""

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

Number = TypeVar("Number", float, Floats)

KNOTS = 0.025
"""How far apart in ln ν are the quantiles between which others are interpolated."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)


def normal(probability: float) -> float:
    """The quantile of the standard normal distribution."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(probability)


@lru_cache(maxsize=4096)
def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """The quantile of Student's t with `confidence` between ± it, with a relative error below 1e-5; ν = freedom > 0.

    With t = √ν / tan φ the density is sin^(ν−1) φ. Up to ν = 4 the tail is integrated over φ^ν, in which it is nearly
    constant; above, the body is integrated over φ; from ν = 200 the expansion of Abramowitz and Stegun 1964, 26.7.5.
    """
    z = normal(0.5 + confidence / 2)
    expansion = _expansion(z, freedom)
    if freedom >= 200:
        return expansion
    total = math.sqrt(math.pi) / 2 * math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2))
    wanted, low, high = (1 - confidence) * total, 0.0, math.pi / 2
    angle = math.atan2(math.sqrt(freedom), expansion)
    for _ in range(60):  # Newton's steps, where one leads out of what is left a bisection
        tail = _tail(angle, freedom, total)
        low, high = (angle, high) if tail < wanted else (low, angle)
        slope = math.sin(angle) ** (freedom - 1)
        step = (wanted - tail) / slope if slope > 0 else math.inf
        if abs(step) <= 1e-14 * angle:
            break
        angle = angle + step if low < angle + step < high else (low + high) / 2
    return float(math.sqrt(freedom) / math.tan(angle))


def t_quantiles(freedoms: Floats, confidence: float = CONFIDENCE) -> Floats:
    """`t_quantile` of each of many: ln t by cubic interpolation over ln ν, with a relative error below 1e-5."""
    place = np.log(np.minimum(freedoms, 200.0)) / KNOTS
    left = np.maximum(np.floor(place).astype(np.int64), 0)
    first, last = (int(at) for at in (left.min(initial=0) - 1, left.max(initial=0) + 2))
    knots = np.log([t_quantile(math.exp(KNOTS * at), confidence) for at in range(first, last + 1)])
    a, b, c, d = (knots[left - first + step] for step in (-1, 0, 1, 2))
    x = place - left
    cubic = b + x * ((c - a / 3 - b / 2 - d / 6) + x * ((a + c) / 2 - b + x * ((d - a) / 6 + (b - c) / 2)))
    expansion = _expansion(normal(0.5 + confidence / 2), freedoms)
    quantiles = np.asarray(np.where(freedoms < 200, np.exp(cubic), expansion), dtype=np.float64)
    for at in np.flatnonzero(freedoms < 1).tolist():  # too steep to be interpolated, and rare
        quantiles[at] = t_quantile(float(freedoms[at]), confidence)
    return quantiles


def _expansion(z: float, freedom: Number) -> Number:
    """The quantile of t beside that of the normal distribution, z."""
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _tail(angle: float, freedom: float, total: float) -> float:
    """The integral of sin^(ν−1) from 0 to an angle. total: that to π / 2."""
    if freedom <= 4:
        end: float = angle**freedom
        angles = (end / 2 * (_NODES + 1)) ** (1 / freedom)
        return end / 2 / freedom * float(_WEIGHTS @ (np.sin(angles) / angles) ** (freedom - 1))
    body = math.pi / 2 - angle
    return total - body / 2 * float(_WEIGHTS @ np.cos(body / 2 * (_NODES + 1)) ** (freedom - 1))


def chi_square(freedom: int, tail: float) -> float:
    """The value that a χ² exceeds with probability `tail`, within 3 % for tails from 0.001 to 0.05.

    Wilson and Hilferty 1931, "The Distribution of Chi-Square"; exact at one degree of freedom.
    """
    if freedom == 1:
        return normal(1 - tail / 2) ** 2
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + normal(1 - tail) * math.sqrt(spread)) ** 3


def digamma(x: Number) -> Number:
    """ψ(x), x > 0: the asymptotic series (Abramowitz and Stegun 1964, 6.3.18) at x + 8, stepped back by 6.3.5."""
    y = x + 8
    series: Number = np.log(y) - 1 / (2 * y) - 1 / (12 * y**2) + 1 / (120 * y**4) - 1 / (252 * y**6)
    return series - sum(1 / (x + k) for k in range(8))


def trigamma(x: Number) -> Number:
    """ψ′(x), x > 0: the derivative of `digamma`."""
    y = x + 8
    series = 1 / y + 1 / (2 * y**2) + 1 / (6 * y**3) - 1 / (30 * y**5) + 1 / (42 * y**7) - 1 / (30 * y**9)
    return series + sum(1 / (x + k) ** 2 for k in range(8))
