"""The figures of papers, evaluated: our curves from formulas, shapes or stored runs, beside what is printed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import partial

from attnbench.analysis.claims import Claim, MeasuredOn, Number, Paper
from attnbench.analysis.drawn_figures import DrawnCurve, DrawnFigure, Point, Printed
from attnbench.analysis.expressions import GUESS
from attnbench.analysis.paper_figures import SIZE, Curve, Figure
from attnbench.measure.papers import mistakes_in
from attnbench.measure.reproduce import Value, cell_of, expressions
from attnbench.measure.timed_claims import StoredTimes, measured_interval
from attnbench.units import quoted, suggestion


def drawn_figures(papers: Iterable[Paper], runs: Sequence[StoredTimes]) -> dict[str, list[DrawnFigure]]:
    """By the name of each paper, its figures. runs: where what is measured is looked for.

    Raises: BadInput where a file asks for what there is not.
    """
    return {paper.name: _drawn_figures(paper, runs) for paper in papers}


def _drawn_figures(paper: Paper, runs: Sequence[StoredTimes]) -> list[DrawnFigure]:
    value, drawn = expressions(paper), []
    for figure in paper.figures:
        with mistakes_in(paper, f"figures, {figure.title}"):
            drawn.append(_drawn(paper, figure, value, runs))
    return [each for each in drawn if not each.is_empty]


def _drawn(paper: Paper, figure: Figure, value: Value, runs: Sequence[StoredTimes]) -> DrawnFigure:
    limit = float(value(figure.limit, {})) if figure.limit else None
    on: dict[str, MeasuredOn] = {}

    def points(curve: Curve) -> Iterator[Point]:
        for size in figure.sizes:
            constants = {SIZE: Fraction(size), GUESS: Fraction(1)}
            if not figure.measured:
                yield Point(size, float(value(curve.ours, constants)))
            elif found := measured_interval(curve.ours, constants, partial(cell_of, paper), runs):
                interval, place = found
                on[place.run] = place
                yield Point(size, interval.value, _known(interval.low), _known(interval.high))

    curves = [DrawnCurve(each, list(points(each)), list(printed(paper, each, limit))) for each in figure.curves]
    return DrawnFigure(figure, curves, limit, list(on.values()))


def _known(end: float) -> float | None:
    return None if math.isnan(end) else end


def printed(paper: Paper, curve: Curve, limit: float | None) -> Iterator[Printed]:
    """What a paper prints of a curve. limit: of the figure. Raises ValueError where there is no such number."""
    for size, name in curve.paper.items():
        claim, number = _number(paper, name)
        yield _at(float(size), float(number.value), claim, number)
    for name in curve.longest:
        claim, number = _number(paper, name)
        if limit is None:
            raise ValueError(f"{name} is the longest that fits, and the figure has no limit")
        yield _at(float(number.value), limit, claim, number)


def _at(size: float, value: float, claim: Claim, number: Number) -> Printed:
    return Printed(size, value, number.paper, number.unit, claim.mark, claim.id, number.name)


def _number(paper: Paper, name: str) -> tuple[Claim, Number]:
    """The number of a name such as `K1 kv`. Raises ValueError where there is no such."""
    known = {f"{claim.id} {number.name}": (claim, number) for claim in paper.claims for number in claim.numbers}
    if name not in known:
        raise ValueError(f"no number {quoted(name)}{suggestion(name, known)}")
    return known[name]
