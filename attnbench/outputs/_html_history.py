"""The report of a history: what changed, a chart of the runs, the tables of every panel, and what is left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attnbench.analysis.history import Change, History, MetricHistory, PanelHistory, Track
from attnbench.groups import groups_of
from attnbench.outputs import _history as view
from attnbench.outputs._colours import MOST_COLOURED
from attnbench.outputs._html_charts import chart_page, style
from attnbench.outputs._html_curves import rounded
from attnbench.outputs._html_page import Block, part, script_data, section, tables

MOST_RUNS = 400
"""The newest so many runs are in a chart."""


def history_page(history: History) -> str:
    """The document."""
    blocks = [
        *_changes(history),
        *_charts(history),
        *(tables(view.panel_part(history, each), i == 0) for i, each in enumerate(history.panels)),
        Block("runs", part("panel", "Runs", part("text_table", view.runs_table(history)), False), rank=3),
        *_words(history),
    ]
    rest = "attnbench history FOLDER --operators NAME --size SIZE holds a part; --format json all of it."
    return chart_page(f"attnbench history: {view.heading(history)}", blocks, ["history"], rest)


def _changes(history: History) -> Iterator[Block]:
    content = part("notes", list(view.found(history)), "verdicts")
    if history.changes:
        content += part("text_table", view.changes_table(history))
    yield section("changes", "changes", "What changed", content)


def _charts(history: History) -> Iterator[Block]:
    if not history.panels:
        return
    chart = part("chart", "history", "runs", "Figures from run to run")
    yield section("chart of the runs", "charts", "From run to run", chart)
    yield Block("days of the runs", script_data("runs", {"runs": list(_runs(history))}), rank=1)
    by_track = groups_of(((change.metric, change.key), change) for change in history.changes)
    for report in history.panels:
        for each in report.metrics:
            yield Block(f"chart of {each.name}, {report.panel.title}", _chart(history, report, each, by_track), rank=2)


def _runs(history: History) -> Iterator[dict[str, Any]]:
    """Of each run its day, its text, the line that it is on, and what differs where its circumstances are others."""
    texts = list(view.circumstances(history))
    before: int | None = None
    for number, run in enumerate(history.runs):
        kind = history.circumstance[number]
        is_border = before is not None and kind != before and not run.gate
        before = before if run.gate else kind
        place = f"{run.folder} (gate)" if run.gate else run.folder
        yield {
            "day": view.day(run)[2:],
            "text": f"{view.day(run)} {view.commit(run)} {place}, circumstances {view.letter(history, number)}",
            "line": run.gate or view.letter(history, number),
            "border": f"circumstances {texts[kind]}" if is_border else "",
        }


def _chart(
    history: History, report: PanelHistory, each: MetricHistory, changes: Mapping[tuple[str, str], list[Change]]
) -> Any:
    sizes = report.panel.sizes
    largest = {track.series: track.label for track in sorted(each.tracks, key=lambda track: sizes[track.label])}
    names = list(largest)
    operators = {series.name: series.operator for series in report.panel.series}
    first = {change.series for change in history.changes} | {history.baseline}
    shown = [name for name in names if name in first] + [name for name in names if name not in first]
    data = {
        "group": "runs",
        "metric": each.name,
        "title": each.title,
        "unit": each.metric.unit,
        "rest": report.panel.title,
        "size": "",
        "sizes": list(dict.fromkeys(track.label for track in sorted(each.tracks, key=lambda t: sizes[t.label]))),
        "beside": any(point.beside for track in each.tracks for point in track.points),
        "more": f" The newest {MOST_RUNS} of {len(history.runs)} runs." if len(history.runs) > MOST_RUNS else "",
        "tracks": [
            {
                "series": track.series,
                "label": track.label,
                "largest": largest[track.series] == track.label,
                **style(track.series, operators),
                "shown": track.series in shown[:MOST_COLOURED],
                "points": list(_points(history, track)),
                "changes": [
                    [change.after, change.evidence, change.verdict, _text(history, change)]
                    for change in changes.get((each.name, track.key), ())
                ],
            }
            for track in each.tracks
        ],
    }
    return script_data("history", data)


def _points(history: History, track: Track) -> Iterator[list[float | None]]:
    """[run, value, low, high, beside] of the newest runs."""
    for point in track.points:
        if point.run >= len(history.runs) - MOST_RUNS:
            yield [point.run, *(rounded(each, 4) for each in (point.value, point.low, point.high, point.beside))]


def _text(history: History, change: Change) -> str:
    """A change in words, with its interval and what it is between."""
    interval = ""
    if change.low is not None and change.high is not None:
        interval = f" [{change.low - 1:+.1%}, {change.high - 1:+.1%}]"
    before, after = (view.commit(history.runs[number]) for number in (change.before, change.after))
    same = ", the same code" if change.same_code else ""
    return f"{view.change_text([change])}{interval}, {change.evidence}, {before} → {after}{same}"


def _words(history: History) -> Iterator[Block]:
    words = part("notes", view.words(history))
    yield section("words", "words", "How to read it", words)
    kinds = part("notes", list(view.circumstances(history)))
    yield section("circumstances", "circumstances", "Circumstances", kinds)
    if history.unread:
        lost = part("notes", view.left_out(history))
        yield section("left out runs", "lost", "Left out, and why", lost)
