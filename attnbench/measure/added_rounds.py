"""Rounds beyond the first look: as many as the crossovers need to be as precise as the suite asks.

Whether there are more is decided at looks that are fixed before the first round (`analysis.looks`), from the rounds up
to the look alone: a resumed run decides alike. Added rounds visit the series whose crossovers are not precise yet, with
their baseline, at the sizes around them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from attnbench.analysis.baseline import Baseline, computes_nothing, crossover_with, named
from attnbench.analysis.crossover import Crossing
from attnbench.analysis.crossover_search import half_width
from attnbench.analysis.metric_values import quantity
from attnbench.analysis.run import Run, read_run
from attnbench.analysis.series import Panel, Series, panels
from attnbench.measure.timed_rounds import TimedRounds
from attnbench.measure.visit_log import stops
from attnbench.metric import DEFAULT_METRIC
from attnbench.progress import Reached
from attnbench.units import count, percent

LONG_S = 15.0
"""Where a run still takes so long, it also says between two looks how precise it is; that takes half a second."""


@dataclass(frozen=True)
class Precision:
    """How well the crossovers of a run are known.

    Args:
        crossovers: those that have a place with an interval, as half its relative width.
        wide: the keys of the cells around those that are not precise enough, their own and the baseline's.
    """

    crossovers: Sequence[float]
    wide: frozenset[str]

    def reached(self, asked: float) -> Reached:
        """The same as it is reported."""
        halves = self.crossovers
        return Reached(sum(half <= asked for half in halves), len(halves), asked, max(halves, default=None))

    def sentence(self, asked: float, rounds: int) -> str:
        """What is reached. asked: half a relative width. rounds: that were made."""
        precise = sum(half <= asked for half in self.crossovers)
        after = f"after {count(rounds, 'round')}"
        if not self.crossovers:
            return f"crossovers: none with an interval {after}"
        widest = f"; the widest is ± {percent(max(self.crossovers))}" if precise < len(self.crossovers) else ""
        return f"crossovers: {precise} of {len(self.crossovers)} within ± {percent(asked)} {after}{widest}"


def add_rounds(rounds: TimedRounds, done: int) -> None:
    """Adds rounds, and reports what is reached. done: rounds that the budget afforded. Raises Stopped."""
    measure, progress = rounds.maker.plan.measure, rounds.maker.progress
    asked = measure.crossover_precision
    if asked is None or rounds.maker.plan.rounds_by_key is not None or not rounds.maker.log.timed_keys():
        return  # no shard knows all rounds of a crossover
    reached, why = _look(rounds, done, asked), ""
    if done < measure.rounds or rounds.not_made:
        why = "; the budget ended"
    else:
        for look, stop in pairwise(stops(measure)):
            if not reached.wide:
                break
            if not _made(rounds, look, stop, reached, asked):
                why = "; the budget ended"
            done = stop
            reached = _look(rounds, done, asked)
            if why:
                break
        else:
            why = "; no more are made (max_rounds)" if reached.wide else ""
    progress.message(reached.sentence(asked, done) + why)


def make_rounds(rounds: TimedRounds, done: int, last: int, only: frozenset[str] | None = None) -> None:
    """Makes the rounds from one look to the next. In between it reports the precision, where that takes long.

    Args:
        rounds: of the run.
        done: the last one that was made.
        last: to make.
        only: the keys of the cells that are visited; None: all.
    """
    asked = rounds.maker.plan.measure.crossover_precision
    for number in range(done + 1, last + 1):
        rounds.make_round(number, only)
        looks = asked is not None and rounds.maker.plan.rounds_by_key is None
        if asked is not None and looks and 2 <= number < last and (rounds.maker.left.seconds() or 0.0) > LONG_S:
            _look(rounds, number, asked)


def _made(rounds: TimedRounds, look: int, stop: int, reached: Precision, asked: float) -> bool:
    """Makes the rounds from one look to the next. Returns: whether the budget left time for all of them."""
    maker, before = rounds.maker, rounds.not_made
    missing = [rounds.missing(number, reached.wide) for number in range(look + 1, stop + 1)]
    if any(missing):
        maker.progress.message(
            f"{reached.sentence(asked, look)}: rounds are added around {count(len(reached.wide), 'cell')}"
        )
        rounds.expect([[cell for cells in blocks for cell in cells] for blocks in missing], stop)
    make_rounds(rounds, look, stop, reached.wide)
    left_out, rounds.not_made = rounds.not_made - before, before
    return not left_out


def _look(rounds: TimedRounds, done: int, asked: float) -> Precision:
    """The precision, which is reported."""
    found = precision(rounds, done, asked)
    rounds.maker.progress.reached(found.reached(asked))
    return found


def precision(rounds: TimedRounds, done: int, asked: float) -> Precision:
    """How well the crossovers are known from so many rounds."""
    run = read_run(rounds.maker.log.journal.folder)
    run = replace(run, visits=run.visits[run.visits["round"] <= done])
    halves: list[float] = []
    wide: set[str] = set()
    for panel, series, baseline, crossing in _crossings(run):
        halves.append(half_width(crossing))
        if halves[-1] > asked:
            wide |= _around(panel, series, baseline, crossing)
    return Precision(halves, frozenset(wide))


def _crossings(run: Run) -> Iterator[tuple[Panel, Series, Baseline, Crossing]]:
    """Of every series that is compared with the baseline, the crossings that have a place and an interval."""
    times = quantity(run, DEFAULT_METRIC)
    for panel in panels(run.results, swept=run.swept) if times.values else ():
        baseline = named(panel, run.baseline)
        for series in panel.series:
            passing = None if computes_nothing(series) else crossover_with(panel, series, baseline, times)
            if baseline is not None and passing is not None:
                for crossing in passing.crossings:
                    if None not in (crossing.at, crossing.low, crossing.high):
                        yield panel, series, baseline, crossing


def _around(panel: Panel, series: Series, baseline: Baseline, crossing: Crossing) -> set[str]:
    """The keys of a series and the baseline at the sizes within a crossing's interval and next to its ends."""
    sizes = sorted(panel.sizes.values())
    low = max((size for size in sizes if size <= (crossing.low or 0)), default=sizes[0])
    high = min((size for size in sizes if size >= (crossing.high or 0)), default=sizes[-1])
    labels = [label for label, size in panel.sizes.items() if low <= size <= high]
    points = [each for label in labels for each in (series.at(label), baseline.points.get(label)) if each is not None]
    return {point.key for point in points}
