"""What to use for one problem under constraints: operators ranked by a run's times, and apart from them, those of which
only the roofline is known, by that.

The first of the measured ones are a set: all that cannot be told from the fastest, at a measured size as
`analysis.recommendation` decides, between two sizes as `analysis.contest` does for the rules of code.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from attnbench.analysis.cards import Rates
from attnbench.analysis.contest import Arm, Contest, take
from attnbench.analysis.interpolation import Place
from attnbench.analysis.recommendation import not_told_apart
from attnbench.analysis.series import problems_of
from attnbench.axes import tokens_axis
from attnbench.registry import metrics
from attnbench.units import digits

if TYPE_CHECKING:
    import pandas as pd

    from attnbench.analysis.metric_values import Quantity
    from attnbench.problem import Cell, Params, Problem

Source = Literal["measured", "interpolated", "analytic"]
"""Where a time is from: a run's cell of this very problem; between two of its sizes; the roofline, which is the least
that any implementation takes."""

MemorySource = Literal["measured", "predicted", "interpolated", ""]
"""Where a memory is from: such a cell; the shapes alone; between two of the run's sizes; empty: it is not known."""

Why = Literal["nothing", "undefined", "need", "failed", "memory", "unknown"]
"""Why an operator is out: it computes nothing; it is not defined for the problem; a need is not met; it failed in the
run; its memory is above the limit; neither the run nor a roofline has a time of it."""


@dataclass(frozen=True)
class Error:
    """How far an estimate of softmax attention is from it, at a logit scale of 1, as a run measured it.

    Args:
        value: relative root mean square.
        mean: that of answering the mean of v; an estimate that is no nearer has learnt nothing. None: not measured.
        size: the size at which both were measured, where that is another than the problem's; else empty.
    """

    value: float
    mean: float | None
    size: str = ""


@dataclass(frozen=True)
class Candidate:
    """An operator, in one impl, that meets the needs.

    Args:
        cell: the problem's.
        exact: whether it computes softmax attention itself.
        estimates: whether it estimates softmax attention.
        seconds: its time; analytic: the least.
        low, high: the 95 % interval; None: it has none.
        source: where the time is from.
        between: of an interpolated time, the two sizes.
        bound: of an analytic time, what bounds it, `products` or `traffic`.
        memory_bytes: all that is alive at the peak, inputs included; None: not known.
        memory_source: where that is from.
        state_bytes: kept of all tokens to continue from; None: it cannot continue.
        flops: of the formula as written; None: not known.
        error: None: not measured, or no estimate.
        properties: by name, of those that are known.
    """

    cell: Cell
    exact: bool
    estimates: bool
    seconds: float
    low: float | None
    high: float | None
    source: Source
    between: tuple[str, str] | None
    bound: str
    memory_bytes: int | None
    memory_source: MemorySource
    state_bytes: int | None
    flops: int | None
    error: Error | None
    properties: Mapping[str, bool]


@dataclass(frozen=True)
class Ranked:
    """A candidate in its group.

    Args:
        rank: from 1; those that are not told apart have the same.
        level: whether it is among those that cannot be told from the first.
        leanest: whether no other of its group is both faster and needs less memory (the Pareto set).
    """

    candidate: Candidate
    rank: int
    level: bool
    leanest: bool


@dataclass(frozen=True)
class Excluded:
    """What cannot be chosen.

    Args:
        cell: the problem's.
        why: the kind of reason.
        reason: in words, of a definition or a failure; empty where the other fields say it.
        needs: those that it does not meet.
        memory_bytes: of one above the limit.
    """

    cell: Cell
    why: Why
    reason: str = ""
    needs: tuple[str, ...] = ()
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Choice:
    """The answer for one problem.

    Args:
        problem, mode, scope: what it is for.
        needs: that every choice meets.
        memory_limit_bytes: None: no limit.
        memory_of: whose memory the limit is, where it was not given.
        run: its name, empty without one.
        device: of the run, its hardware.
        axis: of the run, along which times are interpolated.
        unlike: why the run has no time for the problem, by column: what the problem has and what the run has; empty
            where it has one.
        timed: by the run's times.
        analytic: those without such a time, by their rooflines.
        out: what cannot be chosen.
        rates: of the roofline; None: there is none.
        defaults: by operator, those of its params.
        has_intervals: whether it is known which are level with the fastest; not from one round.
    """

    problem: Problem
    mode: str
    scope: str
    needs: tuple[str, ...]
    memory_limit_bytes: int | None
    memory_of: str
    run: str
    device: str
    axis: str
    unlike: Mapping[str, tuple[str, str]]
    timed: tuple[Ranked, ...]
    analytic: tuple[Ranked, ...]
    out: tuple[Excluded, ...]
    rates: Rates | None
    defaults: Mapping[str, Params]
    has_intervals: bool = True

    @property
    def best(self) -> tuple[Ranked, ...]:
        """The set to take: the measured ones that are level with the fastest; without any the least rooflines."""
        return tuple(each for each in self.timed or self.analytic if each.level)

    @property
    def fastest_exact(self) -> Candidate | None:
        """The fastest exact softmax of the same group as `best`; None where there is none."""
        exact = [each.candidate for each in self.timed or self.analytic if each.candidate.exact]
        return min(exact, key=lambda candidate: candidate.seconds, default=None)

    @property
    def may_be_faster(self) -> tuple[Ranked, ...]:
        """Those without a measured time whose least time is below that of the fastest: the others cannot be faster."""
        fastest = min((each.candidate.seconds for each in self.timed), default=0.0)
        return tuple(each for each in self.analytic if each.candidate.seconds < fastest)


def level_with_fastest(place: Place, names: Collection[str], time: Quantity) -> set[str]:
    """The series that cannot be told from the fastest of some. names: of series of the place that have a timing."""
    chosen = [series for series in place.panel.series if series.name in names]
    levels = sorted(((place.timings[s.name].level, s.name) for s in chosen), key=lambda pair: pair[0].level)
    measured = all(place.timings[series.name].is_measured for series in chosen)
    if measured or not all(level.has_interval for level, _ in levels):
        return {name for _, name in not_told_apart(levels)}
    panel = replace(place.panel, series=tuple(chosen))
    arms = [Arm(series, exact=False, baseline=not number) for number, series in enumerate(chosen)]
    ranges = Contest(panel, arms, time, "cheapest").ranges()
    return {levels[0][1], *take(ranges, place.position).among}


def error_of(results: pd.DataFrame, operator: str, params: str, problem: Problem) -> Error | None:
    """The error of an estimate of softmax attention at the size nearest to a problem; None where none was measured.

    Args:
        results: `Run.results`.
        params: as stored.
    """
    curve = metrics()["softmax_error"].curve
    if curve is None or curve.columns[curve.main] not in results:
        return None
    value, mean = curve.columns[curve.main], curve.beside[curve.main]
    rows = results[
        (results["operator"] == operator)
        & (results["params"] == params)
        & (results["causal"] == problem.causal)
        & results[value].notna()
    ]
    if rows.empty:
        return None

    def distance(number: int) -> tuple[Any, ...]:
        other = problems[number]
        alike = (other.domain == problem.domain, other.dtype == problem.dtype, other.head_dim == problem.head_dim)
        return other != problem, -sum(alike), abs(math.log(other.seq_len / problem.seq_len))

    problems = problems_of(rows)
    nearest = min(range(len(problems)), key=distance)
    row, other = rows.iloc[nearest], problems[nearest]
    beside = float(row[mean]) if mean in rows and not math.isnan(row[mean]) else None
    return Error(float(row[value]), beside, "" if other == problem else tokens_axis(other).label(other))


def ranked(candidates: Sequence[Candidate], level: Sequence[bool]) -> tuple[Ranked, ...]:
    """Candidates in order: first those that are level with the fastest, of which exact ones first, then by memory; then
    the others by time.

    level: of each, whether it is.
    """
    pairs = list(zip(candidates, level, strict=True))
    first = sorted((c for c, is_level in pairs if is_level), key=_among_level)
    rest = sorted((c for c, is_level in pairs if not is_level), key=lambda c: (c.seconds, *_among_level(c)))
    leanest = {id(each) for each in _pareto(candidates)}
    return tuple(
        Ranked(candidate, 1 if number < len(first) else number + 1, number < len(first), id(candidate) in leanest)
        for number, candidate in enumerate([*first, *rest])
    )


def _among_level(candidate: Candidate) -> tuple[Any, ...]:
    memory = math.inf if candidate.memory_bytes is None else candidate.memory_bytes
    return not candidate.exact, memory, candidate.seconds, candidate.cell.operator, candidate.cell.impl


def ranked_by_roofline(candidates: Sequence[Candidate]) -> tuple[Ranked, ...]:
    """The same of rooflines; those that have the same three digits as the least are level with it."""
    least = min((digits(each.seconds) for each in candidates), default=0.0)
    return ranked(candidates, [digits(each.seconds) <= least for each in candidates])


def _pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those of which no other is better in time or memory and at least as good in both."""
    known = [each for each in candidates if each.memory_bytes is not None]
    kept: list[Candidate] = []
    for each in sorted(known, key=lambda c: (c.seconds, c.memory_bytes)):
        if not kept or (each.memory_bytes or 0) < (kept[-1].memory_bytes or 0):
            kept.append(each)
    return kept
