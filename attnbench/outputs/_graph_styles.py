"""How the series of a picture are drawn: which have a colour of their own, and what tells them apart beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.analysis.series import Series
from attnbench.outputs._colours import GREY, HUES, MOST_COLOURED, colour
from attnbench.problem import BASELINE, operator_and_impl

SHAPES = "os^v"
"""Of the operators that have one colour in common; of a user's own, OWN_SHAPE."""

OWN_SHAPE = "P"

DASHES: tuple[Any, ...] = ("-", "--", (0, (1, 1)), "-.", (0, (5, 1, 1, 1, 1, 1)))
"""Of the series of one colour."""


@dataclass(frozen=True)
class Style:
    """How a curve is drawn.

    Args:
        colour: as `#rrggbb`; GREY without one of its own.
        shape: of the marks at its points; empty: none.
        dash: of its line.
        wide: whether it is the baseline's.
    """

    colour: str = GREY
    shape: str = ""
    dash: Any = "-"
    wide: bool = False

    @property
    def coloured(self) -> bool:
        """Whether it has a colour of its own."""
        return self.colour != GREY


@dataclass(frozen=True)
class Order:
    """Which series are coloured first.

    Args:
        operators: those that were chosen, each `operator` or `operator:impl`; none: all.
        preferred: the names of series in the order in which a reader would take them.
    """

    baseline: str
    operators: Sequence[str]
    preferred: Sequence[str]

    def chooses(self, series: Series) -> bool:
        """Whether this impl of the operator was chosen."""
        return f"{series.operator}:{series.impl}" in self.operators

    def is_baseline(self, series: Series) -> bool:
        """Whether it is what the others are compared with."""
        return (series.operator, series.impl) == operator_and_impl(self.baseline)

    def ranked(self, lasts: Iterable[tuple[Series, int, float]]) -> list[Series]:
        """The baseline; softmax; what was chosen, in that order; of each operator the one that is preferred, or else
        the cheapest at the largest size, before a second of any.

        Args:
            lasts: series with the last size and value of their curves.
        """
        order = [series for series, _, _ in sorted(lasts, key=lambda last: self._rank(*last))]
        if self.operators:
            return order
        turns, counts = {}, Counter[str]()
        for series in order:
            turns[series.name] = 0 if series.operator == BASELINE else counts[series.operator]
            counts[series.operator] += 1
        return sorted(order, key=lambda series: turns[series.name])

    def _rank(self, series: Series, size: int, value: float) -> tuple[Any, ...]:
        names = (series.operator, f"{series.operator}:{series.impl}")
        return (
            not self.is_baseline(series),
            series.operator != BASELINE,
            min((i for i, name in enumerate(self.operators) if name in names), default=0),
            self.preferred.index(series.name) if series.name in self.preferred else len(self.preferred),
            -size,
            value,
        )


def styles_of(ranked: Iterable[Series], order: Order) -> dict[str, Style]:
    """By the names of series, how they are drawn: the first MOST_COLOURED in colour; of two operators of one colour the
    second is grey, unless it was chosen, and told apart by shape and dash. ranked: a name may occur again.
    """
    styles: dict[str, Style] = {}
    operators: dict[str, str] = {}  # by colour, whose it is
    drawn: dict[str, int] = {}  # by colour, how many series have it
    for series in ranked:
        hue = colour(series.operator)
        if series.name in styles or sum(drawn.values()) == MOST_COLOURED:
            continue
        if order.operators or operators.setdefault(hue, series.operator) == series.operator:
            dash = DASHES[drawn.get(hue, 0) % len(DASHES)]
            drawn[hue] = drawn.get(hue, 0) + 1
            wide = order.is_baseline(series)
            shape = "" if wide or series.operator == BASELINE else _shape(series)
            styles[series.name] = Style(hue, shape, dash, wide)
    return styles


def _shape(series: Series) -> str:
    """Of two operators of one colour different ones."""
    same = HUES.get(colour(series.operator), ())
    return SHAPES[same.index(series.operator)] if series.operator in same else OWN_SHAPE
