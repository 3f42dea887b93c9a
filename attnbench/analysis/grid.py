"""Two axes of a run at once: what is cheapest in every cell of their grid, and the border where softmax stops paying.

A row of a grid is a panel along the one axis at one value of the other. In each row the border is the crossover of the
cheapest other operator with the baseline, and with the best exact softmax: at each size the least time of all that do
not compute softmax attention. It is a minimum over operators, judged by `recommendation.least_level`: the intervals
hold it in 95 % or more, as measured in 83 to 99 % (docs/statistics.md). Each row is judged by itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from attnbench.analysis.baseline import Baseline, best_beside, computes_nothing, fate, is_exact, least, named, pairs
from attnbench.analysis.crossover import Crossover, Direction, crossover
from attnbench.analysis.recommendation import Recommendation, least_level
from attnbench.analysis.series import Panel, Series, check_axis, in_a_line
from attnbench.analysis.summary import PanelReport, Summary, Table, summarise
from attnbench.axes import AXES, Axis
from attnbench.errors import BadInput
from attnbench.groups import groups_of

if TYPE_CHECKING:
    from attnbench.analysis.run import Run

CHEAPEST_OTHER = "cheapest other operator"
"""What borders are of: at each size the least of all that do not compute softmax attention."""


Outside = Literal["before", "beyond"]


@dataclass(frozen=True)
class Spot:
    """One cell of a grid.

    Args:
        label, size: on the axis of the columns.
        use: what to use there; None where nothing ran.
        status, reason: where nothing ran, why; empty where it was not to be measured.
        exact_status: where something ran and no exact softmax did, why; else empty.
    """

    label: str
    size: int
    use: Recommendation | None
    status: str = ""
    reason: str = ""
    exact_status: str = ""


@dataclass(frozen=True)
class Reach:
    """Where a border may be in a row.

    Args:
        at: where it is estimated; None of a bracket, and where it was not seen.
        low, high: the ends of its interval, or of the sizes that are not told apart; 0 and infinite where it may lie
            outside the measured ones; None from one round.
        direction: the other operators are cheaper `above` or `below` it; None where it was not seen.
    """

    at: float | None
    low: float | None
    high: float | None
    direction: Direction | None


@dataclass(frozen=True)
class Border:
    """The crossover of the cheapest other operator, as a place.

    Args:
        crossover: with its interval, or a label where there is no crossing.
        reaches: of each crossing its interval; without one the stretches that are not told apart.
        outside: of always and never, whether it is to be looked for `before` the smallest or `beyond` the largest size:
            where the ratio is nearer to 1; else None.
    """

    crossover: Crossover
    reaches: tuple[Reach, ...]
    outside: Outside | None


@dataclass(frozen=True)
class Row:
    """One value of the second axis.

    Args:
        label, position: on that axis.
        report: the panel along the first one.
        table: of its tables the one whose metric decides.
        spots: one for each size of the grid, ascending.
        against_baseline, against_exact: None without what is compared; `against_exact` also where that is the baseline.
    """

    label: str
    position: int
    report: PanelReport
    table: Table
    spots: tuple[Spot, ...]
    against_baseline: Border | None
    against_exact: Border | None


@dataclass(frozen=True)
class Grid:
    """What is cheapest over two axes.

    Args:
        axis, over: of the columns and of the rows.
        baseline: `operator[:impl]`.
        fixed: by column, what all cells have in common.
        sizes: of every column, by label, ascending; those at which some row was timed, or failed.
        rows: by ascending position.
    """

    axis: str
    over: str
    baseline: str
    fixed: Mapping[str, Any]
    sizes: Mapping[str, int]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """The axes and what is fixed, in one line."""
        return f"{self.axis} × {self.over}: {in_a_line(self.fixed, self.rows[0].report.panel.walked)}"

    @property
    def series(self) -> list[Series]:
        """Every series by its name, in the order of the run."""
        return list({s.name: s for row in self.rows for s in row.report.panel.series}.values())

    @property
    def exact(self) -> frozenset[str]:
        """Names of the series that compute softmax attention."""
        return frozenset(line.series.name for row in self.rows for line in row.table.lines if line.exact)


def grids(
    run: Run, over: str, axis: str | None = None, metrics: Sequence[str] = (), baseline: str | None = None
) -> list[Grid]:
    """The grids of a run: panels along an axis that differ in one other axis's value.

    Args:
        over: the axis of the rows.
        axis: of the columns; None: the first in the order of AXES of which the run has a grid with `over`.
        metrics: the first time among them decides; none: the run's.
        baseline: None: the suite's.

    Raises: BadInput where the run has no such metric or baseline, no time, or does not vary both axes together.
    """
    check_axis(over, "over")
    if axis == over:
        raise BadInput(f"--axis {axis} --over {over}: twice the same. Give two axes that the run varies together.")
    summary = summarise(run, metrics, baseline, axis)
    exact = frozenset(run.environment.get("exact", ()))
    for name, reports in _by_axis(summary).items():
        if name != over and (groups := _joined(reports, AXES[over])):
            if any(_time(report) is None for report in reports):
                raise BadInput(_no_time(run, over, metrics))
            return _grids(groups, over, exact)
    raise BadInput(_nothing_joined(run, axis, over))


def maps(summary: Summary) -> list[Grid]:
    """The grids of every two axes that a run varies together, each once: the first in the order of AXES along the
    columns."""
    by_axis = {
        name: [report for report in reports if _time(report) is not None] for name, reports in _by_axis(summary).items()
    }
    every = {line.series for r in summary.panels for table in r.tables for line in table.every if line.exact}
    exact = frozenset(series.identity for series in every)
    found: dict[frozenset[str], list[Grid]] = {}
    for name in filter(by_axis.__contains__, AXES):
        for over in AXES.values():
            both = frozenset({name, over.name})
            if len(both) > 1 and both not in found and (groups := _joined(by_axis[name], over)):
                found[both] = _grids(groups, over.name, exact)
    return [grid for grids in found.values() for grid in grids]


def _by_axis(summary: Summary) -> dict[str, list[PanelReport]]:
    return groups_of((report.panel.axis, report) for report in summary.panels)


_Place = tuple[int, str]
"""A position on the second axis and its label."""

_Group = tuple[dict[str, Any], dict[_Place, PanelReport]]
"""What panels have in common, and each by its place."""


def _grids(groups: Iterable[_Group], over: str, exact: Collection[str]) -> list[Grid]:
    candidates = [_grid(rows, fixed, over, exact) for fixed, rows in groups]
    return [grid for grid in candidates if grid.sizes]


def _time(report: PanelReport) -> Table | None:
    """The table whose metric decides."""
    return next((each for each in report.tables if each.quantity.metric.role == "time"), None)


def _no_time(run: Run, over: str, metrics: Sequence[str]) -> str:
    if metrics:
        names = " ".join(f"--metric {name}" for name in metrics)
        return f"{names}: a map is decided by a time. Name one as well, or leave --metric out."
    return (
        f"--over {over}: a map is decided by a time, and nothing in {run.folder} was timed. "
        f"Continue it: attnbench run --resume {run.folder}."
    )


def _joined(reports: Iterable[PanelReport], over: Axis) -> list[_Group]:
    """Groups of panels that differ in nothing but their place on an axis, with what they have in common; each has two
    or more places with two or more sizes."""
    placed = [(report, place) for report in reports if (place := _place(report.panel, over)) is not None]
    for choice in zip(*(report.panel.fixed_along(over) for report, _ in placed), strict=True):
        groups: dict[tuple[Any, ...], tuple[dict[str, Any], dict[_Place, PanelReport]]] = {}
        for fixed, (report, place) in zip(choice, placed, strict=True):
            groups.setdefault(tuple(fixed.items()), (fixed, {}))[1][place] = report
        wide = [group for group in groups.values() if sum(len(r.panel.sizes) > 1 for r in group[1].values()) > 1]
        if wide:
            return wide
    return []


def _place(panel: Panel, over: Axis) -> _Place | None:
    """Where a panel stands on another axis; None where it is not on it, or its cells differ in that."""
    problems = [point.problem for series in panel.series for point in series.points]
    places = {(over.position(p), over.label(p)) if over.varies_in(p) else None for p in problems}
    return places.pop() if len(places) == 1 else None


def _nothing_joined(run: Run, axis: str | None, over: str) -> str:
    """What a run varies instead."""
    reports = summarise(run).panels
    varied = list(dict.fromkeys(r.panel.axis for r in reports if len(r.panel.sizes) > 1))
    both = [
        f"--axis {name} --over {other}"
        for name in varied
        for other in varied
        if other != name and _joined([r for r in reports if r.panel.axis == name], AXES[other])
    ]
    options = f"--axis {axis} --over {over}" if axis else f"--over {over}"
    advice = f"Give {' or '.join(both)}." if both else "Show it without --over, or measure a sweep over two axes."
    return (
        f"{options}: this run does not vary both together; a map needs two sizes or more at two values or more of the "
        f"other axis. It varies {', '.join(varied) or 'none'}{'' if both else ' alone'}. {advice}"
    )


def _grid(rows: Mapping[_Place, PanelReport], fixed: dict[str, Any], over: str, exact: Collection[str]) -> Grid:
    ordered = sorted(rows.items())
    every = {label: size for _, report in ordered for label, size in report.panel.sizes.items()}
    sizes = dict(sorted(every.items(), key=lambda item: item[1]))
    tried = {spot.label for _, report in ordered for spot in _spots(report, sizes, exact) if spot.use or spot.status}
    sizes = {label: size for label, size in sizes.items() if label in tried}
    rows_of_values = tuple(_row(place, report, sizes, exact) for place, report in ordered)
    first = ordered[0][1]
    return Grid(first.panel.axis, over, first.baseline, fixed, sizes, rows_of_values)


def _row(place: _Place, report: PanelReport, sizes: Mapping[str, int], exact: Collection[str]) -> Row:
    table = _time(report)
    assert table is not None
    baseline = named(report.panel, report.baseline)
    best = best_beside(baseline, report.panel, table.quantity, exact)
    return Row(
        label=place[1],
        position=place[0],
        report=report,
        table=table,
        spots=tuple(_spots(report, sizes, exact)),
        against_baseline=_border(table, baseline),
        against_exact=_border(table, best),
    )


def _spots(report: PanelReport, sizes: Mapping[str, int], exact: Collection[str]) -> Iterator[Spot]:
    uses = {each.label: each for each in report.recommendations}
    ordered = sorted(report.panel.series, key=lambda series: not is_exact(series, exact))
    for label, size in sizes.items():
        lost = [(series, *why) for series in ordered if (why := _why_not(series, label))]
        if (use := uses.get(label)) is None:
            _, status, reason = lost[0] if lost else (None, "", "")
            yield Spot(label, size, None, status, reason)
        else:
            statuses = [status for series, status, _ in lost if is_exact(series, exact)] if use.exact is None else []
            yield Spot(label, size, use, exact_status=next(iter(statuses), ""))


def _why_not(series: Series, label: str) -> tuple[str, str] | None:
    """Status and reason of a size at which a series did not run; None where it ran, or was not to."""
    point, status = series.at(label), fate(series.points).get(label, "ok")
    return None if point is None or status == "ok" else (status, point.reason)


def _border(table: Table, baseline: Baseline | None) -> Border | None:
    """The border of the cheapest of those that compute something else than softmax attention."""
    others = [
        line.series
        for line in table.lines
        if not line.exact
        and not computes_nothing(line.series)
        and not (baseline and line.series.name in baseline.members)
    ]
    cheapest = least(table.panel, table.quantity, others, CHEAPEST_OTHER)
    if baseline is None or cheapest is None:
        return None
    levels = dict(table.quantity.levels)
    for label, point in cheapest.points.items():
        known = [levels[p.key] for series in others if (p := series.at(label)) and p.key in levels]
        if known:
            levels[point.key] = least_level(known)
    points = tuple(sorted(cheapest.points.values(), key=lambda p: p.size))
    line = Series(CHEAPEST_OTHER, "", "", "", points)
    passing = crossover(pairs(table.panel, line, baseline, replace(table.quantity, levels=levels)))
    return Border(passing, tuple(_reaches(passing, table.panel.sizes)), _outside(passing))


def _reaches(passing: Crossover, sizes: Mapping[str, int]) -> Iterator[Reach]:
    for each in passing.crossings:
        yield Reach(each.at, each.low, each.high, each.direction)
    if passing.kind == "undecided":
        yield Reach(None, 0.0, math.inf, None)
    stretch = passing.stretch
    if stretch is not None and stretch.first is not None:
        yield Reach(None, 0.0, sizes[stretch.first], None)
    if stretch is not None and stretch.last is not None:
        yield Reach(None, sizes[stretch.last], math.inf, None)


def _outside(passing: Crossover) -> Outside | None:
    if passing.kind not in ("always", "never"):
        return None
    first, last = (abs(math.log(edge.ratio)) if edge else 0.0 for edge in (passing.smallest, passing.largest))
    if first == last:
        return "before" if passing.kind == "always" else "beyond"
    return "before" if first < last else "beyond"
