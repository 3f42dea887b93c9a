"""The type a metric file fills in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Unit = Literal["s", "bytes", "flop", "j", ""]


@dataclass(frozen=True)
class Metric:
    """A quantity with a unit, as a file of `attnbench/metrics/` defines it under the name METRIC.

    column: the results.csv column that holds the figure. columns: all columns the metric fills, that one included.
    unit: of the column. meaning: one line for `attnbench list metrics`. exact: True where the figure repeats to the
    last digit on the same machine set-up (no interval); a metric that is not exact has `<stem>_low_<unit>` and
    `<stem>_high_<unit>` columns. less_is_better: False where only equality is of interest.
    """

    column: str
    unit: Unit
    meaning: str
    columns: tuple[str, ...]
    exact: bool
    less_is_better: bool = True
