"""Figures of papers, evaluated: the points of our curves, and where the printed numbers stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.analysis.claims import Mark, MeasuredOn
from attnbench.analysis.paper_figures import Curve, Figure


@dataclass(frozen=True)
class Point:
    """Of a curve of ours, in base units. low, high: the ends of its interval; None: it is exact."""

    size: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Printed:
    """A printed number in a figure.

    Args:
        size, value: where it stands, in base units.
        digits, unit: as printed.
        mark: whether it was read, is recalled or derived.
        claim, name: which number it is.
    """

    size: float
    value: float
    digits: str
    unit: str
    mark: Mark
    claim: str
    name: str


@dataclass(frozen=True)
class DrawnCurve:
    """A curve with its points, by ascending size (of what is measured, where a run has them), and what is printed."""

    curve: Curve
    points: Sequence[Point]
    printed: Sequence[Printed]


@dataclass(frozen=True)
class DrawnFigure:
    """A figure with everything in it.

    Args:
        limit: in base units; None: there is none.
        on: what its points were measured on; none where nothing is.
    """

    figure: Figure
    curves: Sequence[DrawnCurve]
    limit: float | None
    on: Sequence[MeasuredOn] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw: no run has any of it, and nothing is printed."""
        return not any(curve.points or curve.printed for curve in self.curves)
