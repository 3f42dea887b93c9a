"""By how much a metric may grow: the thresholds that suites state, and that compare and gate decide by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase


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
