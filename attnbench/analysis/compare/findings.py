"""Findings: one metric of one cell (or one series) before and after, with a verdict; and what follows from all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from attnbench.problem import key_parts, operator_with_impl
from attnbench.units import count

if TYPE_CHECKING:
    import pandas as pd

    from attnbench.analysis.crossover import Crossover

Verdict = Literal["faster", "same", "slower", "undecided", "less", "more", "changed"]

PASS, REGRESSION, UNDECIDED = 0, 1, 3
"""Exit codes of a gate; 2 is bad usage, as everywhere."""


@dataclass(frozen=True)
class Finding:
    """One metric of one subject before and after.

    Args:
        subject: a cell's key, a series, or "all cells".
        name: the same for people.
        metric: its name, or "status", "kernel", "operations" or "scaling of …".
        before, after: the values; None where there is none.
        verdict: faster, same, slower or undecided for times; less, same, more or undecided for the rest; changed for
            what has no order.
        regression: whether the gate fails for it.
        ratio, low, high: after / before with its interval.
        threshold: the gate's, a fraction; None: not gated.
        detectable: the smallest growth that would have been seen, a fraction.
        reason: why the verdict is what it is.
    """

    subject: str
    name: str
    metric: str
    before: float | str | None
    after: float | str | None
    verdict: Verdict
    regression: bool = False
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    detectable: float | None = None
    reason: str = ""

    @property
    def weight(self) -> tuple[int, float]:
        """What findings are sorted by: regressions first, then what got worse, changed, got better, is undecided."""
        order = {"slower": 1, "more": 1, "changed": 2, "faster": 3, "less": 3, "undecided": 4, "same": 5}
        size = abs(self.ratio - 1) if self.ratio is not None else 0.0
        return (0 if self.regression else order[self.verdict], -size)


@dataclass(frozen=True)
class CrossoverShift:
    """A crossover of a series in a panel and a metric against `baseline`, before and after.

    Args:
        axis: of the panel.
        changed: whether the two cannot be the same.
    """

    series: str
    panel: str
    metric: str
    baseline: str
    axis: str
    before: Crossover
    after: Crossover
    changed: bool


@dataclass(frozen=True)
class Comparison:
    """Two runs, or two revisions, compared.

    Args:
        before, after: names of the two.
        findings: by importance.
        missing, new: keys that only one of them has.
        notes: what a reader must know first: what could not be compared, a shift that all cells share, a threshold
            that the machine cannot see.
        shifts: of crossovers.
        measured: in how many cells something was compared.
        gated: whether it decides a build.
        suite: the suite's file; empty: unknown.
        operator_files: by operator, the file that defines it, where that is known.
        devices: the ids of those whose times are compared, before and after, where they are of one model and not the
            same; None: they are, or it is not known.
    """

    before: str
    after: str
    findings: tuple[Finding, ...]
    missing: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    shifts: tuple[CrossoverShift, ...] = ()
    measured: int = 0
    gated: bool = False
    suite: str = ""
    operator_files: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    @property
    def regressions(self) -> list[Finding]:
        """What fails the build."""
        return [f for f in self.findings if f.regression]

    @property
    def undecided(self) -> list[Finding]:
        """What has a threshold and no verdict."""
        return [f for f in self.findings if f.verdict == "undecided" and f.threshold is not None]

    @property
    def exit_code(self) -> int:
        """0 pass · 1 regression · 3 undecided, nothing measured, or cells of the baseline not measured."""
        if not self.gated:
            return PASS
        if self.regressions:
            return REGRESSION
        return UNDECIDED if self.undecided or self.missing or not self.measured else PASS

    @property
    def decision(self) -> str:
        """The exit code in a sentence."""
        if not self.gated:
            return f"compared {count(self.measured, 'cell')}"
        if self.regressions:
            return f"regression: {count(len(self.regressions), 'finding')}"
        if not self.measured:
            return "undecided: nothing was measured"
        if self.missing:
            return f"undecided: {count(len(self.missing), 'cell')} of {self.before} gone, and not compared"
        if self.undecided:
            return f"undecided: {count(len(self.undecided), 'finding')}"
        return f"pass: {count(self.measured, 'cell')} compared, none worse"


def exit_code(comparisons: Sequence[Comparison]) -> int:
    """Of several: that of a regression, else of what is undecided, else 0."""
    codes = {comparison.exit_code for comparison in comparisons}
    return next((code for code in (REGRESSION, UNDECIDED) if code in codes), PASS)


def by_importance(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Regressions first, the largest changes before the smaller."""
    return tuple(sorted(findings, key=lambda f: (*f.weight, f.subject, f.metric)))


def names(results: pd.DataFrame) -> dict[str, str]:
    """Every cell's name for people, by key; params are named where a run has several of one operator."""
    from attnbench.analysis.series import panels

    return {p.key: readable(p.key, s.name) for panel in panels(results) for s in panel.series for p in s.points}


def readable(key: str, series: str | None = None) -> str:
    """A cell's key for people: `performer fwd n1024`, and what is not usual beside it. series: the series' name."""
    parts = key_parts(key)
    usual = {parts.scope: "core", parts.dtype: "float32", parts.causality: "full", parts.batch: "b1"}
    unusual = [word for word, common in usual.items() if word != common]
    name = series or operator_with_impl(parts.operator, parts.impl)
    return " ".join([name, parts.mode, parts.size, *unusual, parts.heads, parts.channels, *parts.later])
