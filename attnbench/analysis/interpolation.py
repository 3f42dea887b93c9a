"""What a run knows of the time of one problem: measured there, or interpolated between two sizes; never beyond them.

Between two sizes the logs of time and size are joined by a line: what is expected of a path that wanders without
direction from the one to the other, and by how much it may stray is known (the Brownian bridge: variance
σ² (x − a)(b − x) / (b − a); kriging, Matheron 1963, "Principles of Geostatistics", Economic Geology 58). σ² of a series
is from how far its own measured sizes lie from lines that leave them out, moderated over the series of the panel as
variances of rounds are (`analysis.interval`). Noise that this takes in as well makes an interval wider, not narrower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from attnbench.analysis.interval import Estimate
from attnbench.analysis.moderation import moderate
from attnbench.analysis.series import Panel, Point, Series, panels, problems_of
from attnbench.axes import AXES, Axis, Held, tokens_axis
from attnbench.problem import LATER
from attnbench.properties import FORMS

if TYPE_CHECKING:
    import pandas as pd

    from attnbench.analysis.metric_values import Quantity
    from attnbench.analysis.run import Run
    from attnbench.problem import Problem


@dataclass(frozen=True)
class Timing:
    """What is known of a series at a problem.

    Args:
        level: of its time, in logs.
        points: the cell that is measured, or the two between which is interpolated.
        share: how far the problem is from the first to the second of two, in logs.
    """

    level: Estimate
    points: tuple[Point, ...]
    share: float = 0.0

    @property
    def is_measured(self) -> bool:
        """Whether it is of the very problem."""
        return len(self.points) == 1

    @property
    def seconds(self) -> float:
        """The time."""
        return math.exp(self.level.level)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its 95 % interval; None where it has none: from one round, or between two sizes of a run of two."""
        half = self.level.half_width
        if math.isnan(half):
            return None
        return math.exp(self.level.level - half), math.exp(self.level.level + half)

    def figure(self, values: Mapping[str, float]) -> float | None:
        """An exact figure at the problem, by the keys of the points; interpolated in the same way.

        values: by key. None where a point has none.
        """
        own = [values[point.key] for point in self.points if point.key in values]
        if len(own) < len(self.points):
            return None
        if len(set(own)) == 1 or min(own) <= 0:
            return own[0] if len(set(own)) == 1 else None
        return math.exp((1 - self.share) * math.log(own[0]) + self.share * math.log(own[1]))


@dataclass(frozen=True)
class Place:
    """Where a problem stands among the cells of a run.

    Args:
        panel: of the cells that differ from it along one axis only, or not at all.
        position: of the problem on that axis.
        timings: by the names of series; of those that were not measured there or on both sides, nothing.
    """

    panel: Panel
    position: int
    timings: Mapping[str, Timing]


def place_of(run: Run, problem: Problem, mode: str, scope: str, time: Quantity) -> Place | None:
    """The place of a problem along the axis on which most series have a time for it; None where no cell differs from it
    along one axis only."""
    results = run.results[(run.results["mode"] == mode) & (run.results["scope"] == scope)]
    others = problems_of(results)
    places = []
    for axis in AXES.values():
        for held in axis.held if axis.varies_in(problem) else ():
            along = [_differs_along(axis, held, problem, other) for other in others]
            if any(along):
                places.append(_place(results[along], axis, problem, time))
    return max(places, key=lambda place: len(place.timings), default=None)


def _differs_along(axis: Axis, held: Held, problem: Problem, other: Problem) -> bool:
    """Whether a problem differs from another in nothing but its value on an axis."""
    if not axis.varies_in(other):
        return False
    value = tuple(getattr(other, column) for column in axis.columns)
    constant = {held.size: getattr(problem, held.size)} if held.size else {}
    try:
        return problem.with_sizes(**axis.fields(value), **constant) == other
    except ValueError:  # no problem has these sizes
        return False


def _place(results: pd.DataFrame, axis: Axis, problem: Problem, time: Quantity) -> Place:
    sizes = {axis.position(other) for other in problems_of(results)}
    several = max(panels(results, axis.name), key=lambda panel: len(panel.keys)) if len(sizes) > 1 else None
    panel = several or panels(results)[0]
    position = AXES[panel.axis].position(problem)
    return Place(panel, position, _timings(panel, problem, position, time.levels))


def _timings(panel: Panel, problem: Problem, position: int, levels: Mapping[str, Estimate]) -> dict[str, Timing]:
    wandering = _wandering(panel.series, levels)
    timings = {}
    for series in panel.series:
        here = next((point for point in series.points if point.problem == problem), None)
        if here is not None:
            if here.key in levels:
                timings[series.name] = Timing(levels[here.key], (here,))
            continue
        below = [point for point in series.points if point.size < position]
        above = [point for point in series.points if point.size > position]
        ends = (below[-1], above[0]) if below and above else ()
        if ends and all(point.key in levels for point in ends):
            timings[series.name] = _between(*ends, position, levels, *wandering[series.name])
    return timings


def _wandering(every: Sequence[Series], levels: Mapping[str, Estimate]) -> dict[str, tuple[float, float]]:
    """By series σ², and its degrees of freedom; nan where no series has a size between two others."""
    squares = []
    for series in every:
        points = [(math.log(point.size), levels[point.key].level) for point in series.points if point.key in levels]
        triples = zip(points, points[1:], points[2:], strict=False)
        squares.append([_square(*triple) for triple in triples if triple[0][0] < triple[1][0] < triple[2][0]])
    freedom = np.array([float(len(each)) for each in squares])
    if not freedom.any():
        return {series.name: (math.nan, 1.0) for series in every}
    variance, moderated = moderate(np.array([np.mean(each) if each else 0.0 for each in squares]), freedom)
    return {s.name: (v, f) for s, v, f in zip(every, variance.tolist(), moderated.tolist(), strict=True)}


_Place = tuple[float, float]
"""A size and a level, in logs."""


def _square(left: _Place, middle: _Place, right: _Place) -> float:
    """σ² by one measured size between two others."""
    share = (middle[0] - left[0]) / (right[0] - left[0])
    off = (1 - share) * left[1] + share * right[1] - middle[1]
    return off**2 / (share * (1 - share) * (right[0] - left[0]))


def _between(
    left: Point, right: Point, position: int, levels: Mapping[str, Estimate], wandering: float, freedom: float
) -> Timing:
    a, b = levels[left.key], levels[right.key]
    width = math.log(right.size / left.size)
    share = math.log(position / left.size) / width
    parts = [
        ((1 - share) ** 2 * a.own, a.own_freedom),
        (share**2 * b.own, b.own_freedom),
        (wandering * share * (1 - share) * width, freedom),
    ]
    own = sum(variance for variance, _ in parts)
    squares = sum(variance**2 / freedom for variance, freedom in parts if variance > 0)
    level = Estimate(
        level=(1 - share) * a.level + share * b.level,
        own=own,
        own_freedom=own**2 / squares if squares else math.inf,  # Satterthwaite
        shared=max(a.shared, b.shared),
        shared_freedom=min(a.shared_freedom, b.shared_freedom),
        rounds=min(a.rounds, b.rounds),
        confidence=max(a.confidence, b.confidence),
    )
    return Timing(level, (left, right), share)


def unlike(run: Run, problem: Problem, mode: str, scope: str) -> dict[str, tuple[str, str]]:
    """In what a problem differs from the nearest one of a run, by name: what it has, and what the run has there.

    Of a problem that differs in its size alone the run's are its smallest and largest one.
    """
    wanted = _facts(problem, mode, scope)
    problems = problems_of(run.results)
    rows = zip(problems, run.results["mode"], run.results["scope"], strict=True)
    every = [(_facts(*row), row[0]) for row in dict.fromkeys(rows)]
    if not every:
        return {"problems": (problem.size, "none")}

    def differing(facts: Mapping[str, str]) -> list[str]:
        return [name for name in wanted if facts[name] != wanted[name]]

    nearest = min(every, key=lambda each: (len(differing(each[0])), abs(math.log(each[1].seq_len / problem.seq_len))))
    names = differing(nearest[0])
    found = {name: (wanted[name], nearest[0][name]) for name in names}
    if names == ["size"]:
        alike = {other for facts, other in every if differing(facts) in ([], ["size"])}
        ordered = sorted(alike, key=lambda other: other.seq_len)
        ends = dict.fromkeys(_facts(other, mode, scope)["size"] for other in (ordered[0], ordered[-1]))
        found["size"] = (wanted["size"], " to ".join(ends))
    return found


def _facts(problem: Problem, mode: str, scope: str) -> dict[str, str]:
    """What tells problems apart, by name, as text."""
    axis = tokens_axis(problem)
    numbers = ("batch", "heads", "head_dim", "kv_heads", "query_len")
    given = {name: getattr(problem, name) for name in numbers}
    given |= {name: "all" for name in LATER if name not in problem.given}
    return {
        "scope": scope,
        "mode": mode,
        "dtype": problem.dtype,
        "form": FORMS[problem.causal],
        **{name: str(value) for name, value in given.items()},
        "size": f"{axis.noun} {axis.label(problem)}" if axis.noun else f"{axis.label(problem)} tokens",
    }
