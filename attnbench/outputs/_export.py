"""What the formats of other tools hold of a run: every figure once, by its cell's key, and the machine's facts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from attnbench.outputs._html_page import data, text
from attnbench.problem import LATER, SIDES, SIZES
from attnbench.store.trusted_json import is_whole

if TYPE_CHECKING:
    from attnbench.analysis.metric_values import Quantity
    from attnbench.analysis.series import Point, Series
    from attnbench.analysis.summary import Figure, PanelReport, Summary
    from attnbench.problem import Problem


LONGEST_NAME = 1000
"""Bytes of a benchmark's name in UTF-8; Bencher takes 1024."""


@dataclass(frozen=True)
class Measurement:
    """One metric of one cell.

    Args:
        key, problem: the cell's.
        scope, mode: the cell's.
        device: the kind that it was measured on.
    """

    key: str
    problem: Problem
    scope: str
    mode: str
    device: str
    series: Series
    quantity: Quantity
    figure: Figure

    @property
    def benchmark(self) -> str:
        """What other tools know the cell by, in every run: its key. Of one that cannot be shown whole, its digest
        tells it from others."""
        shown = str(text(self.key))
        encoded = shown.encode(errors="replace")
        if shown == self.key and len(encoded) <= LONGEST_NAME:
            return shown
        digest = hashlib.sha256(self.key.encode(errors="replace")).hexdigest()[:8]
        return f"{encoded[:LONGEST_NAME].decode(errors='ignore')}.{digest}"

    @property
    def sizes(self) -> dict[str, int | None]:
        """The numbers of the problem by column; None: not given."""
        names = (*SIZES, *SIDES, *LATER)
        return {name: self.problem.given.get(name) if name in LATER else getattr(self.problem, name) for name in names}

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of the 95 % interval, both or none."""
        low, high = self.figure.low, self.figure.high
        return None if low is None or high is None or not isfinite(high) else (low, high)


def measurements(summary: Summary) -> Iterator[Measurement]:
    """Each metric of each cell once, though several panels hold it, those that failed too."""
    placed: set[tuple[str, str]] = set()
    for report in summary.panels:
        fixed = report.panel.fixed
        common = (fixed["scope"], fixed["mode"], fixed["device"])
        for quantity, series, figure in _figures(report, {*summary.skipped, *report.skipped}):
            point = series.at(figure.label)
            if point is not None and (point.key, quantity.name) not in placed:
                placed.add((point.key, quantity.name))
                yield Measurement(point.key, point.problem, *common, series, quantity, figure)


def _figures(report: PanelReport, skipped: Collection[str]) -> Iterator[tuple[Quantity, Series, Figure]]:
    """The figures of the tables, and those that are missing. skipped: the names of series without a line."""
    absent = [series for series in report.panel.series if series.name in skipped]
    for table in report.tables:
        for line in table.lines:
            yield from ((table.quantity, line.series, figure) for figure in line.figures)
        for series in absent:
            yield from ((table.quantity, series, _missing(point)) for point in series.points)


def _missing(point: Point) -> Figure:
    from attnbench.analysis.summary import Figure

    return Figure(point.label, point.size, None, None, None, point.status, point.reason, False, False, None)


def tracked(summary: Summary) -> Iterator[tuple[Measurement, float]]:
    """Those with a figure that may be compared from run to run: a rounding error says nothing where it grows."""
    for each in measurements(summary):
        value = each.figure.value
        if value is not None and isfinite(value) and each.quantity.metric.comparable:
            yield each, value


_FACTS = (
    *("attnbench", "commit", "python", "torch", "cuda", "cudnn", "tf32", "started"),
    *("device", "system", "machine", "cpu", "cores", "threads", "instruction_set", "allocator", "memory_bytes"),
)
_GPU_FACTS = ("name", "capability", "memory_bytes", "l2_bytes", "driver", "max_sm_clock_mhz", "power_limit_w")
"""What is exported of environment.json: by name, so that whatever else somebody's run folder holds stays there."""


def machine(summary: Summary) -> dict[str, Any]:
    """The facts of machine and software that figures depend on."""
    environment = summary.environment
    packages, gpu = environment.get("packages"), environment.get("gpu")
    facts = _plain(environment, _FACTS) | ({"device_ids": list(summary.devices)} if summary.devices else {})
    if isinstance(packages, Mapping):
        facts["packages"] = {name: each for name, each in packages.items() if _VERSION.fullmatch(str(each))}
    if isinstance(gpu, Mapping):
        facts["gpu"] = _plain(gpu, _GPU_FACTS)
    plain: dict[str, Any] = data(facts)
    return plain


_VERSION = re.compile(r"\d[\w.+!-]{,99}")


def _plain(facts: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those that are text, numbers or truths."""
    return {name: facts[name] for name in names if isinstance(facts.get(name), (str, int, float))}


def whole(facts: Mapping[str, Any], name: str) -> int:
    """A count among facts that may be anybody's; 0 where it is none."""
    value = facts.get(name)
    return value if isinstance(value, int) and is_whole(value) else 0


def document(value: object) -> str:
    """JSON in ASCII. Text passes the door of a report's: without private paths and control characters."""
    return json.dumps(data(value), allow_nan=False) + "\n"
