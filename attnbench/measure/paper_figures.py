"""The figures of papers, evaluated: our curves from formulas and shapes, and what is printed beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

from attnbench.analysis.claims import Claim, Number, Paper
from attnbench.analysis.expressions import GUESS
from attnbench.analysis.paper_figures import SIZE, Curve, DrawnCurve, DrawnFigure, Figure, Point, Printed
from attnbench.errors import BadInput
from attnbench.measure.reproduce import Value, expressions
from attnbench.units import quoted, suggestion


def drawn_figures(papers: Iterable[Paper]) -> dict[str, list[DrawnFigure]]:
    """By the name of each paper, its figures. Raises BadInput where a file asks for what there is not."""
    return {paper.name: _drawn_figures(paper) for paper in papers}


def _drawn_figures(paper: Paper) -> list[DrawnFigure]:
    value, drawn = expressions(paper), []
    for figure in paper.figures:
        try:
            drawn.append(_drawn(paper, figure, value))
        except ValueError as error:
            place = f"papers/{paper.name}.yaml, figures, {figure.title}"
            raise BadInput(f"{place}: {error}. Correct it there.") from None
    return drawn


def _drawn(paper: Paper, figure: Figure, value: Value) -> DrawnFigure:
    limit = float(value(figure.limit, {})) if figure.limit else None

    def point(curve: Curve, size: int) -> Point:
        return Point(size, float(value(curve.ours, {SIZE: Fraction(size), GUESS: Fraction(1)})))

    curves = [
        DrawnCurve(curve, [point(curve, size) for size in figure.sizes], list(printed(paper, curve, limit)))
        for curve in figure.curves
    ]
    return DrawnFigure(figure, curves, limit)


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
