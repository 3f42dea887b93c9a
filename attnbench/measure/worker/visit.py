"""What the metrics of one visit share."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from attnbench.measure.protocol import VisitAnswer
from attnbench.measure.worker.prepared_cell import Subject
from attnbench.registry import metric_modules


@dataclass
class Bench:
    """What the metrics of one visit share: the subject, and what they find beside their columns.

    Attributes:
        subject: the cell, ready to be called.
        checked: relative_error, tolerance, checked_seq_len.
        metrics: what the visit stores.
        warnings: sentences for the user.
        notes: for `reason`.
    """

    subject: Subject
    checked: dict[str, float | int] = field(default_factory=dict)
    metrics: dict[str, float | int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def answer(self, **found: Any) -> VisitAnswer:
        """That of a visit without failure. found: further fields of it."""
        reason = "; ".join(self.notes)
        return VisitAnswer("ok", reason, metrics=self.metrics, warnings=tuple(self.warnings), **found)


def figures(bench: Bench, phase: str) -> dict[str, float | int]:
    """What every metric that has this phase ("check", "finish") measures, in passes of their own."""
    found: dict[str, float | int] = {}
    for measure in (getattr(module, phase, None) for module in metrics()):
        if measure is not None:
            found.update(measure(bench))
    return found


def metrics() -> list[ModuleType]:
    """Every metric's module; those with a clock first, in the order of their names."""
    return sorted(metric_modules().values(), key=lambda module: not module.METRIC.clock)
