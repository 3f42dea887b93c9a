"""What is drawn of a paper: curves of ours over the axis of its figure or table, beside its printed numbers."""

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
        measured: whether curves are of what stored runs measured.
    """

    title: str
    place: str
    over: str
    unit: str
    sizes: Sequence[int]
    curves: Sequence[Curve]
    limit: str = ""
    note: str = ""
    measured: bool = False
