"""The type a metric file fills in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Unit = Literal["s", "bytes", "flop", "j", ""]
Derived = Literal["check", "median", "interval"]


@dataclass(frozen=True)
class Curve:
    """A metric's figure at several values of something that is no axis of the sweep.

    over: of what. columns: of the figure, by the value as shown. main: the value at which it is the metric's figure.
    beside: the columns of what it is judged by, named `beside_name`.
    """

    over: str
    columns: Mapping[str, str]
    main: str
    beside_name: str
    beside: Mapping[str, str]


@dataclass(frozen=True)
class Metric:
    """A quantity with a unit, as a file of `attnbench/measure/metrics/` defines it under the name METRIC.

    column: the results.csv column that holds the figure. columns: all columns the metric fills, that one included.
    unit: of the column. meaning: one line for `attnbench list metrics`. exact: True where the figure repeats to the
    last digit on the same machine set-up.
    derived: where results.csv has the columns from. "check": the check's visit. "median": of each column, the median
    over the timed rounds. "interval": the same, but `column` is the centre over the rounds and `ends` are its 95 %
    interval (`analysis.interval`).
    comparable: False where to be least, to pass the baseline or to grow means nothing (a rounding error): then no best,
    no crossover and no exponent is shown. least: what the series with the least of it is called.
    of_estimates: whether only operators have it that estimate another map (`Operator.estimates`), which is then named
    beside it. curve: None where `column` says all.
    """

    column: str
    unit: Unit
    meaning: str
    columns: tuple[str, ...]
    exact: bool
    derived: Derived = "check"
    comparable: bool = True
    least: str = "least"
    of_estimates: bool = False
    curve: Curve | None = None

    @property
    def timed(self) -> bool:
        """Whether it is taken in the timed rounds, so that rounds tell how well it is known."""
        return self.derived != "check"

    @property
    def ends(self) -> tuple[str, str]:
        """The columns of the interval's ends: `<stem>_low_<unit>` and `<stem>_high_<unit>`."""
        stem, unit = self.column, ""
        if self.unit and stem.endswith(f"_{self.unit}"):
            stem, unit = stem.removesuffix(f"_{self.unit}"), f"_{self.unit}"
        return f"{stem}_low{unit}", f"{stem}_high{unit}"

    @property
    def best_exact(self) -> str:
        """What the exact softmax that is compared with is called: at each size the one with the least of this."""
        return f"{self.least} exact softmax"
