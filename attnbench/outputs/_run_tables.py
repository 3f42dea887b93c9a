"""A run as titled tables of text, which the terminal and Markdown print alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from attnbench.analysis.answer import Start, start
from attnbench.analysis.compare.findings import CrossoverShift
from attnbench.analysis.crossover import BEYOND, Crossing, Crossover, Edge, Stretch
from attnbench.analysis.recommendation import Recommendation
from attnbench.analysis.scaling import Doubling
from attnbench.analysis.summary import Figure, Line, PanelReport, Summary, Table
from attnbench.axes import AXES, Axis
from attnbench.groups import groups_of
from attnbench.units import percent, shown, times

Form = Literal["full", "compact", "brief"]
"""How much a text says: see `crossover_text`."""

BEST, WIN = "*", "↓"
ANOTHER_FUNCTION = "a different function; quality not measured here"
CROSSOVER_WORDS = (
    "[a, b]: the 95 % interval; between a and b, a–b: no more is known than these two sizes. Every size, nowhere, from "
    "N on, dearer up to N: by one band that holds all sizes with 95 %; elsewhere not told apart. (0.50×): series over "
    "baseline, of every size and up to N at the smallest, else at the largest"
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
        short: what is printed instead where the table would be too wide; empty: the text.
        order: by which its column is sorted; None: by the text.
    """

    text: str
    best: bool = False
    win: bool = False
    short: str = ""
    order: float | None = None


@dataclass(frozen=True)
class TextTable:
    """One table.

    Args:
        title: above it.
        columns: headings; the first names the rows.
        rows: a field for each column.
        sizes: whether the columns but the first are sizes, so that a wide table may be broken between them.
        notes: below it.
        grouped: whether rows belong to the one above, so that none may be moved.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Field, ...], ...]
    sizes: bool = False
    notes: tuple[str, ...] = ()
    grouped: bool = False


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
    return [*marks(summary), *not_measured(summary)]


def chosen_rows(summary: Summary) -> list[str]:
    """That some operators alone are shown, where they are."""
    tables = [table for report in summary.panels for table in report.tables]
    if all(len(table.lines) == len(table.every) for table in tables):
        return []
    return ["Rows: the operators that were chosen. What is cheapest and what to use is said of all in the run."]


def marks(summary: Summary) -> list[str]:
    """What the marks mean that stand in the tables, and whether some rows alone do."""
    every = [line for report in summary.panels for table in report.tables for line in table.lines]
    figures = [figure for line in every for figure in line.figures]
    marks = [f"{BEST} least of its column (identity apart)"] if any(figure.best for figure in figures) else []
    if any(figure.first_win for figure in figures):
        marks.append(f"{WIN} first size at which the series is clearly below the baseline {summary.baseline}")
    lines = ["   ".join(marks)] if marks else []
    lines += ["impl: reference where none is named. An empty field was not measured."] if figures else []
    if any(figure.low for figure in figures):
        lines.append("Intervals are 95 %, from rounds; ±: half of one, relative, the row's median.")
    lines += [f"crossover: {CROSSOVER_WORDS}"] if any(x.against_baseline or x.against_exact for x in every) else []
    lines += [f"growth: {GROWTH_WORDS}"] if any(x.doubling or x.growth for x in every) else []
    if any(table.quantity.metric.role == "memory" for report in summary.panels for table in report.tables):
        lines.append("memory: at the peak of a call, without inputs; `choose` and `fit` count the inputs as well.")
    return lines + chosen_rows(summary)


def not_measured(summary: Summary) -> list[str]:
    """Which series never ran and why."""
    lost = {name: reason for name, reason in summary.skipped.items() if name not in summary.untried_exact}
    reasons = groups_of((reason or "skipped", name) for name, reason in lost.items())
    skipped = [f"skipped: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return skipped + untried_exact(summary)


def untried_exact(summary: Summary) -> list[str]:
    """Which exact softmax may be faster than what is shown."""
    return [
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
    return TextTable(
        f"{table.quantity.title} by {curve.over}", (curve.over, *curve.columns), tuple(rows), True, grouped=True
    )


def _figure(figure: Figure | None, unit: str) -> Field:
    if figure is None:
        return Field("")
    if figure.value is None:
        return Field("" if figure.status == "ok" else figure.status)
    text = f"{WIN if figure.first_win else ''}{shown(figure.value, unit)}{BEST if figure.best else ''}"
    return Field(text, figure.best, figure.first_win, order=figure.value)


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
        columns = [axis, f"cheaper than {report.baseline}"]
        columns += [f"cheaper than {table.quantity.metric.best_exact}"] if exact else []
        columns += [f"by {beside.quantity.label}"] if beside else []
        rows = []
        for line in lines:
            cells = [Field(line.series.name), _ordered(line.against_baseline, report, report.baseline)]
            cells += [_ordered(line.against_exact, report, "exact softmax")] if exact else []
            if beside:
                counted = stated.get(line.series)
                analytic_crossover = counted.against_baseline if counted else None
                cells.append(_ordered(analytic_crossover, report, report.baseline))
            rows.append(tuple(cells))
        if rows:
            yield TextTable(f"Crossover of {table.quantity.title.lower()}", tuple(columns), tuple(rows))


def _ordered(crossover: Crossover | None, report: PanelReport, baseline: str) -> Field:
    """A field that its column is sorted by."""
    order = place_order(crossover, start(crossover, report.panel, list(report.panel.sizes)))
    return replace(crossover_field(crossover, report.panel.axis, baseline), order=order)


def place_order(crossover: Crossover | None, start: Start | None) -> float | None:
    """What rows are sorted by: from where on a series is cheaper; what is so nowhere comes last; None: not told apart.

    Args:
        start: of the crossover.
    """
    if start is not None:
        return 0.0 if start.every else start.by
    return None if crossover is None or crossover.kind in ("undecided", "nothing") else math.inf


def crossover_field(crossover: Crossover | None, axis: str, baseline: str) -> Field:
    """The same as a field: compact where the table would be too wide."""
    full, compact = (crossover_text(crossover, axis, baseline, form) for form in ("full", "compact"))
    return Field(full, short=compact)


def crossover_text(crossover: Crossover | None, axis: str, baseline: str, form: Form = "full") -> str:
    """Where a series is cheaper than a baseline, in words; empty without a crossover.

    Args:
        axis: its sizes are on.
        baseline: what a failure of the baseline names.
        form: "full": `from 911 tokens [880, 949]`, `at every size measured, 256–2048 tokens (0.42× at 256)`; "compact",
            where the axis and its sizes stand beside it: `from 911 [880, 949]`, `every size (0.42×)`; "brief", without
            intervals and ratios: `from 911`, `every size`.
    """
    if crossover is None:
        return ""
    where = _crossings(crossover.crossings, AXES[axis], form) or _label(crossover, AXES[axis], form)
    if form == "brief":
        failed = crossover.series_beyond if crossover.smallest is None else None
        return failure(failed[1]) if failed else where
    phrases = [where]
    if crossover.smallest and math.isnan(crossover.smallest.low):
        phrases.append("one round, no interval")
    if crossover.baseline_beyond and (crossover.smallest is None or any(c.bracket for c in crossover.crossings)):
        phrases.append(f"{baseline} {failure(crossover.baseline_beyond[1])} at {crossover.baseline_beyond[0]}")
    if crossover.series_beyond:
        phrases.append(f"itself {failure(crossover.series_beyond[1])} at {crossover.series_beyond[0]}")
    return "; ".join(phrase for phrase in phrases if phrase)


def failure(status: str) -> str:
    """A status in a sentence."""
    return {"oom": "out of memory", "timeout": "out of time"}.get(status, status)


def _crossings(crossings: Sequence[Crossing], axis: Axis, form: Form) -> str:
    """`from 300 tokens [280, 320] up to 900 tokens [850, 960] and from 2000 tokens [1900, 2100]`."""
    text = ""
    for crossing in crossings:
        opens = crossing.direction == "above"
        joined = "" if not text else " and " if opens else " "
        text += f"{joined}{'from' if opens else 'up to'} {_place(crossing, axis, form)}"
    return text


def _place(crossing: Crossing, axis: Axis, form: Form) -> str:
    low, high = crossing.low or 0, crossing.high or 0
    if crossing.at is None:
        low_text, high_text = (axis.place(end, measured=True) for end in (low, high))
        between = f"somewhere between {low_text} and {axis.amount(high_text)}"
        return between if form == "full" else f"{low_text}–{high_text}"
    low_text, high_text = axis.size(low), axis.size(high)
    interval = "" if form == "brief" or low_text == high_text else f" [{low_text}, {high_text}]"
    place = axis.place(crossing.at)
    return (axis.amount(place) if form == "full" else place) + interval


def _label(crossover: Crossover, axis: Axis, form: Form) -> str:
    """What is said where there is no crossing."""
    first, last = crossover.smallest, crossover.largest
    if crossover.kind == "always":
        every = every_size(axis.amount, first.label, last.label) if first and last else "every size measured"
        return f"at {every}{_at(first)}" if form == "full" else f"every size{_ratio(first, form)}"
    if crossover.kind == "never":
        sizes = f" up to {axis.amount(last.label)}" if last else ""
        return f"nowhere{sizes}{_ratio(last, form, ' there')}" if form == "full" else f"nowhere{_ratio(last, form)}"
    if crossover.stretch is not None:
        return _stretch(crossover.stretch, first, last, axis, form)
    unclear = "unclear" if form == "brief" else "not told apart"
    return {"undecided": unclear, "same": "the same"}.get(crossover.kind, "")


def _stretch(stretch: Stretch, smallest: Edge | None, largest: Edge | None, axis: Axis, form: Form) -> str:
    """`from 512 tokens on (0.42× at 2048); not told apart below`; `dearer up to 512 tokens; not told apart above`."""
    first, last = stretch.first, stretch.last
    edge = smallest if first is None else largest if last is None else None
    if form == "brief" and not stretch.cheaper:
        return "nowhere" if last is None else "unclear"
    named = axis.amount if form == "full" else str
    if first == last:
        where, rest = f"at {named(first or '')}", "elsewhere"
    elif last is None:
        where, rest = f"from {named(first or '')} on", "below"
    elif first is None:
        where, rest = f"up to {named(last)}", "above"
    else:
        where, rest = f"from {first} to {named(last)}", "elsewhere"
    where = where if stretch.cheaper else f"dearer {where}"
    return f"{where}{_at(edge)}; not told apart {rest}" if form == "full" else f"{where}{_ratio(edge, form)}"


def size_range(first: str, last: str) -> str:
    """Two labels as one text, or the one that they both are."""
    return first if first == last else f"{first}–{last}"


def every_size(amount: Callable[[str], str], first: str, last: str) -> str:
    """`every size measured, 256–2048 tokens`; `the one size measured, 256 tokens`. amount: a label with its unit."""
    return f"{'the one' if first == last else 'every'} size measured, {amount(size_range(first, last))}"


def _at(edge: Edge | None) -> str:
    return f" ({times(edge.ratio)} at {edge.label})" if edge else ""


def _ratio(edge: Edge | None, form: Form, place: str = "") -> str:
    return f" ({times(edge.ratio)}{place})" if edge and form != "brief" else ""


def crossing_mark(crossing: Crossing, axis: str) -> str:
    """A crossing in a picture: `>512`: cheaper above 512; `<96`: below; `>256…512`: somewhere between."""
    sign = ">" if crossing.direction == "above" else "<"
    if crossing.at is not None:
        return f"{sign}{AXES[axis].place(crossing.at)}"
    return sign + "…".join(AXES[axis].place(end or 0, measured=True) for end in (crossing.low, crossing.high))


def shift_texts(shift: CrossoverShift) -> tuple[str, str]:
    """A crossover before and after, in words."""
    before, after = (crossover_text(side, shift.axis, shift.baseline) for side in (shift.before, shift.after))
    return before, after


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
    return TextTable("What to use", columns, tuple(rows), notes=notes, grouped=True)


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
