"""What to use at each size: the fastest series of a panel, and what it gains over the best exact softmax."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from attnbench.analysis.baseline import best_exact, is_exact
from attnbench.analysis.interval import ratio
from attnbench.analysis.metric_values import Quantity
from attnbench.analysis.series import Panel, Point, Series


@dataclass(frozen=True)
class Choice:
    """A series at one size: its time in s, its memory in bytes (None where not measured)."""

    series: Series
    time_s: float
    memory_bytes: float | None
    exact: bool


@dataclass(frozen=True)
class Recommendation:
    """fastest: of all series that compute something. exact: the fastest exact softmax; None where none ran.

    speed_up, low, high: of `fastest` over `exact` (None without an exact one; nan ends from one round). use: `fastest`
    where it is exact or its speed-up is clear of 1, else `exact`.
    """

    size: int
    label: str
    fastest: Choice
    exact: Choice | None
    speed_up: float | None
    low: float | None
    high: float | None

    @property
    def use(self) -> Choice:
        """What to use."""
        clear = self.low is None or self.low != self.low or self.low > 1
        return self.fastest if self.exact is None or self.fastest.exact or clear else self.exact


def recommendations(
    panel: Panel, time: Quantity, memory: Quantity | None, analytic: Quantity | None, exact: Collection[str]
) -> list[Recommendation]:
    """One per size at which anything ran. What needs no FLOPs (identity) is a bound, not a choice."""
    best = best_exact(panel, time, exact)
    owner = {p.key: s for s in panel.series for p in s.points}

    def choice(point: Point) -> Choice:
        series = owner[point.key]
        used = memory.values.get(point.key) if memory else None
        return Choice(series, time.values[point.key], used, is_exact(series, exact))

    found = []
    for label, size in panel.sizes.items():
        points = [p for s in panel.series if (p := s.at(label)) and p.key in time.levels and not _free(s, p, analytic)]
        if not points:
            continue
        fastest = min(points, key=lambda p: time.levels[p.key].level)
        base = best.points.get(label) if best else None
        if base is None or base.key not in time.levels:
            found.append(Recommendation(size, label, choice(fastest), None, None, None, None))
        else:
            gain = ratio(time.levels[base.key], time.levels[fastest.key])
            found.append(Recommendation(size, label, choice(fastest), choice(base), *gain))
    return found


def _free(series: Series, point: Point, analytic: Quantity | None) -> bool:
    return series.operator == "identity" or (analytic is not None and analytic.values.get(point.key) == 0)
