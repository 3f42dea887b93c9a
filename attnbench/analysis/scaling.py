"""How a metric grows along an axis: a time by its factor per doubling at the largest sizes, an exact figure by a class.

A time at measurable sizes is its law plus launch overhead, caches and page faults, each over sizes of its own, so a
class of growth would be named after whichever of them rules there. An exact figure has only terms of lower order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt

from attnbench.analysis.distributions import Floats, chi_square
from attnbench.analysis.interval import WIDEST, Estimate
from attnbench.operator import Growth

GROWTHS = tuple(growth for growth in get_args(Growth) if growth not in ("0", "n^0.5"))
"""The classes that are fitted, by order of growth."""

OF_A_STEP: Mapping[str, str] = {
    "n": "1", "n log n": "log n", "n^1.5": "n^0.5", "n^2": "n", "n^3": "n^2",
}  # fmt: skip
"""How the last Q of N tokens grow with N, by how all N do: a step is the difference of two prefills. What is not here
grows no more."""

UNDECIDED = "undecided"

SMOOTH = 0.05
"""The relative difference of two factors per doubling that alignment and caches may cause."""

EXACT_TOLERANCE = 0.001
"""The relative deviation of an exact figure from its class that terms of lower order may cause."""

AGREEMENT = 0.1
"""How far the exponent of an exact figure may lie from the stated one over the same sizes and still agree."""


@dataclass(frozen=True)
class Doubling:
    """The factor by which a time grows per doubling of the size, at the largest sizes.

    Attributes:
        sizes: the largest, behind the largest that is at most half of it.
        factor, low, high: between these two, with its interval (nan from one round).
        before: the factor over the sizes below, chosen alike; None without a third size.
        stated: the factor of the declared growth between the same sizes; None where none is declared.
        settled: False: not asymptotic yet, because `factor` and `before` differ beyond noise, or because the time grows
            clearly less than stated, as where launches are most of it. None: an interval or a third size is missing.
    """

    sizes: tuple[int, int]
    factor: float
    low: float
    high: float
    before: float | None
    stated: float | None
    settled: bool | None


@dataclass(frozen=True)
class ExactGrowth:
    """How an exact figure grows.

    Attributes:
        sizes: the largest, behind the largest that is at most half of it.
        exponent: the log-log slope between these two.
        growth: the class a + b·g(size), a and b ≥ 0, that fits best; "undecided" where two do, or none.
    """

    sizes: tuple[int, int]
    exponent: float
    growth: str

    def __str__(self) -> str:
        return f"n^{self.exponent:.2f}" if self.growth == UNDECIDED else self.growth


def doubling(points: Sequence[tuple[int, Estimate]], stated: str | None) -> Doubling | None:
    """The growth of (size, level) pairs by ascending size; None with fewer than two sizes.

    Args:
        stated: the declared growth, such as "n log n".
    """
    levels = _by_size(points)
    if len(levels) < 2:
        return None
    chain = _largest(levels, 3)
    y, half = np.array([(levels[size].level, levels[size].half_width) for size in chain]).T
    steps = np.diff(np.eye(len(chain)), axis=0) * (math.log(2) / np.diff(np.log(chain)))[:, None]  # [doublings, sizes]
    factors, noise = steps @ y, _half_width(steps[-1], half)
    predicted = float(steps[-1] @ _log_curve(stated, chain)) if stated else None
    settled = None
    if not np.isnan(half).any():
        is_short = predicted is not None and predicted - factors[-1] > max(SMOOTH, noise)
        turns = abs(factors[-1] - factors[0]) > max(SMOOTH, _half_width(steps[-1] - steps[0], half))
        settled = False if is_short or turns else len(chain) == 3 or None
    return Doubling(
        sizes=(chain[-2], chain[-1]),
        factor=_power(factors[-1]),
        low=_power(factors[-1] - noise),
        high=_power(factors[-1] + noise),
        before=_power(factors[0]) if len(chain) == 3 else None,
        stated=None if predicted is None else math.exp(predicted),
        settled=settled,
    )


def exact_growth(points: Sequence[tuple[int, Estimate]]) -> ExactGrowth | None:
    """The growth of an exact figure from (size, level) pairs by ascending size; None with fewer than two sizes."""
    levels = _by_size(points)
    if len(levels) < 2:
        return None
    low, high = _largest(levels, 2)
    x, y = np.log(np.array([*levels], dtype=np.float64)), np.array([level.level for level in levels.values()])
    exponent = (levels[high].level - levels[low].level) / math.log(high / low)
    return ExactGrowth((low, high), exponent, _class(x, y) or _class(x[-4:], y[-4:]) or UNDECIDED)


def agreement(measured: ExactGrowth, stated: str) -> str:
    """ "agrees", "lower" or "higher": an exact figure's growth against a stated one, by its class or its exponent.

    The exponent of a stated growth is the slope of its curve between the same sizes.
    """
    low, high = _log_curve(stated, measured.sizes)
    beyond = measured.exponent - (high - low) / math.log(measured.sizes[1] / measured.sizes[0])
    if stated == measured.growth or abs(beyond) <= AGREEMENT:
        return "agrees"
    return "higher" if beyond > 0 else "lower"


def _by_size(points: Sequence[tuple[int, Estimate]]) -> dict[int, Estimate]:
    """The levels by size; of several at one size (14×28 and 28×14) the first."""
    levels: dict[int, Estimate] = {}
    for size, level in points:
        levels.setdefault(size, level)
    return levels


def _largest(levels: Mapping[int, Estimate], most: int) -> list[int]:
    """The largest size, behind the largest that is at most half of it (else the smallest), and so on; ascending."""
    chain = [max(levels)]
    while len(chain) < most and chain[0] > min(levels):
        chain.insert(0, max((size for size in levels if 2 * size <= chain[0]), default=min(levels)))
    return chain


def _power(log: float) -> float:
    """e to it, at most to WIDEST: a doubling may be more than a float holds where two sizes hardly differ."""
    return math.exp(min(log, WIDEST))


def _half_width(weights: Floats, half: Floats) -> float:
    """Of a weighted sum of levels, from theirs, whose squares add up (Banerjee 1960)."""
    return math.sqrt(float(weights**2 @ half**2))


def _log_curve(growth: str, sizes: npt.ArrayLike) -> Floats:
    n = np.array(sizes, dtype=np.float64)
    logs = np.log(np.maximum(n, 2))
    powers = {"log n": logs, "n^0.5": n**0.5, "n": n, "n log n": n * logs, "n^1.5": n**1.5, "n^2": n**2, "n^3": n**3}
    return np.asarray(np.log(powers.get(growth, np.ones_like(n))), dtype=np.float64)


def _class(x: Floats, y: Floats) -> str | None:
    """The class of growth of log figures y over log sizes x; None where none fits."""
    if len(x) < 3:
        return UNDECIDED
    relative = np.exp(y.mean() - y)  # 1 / T, scaled, so that errors are relative
    fits = []
    for growth in GROWTHS:
        curve = _log_curve(growth, np.exp(x))
        error = _relative_error(relative, np.exp(curve - curve.max()))
        fits.append((float(error @ error) / EXACT_TOLERANCE**2, growth))
    constant = fits[0]
    best, second = sorted(fits)[:2]
    if constant[0] - best[0] < 4:  # every class contains the constant
        best, second = constant, (math.inf, "")
    if best[0] > chi_square(max(1, len(x) - (1 if best[1] == "1" else 2)), 0.001):
        return None
    return best[1] if second[0] - best[0] >= 4 else UNDECIDED


def _relative_error(relative: Floats, shape: Floats) -> Floats:
    """1 − (a + b·shape)/T with the a, b ≥ 0 of the least square."""
    columns = np.stack([relative, relative * shape], axis=1)
    candidates = [np.linalg.lstsq(columns, np.ones_like(relative))[0]]
    candidates += [np.eye(2)[i] * column.sum() / (column @ column) for i, column in enumerate(columns.T)]
    return min((1 - columns @ c for c in candidates if (c >= 0).all()), key=lambda e: float(e @ e))
