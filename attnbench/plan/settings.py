"""The settings of a run, as a suite gives them and runner and workers obey them. Base units; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

BASELINE = "softmax"
"""The operator that the others are compared with where a suite names none."""


@dataclass(frozen=True)
class Measure:
    """How each cell is timed.

    rounds: timed rounds after the scout. within_process_precision: a visit stops once half the width of the interval
    of its median, over the median, is at most this. min_samples, max_samples, max_time_s: bounds on one visit.
    """

    rounds: int = 3
    within_process_precision: float = 0.02
    min_samples: int = 5
    max_samples: int = 1000
    max_time_s: float = 1.0


@dataclass(frozen=True)
class Limits:
    """What a run may take. memory_fraction of the device's memory, or memory_bytes where that is not None."""

    memory_fraction: float = 0.8
    memory_bytes: int | None = None
    cell_timeout_s: float = 60.0
    budget_s: float | None = None


@dataclass(frozen=True)
class Threshold:
    """An exception from the gate's thresholds. match: operator, impl, scope, mode or cell → a pattern with * and ?."""

    match: Mapping[str, str]
    thresholds: Mapping[str, float]


@dataclass(frozen=True)
class Gate:
    """By how much a metric of a cell may grow before the gate fails: fractions, by metric name."""

    thresholds: Mapping[str, float] = field(default_factory=dict)
    overrides: tuple[Threshold, ...] = ()

    def threshold(self, metric: str, key: str) -> float | None:
        """The threshold for one metric of the cell with this key, the last matching override first; None: not gated."""
        operator, impl, scope, mode = key.split(".")[:4]
        named = {"operator": operator, "impl": impl, "scope": scope, "mode": mode, "cell": key}
        for override in reversed(self.overrides):
            if metric in override.thresholds and all(fnmatchcase(named[k], p) for k, p in override.match.items()):
                return override.thresholds[metric]
        return self.thresholds.get(metric)
