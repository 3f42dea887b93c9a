"""The settings of a run, as a suite gives them and runner and workers obey them. Base units; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_ROUNDS = 1000
"""The most that a suite may ask for."""

SEARCH_ROUNDS = 9
"""The most rounds of a crossover search."""

SAMPLE_S = 0.01
"""A turn's sample of a member ends once its timed calls have taken so long …"""

MOST_CALLS = 8
"""… or are so many."""

BATCH_S = 1e-4
"""Shorter calls are timed in batches that last so long: the clock's resolution and the loop's own cost are then below
0.1 %."""

ALONE_S = 2 * SAMPLE_S
"""Where the first call takes so long, it is the only one before the samples: those are of one call each, and no later
one is untimed."""

FEW_SAMPLES = 2
"""A visit of no more, where its first call is the only one before them, stays with that call's input set: its first
sample is taken after a write, and its second, or a call after it, must give again what the first call did. So all of
its samples are checked, by two calls beside them and the first."""

WARM_UP_S = 0.05
"""Between two looks at the device's clock rate, while calls raise it before the first sample of a member."""

UNTIMED_CALLS = 2
"""Calls shorter than SAMPLE_S are preceded by so many untimed ones, or by fewer that together last less than that, so
that timed calls are the larger part: the first call after other members takes up to twice as long."""


def stays_with_one_set(call_s: float, most_samples: int | None) -> bool:
    """Whether a visit is one of FEW_SAMPLES.

    Args:
        call_s: seconds of its first call.
        most_samples: that it has; None: not known.
    """
    return call_s >= ALONE_S and most_samples is not None and most_samples <= FEW_SAMPLES


def untimed_calls(call_s: float) -> int:
    """The calls before the timed ones of a sample. call_s: seconds of one."""
    return min(UNTIMED_CALLS, max(0, math.ceil(SAMPLE_S / max(call_s, 1e-9)) - 1))


def batch_of(call_s: float, sets: int) -> int:
    """How many calls make a sample: one, or as many full rotations through the input sets as last BATCH_S.

    Args:
        call_s: seconds of one call.
        sets: how many input sets there are.
    """
    return 1 if call_s >= BATCH_S else -(-max(1, round(BATCH_S / max(call_s, 1e-9))) // sets) * sets


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
        largest_first: whether the large sizes go first where a budget does not reach all; else the small ones.
    """

    memory_fraction: float = 0.8
    memory_bytes: int | None = None
    cell_timeout_s: float = 60.0
    budget_s: float | None = None
    largest_first: bool = False
