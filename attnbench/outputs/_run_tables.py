"""A run as titled tables of text, which the terminal and Markdown print alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from attnbench.analysis.crossover import BEYOND, Crossing, Crossover
from attnbench.analysis.recommendation import Recommendation
from attnbench.analysis.scaling import Doubling
from attnbench.analysis.summary import Figure, Line, PanelReport, Summary, Table
from attnbench.axes import AXES
from attnbench.units import percent, shown, times

BEST, WIN = "*", "↓"
ANOTHER_FUNCTION = "a different function; quality not measured here"
CROSSOVER_WORDS = (
    ">N: cheaper than the baseline above N, <N: below N; [a, b]: the 95 % interval; between a and b: no more is known "
    "than these two sizes. By one band that holds every size with 95 %: always, never: cheaper, dearer at all sizes; "
    "from N on, up to N: cheaper there; never from N on, never up to N: dearer there; elsewhere not told apart. "
    "(0.50×): series over baseline at the smallest size, of never and from at the largest"
)
GROWTH_WORDS = (
    "per doubling: the factor between the two largest sizes; stated: what the definition predicts between the same "
    "two. not asymptotic yet: the factor below them differs beyond noise, or the time grows less than stated, as where "
    "launches are most of it. Of exact figures the class that fits, or the exponent of the largest sizes where none or "
    "two do. FLOPs grow as counted on the reference; (stated): torch cannot count more than 5 % of them"
)


@dataclass(frozen=True)
class Field:
    """A text, and what its colour repeats.

    Args:
        text: what is printed.
        best: the least of its column.
        win: the first size at which the series is below the baseline.
    """

    text: str
    best: bool = False
    win: bool = False


@dataclass(frozen=True)
class TextTable:
    """One table.

    Args:
        title: above it.
        columns: headings; the first names the rows.
        rows: a field for each column.
        sizes: whether the columns but the first are sizes, so that a wide table may be broken between them.
        notes: below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Field, ...], ...]
    sizes: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One panel: a heading, its tables, and notes below them."""

    heading: str
    text_tables: tuple[TextTable, ...]
    notes: tuple[str, ...]


def parts(summary: Summary) -> list[Part]:
    """Every panel of a run."""
    return [_part(report) for report in summary.panels]


def legend(summary: Summary) -> list[str]:
    """What the marks mean, and which series never ran and why."""
    lines = [
        f"{BEST} least of its column (identity apart)   {WIN} first size at which the series is clearly below the "
        f"baseline {summary.baseline}",
        "impl: reference where none is named. Intervals are 95 %, from rounds; ±: half of one, relative, the row's "
        "median. An empty field was not measured.",
    ]
    every = [line for report in summary.panels for table in report.tables for line in table.lines]
    lines += [f"crossover: {CROSSOVER_WORDS}"] if any(x.against_baseline or x.against_exact for x in every) else []
    lines += [f"growth: {GROWTH_WORDS}"] if any(x.doubling or x.growth for x in every) else []
    reasons: dict[str, list[str]] = {}
    for name, reason in summary.skipped.items():
        if name not in summary.untried_exact:
            reasons.setdefault(reason or "skipped", []).append(name)
    lines += [f"skipped: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return lines + [
        f"exact softmax may be faster than shown: {name} was not measured: {reason or 'it is not in the suite (impls)'}"
        for name, reason in summary.untried_exact.items()
    ]


def _part(report: PanelReport) -> Part:
    text_tables = [*map(_figures, report.tables), *map(_curve, filter(_has_curve, report.tables))]
    text_tables += [*_crossovers(report), *_growths(report)]
    if report.recommendations:
        text_tables.append(_choices(report.panel.axis, report.recommendations))
    return Part(report.panel.title, tuple(text_tables), tuple(_notes(report)))


def _figures(table: Table) -> TextTable:
    unit = table.quantity.metric.unit
    labels = tuple(table.panel.sizes)
    timed = table.quantity.metric.timed
    rows = []
    for line in table.lines:
        by_label = {figure.label: figure for figure in line.figures}
        cells = [_figure(by_label.get(label), unit) for label in labels]
        spread = (Field(_spread(line.figures)),) if timed else ()
        rows.append((Field(line.series.name), *cells, *spread))
    if _has_curve(table):
        rows.append(_beside(table, labels))
    columns = (table.panel.axis, *labels, *(("±",) if timed else ()))
    notes: tuple[str, ...] = ()
    if table.quantity.metric.of_estimates:
        notes = tuple(f"{line.series.name} estimates {line.estimates}" for line in table.lines if line.estimates)
    curve = table.quantity.metric.curve
    at = f", {curve.over} {curve.main}" if curve else ""
    return TextTable(table.quantity.title + at, columns, tuple(rows), True, notes)


def _has_curve(table: Table) -> bool:
    return any(figure.curve for line in table.lines for figure in line.figures)


def _beside(table: Table, labels: Sequence[str]) -> tuple[Field, ...]:
    """A row of what every series' figures are judged by."""
    metric = table.quantity.metric
    assert metric.curve is not None
    values = {
        figure.label: point.beside
        for line in table.lines
        for figure in line.figures
        for point in figure.curve
        if point.at == metric.curve.main
    }
    return Field(metric.curve.beside_name), *(Field(shown(values.get(label), metric.unit)) for label in labels)


def _curve(table: Table) -> TextTable:
    """Each series at the largest size where it was measured, with what it is judged by in the row below."""
    curve = table.quantity.metric.curve
    assert curve is not None
    rows = []
    for line in table.lines:
        figure = max((f for f in line.figures if f.curve), key=lambda f: f.size, default=None)
        if figure is not None:
            name = f"{line.series.name} at {figure.label}"
            rows.append((Field(name), *(Field(shown(point.value, "")) for point in figure.curve)))
            rows.append((Field(f"  {curve.beside_name}"), *(Field(shown(p.beside, "")) for p in figure.curve)))
    return TextTable(f"{table.quantity.title} by {curve.over}", (curve.over, *curve.columns), tuple(rows), True)


def _figure(figure: Figure | None, unit: str) -> Field:
    if figure is None:
        return Field("")
    if figure.value is None:
        return Field("" if figure.status == "ok" else figure.status)
    text = f"{WIN if figure.first_win else ''}{shown(figure.value, unit)}{BEST if figure.best else ''}"
    return Field(text, figure.best, figure.first_win)


def _spread(figures: Iterable[Figure]) -> str:
    """The median of the relative half widths of a row's intervals."""
    halves = sorted(math.sqrt(f.high / f.low) - 1 for f in figures if f.low and f.high)
    return percent(halves[len(halves) // 2]) if halves else ""


def _crossovers(report: PanelReport) -> Iterator[TextTable]:
    axis = report.panel.axis
    analytic = next((t for t in report.tables if t.quantity.metric.analytic), None)
    stated = {line.series: line for line in analytic.lines} if analytic else {}
    for table in report.tables:
        if table is analytic and len(report.tables) > 1:
            continue
        lines = [line for line in table.lines if line.against_baseline or line.against_exact]
        exact = any(line.against_exact for line in lines)
        beside = analytic if table.quantity.metric.timed and any(line.series in stated for line in lines) else None
        columns = [axis, f"against {report.baseline}"]
        columns += [f"against {table.quantity.metric.best_exact}"] if exact else []
        columns += [f"of {beside.quantity.label}"] if beside else []
        rows = []
        for line in lines:
            cells = [line.series.name, crossover_text(line.against_baseline, axis, report.baseline)]
            cells += [crossover_text(line.against_exact, axis, "exact softmax")] if exact else []
            if beside:
                counted = stated.get(line.series)
                cells.append(crossover_text(counted.against_baseline, axis, report.baseline) if counted else "")
            rows.append(tuple(map(Field, cells)))
        if rows:
            yield TextTable(f"Crossover of {table.quantity.title.lower()}", tuple(columns), tuple(rows))


def crossover_text(crossover: Crossover | None, axis: str, baseline: str) -> str:
    """The crossover of a series with a baseline in words, which `CROSSOVER_WORDS` explains; empty without one."""
    if crossover is None:
        return ""
    phrases = [crossing_text(each, axis) for each in crossover.crossings] or [_label(crossover)]
    if crossover.smallest and math.isnan(crossover.smallest.low):
        phrases.append("one round, no interval")
    if crossover.baseline_beyond and (crossover.smallest is None or any(c.bracket for c in crossover.crossings)):
        phrases.append(f"{baseline} {_failure(crossover.baseline_beyond[1])} at {crossover.baseline_beyond[0]}")
    if crossover.series_beyond:
        phrases.append(f"itself {_failure(crossover.series_beyond[1])} at {crossover.series_beyond[0]}")
    return "; ".join(phrase for phrase in phrases if phrase)


def _label(crossover: Crossover) -> str:
    """What is said where there is no crossing."""
    stretch, edge = crossover.stretch, crossover.smallest if crossover.kind == "always" else crossover.largest
    if stretch is not None:
        edge = crossover.smallest if stretch.first is None else crossover.largest if stretch.last is None else None
    words = {"undecided": "not told apart", "same": "the same", "nothing": ""}
    if crossover.kind in words:
        return words[crossover.kind]
    label = crossover.kind if stretch is None else stretch.where if stretch.cheaper else f"never {stretch.where}"
    return f"{label} ({times(edge.ratio)})" if edge else label


def _failure(status: str) -> str:
    return {"oom": "out of memory", "timeout": "out of time"}.get(status, status)


def crossing_text(crossing: Crossing, axis: str, brief: bool = False) -> str:
    """`>512 [480, 551]`: cheaper above 512; `<96`: below; `> between 256 and 512`. brief: `>512`; `>256…512`."""
    sign, ends = ">" if crossing.direction == "above" else "<", (crossing.low, crossing.high)
    if crossing.at is None:
        low, high = (AXES[axis].place(end, measured=True) if end else "" for end in ends)
        return f"{sign}{low}…{high}" if brief else f"{sign} between {low} and {high}"
    low, high = (AXES[axis].size(end) if end else "" for end in ends)
    return f"{sign}{AXES[axis].place(crossing.at)}" + ("" if brief or low == high else f" [{low}, {high}]")


def _growths(report: PanelReport) -> Iterator[TextTable]:
    axis = report.panel.axis
    labels = {size: label for label, size in report.panel.sizes.items()}
    for table in report.tables:
        rows = [_doubling(line.series.name, line.doubling, labels) for line in table.lines if line.doubling]
        if rows:
            columns = (axis, "stated", "per doubling", "between", "")
            yield TextTable(f"Growth of {table.quantity.title.lower()}", columns, tuple(rows))
    exact = [t for t in report.tables if any(line.growth for line in t.lines)]
    if exact:
        names = list(dict.fromkeys(line.series for t in exact for line in t.lines if line.growth))
        heads: list[str] = [axis]
        for table in exact:
            heads += [f"{table.quantity.name} stated"] if _is_stated(table) else []
            heads += ["growth" if _is_stated(table) else f"growth of {table.quantity.label}"]
            heads += ["agreement"] if _has_origin(table) else []
        rows = []
        for series in names:
            cells = [Field(series.name)]
            for table in exact:
                line = next((x for x in table.lines if x.series == series), None)
                cells += map(Field, _exact_growth(line, _is_stated(table), _has_origin(table)))
            rows.append(tuple(cells))
        yield TextTable("Growth of exact figures", tuple(heads), tuple(rows))


def _doubling(name: str, growth: Doubling, labels: Mapping[int, str]) -> tuple[Field, ...]:
    between = "–".join(labels[size] for size in growth.sizes)
    note = "not asymptotic yet" if growth.settled is False else ""
    factor = interval_text(growth.factor, growth.low, growth.high)
    return tuple(map(Field, (name, times(growth.stated), factor, between, note)))


def interval_text(value: float | None, low: float | None, high: float | None) -> str:
    """`2.31× [2.2, 2.4]`; without an interval the value alone; empty without a value."""
    ends = "" if low is None or high is None or math.isnan(low) or low == high else f" [{times(low)}, {times(high)}]"
    return times(value) + ends.replace("×", "")


def _is_stated(table: Table) -> bool:
    return table.quantity.metric.growth is not None


def _has_origin(table: Table) -> bool:
    return any(line.origin for line in table.lines)


def _exact_growth(line: Line | None, stated: bool, origin: bool) -> tuple[str, ...]:
    """What is stated, where the metric has that, the class or else the exponent, and where it has an origin the
    agreement."""
    if line is None or line.growth is None:
        return ("",) * (1 + stated + origin)
    growth = str(line.growth) + (" (stated)" if line.origin == "stated" else "")
    return (*([line.stated or ""] if stated else []), growth, *([line.agreement or ""] if origin else []))


def _choices(axis: str, recommendations: Sequence[Recommendation]) -> TextTable:
    """A row for each series that cannot be told from the fastest; the size stands in the first."""
    rows = []
    for each in recommendations:
        for choice in each.choices:
            is_fastest = choice is each.fastest
            rows.append(
                (
                    Field(each.label if choice is each.choices[0] else ""),
                    Field(choice.series.name),
                    Field(f"{shown(choice.time_s, 's')}{BEST if is_fastest else ''}", best=is_fastest),
                    Field(shown(choice.memory_bytes, "bytes")),
                    Field(interval_text(each.speed_up, each.low, each.high) if is_fastest else ""),
                    Field("exact" if choice.exact else "no exact softmax ran" if each.exact is None else ""),
                )
            )
    notes: tuple[str, ...] = ()
    if any(len(each.choices) > 1 for each in recommendations):
        notes += (f"the rows of one size cannot be told from its fastest ({BEST}): exact ones first, then by memory",)
    if any(not choice.exact for each in recommendations for choice in each.choices):
        notes += (f"not exact: {ANOTHER_FUNCTION}",)
    columns = (axis, "use", "time", "memory", "over best exact", "")
    return TextTable("What to use", columns, tuple(rows), notes=notes)


def _notes(report: PanelReport) -> Iterator[str]:
    """What is not in this panel and why, then the first failure of each series, with its reason."""
    for name, reason in report.skipped.items():
        yield f"{name}: skipped: {reason}"
    failures = set()
    groups: dict[str, list[str]] = {}
    lines: Iterable[Line] = (line for table in report.tables for line in table.lines)
    for line in lines:
        for figure in line.figures:
            if figure.status != "ok" and (line.series.name, figure.status) not in failures:
                failures.add((line.series.name, figure.status))
                counted = figure.status in BEYOND and line.against_baseline is None
                win = ", counted as a win for those that run there" if counted else ""
                what = f"{figure.status} at {figure.label}{win}: {figure.reason}"
                groups.setdefault(what, []).append(line.series.name)
    every = {line.series.name for table in report.tables for line in table.lines}
    for what, names in groups.items():
        yield f"{'every series' if len(names) == len(every) > 1 else ', '.join(names)}: {what}"
