"""A figure from run to run: values and crossovers by time, and what changed, by what it was measured with.

A change is one of three, by what stands behind it:
- exact: a figure that repeats to the last digit differs between two runs in the same circumstances (FLOPs: in any);
- paired: a gate measured both sides in turns and found it;
- unpaired: times of runs on different days, in the same circumstances, moved beside what the others of their block did
  (`change_points`). Machine and noise differ from day to day, so it is worth a gate, and proves nothing of the code.
Between other machines, versions of torch or contracts nothing is called changed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from attnbench.analysis.baseline import best_beside, check, computes_nothing, crossover_with, named
from attnbench.analysis.change_points import FEWEST_RUNS, beside_others, change_points
from attnbench.analysis.compare.findings import Verdict
from attnbench.analysis.compare.stored_runs import FEWEST_OTHERS
from attnbench.analysis.crossover import Crossover
from attnbench.analysis.distributions import Floats
from attnbench.analysis.interval import half_widths
from attnbench.analysis.metric_values import Quantity, check_metric, metric_names
from attnbench.analysis.series import Panel, Series, check_axis, panels
from attnbench.analysis.snapshots import Snapshot, Snapshots, read_snapshots
from attnbench.analysis.summary import chosen_series
from attnbench.axes import AXES
from attnbench.errors import BadInput
from attnbench.groups import groups_of
from attnbench.metric import DEFAULT_METRIC, Metric
from attnbench.problem import block_of, columns_of, key_parts
from attnbench.registry import metrics
from attnbench.units import quoted, separated, suggestion

CROSSOVER_RUNS = 20
"""The newest so many runs have crossovers, where not all are asked for."""

Evidence = Literal["exact", "paired", "unpaired"]


@dataclass(frozen=True)
class At:
    """A figure of a run.

    Args:
        run: its position in `History.runs`.
        value: None: `status` says why.
        low, high: the ends of its interval; None: it has none.
        beside: what changes are looked for in: the figure beside the other operators of its block, over its middle in
            the same circumstances; None: it has none.
    """

    run: int
    value: float | None
    low: float | None
    high: float | None
    status: str
    beside: float | None = None


@dataclass(frozen=True)
class Track:
    """A series at one size from run to run.

    Args:
        series: its name.
        axis, label: the size.
        key: the cell's.
        points: by time, of the runs that have the cell.
    """

    series: str
    axis: str
    label: str
    key: str
    points: tuple[At, ...]


@dataclass(frozen=True)
class CrossoverTrack:
    """A crossover of a series from run to run. baseline: what it is compared with."""

    series: str
    baseline: str
    points: tuple[tuple[int, Crossover], ...]


@dataclass(frozen=True)
class MetricHistory:
    """A metric of a panel. Only the series and sizes that are asked for."""

    metric: Metric
    name: str
    tracks: tuple[Track, ...]
    crossovers: tuple[CrossoverTrack, ...]

    @property
    def title(self) -> str:
        """What the metric is called in a heading."""
        return self.metric.title or self.name


@dataclass(frozen=True)
class PanelHistory:
    """A panel of the cells of all runs."""

    panel: Panel
    metrics: tuple[MetricHistory, ...]


@dataclass(frozen=True)
class Change:
    """A change of a figure of a cell.

    Args:
        metric: its name, or "status".
        series, axis, label, key: of the track.
        before, after: positions of the last run before it, and of the first after it.
        ratio, low, high: after / before with its interval; None: it has none. Unpaired: of the means of all runs up to
            the next change, beside the others of their block.
        values: before and after, of an exact figure, or the statuses.
        runs: how many runs are before and after it, up to the next change.
        same_code: whether both runs measured the same source, so that it cannot be the code's.
    """

    metric: str
    series: str
    axis: str
    label: str
    key: str
    before: int
    after: int
    verdict: Verdict
    evidence: Evidence
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    values: tuple[float | str, float | str] | None = None
    runs: tuple[int, int] = (1, 1)
    same_code: bool = False


@dataclass(frozen=True)
class Searched:
    """In what unpaired changes of a metric were looked for.

    Args:
        tracks: of a cell in one set of circumstances.
        alone: cells that were left out: in their blocks are too few other operators to tell what the machine did.
        short: tracks that were left out, of too few runs.
    """

    metric: str
    tracks: int
    alone: int
    short: int


@dataclass(frozen=True)
class History:
    """The runs of a folder in some metrics.

    Args:
        folder: as it is named.
        runs: by time.
        circumstances: by position, what each of `circumstance` stands for: by name, the value.
        circumstance: of each run, the position.
        panels: in the order of AXES.
        changes: by time.
        searched: of the metrics that vary from run to run.
        baseline: what crossovers are against, beside the best exact softmax.
        gates: how many decisions of gates were read.
        unread: by folder, why a run is left out.
        every: whether tables show every size and run.
    """

    folder: str
    runs: tuple[Snapshot, ...]
    circumstances: tuple[Mapping[str, Any], ...]
    circumstance: tuple[int, ...]
    panels: tuple[PanelHistory, ...]
    changes: tuple[Change, ...]
    searched: tuple[Searched, ...]
    baseline: str
    gates: int
    unread: Mapping[str, str]
    every: bool = False


@dataclass(frozen=True)
class HistoryRequest:
    """What of the runs is shown.

    Args:
        metrics: names; none: wall_time.
        operators: each `operator` or `operator:impl`; none: all.
        axis: the only one; None: all.
        sizes: labels on the axis as typed; none: all.
        baseline: None: that of the newest run's suite.
        every: whether tables show every size and run, and every run has crossovers.
    """

    metrics: Sequence[str] = ()
    operators: Sequence[str] = ()
    axis: str | None = None
    sizes: Sequence[str] = ()
    baseline: str | None = None
    every: bool = False

    def check(self) -> None:
        """Raises BadInput where no folder can be shown so."""
        for name in self.metrics:
            check_metric(name)
        if self.axis is not None:
            check_axis(self.axis)


def history(folder: Path, request: HistoryRequest) -> History:
    """The history of the runs below a folder.

    Raises: BadInput where it has no run that can be read, and where no run has what is asked for.
    """
    request.check()
    names = separated(request.metrics) or [DEFAULT_METRIC]
    snapshots = read_snapshots(folder, names)
    runs = snapshots.runs
    for name in names:
        if not any(run.quantities[name].values for run in runs):
            raise BadInput(f"--metric {name}: no run has a figure of it. Metrics: {', '.join(metric_names())}.")
    every = _panels(snapshots, request.axis)
    if request.baseline is not None:
        check(every, request.baseline)
    baseline = request.baseline or runs[-1].baseline
    chosen = chosen_series(every, request.operators, "no run here has a")
    labels = _labels(every, request.sizes)
    searches = {name: _search(snapshots, name) for name in names}
    reports = []
    for panel in every:
        shown = [series for series in panel.series if series.name in chosen]
        by_metric = (
            MetricHistory(
                metrics()[name],
                name,
                tuple(_tracks(runs, panel, shown, name, labels, searches[name].beside)),
                tuple(_crossovers(snapshots, panel, shown, name, baseline, request.every)),
            )
            for name in names
        )
        kept = tuple(each for each in by_metric if each.tracks)
        if kept:
            reports.append(PanelHistory(panel, kept))
    if not reports:
        raise BadInput(f"{folder}: no run has a figure of that. Ask for other operators or sizes.")
    tracks = [track for report in reports for each in report.metrics for track in each.tracks]
    kinds, kind = _circumstances(runs)
    return History(
        folder=str(folder),
        runs=tuple(runs),
        circumstances=kinds,
        circumstance=kind,
        panels=tuple(reports),
        changes=tuple(_changes(snapshots, names, {t.key: t for t in reversed(tracks)}, searches)),
        searched=tuple(found.searched for name, found in searches.items() if metrics()[name].timed),
        baseline=baseline,
        gates=len(snapshots.gates),
        unread=snapshots.unread,
        every=request.every,
    )


def _panels(snapshots: Snapshots, axis: str | None) -> list[Panel]:
    """The panels of the cells of all runs, of every kind of device."""
    outcomes = {(run.devices[key], key): each for run in snapshots.runs for key, each in run.outcomes.items()}
    swept = list({repr(each): each for run in snapshots.runs for each in run.swept}.values())
    every: list[Panel] = []
    refused: BadInput | None = None
    for device in dict.fromkeys(device for device, _ in snapshots.cells):
        rows = [
            {**columns_of(cell), "key": key, "device": device, "status": status, "reason": reason, "cause": cause}
            for (kind, key), cell in snapshots.cells.items()
            if kind == device
            for status, reason, cause in (outcomes[kind, key],)
        ]
        try:
            every += panels(pd.DataFrame(rows, dtype=object), axis, swept)
        except BadInput as error:
            refused = error
    if refused is not None and not every:
        raise refused
    return every


def _labels(every: Iterable[Panel], sizes: Sequence[str]) -> frozenset[tuple[str, str]]:
    """The (axis, label) that are shown. Raises BadInput where a size is on no axis."""
    from attnbench.yaml_file import scalar

    there = [(panel.axis, label) for panel in every for label in panel.sizes]
    if not sizes:
        return frozenset(there)
    chosen = set()
    for size in separated(sizes):
        typed = {size}
        for axis in {axis for axis, _ in there}:
            try:
                typed.add("x".join(map(str, AXES[axis].read(scalar(size)))))
            except ValueError:
                continue
        found = {(axis, label) for axis, label in there if label in typed}
        if not found:
            labels = list(dict.fromkeys(label for _, label in there))
            raise BadInput(
                f"--size {quoted(size)}: no run has it{suggestion(size, labels)}. Sizes: {', '.join(labels)}."
            )
        chosen |= found
    return frozenset(chosen)


def _tracks(
    runs: Sequence[Snapshot],
    panel: Panel,
    shown: Sequence[Series],
    name: str,
    labels: Collection[tuple[str, str]],
    beside: Mapping[tuple[str, int], float],
) -> Iterator[Track]:
    """The series and sizes that have a figure in any run. beside: by key and run, `At.beside`."""
    for series in shown:
        for point in series.points:
            if (panel.axis, point.label) not in labels:
                continue
            key = point.key
            of_device = [i for i, run in enumerate(runs) if run.devices.get(key) == panel.fixed["device"]]
            values = [runs[i].quantities[name] for i in of_device]
            intervals = _intervals(values, key)
            points = tuple(
                At(i, each.values.get(key), low, high, runs[i].outcomes[key][0], beside.get((key, i)))
                for i, each, (low, high) in zip(of_device, values, intervals, strict=True)
            )
            if any(each.value is not None for each in points):
                yield Track(series.name, panel.axis, point.label, key, points)


def _intervals(values: Sequence[Quantity], key: str) -> Iterator[tuple[float | None, float | None]]:
    """`Quantity.interval` of a cell in each of them, all at once."""
    levels = [each.levels.get(key) if each.metric.timed else None for each in values]
    known = [each for each in levels if each is not None and each.has_interval]
    half = iter(half_widths(known).tolist())
    for each in levels:
        if each is None or not each.has_interval:
            yield None, None
        else:
            width = next(half)
            yield math.exp(each.level - width), math.exp(each.level + width)


def _crossovers(
    snapshots: Snapshots, panel: Panel, shown: Sequence[Series], name: str, baseline: str, every: bool
) -> Iterator[CrossoverTrack]:
    """Those of each series, against the baseline and the best exact softmax, in runs that are no gate's.

    every: in all of them; else in the newest CROSSOVER_RUNS.
    """
    metric = metrics()[name]
    found: dict[tuple[str, str], list[tuple[int, Crossover]]] = {}
    if not metric.comparable or len(panel.sizes) < 2:
        return
    names = [series.name for series in shown if not computes_nothing(series)]
    numbers = [i for i, run in enumerate(snapshots.runs) if not run.gate and run.quantities[name].levels]
    for number in numbers if every else numbers[-CROSSOVER_RUNS:]:
        run = snapshots.runs[number]
        own = _of_run(panel, run)
        for series, against, passing in _crossings(own, names, run.quantities[name], baseline, snapshots.exact):
            found.setdefault((series, against), []).append((number, passing))
    for (series, against), points in found.items():
        yield CrossoverTrack(series, against, tuple(points))


def _of_run(panel: Panel, run: Snapshot) -> Panel:
    """The cells of a panel that a run has, with their outcome in it."""
    device = panel.fixed["device"]
    lines = []
    for series in panel.series:
        points = [
            replace(point, status=run.outcomes[point.key][0], reason="", cause=run.outcomes[point.key][2])
            for point in series.points
            if run.devices.get(point.key) == device
        ]
        if points:
            lines.append(replace(series, points=tuple(points)))
    return replace(panel, series=tuple(lines))


def _crossings(
    panel: Panel, names: Collection[str], values: Quantity, baseline: str, exact: Collection[str]
) -> Iterator[tuple[str, str, Crossover]]:
    """(series, against, crossover) of those named, as `summary` has them."""
    reference = named(panel, baseline)
    against = [each for each in (reference, best_beside(reference, panel, values, exact)) if each is not None]
    for series in panel.series:
        for each in against if series.name in names else ():
            passing = crossover_with(panel, series, each, values)
            if passing is not None and passing.kind != "nothing":
                yield series.name, each.name, passing


def _circumstances(runs: Sequence[Snapshot]) -> tuple[tuple[Mapping[str, Any], ...], tuple[int, ...]]:
    """The distinct circumstances, by the first run in them, and the position of each run's."""
    kinds: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for run in runs:
        kinds.setdefault(_text(run.circumstances), (len(kinds), run.circumstances))
    return tuple(each for _, each in kinds.values()), tuple(kinds[_text(run.circumstances)][0] for run in runs)


def _text(circumstances: Mapping[str, Any]) -> str:
    return repr(sorted(circumstances.items(), key=lambda item: item[0]))


@dataclass(frozen=True)
class _Search:
    """Unpaired changes of a metric.

    Args:
        found: (key, position of the last run before, of the first after, change, half, runs).
        beside: by key and run, `At.beside`.
    """

    found: Sequence[tuple[str, int, int, float, float, tuple[int, int]]]
    beside: Mapping[tuple[str, int], float]
    searched: Searched


def _search(snapshots: Snapshots, name: str) -> _Search:
    """Looks for changes of a timed metric, in all cells and all runs in the same circumstances, gates apart."""
    metric, runs = metrics()[name], snapshots.runs
    tracks: list[tuple[str, list[int], Floats]] = []
    alone: set[str] = set()
    short = 0
    for numbers in _alike(runs, metric) if metric.timed else ():
        blocks: dict[tuple[str, str], dict[str, Floats]] = {}
        keys = dict.fromkeys(key for i in numbers for key in runs[i].quantities[name].levels)
        for key in keys:
            levels = [runs[i].quantities[name].levels.get(key) for i in numbers]
            device = next(runs[i].devices[key] for i in numbers if key in runs[i].devices)
            logs = np.array([math.nan if each is None else each.level for each in levels])
            blocks.setdefault((block_of(key), device), {})[key] = logs
        for cells in blocks.values():
            operators = [key_parts(key).operator for key in cells]
            relative = beside_others(np.stack(list(cells.values())), operators, FEWEST_OTHERS)
            for key, own in zip(cells, relative, strict=True):
                known = np.flatnonzero(np.isfinite(own))
                if len(set(operators)) <= FEWEST_OTHERS:
                    alone.add(key)
                elif len(known) < 2 * FEWEST_RUNS:
                    short += 1
                else:
                    tracks.append((key, [numbers[i] for i in known], own[known]))
    changes = change_points([logs for _, _, logs in tracks])
    found = [
        (key, numbers[each.at - 1], numbers[each.at], each.change, each.half, each.runs)
        for (key, numbers, _), those in zip(tracks, changes, strict=True)
        for each in those
    ]
    beside = {
        (key, number): math.exp(level)
        for key, numbers, logs in tracks
        for number, level in zip(numbers, (logs - np.median(logs)).tolist(), strict=True)
    }
    return _Search(found, beside, Searched(name, len(tracks), len(alone), short))


def _alike(runs: Sequence[Snapshot], metric: Metric) -> list[list[int]]:
    """The positions of runs whose figures of a metric may be compared, gates apart, by time."""
    return list(groups_of((run.alike(metric), number) for number, run in enumerate(runs) if not run.gate).values())


def _changes(
    snapshots: Snapshots, names: Sequence[str], tracks: Mapping[str, Track], searches: Mapping[str, _Search]
) -> list[Change]:
    """All changes in the figures that are shown, by time. tracks: by key, the last one first."""
    changes: list[Change] = []
    for name in names:
        metric = metrics()[name]
        changes += _unpaired(snapshots.runs, name, tracks, searches[name])
        changes += _paired(snapshots, name, tracks)
        if metric.exact:
            changes += _exact(snapshots.runs, name, tracks)
    changes += _statuses(snapshots.runs, tracks)
    order = {key: -number for number, key in enumerate(tracks)}
    return sorted(changes, key=lambda change: (change.after, change.metric, order[change.key]))


def _verdict(metric: Metric, grew: bool) -> Verdict:
    if metric.unit == "s":
        return "slower" if grew else "faster"
    return "more" if grew else "less"


def _unpaired(runs: Sequence[Snapshot], name: str, tracks: Mapping[str, Track], search: _Search) -> Iterator[Change]:
    for key, before, after, change, half, counts in search.found:
        if key in tracks:
            yield Change(
                **_place(name, tracks[key], before, after, runs),
                verdict=_verdict(metrics()[name], change > 0),
                evidence="unpaired",
                ratio=math.exp(change),
                low=math.exp(change - half),
                high=math.exp(change + half),
                runs=counts,
            )


def _place(name: str, track: Track, before: int, after: int, runs: Sequence[Snapshot]) -> dict[str, Any]:
    return {
        "metric": name,
        "series": track.series,
        "axis": track.axis,
        "label": track.label,
        "key": track.key,
        "before": before,
        "after": after,
        "same_code": runs[before].is_same_code(runs[after]),
    }


def _paired(snapshots: Snapshots, name: str, tracks: Mapping[str, Track]) -> Iterator[Change]:
    """What gates found of a metric that varies; exact ones are compared here."""
    sides = {(run.gate, run.side): number for number, run in enumerate(snapshots.runs) if run.gate}
    for gate, found in snapshots.gates.items():
        for each in found if metrics()[name].timed else ():
            if each.metric == name and each.key in tracks:
                place = _place(name, tracks[each.key], sides[gate, "base"], sides[gate, "head"], snapshots.runs)
                verdict = _verdict(metrics()[name], each.ratio > 1)
                yield Change(
                    **place, verdict=verdict, evidence="paired", ratio=each.ratio, low=each.low, high=each.high
                )


def _neighbours(runs: Sequence[Snapshot], metric: Metric | None, points: Sequence[At]) -> Iterator[tuple[At, At]]:
    """Points of runs that may be compared exactly, each with the next; a gate's two, and all others.

    metric: None: alike in everything.
    """

    def alike(run: Snapshot) -> tuple[Any, ...]:
        return run.gate, run.alike(metric) if metric else tuple(map(repr, run.circumstances.values()))

    for group in groups_of((alike(runs[point.run]), point) for point in points).values():
        yield from pairwise(group)


def _exact(runs: Sequence[Snapshot], name: str, tracks: Mapping[str, Track]) -> Iterator[Change]:
    metric = metrics()[name]
    for track in tracks.values():
        values = [(point, runs[point.run].quantities[name].values.get(track.key)) for point in track.points]
        known = {point.run: value for point, value in values if value is not None}
        for a, b in _neighbours(runs, metric, [point for point in track.points if point.run in known]):
            before, after = known[a.run], known[b.run]
            if before != after:
                yield Change(
                    **_place(name, track, a.run, b.run, runs),
                    verdict=_verdict(metric, after > before),
                    evidence="exact",
                    ratio=after / before if before else None,
                    values=(before, after),
                )


_OF_THE_RUN = ("budget", "beyond_oom", "beyond_timeout")
"""Causes of a status that say nothing of the cell itself."""


def _statuses(runs: Sequence[Snapshot], tracks: Mapping[str, Track]) -> Iterator[Change]:
    """Changes of a cell's status, between runs that are alike in everything."""
    for track in tracks.values():
        points = [p for p in track.points if runs[p.run].outcomes[track.key][2] not in _OF_THE_RUN]
        for a, b in _neighbours(runs, None, points):
            if a.status != b.status:
                yield Change(
                    **_place("status", track, a.run, b.run, runs),
                    verdict="changed",
                    evidence="unpaired" if "timeout" in (a.status, b.status) else "exact",
                    values=(a.status, b.status),
                )
