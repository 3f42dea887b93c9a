"""A crossover search from its request to its end: the run folder that it writes, its searches, and how they ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attnbench.analysis.crossover_search import Search, search
from attnbench.axes import AXES
from attnbench.errors import BadInput
from attnbench.measure.crossover_probes import Probes, Unplanned
from attnbench.measure.open_run import Session, begin, device_for, resume, stored_search
from attnbench.measure.runner import Progress
from attnbench.measure.stored_search import name_sizes, read_request, write_request
from attnbench.measure.worker_pool import Stopped
from attnbench.plan.cells import cells
from attnbench.plan.search_request import SearchRequest
from attnbench.plan.suite import from_text
from attnbench.problem import Cell
from attnbench.store.reading import read_visits


@dataclass(frozen=True)
class OpenSearch:
    """A search whose run folder is open.

    Args:
        request: what is searched.
        session: its plan and journal.
        series: by `operator:impl`, a cell of any size; the baseline's is the last.
    """

    request: SearchRequest
    session: Session
    series: Mapping[str, Cell]


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
    series = _series(cells(suite), request.names())
    session = begin(suite, device_for(suite.where, suite.impls, device), out)
    write_request(request, session.journal.folder)
    return OpenSearch(request, session, series)


def resume_search(folder: Path, device: str, operators_from: Sequence[str]) -> OpenSearch:
    """A stored search. operators_from: its files of a user's own, named again. Raises BadInput."""
    request = read_request(folder)
    stored_search(folder, operators_from)
    name_sizes(request, folder, read_visits(folder))  # a killed search had no time to
    session = resume(stored_search(folder, operators_from), device, folder)
    return OpenSearch(request, session, _series(session.plan.cells, request.names()))


def run_search(opened: OpenSearch, progress: Progress) -> SearchOutcome:
    """Searches every series, and closes the run folder; its suite names the sizes that were measured."""
    request, session = opened.request, opened.session
    outcome = _searched(opened, progress)
    name_sizes(request, session.journal.folder, session.journal.visits)
    session.journal.close()
    return outcome


def _searched(opened: OpenSearch, progress: Progress) -> SearchOutcome:
    request = opened.request
    axis = AXES[request.axis].holding({cell.problem for cell in opened.session.plan.cells})
    *_, baseline = opened.series.values()
    series = {name: cell for name, cell in opened.series.items() if cell is not baseline}
    plan = replace(opened.session.plan, cells=())
    probes = Probes(plan, opened.session.journal, Unplanned(progress), axis, series, baseline, request.column)
    low, high = (math.prod(axis.uniform(end)) for end in (request.low, request.high))
    nearest = axis.allowed(baseline.problem)
    searches = [Search(name, probes, low, high, request.precision, nearest, plan.measure.rounds) for name in series]
    code, reason = 0, ""
    try:
        search(searches, probes.next_round)
        probes.close()
    except KeyboardInterrupt:
        code = 130
    except Stopped as stopped:
        code, reason = 3, str(stopped)
    finally:
        probes.kill()
    if code:
        for each in searches:
            each.ended = each.ended or "interrupted"
    return SearchOutcome(searches, code, reason)


def _series(cells: Sequence[Cell], names: Sequence[tuple[str, str]]) -> dict[str, Cell]:
    """A cell for each operator:impl. Raises BadInput where an operator has no such impl."""
    series = {}
    for operator, impl in names:
        fitting = [cell for cell in cells if cell.operator == operator and impl in (cell.impl, cell.impl.split(":")[0])]
        if not fitting:
            raise BadInput(
                f"{operator}:{impl}: {operator} has no impl {impl}. See `attnbench list operators {operator}`."
            )
        series[f"{operator}:{impl}"] = fitting[0]
    return series
