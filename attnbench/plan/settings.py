"""The settings of a run, as a suite gives them and runner and workers obey them. Base units; no torch."""

from __future__ import annotations

from dataclasses import dataclass

CONTRACT = 3
"""Version of the timing contract: raised by hand when the meaning of a stored number changes."""

MAX_ROUNDS = 1000
"""The most that a suite may ask for."""

SEARCH_ROUNDS = 9
"""The most rounds of a crossover search."""


@dataclass(frozen=True)
class Measure:
    """How each cell is timed.

    Attributes:
        rounds: timed rounds after the check, before the first look at the crossovers.
        max_rounds: that are made where a crossover is not precise enough.
        crossover_precision: half the relative width of a crossover's interval at which no round is added; None:
            `rounds` rounds and no more.
        min_turns, max_turns: of a block; after min_turns it ends as soon as a typical member has max_time_s.
        max_time_s: of a visit's timed samples.
    """

    rounds: int = 3
    max_rounds: int = 9
    crossover_precision: float | None = 0.05
    min_turns: int = 6
    max_turns: int = 24
    max_time_s: float = 0.5


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
