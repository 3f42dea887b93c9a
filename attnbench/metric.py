"""The type a metric file fills in: everything that is known of a metric is declared there, and read from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DEFAULT_METRIC = "wall_time"
"""What is gated and searched where no metric is named."""

Unit = Literal["s", "bytes", "flop", "j", ""]
Derived = Literal["check", "median", "interval"]
Resource = Literal["time", "memory"]


@dataclass(frozen=True)
class Curve:
    """A metric's figure at several values of something that is no axis of the sweep.

    Args:
        over: of what.
        columns: of the figure, by the value as shown.
        main: the value at which it is the metric's figure.
        beside_name: what the figure is judged by.
        beside: the columns of that, by the value as shown.
    """

    over: str
    columns: Mapping[str, str]
    main: str
    beside_name: str
    beside: Mapping[str, str]


@dataclass(frozen=True)
class Executed:
    """The columns of what a reference executes, by which the growth of an analytic figure is judged.

    Args:
        stated: what its cost states.
        counted: what was counted of it.
        uncounted: what cannot be counted.
    """

    stated: str
    counted: str
    uncounted: str


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A quantity with a unit, as a file of `attnbench/measure/metrics/` defines it under the name METRIC.

    Of every metric less is better. One with a `clock` is decided on by pairs of processes (`gate --tier 1`), an `exact`
    one exactly (tier 0).

    Args:
        column: the column of results.csv that holds the figure.
        columns: every column that it fills, that one included. int: counts and bytes, of which no digit is lost.
        unit: of `column`, in base units.
        meaning: one line for `attnbench list metrics`.
        title: its heading in tables and pictures; empty: its name.
        label: what it is called beside another metric; empty: its name.
        place: where it stands among the tables, crossovers and pictures of a run; None: only where it is asked for.
        clock: of the samples that it takes in timed rounds, as samples.csv names it; empty: it takes none. Its file has
            `timer(subject, seconds of one call)`, what a sample is taken by (`worker.clocks.Clock`), or None.
        exact: whether it repeats to the last digit on the same machine set-up; then it may not grow.
        guarded: of an exact metric, further columns that may not grow; the one that grew most is judged.
        analytic: whether it is known without a call: the same on every machine, and not lost where a call fails.
        derived: where results.csv has the columns from. "check": the check's visit. "median": of each column, the
            median over the timed rounds. "interval": the same, but `column` is the centre over the rounds and `ends`
            are its 95 % interval (`analysis.interval`).
        comparable: False where to be least, to pass the baseline or to grow means nothing (a rounding error): then no
            best, no crossover and no exponent is shown.
        least: what the series with the least of it is called.
        added: columns that are added to the figure where it is shown and compared between series.
        growth: which growth of an operator's definition is stated for it; "memory": for its reference alone.
        role: what it says in a recommendation; of several with figures the first by `place` does.
        executed: of an analytic metric, what its growth is judged by.
        needs_gpu: whether a CPU has none of it.
        finish_s: what its `finish` takes at least at the end of a visit, in seconds.
        of_estimates: whether only operators have it that estimate another map (`Operator.estimates`), which is then
            named beside it.
        curve: None where `column` says all.
        csv_place: where its columns stand in results.csv; None: behind those of all metrics with a place, by its name.
        csv_later: of a metric with a place, the columns that came later: they stand behind `cause`, by its name.
    """

    column: str
    columns: Mapping[str, type[int] | type[float]]
    unit: Unit
    meaning: str
    title: str = ""
    label: str = ""
    place: int | None = None
    clock: str = ""
    exact: bool = False
    guarded: tuple[str, ...] = ()
    analytic: bool = False
    derived: Derived = "check"
    comparable: bool = True
    least: str = "least"
    added: tuple[str, ...] = ()
    growth: Resource | None = None
    role: Resource | None = None
    executed: Executed | None = None
    needs_gpu: bool = False
    finish_s: float = 0.0
    of_estimates: bool = False
    curve: Curve | None = None
    csv_place: int | None = None
    csv_later: tuple[str, ...] = ()

    @property
    def timed(self) -> bool:
        """Whether it is taken in the timed rounds, so that rounds tell how well it is known."""
        return self.derived != "check"

    @property
    def ends(self) -> tuple[str, str]:
        """The columns of the interval's ends: `<stem>_low_<unit>` and `<stem>_high_<unit>`."""
        return self._column("low"), self._column("high")

    @property
    def median_column(self) -> str:
        """Of one with a clock: the column of the median, beside the undisturbed time."""
        return self._column("median")

    def _column(self, name: str) -> str:
        stem, unit = self.column, ""
        if self.unit and stem.endswith(f"_{self.unit}"):
            stem, unit = stem.removesuffix(f"_{self.unit}"), f"_{self.unit}"
        return f"{stem}_{name}{unit}"

    @property
    def best_exact(self) -> str:
        """What the exact softmax that is compared with is called: at each size the one with the least of this."""
        return f"{self.least} exact softmax"
