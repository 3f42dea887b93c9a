"""The figures of papers as files: our curves over their axes, with the printed numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.analysis.drawn_figures import DrawnCurve, DrawnFigure
from attnbench.analysis.series import Series
from attnbench.files import storing
from attnbench.outputs._colours import colour
from attnbench.outputs._graph_styles import DASHES, Style
from attnbench.outputs._graphs import RATIO, Curve, Drawing, Graph, Spot
from attnbench.outputs._picture_parts import AS_IT_NEEDS, PictureFormat, drawing
from attnbench.outputs.plot import written
from attnbench.units import short_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

OPTION = "--pictures"
FORMATS: tuple[PictureFormat, ...] = ("png", "svg")


def check() -> None:
    """Raises BadInput where matplotlib is missing."""
    with drawing(OPTION):
        pass


def draw(figures: Mapping[str, Sequence[DrawnFigure]], folder: Path) -> list[Path]:
    """Writes every figure of some papers, as `kanets-1.png` and `kanets-1.svg`. Returns the paths.

    Raises: BadInput where the folder cannot be written.
    """
    with storing(f"{OPTION} {folder}", "Give another folder."):
        return written(_pictures(figures), folder, FORMATS, where=OPTION)


def _pictures(figures: Mapping[str, Sequence[DrawnFigure]]) -> Iterator[tuple[str, Picture]]:
    from attnbench.outputs._graph_picture import picture_of

    for name, drawn in figures.items():
        for i, each in enumerate(drawn, start=1):
            if not any(curve.points for curve in each.curves):  # not measured
                continue
            yield f"{name}-{i}", picture_of(drawing_of(name, i, each), AS_IT_NEEDS)


def drawing_of(paper: str, number: int, drawn: DrawnFigure) -> Drawing:
    """What is in the picture of a figure. number: of the figure, from 1."""
    figure = drawn.figure
    ratio = figure.unit == RATIO
    return Drawing(
        stem=f"{paper}-{number}",
        heading=f"{paper}, {figure.place}: ours, beside the paper's numbers",
        axis=figure.over,
        label=f"{figure.title}, {RATIO}" if ratio else figure.title,
        unit="" if ratio else figure.unit,  # what stands at 1 in the ratios of a run does not here
        columns=1,
        baseline="",
        exact="",
        numbered=(),
        graphs=(Graph("", {short_size(size): size for size in figure.sizes}, tuple(_curves(drawn.curves))),),
        limit=drawn.limit,
    )


def _curves(curves: Sequence[DrawnCurve]) -> Iterator[Curve]:
    """Each in the colour of its operator; those of one are told apart by their dashes."""
    drawn: dict[str, int] = {}
    for each in curves:
        if not each.points:
            continue
        hue = colour(each.curve.operator)
        dash = DASHES[drawn.get(hue, 0) % len(DASHES)]
        drawn[hue] = drawn.get(hue, 0) + 1
        yield Curve(
            Series(each.curve.name, each.curve.operator, "reference", "{}", ()),
            tuple(Spot(point.size, point.value, point.low, point.high) for point in each.points),
            Style(hue, dash=dash),
            printed=tuple((Spot(int(p.size), p.value), p.mark == "read") for p in each.printed),
        )
