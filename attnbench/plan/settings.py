"""The settings of a run, as a suite gives them and runner and workers obey them. Base units; no torch."""

from __future__ import annotations

from dataclasses import dataclass

CONTRACT = 2
"""Version of the timing contract: raised by hand when the meaning of a stored number changes."""

SEARCH_ROUNDS = 9
"""The most rounds of a crossover search."""


@dataclass(frozen=True)
class Measure:
    """How each cell is timed.

    Attributes:
        rounds: timed rounds after the check.
        within_process_precision: a visit stops once half the width of the interval of its median, over the median, is
            at most this.
        min_samples, max_samples, max_time_s: bounds on one visit.
    """

    rounds: int = 3
    within_process_precision: float = 0.02
    min_samples: int = 5
    max_samples: int = 1000
    max_time_s: float = 1.0


@dataclass(frozen=True)
class Limits:
    """What a run may take.

    Attributes:
        memory_fraction: of the device's memory; where memory_bytes is None.
        memory_bytes: instead of it.
        cell_timeout_s: of one visit.
        budget_s: of the run; None: no bound.
    """

    memory_fraction: float = 0.8
    memory_bytes: int | None = None
    cell_timeout_s: float = 60.0
    budget_s: float | None = None
