"""The report of what papers claim: verdicts, our curves over the papers' axes, every claim with what explains it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attnbench.analysis.claims import VERDICTS, Mark
from attnbench.analysis.drawn_figures import DrawnCurve, DrawnFigure, Printed
from attnbench.analysis.reproduction import OfPaper, Reproduction
from attnbench.outputs._html_charts import chart_page, style
from attnbench.outputs._html_page import Block, part, script_data, section
from attnbench.outputs._paper_listing import claim_texts, counts, difference, notes
from attnbench.outputs._paper_times import place
from attnbench.units import short_size

_MARKS: Mapping[Mark, str] = {
    "read": "read in the paper",
    "recalled": "recalled",
    "derived": "derived from what was read",
}


def papers_page(reproduction: Reproduction) -> str:
    """The document."""
    figures = reproduction.figures()
    of_papers = reproduction.of_papers
    blocks = [
        _verdicts(reproduction),
        *(block for each in of_papers for block in _paper(each, reproduction.commands, figures.get(each.name, ()))),
        section("marks", "marks", "How to read it", part("notes", notes(reproduction)[:-1])),
    ]
    title = "attnbench reproduce: what papers claim of cost, beside ours"
    return chart_page(title, blocks, ["figure"], "attnbench reproduce PAPER --format json holds all of it.")


def _verdicts(reproduction: Reproduction) -> Block:
    """How many claims of each paper have each verdict."""
    papers = [
        {
            "name": each.name,
            "claims": len(each.results),
            "counts": [each.counts[verdict] or "" for verdict in VERDICTS],
            "difference": difference(each),
        }
        for each in reproduction.of_papers
    ]
    content = part("paragraph", counts(reproduction.results)) + part("papers", papers, VERDICTS)
    return section("verdicts", "verdicts", "Verdicts", content)


def _paper(of_paper: OfPaper, commands: Mapping[str, Sequence[str]], figures: Sequence[DrawnFigure]) -> Iterator[Block]:
    """Its source, its figures, and its claims."""
    paper, name = of_paper.results[0].paper, of_paper.name
    groups = [f"{name}-{i}" for i, _ in enumerate(figures)]
    drawn = [
        part("chart", "figure", group, f"{each.figure.title}, {each.figure.place}")
        for group, each in zip(groups, figures, strict=True)
    ]
    claims = [claim_texts(result, commands) for result in of_paper.results]
    content = part("source", paper.url, paper.source) + part("charts", drawn) + part("claims", name, claims)
    yield section(f"claims of {name}", f"paper-{name}", paper.title, content)
    for group, each in zip(groups, figures, strict=True):
        yield Block(f"figure of {name}", script_data("figure", {"group": group, **_figure(each)}), rank=2)


def _figure(drawn: DrawnFigure) -> dict[str, Any]:
    figure = drawn.figure
    marks = {each.mark for curve in drawn.curves for each in curve.printed}
    return {
        "title": figure.title,
        "place": figure.place,
        "over": figure.over,
        "unit": figure.unit,
        "sizes": [[size, short_size(size)] for size in figure.sizes],
        "limit": drawn.limit,
        "curves": [_curve(drawn, curve) for curve in drawn.curves],
        "caption": " ".join(_caption(drawn, marks)),
    }


def _caption(drawn: DrawnFigure, marks: set[Mark]) -> Iterator[str]:
    figure = drawn.figure
    here = f" on {'; '.join(map(place, drawn.on))}" if drawn.on else ", not measured yet" if figure.measured else ""
    yield f"Ours{here}; across: {figure.over}."
    if any(point.low is not None for curve in drawn.curves for point in curve.points):
        yield "Bands: 95 % intervals."
    if marks:
        which = _MARKS[next(iter(marks))] if len(marks) == 1 else "filled: read, hollow: recalled or derived"
        yield f"Diamonds: the paper's {figure.place}, {which}."
    if figure.note:
        yield figure.note


def _curve(drawn: DrawnFigure, each: DrawnCurve) -> dict[str, Any]:
    return {
        "name": each.curve.name,
        **style(each.curve.name, {other.curve.name: other.curve.operator for other in drawn.curves}),
        "points": [[point.size, point.value, point.low, point.high] for point in each.points],
        "printed": [_printed(printed) for printed in each.printed],
    }


def _printed(printed: Printed) -> dict[str, Any]:
    text = f"{printed.claim} {printed.name}\nin the paper {printed.digits} {printed.unit}".rstrip()
    return {
        "x": printed.size,
        "y": printed.value,
        "filled": printed.mark == "read",
        "tip": f"{text} ({_MARKS[printed.mark]})",
    }
