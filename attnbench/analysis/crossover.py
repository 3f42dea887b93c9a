"""Where a series' metric passes the baseline's on an axis.

The log ratio of the two is interpolated over log size. Its interval at any size is the ratio's t interval there, so
the interval of a crossing is every size at which the ratio is not significantly different from 1 (an inverted test, as
Fieller 1954 for ratios): it is open where a crossing lies at the edge of the measured sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from attnbench.analysis.distributions import t_quantile
from attnbench.analysis.interval import Estimate, ratio

Floats = npt.NDArray[np.float64]

Kind = Literal["crossing", "always", "never", "same", "undecided", "nothing"]
Direction = Literal["above", "below", "within noise"]

STEPS = 64
"""Points between two neighbouring sizes at which the interpolated ratio is evaluated."""

CURVATURE_SHARE = 0.3
"""The share of the difference between the curvatures on either side that widens the interval, at sizes a factor of 2
apart; it grows with the cube of the log distance. In simulations with launch overheads and kinks beside the crossing,
this covers 93 % at a factor of 2; at a factor of 4 it takes 8 times as much."""


@dataclass(frozen=True)
class Pair:
    """One size of a series and of its baseline.

    Where one side ran out of memory or time, the other is the cheaper one there, without a ratio.

    Attributes:
        size, label: the size, as a number and as shown.
        series, baseline: their levels; None where there is none.
        series_status, baseline_status: why, where there is none.
    """

    size: int
    label: str
    series: Estimate | None
    baseline: Estimate | None
    series_status: str = "ok"
    baseline_status: str = "ok"

    @property
    def beyond_series(self) -> bool:
        """Whether the baseline has a value and the series ran out of memory or time."""
        return self.baseline is not None and self.series is None and self.series_status in BEYOND

    @property
    def beyond_baseline(self) -> bool:
        """Whether the series has a value and the baseline ran out of memory or time."""
        return self.series is not None and self.baseline is None and self.baseline_status in BEYOND


BEYOND = ("oom", "timeout")


@dataclass(frozen=True)
class Crossing:
    """One crossing, in sizes.

    Attributes:
        at: where the ratio is 1; None where only the interval is known.
        low, high: the 95 % interval; None: open on that side (the edge of the measured sizes, or one round).
        direction: the series is cheaper `above` or `below` it; "within noise" where the ratio touches 1 and returns.
    """

    at: float | None
    low: float | None
    high: float | None
    direction: Direction


@dataclass(frozen=True)
class Edge:
    """The ratio series / baseline at a measured size, with its interval (nan from one round)."""

    label: str
    size: int
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Crossover:
    """The verdict on a series against a baseline.

    Attributes:
        kind: "crossing": see `crossings`; "always": cheaper at every size; "never": at none; "same": equal exact
            figures; "undecided": within noise of 1 at every size; "nothing": no size has both.
        crossings: in ascending order; of "always" and "never" the intervals that are open at an edge, where the ratio
            there is within noise.
        smallest, largest: the ratio at the smallest and largest size that has both.
        baseline_beyond, series_beyond: the first size at which the one ran out of memory or time and the other did not,
            with the status; the former counts as cheaper.
    """

    kind: Kind
    crossings: tuple[Crossing, ...] = ()
    smallest: Edge | None = None
    largest: Edge | None = None
    baseline_beyond: tuple[str, str] | None = None
    series_beyond: tuple[str, str] | None = None


def crossover(pairs: Sequence[Pair]) -> Crossover:
    """The crossover of pairs by ascending size."""
    beyond = next(((p.label, p.baseline_status) for p in pairs if p.beyond_baseline), None)
    series_lost = next(((p.label, p.series_status) for p in pairs if p.beyond_series), None)
    compared = [p for i, p in enumerate(pairs) if p.series and p.baseline and (i == 0 or p.size > pairs[i - 1].size)]
    if not compared:
        kind: Kind = "always" if beyond and not series_lost else "never" if series_lost and not beyond else "nothing"
        return Crossover(kind, baseline_beyond=beyond, series_beyond=series_lost)
    edges = (_edge(compared[0]), _edge(compared[-1]))
    if all(p.series and p.baseline and abs(p.series.level - p.baseline.level) < 1e-12 for p in compared) and not beyond:
        return Crossover("same", (), *edges, beyond, series_lost)
    crossings, cheaper = _crossings(compared)
    if beyond and not cheaper[-1]:
        last = compared[-1].size
        first = next(p.size for p in pairs if p.beyond_baseline)
        if first > last:  # more expensive up to where both ran; then the baseline did not run: a crossing in between
            crossings = [c for c in crossings if c.high is not None]
            crossings.append(Crossing(None, float(last), float(first), "above"))
    if len(compared) > 1 and all(_unclear(p) for p in compared):  # then the place of a crossing has no meaning
        crossings = [c for c in crossings if c.low is not None or c.high is not None]
    real = [c for c in crossings if c.direction != "within noise" and (c.at is not None or (c.low and c.high))]
    if real:
        kind = "crossing"
    elif all(_unclear(p) for p in compared) and len(compared) > 1:
        kind = "undecided"
    else:
        kind = "always" if cheaper[0] else "never"
    return Crossover(kind, tuple(crossings), *edges, beyond, series_lost)


def _edge(pair: Pair) -> Edge:
    assert pair.series is not None
    assert pair.baseline is not None
    return Edge(pair.label, pair.size, *ratio(pair.series, pair.baseline))


def _unclear(pair: Pair) -> bool:
    edge = _edge(pair)
    return edge.low <= 1 <= edge.high and edge.low < edge.high


def _crossings(pairs: Sequence[Pair]) -> tuple[list[Crossing], tuple[bool, bool]]:
    """The crossings, and whether the series is cheaper at the smallest and at the largest size."""
    gap = np.array([p.series.level - p.baseline.level for p in pairs if p.series and p.baseline])
    spread = np.array([sum(_squared(e) for e in (p.series, p.baseline) if e) for p in pairs])
    ends = (bool(gap[0] < 0), bool(gap[-1] < 0))
    if len(pairs) == 1:
        return [], ends
    one_round = bool(np.isnan(spread).any())
    sizes, spread = tuple(p.size for p in pairs), np.nan_to_num(spread)
    grid, line, weights, allowance = _interpolated(sizes, gap)
    half = np.sqrt(weights**2 @ spread) + allowance + _steps(sizes, gap, spread, line)
    signs = np.where(line < 0, -1, 1)
    crossings = []
    for start, stop in _runs(np.abs(line) <= half, signs):
        low = None if start == 0 and abs(line[0]) <= half[0] > 0 else _boundary(grid, np.abs(line) - half, start, -1)
        high = (
            None
            if stop == len(grid) - 1 and abs(line[-1]) <= half[-1] > 0
            else _boundary(grid, np.abs(line) - half, stop, 1)
        )
        zeros = [i for i in range(max(start - 1, 0), min(stop + 1, len(grid) - 1)) if signs[i] != signs[i + 1]]
        at = None
        if zeros:
            roots = [grid[i] + (grid[i + 1] - grid[i]) * line[i] / (line[i] - line[i + 1]) for i in zeros]
            at = math.exp(roots[len(roots) // 2])
            low, high = low and min(low, at), high and max(high, at)
        before, after = signs[max(start - 1, 0)], signs[min(stop + 1, len(grid) - 1)]
        if len(zeros) % 2:
            direction: Direction = "above" if after < 0 else "below"
        elif low is None or high is None:
            # A crossing beyond an edge: on the inner side the ratio is significant.
            inner = after if low is None else before
            direction = ("below" if inner > 0 else "above") if low is None else ("above" if inner > 0 else "below")
            at = None
        else:
            direction, at = "within noise", None
        crossings.append(Crossing(at, None if one_round else low, None if one_round else high, direction))
    return crossings, ends


def _squared(level: Estimate) -> float:
    return t_quantile(level.own_freedom) ** 2 * level.own if level.own > 0 else level.own


def _runs(unclear: npt.NDArray[np.bool_], signs: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Index ranges in which a crossing may lie: where the ratio is unclear, or its sign changes at once."""
    marked = unclear.copy()
    for i in np.flatnonzero(signs[1:] != signs[:-1]):
        if not (marked[i] or marked[i + 1]):
            marked[i] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marked.astype(np.int8), [0]])))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _boundary(grid: Floats, clear: Floats, index: int, step: int) -> float:
    """Where `clear` (above 0: significant) changes sign next to the end of a run, between two grid points."""
    other = min(max(index + step, 0), len(grid) - 1)
    inside, outside = clear[index], clear[other]
    share = 0.0 if other == index or inside >= 0 else inside / (inside - outside)
    return math.exp(grid[index] + share * (grid[other] - grid[index]))


def _interpolated(sizes: tuple[int, ...], gap: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """The log ratio between the measured sizes.

    Between two sizes it is a parabola through both, with the smaller of the two curvatures that the neighbours on
    either side suggest, or 0 where these have opposite signs, so that a nearby kink does not bend a straight stretch.
    The difference of the two suggestions is the curve's uncertainty.

    Args:
        sizes: ascending.
        gap: the log ratio at each.
    Returns: a grid of log sizes; the log ratio there; its weights of the measured ratios; and half the allowance for
        the curve's unmeasured shape.
    """
    x = np.log(np.array(sizes, dtype=np.float64))
    grid, straight, bulge, segment = _grid(sizes)
    second = np.zeros((len(x), len(x)))  # row m: the divided difference over x[m-1], x[m], x[m+1]
    for m in range(1, len(x) - 1):
        for j in (m - 1, m, m + 1):
            second[m, j] = 1 / math.prod(x[j] - x[k] for k in (m - 1, m, m + 1) if k != j)
    curvature = second @ gap
    chosen, apart = np.zeros((len(x) - 1, len(x))), np.zeros(len(x) - 1)
    for i in range(len(x) - 1):
        middles = [m for m in (i, i + 1) if 0 < m < len(x) - 1]
        if len(middles) == 1:
            inner = middles[0] + (1 if middles[0] == i + 1 else -1)
            middles += [inner] if 0 < inner < len(x) - 1 else []
        if not middles:
            continue
        curvatures = [curvature[m] for m in middles]
        if min(curvatures) * max(curvatures) > 0:
            chosen[i] = second[middles[int(np.argmin(np.abs(curvatures)))]]
        apart[i] = max(curvatures) - min(curvatures) if len(curvatures) > 1 else abs(curvatures[0])
    weights = straight + bulge[:, None] * chosen[segment]
    share = CURVATURE_SHARE * (np.diff(x) / math.log(2)) ** 3
    return grid, weights @ gap, weights, np.abs(bulge) * (share * apart)[segment]


def _steps(sizes: tuple[int, ...], gap: Floats, spread: Floats, line: Floats) -> Floats:
    """How much closer to 0 than the line the log ratio may be because of a step between two sizes.

    Where a segment is steeper, or flatter, than both its neighbours, the ratio may jump at an unknown place within it
    (a second thread, another kernel from some size on). The jump is the segment's excess over the more similar
    neighbour, where that exceeds the noise.
    """
    x = np.log(np.array(sizes, dtype=np.float64))
    slope = np.diff(gap) / np.diff(x)
    jump = np.zeros(len(slope))
    for i in range(1, len(slope) - 1):
        beside = min((i - 1, i + 1), key=lambda j: abs(slope[i] - slope[j]))
        if (slope[i] - slope[i - 1]) * (slope[i] - slope[i + 1]) > 0:
            width, other = x[i + 1] - x[i], x[beside + 1] - x[beside]
            weights = np.zeros(len(x))
            weights[[i, i + 1]] += (-1, 1)
            weights[[beside, beside + 1]] += (width / other, -width / other)
            beyond = float(weights @ gap)
            jump[i] = beyond if abs(beyond) > math.sqrt(weights**2 @ spread) else 0.0
    _, straight, _, segment = _grid(sizes)
    share = straight[np.arange(len(segment)), segment + 1]
    return np.abs(jump)[segment] * np.where((jump[segment] > 0) == (line < 0), 1 - share, share)


@lru_cache(maxsize=256)
def _grid(sizes: tuple[int, ...]) -> tuple[Floats, Floats, Floats, npt.NDArray[np.int64]]:
    """A grid of log sizes; the weights of straight interpolation, (x − x_i)(x − x_i+1), and i at each of its points."""
    x = np.log(np.array(sizes, dtype=np.float64))
    segment = np.append(np.repeat(np.arange(len(x) - 1), STEPS), len(x) - 2)
    share = np.append(np.tile(np.arange(STEPS) / STEPS, len(x) - 1), 1.0)
    width = np.diff(x)[segment]
    straight = np.zeros((len(segment), len(x)))
    rows = np.arange(len(segment))
    straight[rows, segment] = 1 - share
    straight[rows, segment + 1] = share
    return x[segment] + share * width, straight, -(width**2) * share * (1 - share), segment
