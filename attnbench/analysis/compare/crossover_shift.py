"""Where a crossover moved between two runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from attnbench.analysis.compare.findings import CrossoverShift

if TYPE_CHECKING:
    from attnbench.analysis.crossover import Crossover
    from attnbench.analysis.run import Run


def shifts(before: Run, after: Run) -> Iterator[CrossoverShift]:
    """Crossovers of every metric, against the baseline and against its best exact softmax, before and after."""
    from attnbench.analysis.summary import summarise

    told: list[dict[tuple[str, str, str, str], tuple[str, Crossover]]] = []
    for run in (before, after):
        found = {}
        for report in summarise(run).panels:
            for table in report.tables:
                for line in table.lines:
                    for against, crossover in (
                        (report.baseline, line.against_baseline),
                        (table.quantity.metric.best_exact, line.against_exact),
                    ):
                        if crossover is not None:
                            place = (report.panel.title, line.series.name, table.quantity.name, against)
                            found[place] = (_told(crossover), crossover)
        told.append(found)
    for place, (a, crossover) in told[0].items():
        if place in told[1]:
            b, other = told[1][place]
            panel, series, metric, against = place
            yield CrossoverShift(series, panel, metric, against, a, b, a != b and _differ(crossover, other))


def _told(crossover: Crossover) -> str:
    if crossover.kind != "crossing":
        return crossover.kind
    return ", ".join(
        f"{c.direction} {c.at:.0f}" if c.at is not None else f"{c.direction} {c.low:.0f} … {c.high:.0f}"
        for c in crossover.crossings
        if c.at is not None or (c.low is not None and c.high is not None)
    )


def _differ(a: Crossover, b: Crossover) -> bool:
    """Whether two crossovers cannot be the same: another kind, or intervals that do not meet."""
    if a.kind != b.kind:
        return "undecided" not in (a.kind, b.kind)
    if len(a.crossings) != len(b.crossings):
        return True
    for c, d in zip(a.crossings, b.crossings, strict=True):
        if c.direction != d.direction:
            return True
        if None not in (c.low, c.high, d.low, d.high) and (c.low > d.high or d.low > c.high):  # type: ignore[operator]
            return True
    return False
