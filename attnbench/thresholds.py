"""By how much a metric may grow: the thresholds of suites, by which compare and gate decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from attnbench.problem import key_parts

OPERATIONS = "operations"
"""What dispatched operators and launched kernels, added up, are called among the metrics that have thresholds."""

MATCHED = ("operator", "impl", "scope", "mode", "cell")
"""What an override may match of a cell: parts of its key, or the key."""


@dataclass(frozen=True)
class Threshold:
    """An exception from the gate's thresholds.

    Attributes:
        match: a pattern with * and ? by name of MATCHED; all of them have to match.
        thresholds: as those of `Gate`.
    """

    match: Mapping[str, str]
    thresholds: Mapping[str, float]


@dataclass(frozen=True)
class Gate:
    """By how much a metric of a cell may grow before the gate fails.

    Attributes:
        thresholds: fractions, by metric name.
        overrides: the exceptions; the last that matches decides.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    overrides: tuple[Threshold, ...] = ()

    def threshold(self, metric: str, key: str) -> float | None:
        """The threshold of one metric for the cell with this key, a fraction; None: not gated."""
        texts = {**key_parts(key)._asdict(), "cell": key}
        for override in reversed(self.overrides):
            matches = all(fnmatchcase(texts[name], pattern) for name, pattern in override.match.items())
            if metric in override.thresholds and matches:
                return override.thresholds[metric]
        return self.thresholds.get(metric)
