"""A history as titled tables of text, and as rows: what changed first, then each panel, then the runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby, pairwise
from statistics import median
from string import ascii_uppercase
from typing import Any

from attnbench.analysis.change_points import FALSE_ALARMS, FEWEST_RUNS
from attnbench.analysis.compare.same_machine import differing
from attnbench.analysis.history import (
    Change,
    CrossoverTrack,
    History,
    MetricHistory,
    PanelHistory,
    Searched,
    Track,
)
from attnbench.analysis.snapshots import Snapshot
from attnbench.axes import AXES
from attnbench.groups import groups_of
from attnbench.outputs._run_tables import Field, Part, TextTable, crossover_field, crossover_text
from attnbench.problem import key_parts
from attnbench.units import count, percent, shown

MOST_CHANGES = 60
_BARS = "▁▂▃▄▅▆▇█"
_BETWEEN = "│"
_LONGEST_TRAIL = 16
_LEVEL = 1.2
"""A row of bars spans this factor at least: what varies less looks level."""

_EVIDENCE = {
    "exact": "exact: a figure that repeats to the last digit is another one, in the same circumstances.",
    "paired": "paired: a gate measured both sides in turns; at most one suite in a hundred has a false one.",
    "unpaired": (
        "unpaired: the runs before and after were measured on other days, not in turns: the change is of the means of "
        "all runs up to the next one, beside the other operators of the block, and may still be the machine's. "
        "`attnbench gate` decides."
    ),
}
"""What stands behind a change, by its word."""

_SAME_CODE = "same code: both sides measured the same source, so it is not the code's."


def heading(history: History) -> str:
    """What was read, in a line."""
    days = [day(run) for run in history.runs if run.started]
    span = f", {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
    return f"{count(len(history.runs), 'run')} of {history.folder}{span}"


def day(run: Snapshot) -> str:
    """The date of a run; — where it is not stored."""
    return run.started.strftime("%Y-%m-%d") if run.started else "—"


def commit(run: Snapshot) -> str:
    """Its commit, shortened, `+` where files differ."""
    if run.commit is None:
        return "—"
    return run.commit.rstrip("+")[:7] + ("+" if run.commit.endswith("+") else "")


def letter(history: History, run: int) -> str:
    """The name of a run's circumstances."""
    number = history.circumstance[run]
    turn, place = divmod(number, len(ascii_uppercase))
    return f"{ascii_uppercase[place]}{turn or ''}"


def parts(history: History) -> list[Part]:
    """What changed, each panel, and the runs where all are asked for."""
    changed = Part(heading(history), (changes_table(history),) if history.changes else (), tuple(found(history)))
    runs = [Part("Runs", (runs_table(history),), ())] if history.every else []
    return [changed, *(panel_part(history, report) for report in history.panels), *runs]


def panel_part(history: History, report: PanelHistory) -> Part:
    """A panel: for each metric its figures and its crossovers."""
    tables = [table for each in report.metrics for table in _tables(history, report, each)]
    return Part(report.panel.title, tuple(tables), ())


def legend(history: History) -> list[str]:
    """What the words mean, which circumstances there are, and what is left out."""
    kinds = [f"circumstances {text}" for text in circumstances(history)] if len(history.circumstances) > 1 else []
    return [*kinds, *words(history), *left_out(history)]


def words(history: History) -> list[str]:
    """What the words mean."""
    lines = []
    if len(history.circumstances) > 1:
        lines.append("Between circumstances nothing is called changed, analytic figures apart.")
    kinds = dict.fromkeys(change.evidence for change in history.changes)
    lines += [_EVIDENCE[kind] for kind in _EVIDENCE if kind in kinds]
    lines += [_SAME_CODE] if any(change.same_code for change in history.changes) else []
    lines.append(
        "first, newest: in the circumstances of the newest run; varies: the standard deviation from run to run; trail: "
        f"the newest {_LONGEST_TRAIL} runs, {_BETWEEN} between circumstances; where it is known beside the block, that."
    )
    return lines


def left_out(history: History) -> list[str]:
    """The runs that could not be read, and why."""
    return [
        f"left out: {reason if reason.startswith(place) else f'{place}: {reason}'}"
        for place, reason in history.unread.items()
    ]


def circumstances(history: History) -> Iterator[str]:
    """Each by its letter: its runs, and what it is, or in what it differs from the one before."""
    for number, kind in enumerate(history.circumstances):
        own = [i for i, each in enumerate(history.circumstance) if each == number]
        days = list(dict.fromkeys(day(history.runs[i]) for i in (own[0], own[-1])))
        if number == 0:
            facts = [f"{name.replace('_', ' ')} {value}" for name, value in kind.items() if value is not None]
        else:
            before = history.circumstances[number - 1]
            changes = differing(kind, before, kind)
            facts = [f"{name.replace('_', ' ')} {_value(a)} → {_value(b)}" for name, a, b in changes]
        runs = f"{letter(history, own[0])}: {count(len(own), 'run')}, {' to '.join(days)}"
        yield f"{runs}: {', '.join(map(_short, facts))}"


def _value(value: Any) -> str:
    return "unknown" if value is None else str(value)


def _short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def found(history: History) -> Iterator[str]:
    """How much was searched, and with how many false alarms."""
    if not history.changes:
        yield "Nothing changed."
    if len(changes := _grouped(history.changes)) > MOST_CHANGES:
        yield f"The newest {MOST_CHANGES} of {len(changes)} changes: --format json has all."
    for each in history.searched:
        yield searched_text(each)
    if history.gates:
        yield f"{count(history.gates, 'decision')} of gates read."


def searched_text(each: Searched) -> str:
    """In what unpaired changes were looked for."""
    text = "no unpaired changes looked for"
    if each.tracks:
        text = (
            f"unpaired changes looked for in {count(each.tracks, 'cell')}, at {FALSE_ALARMS:.0%} for a false one in "
            "any of them"
        )
    if each.short:
        text += f"; not in {each.short}, of fewer than {2 * FEWEST_RUNS} runs in the same circumstances"
    if each.alone:
        text += f"; not in {each.alone}, with too few other operators in their block to tell what the machine did"
    return f"{each.metric}: {text}."


def _grouped(changes: Iterable[Change]) -> list[list[Change]]:
    """Changes of a series between the same two runs in the same metric, direction, mode and evidence."""

    def kind(change: Change) -> tuple[Any, ...]:
        parts = key_parts(change.key)
        beside = parts._replace(size="", params="", operator="", impl="")
        return (
            change.after, change.before, change.metric, change.series, change.axis, change.verdict, change.evidence,
            beside,
            None if change.metric != "status" else change.values,
        )  # fmt: skip

    return list(groups_of((kind(change), change) for change in changes).values())


def changes_table(history: History) -> TextTable:
    """A row for each change of a series, the newest first."""
    several = len({change.metric for change in history.changes}) > 1
    rows = []
    for group in _grouped(history.changes)[::-1][:MOST_CHANGES]:
        first = group[0]
        run = history.runs[first.after]
        fields = [Field(day(run)), Field(commit(run)), Field(_what(group))]
        fields += [Field(first.metric)] if several else []
        fields += [Field(change_text(group)), Field(f"{first.evidence}{', same code' if first.same_code else ''}")]
        rows.append(tuple(fields))
    columns = ("since", "commit", "what", *(("metric",) if several else ()), "change", "evidence")
    return TextTable("Changes, the newest first", columns, tuple(rows))


def _what(group: Sequence[Change]) -> str:
    """The series, the mode and the sizes."""
    parts = key_parts(group[0].key)
    labels = list(dict.fromkeys(change.label for change in group))
    sizes = f"{labels[0]}…{labels[-1]}" if len(labels) > 2 else ", ".join(labels)
    unusual = [part for part, usual in ((parts.scope, "core"), (parts.causality, "full")) if part != usual]
    return " ".join([group[0].series, parts.mode, *unusual, sizes])


def change_text(group: Sequence[Change]) -> str:
    """`slower, +12%`; of several sizes from the least to the most; of a status both."""
    first = group[0]
    if first.metric == "status" and first.values is not None:
        return f"{first.values[0]} → {first.values[1]}"
    ratios = sorted(change.ratio for change in group if change.ratio is not None)
    if not ratios:
        return first.verdict
    ends = list(dict.fromkeys(_percent(ratio) for ratio in (ratios[0], ratios[-1])))
    return f"{first.verdict}, {' to '.join(ends)}"


def _percent(ratio: float) -> str:
    """`+12%`, `−0.3%`; a large ratio as one."""
    if ratio >= 3:
        return f"{ratio:.2g}×"
    return f"{ratio - 1:+.{0 if abs(ratio - 1) >= 0.0995 else 1}%}".replace("-", "−")


def _tables(history: History, report: PanelHistory, each: MetricHistory) -> Iterator[TextTable]:
    yield figures_table(history, report, each)
    if each.crossovers:
        yield crossovers_table(history, report, each)


def figures_table(history: History, report: PanelHistory, each: MetricHistory) -> TextTable:
    """A row for each series at the largest size that it has, or for each size where all are asked for."""
    sizes = report.panel.sizes
    tracks = list(each.tracks)
    if not history.every:
        largest = {track.series: track for track in sorted(tracks, key=lambda track: sizes[track.label])}
        tracks = [track for track in tracks if largest[track.series] is track]
    rows = tuple(row for track in tracks if (row := _figures(history, each, track)))
    columns = (report.panel.axis, "size", "runs", "first", "newest", "varies", "trail")
    return TextTable(each.title, columns, rows)


def newest_alike(history: History, each: MetricHistory, track: Track) -> list[Any]:
    """The points of a track that may be compared with its newest one, gates apart."""
    known = [p for p in track.points if p.value is not None and not history.runs[p.run].gate]
    if not known:
        return []
    alike = history.runs[known[-1].run].alike(each.metric)
    return [p for p in known if history.runs[p.run].alike(each.metric) == alike]


def _figures(history: History, each: MetricHistory, track: Track) -> tuple[Field, ...]:
    points = newest_alike(history, each, track)
    if not points:
        return ()
    values = [point.value for point in points]
    texts = [shown(value, each.metric.unit) for value in (values[0], values[-1])]
    varies = variation(values)
    return (
        Field(track.series),
        Field(track.label),
        Field(str(len(points)), order=len(points)),
        *(Field(text, order=value) for text, value in zip(texts, (values[0], values[-1]), strict=True)),
        Field("" if varies is None else "exact" if varies == 0 else percent(varies), order=varies),
        Field(trail(history, each, track, _LONGEST_TRAIL), short=trail(history, each, track, _LONGEST_TRAIL // 2)),
    )


def variation(values: Sequence[float]) -> float | None:
    """The standard deviation from run to run, relative, by the median of successive differences, which changes hardly
    move; None: of one run."""
    if len(values) < 2 or min(values) <= 0:
        return None
    steps = [abs(math.log(b / a)) for a, b in pairwise(values)]
    return median(steps) / (0.6745 * math.sqrt(2))


def trail(history: History, each: MetricHistory, track: Track, most: int) -> str:
    """The newest figures as bars, on a scale of ratios, those of other circumstances apart; where they are known beside
    their block, these. most: of them."""
    known = [p for p in track.points if p.value and not history.runs[p.run].gate]
    known = ([p for p in known if p.beside] or known)[-most:]
    logs = [math.log(point.beside or point.value or 1) for point in known]
    if len(logs) < 2:
        return ""
    span = max(max(logs) - min(logs), math.log(_LEVEL))
    low = (max(logs) + min(logs) - span) / 2
    bars = [_BARS[min(len(_BARS) - 1, int((value - low) / span * len(_BARS)))] for value in logs]
    groups = groupby(zip(known, bars, strict=True), key=lambda pair: history.runs[pair[0].run].alike(each.metric))
    return _BETWEEN.join("".join(bar for _, bar in group) for _, group in groups)


def crossovers_table(history: History, report: PanelHistory, each: MetricHistory) -> TextTable:
    """A row for each series: the newest crossover with the baseline, and where the others were; where all is asked for,
    with the best exact softmax too."""
    axis, several = report.panel.axis, history.every
    tracks = [track for track in each.crossovers if several or track.baseline == history.baseline] or each.crossovers
    rows = []
    for track in tracks:
        _, newest = track.points[-1]
        beside = [Field(track.baseline)] if several else []
        place = crossover_field(newest, axis, track.baseline)
        rows.append((Field(track.series), *beside, place, Field(spread_of(axis, track))))
    numbers = {run for track in tracks for run, _ in track.points}
    title = f"Crossovers of {each.title.lower()}{'' if several else f' with {history.baseline}'}"
    newest_heading = "cheaper: newest run"
    columns = (axis, *(("cheaper than",) if several else ()), newest_heading, f"in {count(len(numbers), 'run')}")
    return TextTable(title, columns, tuple(rows))


def spread_of(axis: str, track: CrossoverTrack) -> str:
    """Where it was: `from 612–690 (9 runs), every size (1)`, each form by how often it was found."""
    forms: dict[str, list[float]] = {}
    for _, crossover in track.points:
        single = crossover.crossings[0] if len(crossover.crossings) == 1 else None
        if single is not None and single.at is not None:
            forms.setdefault("from" if single.direction == "above" else "up to", []).append(single.at)
        else:
            forms.setdefault(crossover_text(crossover, axis, track.baseline, "brief"), []).append(math.nan)
    texts = []
    for words, places in sorted(forms.items(), key=lambda item: -len(item[1])):
        known = [place for place in places if not math.isnan(place)]
        ends = list(dict.fromkeys(AXES[axis].place(place) for place in (min(known), max(known)))) if known else []
        texts.append(f"{words} {'–'.join(ends)}".strip() + f" ({len(places)})")
    return ", ".join(texts)


def runs_table(history: History) -> TextTable:
    """A row for each run."""
    changes = Counter(change.after for change in history.changes)
    rows = []
    for number, run in enumerate(history.runs):
        place = f"{run.folder}{' (gate)' if run.gate else ''}"
        rows.append(
            (
                Field(day(run)),
                Field(commit(run)),
                Field(letter(history, number)),
                Field(run.suite),
                Field(place),
                Field(str(changes[number] or ""), order=changes[number]),
            )
        )
    return TextTable("By time", ("date", "commit", "in", "suite", "folder", "changes"), tuple(rows))


def rows(history: History) -> Iterator[Mapping[str, Any]]:
    """A row for each run, panel, metric, series and size; a change stands with the first run after it."""
    changes = {(change.key, change.metric, change.after): change for change in history.changes}
    for report in history.panels:
        for each in report.metrics:
            for track in each.tracks:
                for point in track.points:
                    run = history.runs[point.run]
                    change = changes.get((track.key, each.name, point.run)) or changes.get(
                        (track.key, "status", point.run)
                    )
                    yield {
                        **_run_columns(history, point.run, run),
                        "axis": report.panel.axis,
                        "mode": report.panel.fixed["mode"],
                        "device": report.panel.fixed["device"],
                        "metric": each.name,
                        "unit": each.metric.unit,
                        "series": track.series,
                        "label": track.label,
                        "key": track.key,
                        "value": point.value,
                        "low": point.low,
                        "high": point.high,
                        "beside": point.beside,
                        "status": point.status,
                        "change": change.verdict if change else None,
                        "evidence": change.evidence if change else None,
                        "ratio": change.ratio if change else None,
                        "ratio_low": change.low if change else None,
                        "ratio_high": change.high if change else None,
                        "same_code": change.same_code if change else None,
                    }


def _run_columns(history: History, number: int, run: Snapshot) -> dict[str, Any]:
    return {
        "started": _iso(run.started),
        "commit": run.commit,
        "folder": run.folder,
        "suite": run.suite,
        "side": run.side or None,
        "circumstances": letter(history, number),
    }


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat(timespec="seconds")


def document(history: History) -> dict[str, Any]:
    """`version`, `folder` (its name), `baseline`, `circumstances` (by position), `runs` (by time: `folder`, `suite`,
    `started`, `commit`, `code`, `circumstances`, `gate`, `side`), `changes` (`analysis.history.Change`: `before` and
    `after` are positions in `runs`), `searched` (`analysis.history.Searched`), `false_alarms`, `gates`, `left_out` and
    `panels`: `axis`, `fixed` and `metrics`, each with `tracks` (`analysis.history.Track`) and `crossovers` (`points`:
    `run` and `crossover`, `analysis.crossover.Crossover`)."""
    return {
        "version": VERSION,
        "folder": history.folder,
        "baseline": history.baseline,
        "circumstances": [dict(each) for each in history.circumstances],
        "runs": [
            {
                "folder": run.folder,
                "suite": run.suite,
                "started": _iso(run.started),
                "commit": run.commit,
                "code": run.code,
                "circumstances": history.circumstance[number],
                "gate": run.gate or None,
                "side": run.side or None,
            }
            for number, run in enumerate(history.runs)
        ],
        "changes": list(history.changes),
        "searched": list(history.searched),
        "false_alarms": FALSE_ALARMS,
        "gates": history.gates,
        "left_out": dict(history.unread),
        "panels": [_panel(report) for report in history.panels],
    }


VERSION = 1
"""Of the document: raised when the meaning of a field changes or one is taken away; fields may be added."""


def _panel(report: PanelHistory) -> dict[str, Any]:
    return {
        "axis": report.panel.axis,
        "fixed": dict(report.panel.fixed),
        "metrics": [
            {
                "metric": each.name,
                "unit": each.metric.unit,
                "tracks": list(each.tracks),
                "crossovers": [
                    {
                        "series": track.series,
                        "baseline": track.baseline,
                        "points": [{"run": run, "crossover": crossover} for run, crossover in track.points],
                    }
                    for track in each.crossovers
                ],
            }
            for each in report.metrics
        ],
    }
