"""The suites that measure what papers claim of time, one after another within one budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.analysis.claims import Paper
from attnbench.errors import BadInput, refusing
from attnbench.files import is_file
from attnbench.plan import suite as suites
from attnbench.plan.suite import Suite
from attnbench.store.records import VISITS
from attnbench.units import quoted, seconds

if TYPE_CHECKING:
    from attnbench.measure.run_request import RunRequest

PREFIX = "papers-"
"""Suites of a paper are named `papers-<paper>`, or `papers-<paper>-<part>`."""

BUDGET = "15m"
"""What all suites of all papers may take."""

LEAST_S = 10.0
"""What is left for a suite below which it is not begun: its processes alone take that."""


@dataclass(frozen=True)
class PaperRun:
    """A suite that is to be measured, or continued.

    Args:
        name: of the suite.
        folder: of the run.
        request: with its share of the budget; None: the budget does not reach it.
    """

    name: str
    folder: Path
    request: RunRequest | None


def check_options(*, measure: bool, budget: str | None, out: Path | None, runs: Path | None) -> None:
    """Nothing where these options go together. Raises BadInput."""
    alone = [name for name, value in (("--budget", budget), ("--out", out)) if value is not None]
    if alone and not measure:
        raise BadInput(f"{alone[0]}: nothing is measured without --measure. Add that, or leave out {alone[0]}.")
    if measure and runs is not None:
        raise BadInput(
            f"--runs and --measure: new runs are written to --out. Leave out one of the two; --out {runs} "
            "continues what is there."
        )


def suites_of(papers: Iterable[Paper]) -> list[Suite]:
    """The shipped suites of some papers, the longest first. Raises BadInput where they have none."""
    chosen = list(papers)
    names = [f"{PREFIX}{paper.name}" for paper in chosen]
    every = [name for name in suites.shipped() if any(name == own or name.startswith(f"{own}-") for own in names)]
    if not every:
        known = sorted(name.removeprefix(PREFIX) for name in suites.shipped() if name.startswith(PREFIX))
        raise BadInput(
            f"--measure: {', '.join(paper.name for paper in chosen)}: nothing of it is measured; there are suites for "
            f"{', '.join(known)}. Name one of these papers, or leave out --measure."
        )
    return sorted(map(suites.load, every), key=_stated_s, reverse=True)


def paper_runs(
    every: Sequence[Suite],
    out: Path | None,
    device: str,
    budget: str,
    now: Callable[[], float] = time.monotonic,
) -> tuple[Path, Iterator[PaperRun]]:
    """The folder of the runs, and each run in its turn.

    As many of the shortest as state budgets within the whole one; each has what the later ones do not state.

    Args:
        every: the suites, the longest first, as they are measured.
        out: where the runs are, each in a folder of its own; what is there is continued. None: a new folder.
        device: a kind's name, or "auto".
        budget: for all together, such as "15m".
        now: a clock; seconds.

    Raises: BadInput where the budget is none.
    """
    from attnbench.measure.open_run import default_folder

    with refusing(f"--budget {quoted(budget)}: "):
        whole_s = seconds(budget)
    folder = default_folder("papers") if out is None else out
    return folder, _in_turn(every, folder, device, whole_s, now)


def _in_turn(
    every: Sequence[Suite], folder: Path, device: str, whole_s: float, now: Callable[[], float]
) -> Iterator[PaperRun]:
    from attnbench.measure.run_request import RunRequest

    begun = now()
    beyond = _beyond(every, whole_s)
    for number, suite in enumerate(every):
        own = folder / suite.name.removeprefix(PREFIX)
        later_s = sum(map(_stated_s, every[number + 1 :]))
        share_s = whole_s - (now() - begun) - later_s if number >= beyond else 0.0
        if share_s < LEAST_S:
            yield PaperRun(suite.name, own, None)
            continue
        limited = replace(suite, limits=replace(suite.limits, budget_s=share_s))
        stored = is_file(own / VISITS)
        out, resume = (None, own) if stored else (own, None)
        request = RunRequest(limited, device=device, out=out, resume=resume, with_rates=False)
        yield PaperRun(suite.name, own, request)


def _beyond(every: Sequence[Suite], whole_s: float) -> int:
    """How many of the first suites are left out, so that the others have the time that they state; the last one, the
    shortest, has what there is.
    """
    sums = accumulate(map(_stated_s, reversed(every)))
    return len(every) - max(1, sum(each <= whole_s for each in sums))


def _stated_s(suite: Suite) -> float:
    return suite.limits.budget_s or math.inf
