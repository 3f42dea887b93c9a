"""Where a crossover moved between two runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from attnbench.analysis.compare.findings import CrossoverShift

if TYPE_CHECKING:
    from attnbench.analysis.crossover import Crossing, Crossover
    from attnbench.analysis.run import Run

_Place = tuple[str, str, str, str, str]
"""Panel, series, metric, what the series is compared with, and the axis."""


def shifts(before: Run, after: Run) -> Iterator[CrossoverShift]:
    """Crossovers of every metric, against the baseline and against its best exact softmax, before and after."""
    later = _crossovers(after)
    for place, crossover in _crossovers(before).items():
        if place in later:
            panel, series, metric, baseline, axis = place
            yield CrossoverShift(
                series=series,
                panel=panel,
                metric=metric,
                baseline=baseline,
                axis=axis,
                before=crossover,
                after=later[place],
                changed=_differ(crossover, later[place]),
            )


def _crossovers(run: Run) -> dict[_Place, Crossover]:
    from attnbench.analysis.summary import summarise

    crossovers = {}
    for report in summarise(run).panels:
        for table in report.tables:
            for line in table.lines:
                for baseline, crossover in (
                    (report.baseline, line.against_baseline),
                    (table.quantity.metric.best_exact, line.against_exact),
                ):
                    if crossover is not None and crossover.kind != "nothing":
                        panel = report.panel
                        place = (panel.title, line.series.name, table.quantity.name, baseline, panel.axis)
                        crossovers[place] = crossover
    return crossovers


def _differ(a: Crossover, b: Crossover) -> bool:
    """Whether two crossovers cannot be the same: contrary labels, or intervals that do not meet."""
    if a.stretch or b.stretch or "undecided" in (a.kind, b.kind):
        return _side(a) * _side(b) < 0
    if a.kind != b.kind or len(a.crossings) != len(b.crossings):
        return True
    pairs = zip(a.crossings, b.crossings, strict=True)
    return any(c.direction != d.direction or _apart(c, d) for c, d in pairs)


def _side(crossover: Crossover) -> int:
    """−1 where the series is only ever told to be cheaper, 1 where dearer; else 0."""
    if crossover.stretch is not None:
        return -1 if crossover.stretch.cheaper else 1
    return {"always": -1, "never": 1}.get(crossover.kind, 0)


def _apart(a: Crossing, b: Crossing) -> bool:
    """Whether two intervals, known on both sides, do not meet."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.low > b.high or b.low > a.high
