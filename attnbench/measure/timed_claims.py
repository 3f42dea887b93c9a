"""Claims of time, held against stored runs: each expression of times within one run, never across two."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import attnbench
from attnbench.analysis.claims import (
    Claim,
    Interval,
    Measured,
    MeasuredOn,
    Number,
    Ordered,
    Paper,
    Timed,
    Timing,
)
from attnbench.analysis.compare.matching import completed
from attnbench.analysis.crossover import Pair
from attnbench.analysis.expressions import crossover_of, evaluate
from attnbench.analysis.interval import Estimate, estimates
from attnbench.analysis.results import outcomes
from attnbench.analysis.run import Run, read_run
from attnbench.analysis.timed_claims import (
    NOT_MEASURED,
    crossing,
    decision,
    interval,
    is_decided_by_time,
    together,
    undecided,
)
from attnbench.axes import tokens_axis
from attnbench.errors import BadInput
from attnbench.files import is_file
from attnbench.measure.papers import mistakes_in
from attnbench.problem import Cell, block_of, operator_with_impl
from attnbench.registry import metrics, operators, resolve
from attnbench.store.records import VISITS

CellOf = Callable[[str, Mapping[str, Any]], Cell]
"""(name in a paper's file, overrides) → the cell."""

TIME = "time"
"""The figure of a cell that a run measures."""

METRIC = "wall_time"
"""What of a run it is."""

APART = "its cells are in different runs"
"""Why there is no figure, where each cell is in one."""


@dataclass(frozen=True)
class StoredTimes:
    """The times of a run."""

    run: Run

    @cached_property
    def cells(self) -> Mapping[str, Cell]:
        """By stored key, the cells with today's default of every parameter that they lack."""
        known = operators()
        used = {cell.operator for cell in self.run.cells.values()} & set(known)
        defaults = {name: resolve(known[name].load(), {}) for name in used}
        return {key: completed(cell, defaults) for key, cell in self.run.cells.items()}

    @cached_property
    def keys(self) -> Mapping[str, str]:
        """By the key of today's cell, the stored one."""
        return {cell.key: key for key, cell in self.cells.items()}

    @cached_property
    def outcomes(self) -> Mapping[str, Mapping[str, Any]]:
        """By stored key the status and its reason."""
        return outcomes(self.run.visits)

    @cached_property
    def levels(self) -> Mapping[str, Estimate]:
        """By the key of today's cell."""
        levels = estimates(self.run.visits, metrics()[METRIC].column, stops=self.run.looks)
        ok = (key for key in levels if self.outcomes[key]["status"] == "ok")
        return {self.cells[key].key: levels[key] for key in ok}

    def reason(self, cell: Cell) -> str:
        """Why a cell has no time; empty where the run does not have it."""
        if cell.key not in self.keys:
            return ""
        row = self.outcomes[self.keys[cell.key]]
        return f"{operator_with_impl(cell.operator, cell.impl)}: {row['reason'] or row['status']}"

    def exact(self, cell: Cell) -> Cell:
        """The fastest exact softmax at the problem of an eager one."""
        same = (each for each in self.cells.values() if each.problem == cell.problem)
        impls = (each for each in same if replace(each, impl=cell.impl) == cell and each.key in self.levels)
        return min(impls, key=lambda each: self.levels[each.key].level)

    def along(self, cell: Cell) -> dict[int, Cell]:
        """By the number of tokens, the cells that differ from one in that alone."""
        axis = tokens_axis(cell.problem)
        return {
            axis.position(each.problem): each
            for each in sorted(self.cells.values(), key=lambda each: axis.position(each.problem))
            if axis.varies_in(each.problem)
            and replace(each, problem=axis.at(each.problem, axis.position(cell.problem))) == cell
        }


def reference_folder() -> Path:
    """Where a checkout has the stored runs; an installed package has none."""
    return Path(attnbench.__file__).parent.parent / "results" / "reference" / "papers"


def stored_times(folder: Path | None) -> list[StoredTimes]:
    """The runs of a folder, by name, or one that is a run itself. None: those of the checkout, if there are any.

    Raises: BadInput where a named folder has none, or where one cannot be trusted.
    """
    place = reference_folder() if folder is None else folder
    if folder is not None and is_file(folder / VISITS):
        return [StoredTimes(read_run(folder))]
    runs = sorted(each.parent for each in place.glob(f"*/{VISITS}")) if os.path.isdir(place) else []
    if folder is not None and not runs:
        what = "no run folder, and none is in it" if os.path.isdir(folder) else "no such folder"
        raise BadInput(
            f"--runs {folder}: {what}. Give a folder that `attnbench reproduce --measure` or `attnbench run` wrote."
        )
    return [StoredTimes(read_run(each)) for each in runs]


def check_any_used(folder: Path | None, runs: Sequence[StoredTimes], timings: Iterable[Timing]) -> None:
    """Nothing where a claim has a figure of the runs of a folder that was named. Raises BadInput where none has."""
    timings = list(timings)
    if folder is None or not timings or any(timing.on for timing in timings):
        return
    raise BadInput(
        f"--runs {folder}: its {', '.join(each.run.name for each in runs)} measured nothing that these claims are "
        "about. Give a folder that `attnbench reproduce --measure` wrote, or name other papers."
    )


def timing_of(paper: Paper, claim: Claim, cell_of: CellOf, runs: Sequence[StoredTimes]) -> Timing:
    """What was measured of a claim.

    Raises: BadInput where its file asks for what there is not.
    """
    orders = {
        name: [
            Number("1", f"({larger}) / ({smaller})", f"{larger} over {smaller}", at_least=True)
            for rank, following in pairwise(ranks)
            for larger, smaller in product(rank, following)
        ]
        for name, ranks in claim.orders.items()
    }
    share = sum(bool(number.ours) for number in claim.numbers) + sum(map(len, orders.values()))
    used: dict[str, tuple[StoredTimes, set[str]]] = {}
    known: dict[str, Cell] = {}

    def cell(name: str, overrides: Mapping[str, Any]) -> Cell:
        asked = repr((name, overrides))
        if asked not in known:
            known[asked] = cell_of(name, overrides)
        return known[asked]

    def timed(number: Number) -> Timed:
        with mistakes_in(paper, f"{claim.id} {number.name}"):
            found = _Asked(number, cell, runs, max(1, share), used).timed()
        return found if is_decided_by_time(claim) else undecided(found, claim)

    numbers = [timed(number) for number in claim.numbers]
    steps = {name: [timed(number) for number in each] for name, each in orders.items()}
    ordered = [Ordered(name, each, together(step.verdict for step in each)) for name, each in steps.items()]
    return Timing(numbers, ordered, _measured_on(used))


def measured_interval(
    text: str, constants: Mapping[str, Fraction], cell_of: CellOf, runs: Sequence[StoredTimes]
) -> tuple[Interval, MeasuredOn] | None:
    """The value of an expression of times with its interval, alone, and what it was measured on; None: no run has it.

    Args:
        text: the expression.
        constants: by name.
        cell_of: the cells of a paper's file.
        runs: in which it is looked for.

    Raises: ValueError where it asks for what there is not.
    """
    used: dict[str, tuple[StoredTimes, set[str]]] = {}
    timed = _Asked(Number("1", text), cell_of, runs, 1, used, constants).timed()
    if timed.ours.interval is None:
        return None
    [on] = _measured_on(used)
    return timed.ours.interval, on


def _measured_on(used: Mapping[str, tuple[StoredTimes, set[str]]]) -> list[MeasuredOn]:
    return [
        MeasuredOn(each.run.folder.name, each.run.name, each.run.environment, sorted(dtypes))
        for each, dtypes in used.values()
    ]


def asked_cells(text: str, cell_of: CellOf, constants: Mapping[str, Fraction] | None = None) -> list[Cell]:
    """The cells of an expression of times; of a crossover one of the series and one of the baseline.

    Args:
        text: the expression.
        cell_of: the cells of a paper's file.
        constants: by name, of the expression; None: it has none.

    Raises: ValueError where it asks for another figure, or for what there is not.
    """
    asked: dict[str, Cell] = {}

    def figure(name: str, overrides: Mapping[str, Any], attribute: str) -> Fraction:
        if attribute != TIME:
            raise ValueError(f"{name}.{attribute}; allowed in a claim of time: {name}.{TIME}")
        cell = cell_of(name, overrides)
        asked[cell.key] = cell
        return Fraction(1)

    for each in crossover_of(text) or (text,):
        evaluate(each, constants or {}, figure)
    return list(asked.values())


@dataclass(frozen=True)
class _Asked:
    """A number that is looked up.

    Args:
        number: with an expression.
        cell_of: the cells of its file.
        runs: in which it is looked for; the first that has all of its cells is taken.
        share: so many intervals hold together.
        used: where runs are noted that a figure is from, with the dtypes of its cells.
        constants: by name, of the expression.
    """

    number: Number
    cell_of: CellOf
    runs: Sequence[StoredTimes]
    share: int
    used: dict[str, tuple[StoredTimes, set[str]]]
    constants: Mapping[str, Fraction] = field(default_factory=dict)

    def timed(self) -> Timed:
        if not self.number.ours:
            return Timed(self.number, Measured("not decided", missing=self.number.why or NOT_MEASURED))
        cells = asked_cells(self.number.ours, self.cell_of, self.constants)
        if not self.runs:
            return Timed(self.number, Measured("not decided", missing=NOT_MEASURED))
        for times in self.runs:
            if all(cell.key in times.levels for cell in cells):
                return self._timed(times, cells)
        missing = next(filter(None, (_reason(times, cells) for times in self.runs)), "")
        lacking = next((cell for cell in cells if not any(cell.key in times.keys for times in self.runs)), None)
        measured = Measured("not decided", missing=missing or ("" if lacking else APART), lacking=lacking)
        return Timed(self.number, measured)

    def _timed(self, times: StoredTimes, cells: Sequence[Cell]) -> Timed:
        _, dtypes = self.used.setdefault(str(times.run.folder), (times, set()))
        dtypes.update(cell.problem.dtype for cell in cells)
        eager = [cell for cell in cells if (cell.operator, cell.impl) == ("softmax", "reference")]
        ours = self._measured(times, {}, eager)
        fastest = {cell.key: times.exact(cell) for cell in eager}
        others = {cell.key for cell in cells} - fastest.keys()
        is_other = eager and not others & {cell.key for cell in fastest.values()}
        exact = self._measured(times, fastest, list(fastest.values())) if is_other else None
        return Timed(self.number, ours, exact)

    def _measured(self, times: StoredTimes, instead: Mapping[str, Cell], softmax: Sequence[Cell]) -> Measured:
        """Ours with other cells in place of some, by key."""
        against = ", ".join(dict.fromkeys(operator_with_impl(cell.operator, cell.impl) for cell in softmax))
        sides = crossover_of(self.number.ours)
        found = self._crossing(times, *sides, exact=bool(instead)) if sides else self._interval(times, instead)
        return Measured(decision(found, self.number), against, found, run=times.run.folder.name)

    def _interval(self, times: StoredTimes, instead: Mapping[str, Cell]) -> Interval:
        cells = {
            cell.key: instead.get(cell.key, cell)
            for cell in asked_cells(self.number.ours, self.cell_of, self.constants)
        }

        def value(logs: Mapping[str, float]) -> float:
            def figure(name: str, overrides: Mapping[str, Any], attribute: str) -> Fraction:
                return Fraction(math.exp(logs[self.cell_of(name, overrides).key]))

            return float(evaluate(self.number.ours, self.constants, figure))

        levels = {key: times.levels[cell.key] for key, cell in cells.items()}
        return interval(value, levels, {key: block_of(cell.key) for key, cell in cells.items()}, self.share)

    def _crossing(self, times: StoredTimes, series: str, baseline: str, *, exact: bool) -> Interval:
        (one,), (other,) = asked_cells(series, self.cell_of), asked_cells(baseline, self.cell_of)
        along, against = times.along(one), times.along(other)
        pairs = []
        for size in along.keys() & against.keys():
            cell = against[size]
            chosen = times.exact(cell) if exact and cell.key in times.levels else cell
            levels = times.levels.get(along[size].key), times.levels.get(chosen.key)
            pairs.append(Pair(size, str(size), *levels))
        return crossing(sorted(pairs, key=lambda pair: pair.size))


def _reason(times: StoredTimes, cells: Sequence[Cell]) -> str:
    """Why a run that has all of some cells has no time of one; empty where it lacks one."""
    if not all(cell.key in times.keys for cell in cells):
        return ""
    return times.reason(next(cell for cell in cells if cell.key not in times.levels))
