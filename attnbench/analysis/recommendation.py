"""What to use at each size: the fastest series of a panel, and its speed-up over the best exact softmax."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from attnbench.analysis.baseline import best_exact, is_exact
from attnbench.analysis.interval import ratio
from attnbench.analysis.metric_values import Quantity
from attnbench.analysis.series import Panel, Point, Series


@dataclass(frozen=True)
class Choice:
    """A series at one size. time_s: seconds; memory_bytes: None where not measured; exact: softmax attention itself."""

    series: Series
    time_s: float
    memory_bytes: float | None
    exact: bool


@dataclass(frozen=True)
class Recommendation:
    """The choice at one size.

    Attributes:
        size, label: the size, as a number and as shown.
        fastest: of all series that compute something.
        exact: the fastest exact softmax; None where none ran.
        speed_up, low, high: of `fastest` over `exact`, and its interval; None without `exact`; nan ends from one round.
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
        """`fastest` where it is exact or its speed-up is significantly above 1, else `exact`."""
        clear = self.low is None or math.isnan(self.low) or self.low > 1
        return self.fastest if self.exact is None or self.fastest.exact or clear else self.exact


def recommendations(
    panel: Panel, time: Quantity, memory: Quantity | None, analytic: Quantity | None, exact: Collection[str]
) -> list[Recommendation]:
    """One per size at which any series ran; series without FLOPs (identity) are a bound, not a choice.

    Args:
        panel: the comparable series.
        time: the metric that decides.
        memory: shown beside it; None: not measured.
        analytic: FLOPs; None: not stored.
        exact: operators that compute softmax attention itself.
    """
    best = best_exact(panel, time, exact)
    owner = {p.key: s for s in panel.series for p in s.points}

    def choice(point: Point) -> Choice:
        series = owner[point.key]
        memory_bytes = memory.values.get(point.key) if memory else None
        return Choice(series, time.values[point.key], memory_bytes, is_exact(series, exact))

    choices = []
    for label, size in panel.sizes.items():
        points = [p for s in panel.series if (p := s.at(label)) and p.key in time.levels and not _free(s, p, analytic)]
        if not points:
            continue
        fastest = min(points, key=lambda p: time.levels[p.key].level)
        base = best.points.get(label) if best else None
        if base is None or base.key not in time.levels:
            choices.append(Recommendation(size, label, choice(fastest), None, None, None, None))
        else:
            gain = ratio(time.levels[base.key], time.levels[fastest.key])
            choices.append(Recommendation(size, label, choice(fastest), choice(base), *gain))
    return choices


def _free(series: Series, point: Point, analytic: Quantity | None) -> bool:
    return series.operator == "identity" or (analytic is not None and analytic.values.get(point.key) == 0)
