"""A crossover search from its request to its end: the run folder that it writes, its searches, and how they ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from attnbench.analysis.border_search import Border, from_the_middle, search_borders
from attnbench.analysis.crossover_search import Search, search
from attnbench.analysis.series import series_names
from attnbench.axes import AXES, Axis
from attnbench.errors import BadInput
from attnbench.groups import groups_of
from attnbench.measure.crossover_probes import Probes
from attnbench.measure.definitions import check_defined
from attnbench.measure.open_run import Session, begin, device_for, resume, stored_search
from attnbench.measure.runner import Progress
from attnbench.measure.search_progress import SearchProgress, foreseen
from attnbench.measure.stored_search import name_sizes, read_request, write_request
from attnbench.measure.worker_pool import Stopped
from attnbench.plan.cells import cells
from attnbench.plan.search_request import SearchRequest
from attnbench.plan.suite import from_text
from attnbench.problem import Cell, canonical_params
from attnbench.store.reading import read_visits


@dataclass(frozen=True)
class Compared:
    """What one search compares.

    Args:
        series: `operator:impl`, as requested.
        value: on the second axis, as tables head a column with it; empty where there is none.
        cells: one of the series and one of its baseline, of any size.
    """

    series: str
    value: str
    cells: tuple[Cell, Cell]


@dataclass(frozen=True)
class OpenSearch:
    """A search whose run folder is open.

    Args:
        request: what is searched.
        session: its plan and journal.
        compared: by the name of each search.
    """

    request: SearchRequest
    session: Session
    compared: Mapping[str, Compared]

    @property
    def named(self) -> dict[str, tuple[str, str]]:
        """Of each search, by its name, the series and its value on the second axis."""
        return {name: (each.series, each.value) for name, each in self.compared.items()}


@dataclass(frozen=True)
class SearchOutcome:
    """How a search ended.

    Args:
        searches: one for each series.
        code: the exit code of an end before its time; else 0.
        reason: what stopped it; empty where nothing did, or the user.
    """

    searches: Sequence[Search]
    code: int = 0
    reason: str = ""


def begin_search(request: SearchRequest, text: str, device: str, out: Path | None) -> OpenSearch:
    """A new search.

    Args:
        request: what is searched.
        text: the suite that says the same.
        device: auto, or the device to measure on.
        out: the run folder; None: a new one below results/.

    Raises: BadInput, before anything is written.
    """
    suite = from_text(text, "the command line", Path.cwd())
    planned, on = cells(suite), device_for(suite.where, suite.impls, device)
    searched = compared(planned, request)
    check_defined(
        [each.cells for each in searched.values()], request, varied(request, planned), suite.operators_from, on
    )
    session = begin(suite, on, out)
    write_request(request, session.journal.folder)
    return OpenSearch(request, session, searched)


def resume_search(folder: Path, device: str, operators_from: Sequence[str]) -> OpenSearch:
    """A stored search. operators_from: its files of a user's own, named again. Raises BadInput."""
    request = read_request(folder)
    stored_search(folder, operators_from)
    name_sizes(request, folder, read_visits(folder))  # a killed search had no time to
    session = resume(stored_search(folder, operators_from), device, folder)
    return OpenSearch(request, session, compared(session.plan.cells, request))


def run_search(opened: OpenSearch, progress: Progress) -> SearchOutcome:
    """Searches every series, and closes the run folder; its suite names the sizes that were measured."""
    request, session = opened.request, opened.session
    outcome = _searched(opened, progress)
    name_sizes(request, session.journal.folder, session.journal.visits)
    session.journal.close()
    return outcome


def _searched(opened: OpenSearch, progress: Progress) -> SearchOutcome:
    request = opened.request
    axis = varied(request, opened.session.plan.cells)
    plan = replace(opened.session.plan, cells=())
    pairs = {name: each.cells for name, each in opened.compared.items()}
    low, high = (math.prod(axis.uniform(end)) for end in (request.low, request.high))
    rates = opened.session.environment.get("rates") or {}
    shown = SearchProgress(progress, plan.measure.rounds, foreseen(plan, pairs.values(), axis, low, high, rates))
    probes = Probes(plan, opened.session.journal, shown, axis, pairs, request.column)

    def begun(name: str, baseline: Cell) -> Search:
        nearest = axis.allowed(baseline.problem)
        place = partial(axis.place, measured=True)
        return Search(name, probes, low, high, request.precision, nearest, plan.measure.rounds, place=place)

    searches = {name: begun(name, baseline) for name, (_, baseline) in pairs.items()}

    def next_round(number: int) -> None:
        shown.next_round(number, searches.values())
        probes.next_round(number)

    code, reason = 0, ""
    try:
        if request.over:
            search_borders(_borders(opened, searches), next_round)
        else:
            search(list(searches.values()), next_round)
        probes.close()
    except KeyboardInterrupt:
        code = 130
    except Stopped as stopped:
        code, reason = 3, str(stopped)
    finally:
        probes.kill()
    if code:
        for each in searches.values():
            each.ended = each.ended or "interrupted"
    return SearchOutcome(list(searches.values()), code, reason)


def varied(request: SearchRequest, cells: Sequence[Cell]) -> Axis:
    """The axis of a search, with what is constant along it at one value of the second one."""
    over = AXES.get(request.over)
    problems = [cell.problem for cell in cells]
    alike = {problem for problem in problems if over is None or over.position(problem) == over.position(problems[0])}
    return AXES[request.axis].holding(alike)


def _borders(opened: OpenSearch, searches: Mapping[str, Search]) -> list[Border]:
    """The searches of each series, over the second axis."""
    axis = AXES[opened.request.over]
    borders: dict[str, dict[int, Search]] = {}
    for name, each in opened.compared.items():
        borders.setdefault(each.series, {})[axis.position(each.cells[0].problem)] = searches[name]
    return [Border({value: each[value] for value in from_the_middle(list(each))}) for each in borders.values()]


def compared(cells: Sequence[Cell], request: SearchRequest) -> dict[str, Compared]:
    """What each search compares, by its name: one for each value of params and of the second axis.

    Raises: BadInput where an operator has no such impl, or the baseline has several values of a parameter.
    """
    *series, several = [_series(cells, operator, impl, request.over) for operator, impl in request.names()]
    (name, baseline), *more = several.items()
    if more:
        raise BadInput(
            f"--param: the baseline {request.baseline} would be {name} and {more[0][0]}; all are compared with one. "
            "Give one value of each parameter that it has."
        )
    return {
        f"{name} {request.over} {value}".strip(): Compared(name, value, (cell, baseline[value]))
        for name, by_value in (each for one in series for each in one.items())
        for value, cell in by_value.items()
    }


def _series(cells: Sequence[Cell], operator: str, impl: str, over: str) -> dict[str, dict[str, Cell]]:
    """An operator's impl as series, by name, with the params in which they differ: of each what `_values` gives."""
    fitting = [cell for cell in cells if cell.operator == operator and impl in (cell.impl, cell.impl.split(":")[0])]
    if not fitting:
        raise BadInput(f"{operator}:{impl}: {operator} has no impl {impl}. See `attnbench list operators {operator}`.")
    grids = groups_of((canonical_params(cell.params), cell) for cell in fitting)
    names = series_names({"operator": operator, "impl": "reference", "params": params} for params in grids)
    return {f"{names[operator, 'reference', params]}:{impl}": _values(same, over) for params, same in grids.items()}


def _values(fitting: Sequence[Cell], over: str) -> dict[str, Cell]:
    """A cell of a series for each value on the second axis; without one, by an empty text. It is one at which no size
    that was given is the default by chance, as two kv_heads are of two heads: elsewhere on the axis it is not.
    """
    values: dict[str, Cell] = {}
    for cell in fitting:
        value = AXES[over].label(cell.problem) if over else ""
        first = values.setdefault(value, cell)
        values[value] = max(first, cell, key=lambda each: len(each.problem.given))
    return values
