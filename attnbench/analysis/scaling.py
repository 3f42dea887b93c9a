"""How a metric grows along an axis: the slope of the tail, an overhead plus a power, and the nearest class of growth.

Launch overhead makes a linear operator appear to grow more slowly than it does, so an overhead is fitted; a kink (cache
to memory, memory-bound to compute-bound) distorts that fit, so its misfit is tested, and then only the tail's slope is
used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import get_args

import numpy as np
import numpy.typing as npt

from attnbench.analysis.distributions import chi_square, t_quantile
from attnbench.analysis.interval import Estimate
from attnbench.operator import Growth

Floats = npt.NDArray[np.float64]

GROWTHS = tuple(growth for growth in get_args(Growth) if growth != "0")
"""The classes that are fitted, by order of growth."""

UNDECIDED = "undecided"

MODEL_TOLERANCE = 0.02
"""The relative deviation from a smooth law that alignment and caches may cause in a timed point."""

EXACT_TOLERANCE = 0.001
"""The same for figures that repeat exactly, by lower-order terms."""

WORST_CLASS = 0.2
"""The largest rms relative error of a class that is named."""

AGREEMENT = 0.1
"""How far outside the interval of the measured exponent the stated one may be and still agree: at measurable sizes
linear operators have exponents of 1.07 to 1.09."""


@dataclass(frozen=True)
class Exponent:
    """A log-log slope with its 95 % interval (nan from one round)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scaling:
    """How one series grows.

    Attributes:
        sizes: ascending.
        tail: slope over the largest sizes (within a factor of 4, at least three).
        fit: exponent α of a + b·size^α, a ≥ 0, over all sizes; None with fewer than four.
        fits: whether that law holds within noise and MODEL_TOLERANCE.
        overhead: a, in the metric's unit; 0 where the law does not hold.
        launch_bound: the size below which the overhead is more than half of the total; None where it never is.
        growth, growth_error: the class that fits best and its rms relative error; "undecided" and None where two
            classes fit, or none, or where it contradicts the exponent.

    The classes are b·g(size) over the sizes of the exponent, with an overhead a where the law has one or no class fits
    without; of exact figures, which have lower-order terms and no noise, always a + b·g(size).
    """

    sizes: tuple[int, ...]
    tail: Exponent
    fit: Exponent | None
    fits: bool
    overhead: float
    launch_bound: float | None
    growth: str
    growth_error: float | None

    @property
    def exponent(self) -> Exponent:
        """The exponent that is shown: `fit` where the law holds, else `tail`."""
        return self.fit if self.fit is not None and self.fits else self.tail


def scaling(points: Sequence[tuple[int, Estimate]]) -> Scaling | None:
    """The scaling of (size, level) pairs by ascending size; None with fewer than two sizes."""
    points = [p for i, p in enumerate(points) if i == 0 or p[0] > points[i - 1][0]]
    if len(points) < 2:
        return None
    sizes = tuple(size for size, _ in points)
    x = np.log(np.array(sizes, dtype=np.float64))
    y = np.array([level.level for _, level in points])
    noise = np.array([level.own for _, level in points])
    t = np.array([t_quantile(level.own_freedom) if level.own > 0 else 0.0 for _, level in points])
    exact = bool((noise == 0).all())
    tail = _tail(sizes)
    slope = _slope(x[tail], y[tail], noise[tail], t[tail])
    variance = np.nan_to_num(noise) + (EXACT_TOLERANCE if exact else MODEL_TOLERANCE) ** 2
    fit, fits, overhead, bound = None, False, 0.0, None
    if len(points) >= 4:
        fit, fits, overhead, bound = _affine(
            sizes, y, variance, max(2.0, float(t.max())), one_round=bool(np.isnan(noise).any())
        )
    if not fits:
        overhead, bound = 0.0, None
    if exact:
        growth, error = _growth(x, y, variance)
        return Scaling(sizes, slope, fit, fits, overhead, bound, growth, error)
    used = slice(None) if fits else tail
    named = None if overhead > 0 else _class(x[used], y[used], variance[used], overhead=False)
    growth, error = named or _class(x[used], y[used], variance[used]) or (UNDECIDED, None)
    result = Scaling(sizes, slope, fit, fits, overhead, bound, growth, error)
    if growth != UNDECIDED and not _holds(result, growth):
        return replace(result, growth=UNDECIDED, growth_error=None)
    return replace(result, launch_bound=float(sizes[-1])) if growth == "1" else result


def agreement(measured: Scaling, stated: str) -> str:
    """ "agrees", "lower", "higher" or "undecided": the measured exponent against a stated growth such as "n log n".

    The exponent of a growth with a log term is the slope of its curve over the same sizes.
    """
    exponent = measured.exponent
    half = (exponent.high - exponent.low) / 2
    if math.isnan(half) or half > 0.3:
        return UNDECIDED
    if stated == measured.growth or _holds(measured, stated):
        return "agrees"
    return "higher" if exponent.value > stated_exponent(measured, stated) else "lower"


def _holds(measured: Scaling, growth: str) -> bool:
    """Whether the exponent's interval (from one round its value), widened by AGREEMENT, contains a growth's slope."""
    low, high = (
        measured.exponent.value if math.isnan(e) else e for e in (measured.exponent.low, measured.exponent.high)
    )
    return low - AGREEMENT <= stated_exponent(measured, growth) <= high + AGREEMENT


def stated_exponent(measured: Scaling, stated: str) -> float:
    """The slope of a stated growth over the sizes that the measured exponent is from."""
    sizes = np.array(measured.sizes, dtype=np.float64)
    if measured.exponent is measured.tail:
        sizes = sizes[_tail(measured.sizes)]
    if stated in ("0", "1"):
        return 0.0
    x, y = np.log(sizes), np.log(_curve(stated, sizes))
    return float(((x - x.mean()) @ y) / ((x - x.mean()) @ x))


def _tail(sizes: Sequence[int]) -> slice:
    within = sum(size * 4 >= sizes[-1] for size in sizes)
    return slice(-min(len(sizes), max(3, within)), None)


def _slope(x: Floats, y: Floats, noise: Floats, t: Floats) -> Exponent:
    """Least squares; process offsets cancel in a slope, so only the cells' residual variances count."""
    weight = (x - x.mean()) / ((x - x.mean()) @ (x - x.mean()))
    value = float(weight @ y)
    half = math.sqrt(float(weight**2 @ (t**2 * noise)))
    return Exponent(value, value - half, value + half)


def _affine(
    sizes: tuple[int, ...], y: Floats, variance: Floats, t: float, *, one_round: bool
) -> tuple[Exponent, bool, float, float | None]:
    """Fit of y = log(b) + log(e^τ + e^(αu)), u the centred log size; with an overhead only where significant."""
    u, models, squares, taus, alphas = _models(sizes)
    w = 1 / variance
    y_mean = float(w @ y / w.sum())
    plain = _weighted_line(u, y, w)
    degrees = len(y) - 2
    misfit = plain.misfit
    result = Exponent(plain.slope, plain.slope - t * plain.error, plain.slope + t * plain.error)
    overhead, bound = 0.0, None
    if plain.misfit <= t**2:  # no overhead could improve the fit significantly
        if one_round:
            result = Exponent(result.value, math.nan, math.nan)
        return result, True, overhead, bound
    r = y - y_mean
    mean = models @ w / w.sum()
    cost = squares @ w - w.sum() * mean**2 - 2 * (models @ (w * r)) + 2 * mean * float(w @ r)
    best = int(np.argmin(cost))
    tau, alpha = float(taus[best]), float(alphas[best])
    tau, alpha, scale, polished, error = _polish(u, y, w, tau, alpha)
    if polished < plain.misfit - t**2 and alpha > 0:
        misfit, degrees = polished, len(y) - 3
        result = Exponent(alpha, max(0.0, alpha - t * error), alpha + t * error)
        overhead = math.exp(scale + tau)
        size = math.exp(float(np.log(sizes).mean()) + tau / alpha)
        bound = min(size, float(sizes[-1])) if size > sizes[0] else None
    if one_round:
        result = Exponent(result.value, math.nan, math.nan)
    return result, misfit <= chi_square(degrees, 0.01), overhead, bound


@dataclass(frozen=True)
class _Line:
    slope: float
    error: float
    misfit: float


def _weighted_line(x: Floats, y: Floats, w: Floats) -> _Line:
    xc, yc = x - w @ x / w.sum(), y - w @ y / w.sum()
    spread = float(w @ xc**2)
    slope = float((w * xc) @ yc) / spread
    return _Line(slope, spread**-0.5, float(w @ (yc - slope * xc) ** 2))


@lru_cache(maxsize=64)
def _models(sizes: tuple[int, ...]) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Centred log sizes, then a grid of log(e^τ + e^(αu)) [grid, sizes], its squares, and the grid's τ and α."""
    u = np.log(np.array(sizes, dtype=np.float64))
    u = u - u.mean()
    tau, alpha = (g.ravel() for g in np.meshgrid(np.arange(-6, 6.1, 0.5), np.arange(0.1, 3.6, 0.1)))
    models = np.logaddexp(tau[:, None], alpha[:, None] * u)
    return u, models, models**2, tau, alpha


def _polish(u: Floats, y: Floats, w: Floats, tau: float, alpha: float) -> tuple[float, float, float, float, float]:
    """Levenberg-Marquardt from the grid's best: τ, α, log b, misfit and the standard error of α."""

    def residual(tau: float, alpha: float) -> tuple[Floats, float]:
        model = np.logaddexp(tau, alpha * u)
        scale = float(w @ (y - model) / w.sum())
        return y - model - scale, scale

    r, scale = residual(tau, alpha)
    cost, damping = float(w @ r**2), 1e-3
    normal = np.eye(2)
    for _ in range(30):
        share = 1 / (1 + np.exp(alpha * u - tau))  # of the overhead, at each size
        jacobian = np.stack([share, (1 - share) * u])
        jacobian = jacobian - (jacobian @ w / w.sum())[:, None]
        normal = (jacobian * w) @ jacobian.T
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-12), (jacobian * w) @ r)
        candidate = (float(np.clip(tau + step[0], -12, 12)), float(np.clip(alpha + step[1], 0.01, 6)))
        r_next, scale_next = residual(*candidate)
        cost_next = float(w @ r_next**2)
        if cost_next <= cost:
            converged = cost - cost_next < 1e-6 * (1 + cost)
            (tau, alpha), r, scale, cost, damping = candidate, r_next, scale_next, cost_next, damping / 5
            if converged:
                break
        else:
            damping *= 10
            if damping > 1e6:
                break
    inverse = np.linalg.pinv(normal)
    return tau, alpha, scale, cost, math.sqrt(max(float(inverse[1, 1]), 0.0))


def _curve(growth: str, n: Floats) -> Floats:
    logs = np.log(np.maximum(n, 2))
    powers = {"log n": logs, "n": n, "n log n": n * logs, "n^1.5": n**1.5, "n^2": n**2, "n^3": n**3}
    return np.asarray(powers[growth], dtype=np.float64)


def _growth(x: Floats, y: Floats, variance: Floats) -> tuple[str, float | None]:
    """The class of exact figures over all sizes, or where none fits, over the tail of at least four; else undecided."""
    named = _class(x, y, variance)
    tail = slice(-max(4, sum(x >= x[-1] - math.log(4) - 1e-9)), None)
    if named is None and len(x[tail]) < len(x):
        named = _class(x[tail], y[tail], variance[tail])
    return named if named is not None else (UNDECIDED, None)


def _class(x: Floats, y: Floats, variance: Floats, *, overhead: bool = True) -> tuple[str, float | None] | None:
    """The class of growth, with or without an overhead, and its rms relative error; None where none fits."""
    if len(x) < 3:
        return UNDECIDED, None
    n = np.exp(x)
    relative = np.exp(y.mean() - y)  # 1 / T, scaled, so that errors are relative
    w = 1 / variance
    fits = []
    for growth in GROWTHS:
        shape = np.ones_like(n) if growth == "1" else _curve(growth, n) / _curve(growth, n).max()
        error = _relative_error(relative, shape, w, overhead=overhead)
        fits.append((float(w @ error**2), growth, math.sqrt(float((error**2).mean()))))
    constant = fits[0]
    fits.sort()
    best, second = fits[0], fits[1]
    if overhead and constant[0] - best[0] < 4:  # with an overhead every class contains the constant
        best, second = constant, (math.inf, "", 0.0)
    if best[0] > chi_square(max(1, len(x) - (2 if overhead and best[1] != "1" else 1)), 0.001):
        return None
    return (best[1], best[2]) if second[0] - best[0] >= 4 and best[2] <= WORST_CLASS else (UNDECIDED, None)


def _relative_error(relative: Floats, shape: Floats, w: Floats, *, overhead: bool) -> Floats:
    """1 − (a + b·shape)/T with the a, b ≥ 0 of the least weighted square; a = 0 without an overhead."""
    columns = np.stack([relative, relative * shape], axis=1)
    first, last = columns.T
    s11, s12, s22 = float(w @ first**2), float(w @ (first * last)), float(w @ last**2)
    r1, r2 = float(w @ first), float(w @ last)
    candidates = [np.array([0.0, r2 / s22])]
    candidates += [np.array([r1 / s11, 0.0])] if overhead else []
    determinant = s11 * s22 - s12**2
    if overhead and determinant > 1e-12 * s11 * s22:
        interior = np.array([r1 * s22 - r2 * s12, r2 * s11 - r1 * s12]) / determinant
        candidates += [interior] if (interior >= 0).all() else []
    errors = [1 - columns @ c for c in candidates]
    return min(errors, key=lambda e: float(w @ e**2))
