"""What the metrics of one visit share."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING

from attnbench.measure.worker.prepared_cell import Subject
from attnbench.metric import Metric
from attnbench.plan.settings import Measure
from attnbench.registry import metric_modules

if TYPE_CHECKING:
    from attnbench.measure.worker.timing import Timing


@dataclass
class Bench:
    """What the metrics of one visit share: the subject, the settings, and what they find beside their columns.

    Attributes:
        subject: the cell, ready to be called.
        measure: the settings.
        checked: relative_error, tolerance, checked_seq_len.
        estimate: seconds of one call, from the warm-up.
        metrics: what the visit stores.
        samples: (clock, seconds, flags) in the order taken.
        warnings: sentences for the user.
        notes: for `reason`.
        throttled: whether a clock had no sample without throttling.
    """

    subject: Subject
    measure: Measure = field(default_factory=Measure)
    checked: dict[str, float | int] = field(default_factory=dict)
    estimate: float = 0.0
    metrics: dict[str, float | int] = field(default_factory=dict)
    samples: list[tuple[str, float, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    throttled: bool = False

    def keep(self, metric: Metric, timing: Timing) -> dict[str, float]:
        """Keeps the samples of a metric's clock; returns its columns, and says where a limit won."""
        name = metric.clock
        self.samples += [(name, seconds, flags) for seconds, flags in timing.samples]
        centre = timing.centre
        if timing.stopped in ("max_time", "max_samples") and centre.half_width > self.measure.within_process_precision:
            reached = f"±{centre.half_width:.1%}" if centre.low is not None else "no interval"
            self.notes.append(
                f"{name} time: {timing.stopped} came before ±{self.measure.within_process_precision:.1%}: {reached}"
            )
        if timing.throttled:
            self.throttled = True
            self.warnings.append(f"the GPU's clock was throttled: all {len(timing.samples)} samples of {name} time")
        columns = {metric.column: centre.median}
        if centre.low is not None and centre.high is not None:
            columns |= dict(zip(metric.ends, (centre.low, centre.high), strict=True))
        return columns


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
