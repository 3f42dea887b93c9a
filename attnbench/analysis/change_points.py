"""Where the level of a figure changes from run to run, in many tracks at once.

Model of a track: level of its segment + noise. The segments are those of the least sum of squares, in units of the
noise, plus a penalty for each change: optimal partitioning (Jackson et al. 2005, "An algorithm for optimal partitioning
of data on an interval", IEEE Signal Processing Letters 12; PELT, Killick, Fearnhead and Eckley 2012,
https://doi.org/10.1080/01621459.2012.737745, is its pruned form). It finds a change and its taking back together, which
splitting in two again and again does not.

Outliers: what lies more than CLIPPED noises from the median of its neighbours is taken to lie just there (Hampel 1974,
"The Influence Curve and its Role in Robust Estimation", JASA 69), so that a bad night is no level.

Noise: half the mean square of successive differences (von Neumann et al. 1941, "The Mean Square Successive Difference",
Annals of Mathematical Statistics 12), moderated by that of the other tracks (`interval.moderate`). A change of level is
in one difference alone; once it is found, that one is left out, and all is looked for again. Where the luck of a track
follows itself, which differences of runs two apart show in the median track, noise is that of means of a first-order
autoregression: (1 + φ) / (1 − φ)² as much.

Penalty: the squared quantile of t at FALSE_ALARMS over all tracks and all places (Bonferroni): one change more is
taken where it says more than any of all those places does by chance in one history of a hundred. Changes by less than
LEAST are none, however sure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from attnbench.analysis.distributions import Floats, Indices, t_quantile
from attnbench.analysis.moderation import moderate
from attnbench.groups import groups_of

FALSE_ALARMS = 0.01
"""The share of histories without any change in which one is marked, at most, where runs vary independently and normally
with variances like draws of one distribution. docs/statistics.md has it for other noise, recorded noise among it."""

FEWEST_RUNS = 3
"""Of a segment: two bad nights are no level; heavy tails have twice as many false alarms with two."""

PASSES = 3

CLIPPED, NEIGHBOURS = 2.5, 2
"""How far a figure may lie from the median of it and so many on either side, in standard deviations."""

MOST_FOLLOWING = 0.9

LEAST = math.log(1.025)
"""Half of the change of 5 % that a comparison looks for."""


@dataclass(frozen=True)
class ChangePoint:
    """A change of the level of a track, in logs.

    Args:
        at: the position of the first run after it.
        change: the mean after it, up to the next one, less the mean before it.
        half: half its interval, which is as sure as all tracks and places together need.
        runs: how many there are before and after it, up to the next change.
    """

    at: int
    change: float
    half: float
    runs: tuple[int, int]


def change_points(tracks: Sequence[Floats]) -> list[list[ChangePoint]]:
    """The changes of each track, in order of time.

    Args:
        tracks: logs of a figure by time, [runs] each; those with fewer than twice FEWEST_RUNS have none.
    """
    changes: list[list[ChangePoint]] = [[] for _ in tracks]
    searched = [i for i, track in enumerate(tracks) if len(track) >= 2 * FEWEST_RUNS]
    if not searched:
        return changes
    clipped = dict(zip(searched, _clipped([tracks[i] for i in searched]), strict=True))
    places = sum(len(tracks[i]) - 2 * FEWEST_RUNS + 1 for i in searched)
    for _ in range(PASSES):
        variances, freedoms = _noise([clipped[i] for i in searched], [changes[i] for i in searched])
        quantiles = [t_quantile(freedom, 1 - FALSE_ALARMS / places) for freedom in freedoms.tolist()]
        bounds = dict(zip(searched, (np.sqrt(variances) * quantiles).tolist(), strict=True))
        found = dict(_partitions(clipped, bounds))
        before = [[change.at for change in changes[i]] for i in searched]
        for i in searched:
            changes[i] = _changes(clipped[i], found[i], bounds[i])
        if before == [[change.at for change in changes[i]] for i in searched]:
            break
    return changes


def _clipped(tracks: Sequence[Floats]) -> list[Floats]:
    """The tracks without outliers."""
    spreads = np.array([float(np.median(np.abs(np.diff(track)))) / (0.6745 * math.sqrt(2)) for track in tracks])
    spreads = np.maximum(spreads, np.median(spreads))  # of few runs it may be anything
    clipped = []
    for track, spread in zip(tracks, spreads.tolist(), strict=True):
        padded = np.pad(track, NEIGHBOURS, constant_values=np.nan)
        middle = medians(np.lib.stride_tricks.sliding_window_view(padded, 2 * NEIGHBOURS + 1), axis=1)
        low, high = middle - CLIPPED * spread, middle + CLIPPED * spread
        clipped.append(np.asarray(np.clip(track, low, high), dtype=np.float64))
    return clipped


def _noise(tracks: Sequence[Floats], changes: Sequence[Sequence[ChangePoint]]) -> tuple[Floats, Floats]:
    """The variance of a run of each track, as means of many see it, and its degrees of freedom. changes: so far."""
    steps = [_steps(track, those, 1) for track, those in zip(tracks, changes, strict=True)]
    squares = np.array([float(np.mean(each**2)) / 2 for each in steps])
    counts = np.array([len(each) for each in steps], dtype=np.float64)
    variances, freedoms = moderate(squares, 2 * counts**2 / (3 * counts - 1))
    if not (variances > 0).all():
        return variances, freedoms
    ratios = [
        float(np.mean(two**2) / np.mean(one**2)) - 1
        for track, those, one in zip(tracks, changes, steps, strict=True)
        if len(two := _steps(track, those, 2)) and one.any()
    ]
    follows = min(max(float(np.median(ratios)), 0.0), MOST_FOLLOWING) if ratios else 0.0
    return np.asarray(variances * (1 + follows) / (1 - follows) ** 2, dtype=np.float64), freedoms


def _steps(track: Floats, changes: Sequence[ChangePoint], apart: int) -> Floats:
    """The differences of runs so far apart between which no change lies."""
    level = np.zeros(len(track))
    for change in changes:
        level[change.at :] += 1
    steps: Floats = (track[apart:] - track[:-apart])[level[apart:] == level[:-apart]]
    return steps


def _changes(track: Floats, ends: list[int], bound: float) -> list[ChangePoint]:
    """Those of one track.

    Args:
        ends: where its segments but the first begin.
        bound: the half width of the mean of one run, which a change is held to.
    """
    while True:
        segments = [track[a:b] for a, b in zip([0, *ends], [*ends, len(track)], strict=True)]
        levels = [float(segment.mean()) for segment in segments]
        steps = [after - before for before, after in pairwise(levels)]
        small = [i for i, step in enumerate(steps) if abs(step) < LEAST]
        if not small:
            break
        del ends[min(small, key=lambda i: abs(steps[i]))]
    counts = [len(segment) for segment in segments]
    return [
        ChangePoint(end, step, bound * math.sqrt(1 / a + 1 / b), (a, b))
        for end, step, (a, b) in zip(ends, steps, pairwise(counts), strict=True)
    ]


def _partitions(tracks: Mapping[int, Floats], bounds: Mapping[int, float]) -> Iterator[tuple[int, list[int]]]:
    """By the position of a track, where its segments but the first begin. bounds: the roots of the penalties."""
    for alike in groups_of((len(track), i) for i, track in tracks.items()).values():
        penalties = np.array([bounds[i] for i in alike]) ** 2
        yield from zip(alike, _partition(np.stack([tracks[i] for i in alike]), penalties), strict=True)


def _partition(tracks: Floats, penalties: Floats) -> list[list[int]]:
    """The segments with the least sum of squares around their means and penalties. tracks: [tracks, runs]."""
    number, count = tracks.shape
    centred = tracks - tracks.mean(axis=1, keepdims=True)
    sums, squares = (np.pad(np.cumsum(x, axis=1), ((0, 0), (1, 0))) for x in (centred, centred**2))
    costs, begins = np.full((number, count + 1), np.inf), np.zeros((number, count + 1), dtype=np.int64)
    costs[:, 0] = 0.0
    rows = np.arange(number)
    for end in range(FEWEST_RUNS, count + 1):
        last = end - FEWEST_RUNS + 1
        within = squares[:, end, None] - squares[:, :last]
        within -= (sums[:, end, None] - sums[:, :last]) ** 2 / (end - np.arange(last))
        totals = costs[:, :last] + within
        totals[:, 1:] += penalties[:, None]
        begins[:, end] = np.argmin(totals, axis=1)
        costs[:, end] = totals[rows, begins[:, end]]
    return [_ends(begins[row]) for row in range(number)]


def _ends(begins: Indices) -> list[int]:
    """Where the segments but the first begin. begins: of the best last segment that ends before each run."""
    ends: list[int] = []
    at = int(begins[-1])
    while at:
        ends.insert(0, at)
        at = int(begins[at])
    return ends


def beside_others(logs: Floats, operators: Sequence[str], fewest: int) -> Floats:
    """What a block's cells do beside the others that were measured in turns with them: logs less the median, over the
    other operators, of what these differ by from their own middle. In it cancels what the machine did to the block.

    The middles and what all have in common are found together, by medians (Tukey 1977, "Exploratory Data Analysis",
    median polish), so that an operator may come or go.

    Args:
        logs: [cells, runs] of one block; nan: not measured.
        operators: of each cell.
        fewest: other operators in a run, below which its figure is nan.
    """
    names = list(dict.fromkeys(operators))
    rows = [np.array([operator == name for operator in operators]) for name in names]
    common = np.zeros(logs.shape[1])
    for _ in range(8):
        around = logs - medians(logs - common, axis=1)[:, None]
        by_operator = np.stack([medians(around[row], axis=0) for row in rows])
        common = np.nan_to_num(medians(by_operator, axis=0))
    relative = np.full_like(logs, np.nan)
    for i, row in enumerate(rows):
        others = np.delete(by_operator, i, axis=0)
        enough = np.isfinite(others).sum(axis=0) >= fewest
        relative[row] = np.where(enough, logs[row] - medians(others, axis=0), np.nan) if len(others) else np.nan
    return relative


def medians(values: Floats, axis: int) -> Floats:
    """The medians of what is not nan; nan where all is."""
    ordered = np.sort(values, axis=axis)  # nan last
    count = np.isfinite(ordered).sum(axis=axis, keepdims=True)
    middle = [
        np.take_along_axis(ordered, np.maximum(i, 0), axis)
        for i in ((count - 1) // 2, np.minimum(count // 2, ordered.shape[axis] - 1))
    ]
    return np.asarray(((middle[0] + middle[1]) / 2).squeeze(axis), dtype=np.float64)
