"""Where the level of a figure changes from run to run, in many tracks at once.

Model of a track: level of its segment + noise, independent from run to run. The segments are those of the least sum of
squares, in units of the noise, plus a penalty for each change: optimal partitioning (Jackson et al. 2005, "An algorithm
for optimal partitioning of data on an interval", IEEE Signal Processing Letters 12; PELT, Killick, Fearnhead and Eckley
2012, https://doi.org/10.1080/01621459.2012.737745, is its pruned form). It finds a change and its taking back together,
which splitting in two again and again does not.

Noise: half the mean square of successive differences (von Neumann et al. 1941, "The Mean Square Successive Difference",
Annals of Mathematical Statistics 12), moderated by that of the other tracks (`interval.moderate`). A change of level is
in one difference alone; once it is found, that one is left out, and all is looked for again.

Penalty: the squared quantile of t at FALSE_ALARMS over all tracks and all places (Bonferroni): one change more is
taken where it says more than any of all those places does by chance in one history of a hundred. Changes by less than
LEAST are none, however sure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from attnbench.analysis.distributions import t_quantile
from attnbench.analysis.moderation import moderate

Floats = npt.NDArray[np.float64]

FALSE_ALARMS = 0.01
"""The share of histories without any change in which one is marked, where runs vary independently."""

FEWEST_RUNS = 2
"""Of a segment: what one run alone has is not told from a bad night."""

PASSES = 3

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
    searched = [i for i, track in enumerate(tracks) if len(track) >= 2 * FEWEST_RUNS]
    changes: list[list[ChangePoint]] = [[] for _ in tracks]
    if not searched:
        return changes
    places = sum(len(tracks[i]) - 2 * FEWEST_RUNS + 1 for i in searched)
    for _ in range(PASSES):
        variances, freedoms = _noise([tracks[i] for i in searched], [changes[i] for i in searched])
        for i, variance, freedom in zip(searched, variances.tolist(), freedoms.tolist(), strict=True):
            quantile = t_quantile(freedom, 1 - FALSE_ALARMS / places)
            changes[i] = _changes(tracks[i], math.sqrt(variance), quantile)
    return changes


def _noise(tracks: Sequence[Floats], changes: Sequence[Sequence[ChangePoint]]) -> tuple[Floats, Floats]:
    """The moderated variance of a run of each track, and its degrees of freedom. changes: found so far."""
    differences = [
        np.delete(np.diff(track), [change.at - 1 for change in those])
        for track, those in zip(tracks, changes, strict=True)
    ]
    squares = np.array([float(np.mean(each**2)) / 2 for each in differences])
    counts = np.array([len(each) for each in differences], dtype=np.float64)
    return moderate(squares, 2 * counts**2 / (3 * counts - 1))


def _changes(track: Floats, noise: float, quantile: float) -> list[ChangePoint]:
    """Those of one track. noise: the standard deviation of a run; 0: the figures of all tracks repeat exactly."""
    ends = _partition(track, (quantile * noise) ** 2)
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
        ChangePoint(end, step, quantile * noise * math.sqrt(1 / a + 1 / b), (a, b))
        for end, step, a, b in zip(ends, steps, counts, counts[1:], strict=False)
    ]


def _partition(track: Floats, penalty: float) -> list[int]:
    """Where the segments but the first begin that have the least sum of squares around their means and penalties."""
    count = len(track)
    centred = track - track.mean()
    sums, squares = (np.concatenate([[0.0], np.cumsum(x)]) for x in (centred, centred**2))
    costs, begins = np.full(count + 1, np.inf), np.zeros(count + 1, dtype=np.int64)
    costs[0] = 0.0
    for end in range(FEWEST_RUNS, count + 1):
        starts = np.arange(end - FEWEST_RUNS + 1)
        within = squares[end] - squares[starts] - (sums[end] - sums[starts]) ** 2 / (end - starts)
        totals = costs[starts] + within + np.where(starts > 0, penalty, 0.0)
        begins[end] = int(np.argmin(totals))
        costs[end] = totals[begins[end]]
    ends: list[int] = []
    at = int(begins[count])
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
