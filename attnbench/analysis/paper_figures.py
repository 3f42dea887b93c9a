"""Curves of ours over the axis of a paper's figure or table, with its printed numbers beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SIZE = "x"
"""The constant that stands for a place on the axis in the expressions of a figure."""

UNITS = ("", "×", "bytes", "flop", "s")
"""Of what is along y."""


@dataclass(frozen=True)
class Curve:
    """A curve of ours.

    Args:
        name: beside it.
        operator: whose colour it has.
        ours: an expression of SIZE.
        paper: what is printed of it: by the size, a number as `K1 kv`, the claim's id and the number's name.
        longest: numbers that are sizes themselves, the largest that the paper's device held; they stand at the limit.
    """

    name: str
    operator: str
    ours: str
    paper: Mapping[int, str] = field(default_factory=dict)
    longest: Sequence[str] = ()


@dataclass(frozen=True)
class Figure:
    """What is drawn.

    Args:
        title: what is along y.
        place: of the figure or table in the paper.
        over: what is along x.
        unit: of y, of UNITS.
        sizes: along x, ascending, where ours are evaluated.
        curves: in their order.
        limit: an expression of what y may not pass; empty: nothing.
        note: in words.
    """

    title: str
    place: str
    over: str
    unit: str
    sizes: Sequence[int]
    curves: Sequence[Curve]
    limit: str = ""
    note: str = ""


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
    mark: str
    claim: str
    name: str


@dataclass(frozen=True)
class DrawnCurve:
    """A curve with its points, by ascending size, and what the paper prints of it."""

    curve: Curve
    points: Sequence[Point]
    printed: Sequence[Printed]


@dataclass(frozen=True)
class DrawnFigure:
    """A figure with everything in it. limit: in base units; None: there is none."""

    figure: Figure
    curves: Sequence[DrawnCurve]
    limit: float | None
