"""The part of docs/statistics.md on `attnbench choose`: recorded runs, with each of their sizes left out in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from attnbench.analysis.baseline import computes_nothing
from attnbench.analysis.choice import level_with_fastest
from attnbench.analysis.interpolation import Place, place_of
from attnbench.analysis.metric_values import Quantity, quantity
from attnbench.analysis.run import Run, read_run
from attnbench.analysis.series import Panel, Point, panels
from attnbench.metric import DEFAULT_METRIC

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
RUNS = ("cpu-sequence", "cpu-image", "cpu-channels", "cpu-decode", "cpu-extend")
FEWEST = 4
"""Sizes of a panel in which one can be left out."""


@dataclass(frozen=True)
class Judged:
    """A choice at a size that the run did not have, judged by what was measured there.

    Args:
        every: whether it is among all operators; else among some of them, as needs leave them.
        holds: whether the set holds the one that was measured to be the fastest.
        members: of the set.
        covered: of the operators, how many intervals of an interpolated time hold the measured one, and of how many.
    """

    every: bool
    holds: bool
    members: int
    covered: tuple[int, int]


def judged(run: Run, subsets: int, panel_number: int | None = None) -> Iterator[Judged]:
    """Choices at every size that is the smallest or the largest one of no operator that is the fastest there.

    Args:
        subsets: random halves of the operators at each size, beside all of them.
        panel_number: only this one of the run; None: all.
    """
    time = quantity(run, DEFAULT_METRIC)
    rng = np.random.default_rng(0)
    every = panels(run.results, None, run.swept)
    for panel in every if panel_number is None else [every[panel_number]]:
        for label in [*panel.sizes][1:-1] if len(panel.sizes) >= FEWEST else ():
            yield from _at(run, panel, label, time, subsets, rng)


def _at(run: Run, panel: Panel, label: str, time: Quantity, subsets: int, rng: np.random.Generator) -> Iterator[Judged]:
    measured = {
        series.name: point
        for series in panel.series
        if (point := series.at(label)) and point.key in time.levels and not computes_nothing(series)
    }
    if not measured:
        return
    less = without(run, panel, label)
    problem = next(iter(measured.values())).problem
    others = quantity(less, DEFAULT_METRIC)
    place = place_of(less, problem, panel.fixed["mode"], panel.fixed["scope"], others)
    if place is None or place.panel.axis != panel.axis:
        return
    known = [name for name in measured if name in place.timings]
    if not all(place.timings[name].level.has_interval for name in known):
        return  # two sizes are left: the choice is told to be without intervals
    for number in range(1 + subsets):
        names = known if not number else [name for name in known if rng.random() < 0.5]
        fastest = min(
            measured if not number else names, key=lambda name: time.levels[measured[name].key].level, default=""
        )
        if fastest in names and len(names) > 1:
            chosen = level_with_fastest(place, names, others)
            covered = _covered(place, measured, time) if not number else (0, 0)
            yield Judged(not number, fastest in chosen, len(chosen), covered)


def without(run: Run, panel: Panel, label: str) -> Run:
    """The run of a panel alone, as if one of its sizes had not been measured."""
    left = panel.keys - {point.key for series in panel.series if (point := series.at(label))}
    return replace(run, visits=run.visits[run.visits["key"].isin(left)])


def _covered(place: Place, measured: dict[str, Point], time: Quantity) -> tuple[int, int]:
    """Within a block: what all of its times have in common cancels."""
    gaps = [
        (abs(place.timings[name].level.level - time.levels[point.key].level), place.timings[name].level.own_half_width)
        for name, point in measured.items()
        if name in place.timings
    ]
    return sum(gap <= half for gap, half in gaps), len(gaps)


def table(draws: int) -> str:
    """Markdown. draws: ten times the random halves of the operators at each size."""
    lines = [
        "*held*: the share of sets that hold the fastest; *members*: of a set; *intervals*: of the interpolated times, "
        "the share whose interval holds the measured one.\n",
        "| run | sizes | of all: held | members | of halves: held | members | intervals |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name in RUNS:
        found = list(judged(read_run(REFERENCE / name), max(1, draws // 10)))
        of_all, of_some = ([each for each in found if each.every is wanted] for wanted in (True, False))
        covered, intervals = (sum(each.covered[i] for each in of_all) for i in (0, 1))
        lines.append(
            f"| {name} | {len(of_all)} | {_share(of_all)} | {_members(of_all)} | {_share(of_some)} of {len(of_some)} | "
            f"{_members(of_some)} | {covered / intervals:.1%} of {intervals} |"
        )
    return "\n".join(lines) + "\n"


def _share(found: list[Judged]) -> str:
    return f"{sum(each.holds for each in found) / len(found):.1%}"


def _members(found: list[Judged]) -> str:
    return f"{sum(each.members for each in found) / len(found):.1f}"
