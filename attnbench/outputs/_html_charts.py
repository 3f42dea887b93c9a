"""The charts of a report as Altair specifies them: one of each kind, without data, which scripts fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import altair as alt

from attnbench.outputs._colours import INK, colour
from attnbench.outputs._html_page import FILES, Block, page, script_data
from attnbench.units import STEPS

HEIGHT = 440
"""In pixels."""

FIGURE_HEIGHT = 300
"""The same of one of several figures side by side."""

DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [14, 3])
"""Of the series of one operator, in their order."""

_SCALE: Mapping[str, Any] = {"domain": [1, 2], "ticks": [1], "labels": {}}
"""What scripts set of a logarithmic scale; labels: by the tick."""

_FITS = "scale('x', datum.high) - scale('x', datum.low) > 7 * length(datum.text)"
"""Whether there is room in a cell for its text."""

_TICKS: Mapping[str, Any] = {
    "values": alt.ExprRef("ticksX"),
    "labelExpr": "labelsX[datum.value]",
    "labelOverlap": "greedy",
    "labelSeparation": 8,
}
"""Of an axis along x: labels that are nearer than so many pixels are left out."""

_COLOUR = alt.Color("colour:N").scale(None).legend(None)

_DASH = alt.StrokeDash("dash:N").scale(None).legend(None)

_QUIET = 0.22
"""The opacity of the lines that the pointer is not at."""


def style(name: str, operators: Mapping[str, str]) -> dict[str, Any]:
    """The colour of a curve, empty for that of text, and its dashes among those of the same colour.

    Args:
        operators: by the name of every curve.
    """
    hue = colour(operators[name])
    same = [each for each, operator in operators.items() if colour(operator) == hue]
    return {"colour": "" if hue == INK else hue, "dash": DASHES[same.index(name) % len(DASHES)]}


def chart_page(
    title: str, blocks: Sequence[Block], kinds: Sequence[str], rest: str, subtitle: Sequence[str] = ()
) -> str:
    """A page with charts of some kinds. The other arguments are those of `page`."""
    settings = {"units": STEPS, "charts": {kind: _specification(kind) for kind in kinds}}
    scripts = _vega(), (FILES / "charts.js").read_text(encoding="utf-8")
    return page(title, subtitle, [*blocks, Block("charts", script_data("settings", settings))], scripts, rest)


@cache
def _vega() -> str:
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_version())
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _version() -> str:
    """Of Vega-Lite, as vl-convert names it."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


@cache
def _specification(kind: str) -> Mapping[str, Any]:
    spec: dict[str, Any] = _CHARTS[kind]().to_dict()
    return {name: value for name, value in spec.items() if name != "$schema"}


def _curves() -> Any:
    """Log-log curves with bands, what they are compared with, and crossovers with their intervals."""
    x, y = _log_log()
    marks = _data("marks")
    beneath = _data("beneath").mark_line(strokeWidth=5, opacity=0.28)
    layers = alt.layer(
        beneath.encode(x=x, y=y, color=_COLOUR),
        *_lines(x, y),
        marks.mark_rule(strokeWidth=2.5, opacity=0.7).encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=_COLOUR),
        marks.mark_point(size=90, strokeWidth=1.8, fill="transparent").encode(
            x=x, y=y, stroke=_COLOUR, tooltip="tip:N"
        ),
        datasets={"points": [], "marks": [], "beneath": []},
    )
    return _finished(layers)


def _figure() -> Any:
    """Our curves over the axis of a paper's figure, what they may not pass, and the printed numbers."""
    x, y = _log_log()
    printed, limit = _data("printed"), _data("limit")
    fill = alt.Fill("fill:N").scale(None).legend(None)
    layers = alt.layer(
        limit.mark_rule(strokeWidth=1.2, strokeDash=[2, 3]).encode(y=y, color=_COLOUR),
        *_lines(x, y),
        printed.mark_point(size=110, strokeWidth=1.8, shape="diamond", opacity=1).encode(
            x=x, y=y, stroke=_COLOUR, fill=fill, tooltip="tip:N"
        ),
        datasets={"points": [], "printed": [], "limit": []},
    )
    return _finished(layers, height=FIGURE_HEIGHT)


def _data(name: str) -> Any:
    """A chart of the data that scripts have by this name."""
    return alt.Chart(alt.NamedData(name=name))


def _log_log() -> tuple[Any, Any]:
    """The two axes of curves."""
    return _log_x("x", base=2, labelFlush=False), _log_y("y")


def _log_x(field: str, title: str | None = None, base: Any = alt.Undefined, **axis: Any) -> Any:
    x = alt.X(f"{field}:Q", title=title).scale(type="log", base=base, domain=alt.ExprRef("domainX"), nice=False)
    return x.axis(**_TICKS, **axis)


def _log_y(field: str, title: str | None = None) -> Any:
    y = alt.Y(f"{field}:Q", title=title).scale(type="log", domain=alt.ExprRef("domainY"), nice=False)
    return y.axis(values=alt.ExprRef("ticksY"), labelExpr="labelsY[datum.value]", labelOverlap="greedy", minExtent=56)


def _lines(x: Any, y: Any) -> list[Any]:
    """The layers of curves: bands, lines and points, of which the others fade where the pointer is at one."""
    hover = alt.selection_point(name="hover", fields=["series"], on="pointerover", nearest=True, clear="pointerout")
    points, lit = _data("points"), alt.condition(hover, alt.value(1), alt.value(_QUIET))
    return [
        points.mark_area(opacity=0.16).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=_COLOUR, detail="series:N"),
        points.mark_line(strokeWidth=1.8).encode(
            x=x, y=y, color=_COLOUR, detail="series:N", strokeDash=_DASH, opacity=lit
        ),
        points.mark_point(size=26, filled=True)
        .encode(x=x, y=y, color=_COLOUR, tooltip="tip:N", opacity=lit)
        .add_params(hover),
    ]


def _map() -> Any:
    """Cells over two axes in the colour of what is fastest there, and the borders in each row."""
    x = _log_x("x", grid=False)
    row = alt.Y("row:O", title=None).scale(domain=alt.ExprRef("rows"), padding=0.06).axis(minExtent=30)
    cells, borders = _data("cells"), _data("borders")
    low, high = alt.X("low:Q"), alt.X2("high:Q")
    opacity = alt.Opacity("opacity:Q").scale(None).legend(None)
    fits = alt.condition(_FITS, alt.value(1), alt.value(0))
    sides = []
    for side, (offset, dash) in enumerate(((-14, [1, 0]), (14, [5, 3]))):
        own = borders.transform_filter(alt.datum.side == side)
        rule = own.mark_rule(strokeWidth=3, yOffset=offset, strokeDash=dash)
        sides += [
            rule.encode(x=low, x2=high, y=row, color=_COLOUR, tooltip="tip:N"),
            own.mark_point(size=70, filled=True, opacity=1, yOffset=offset).encode(
                x=alt.X("at:Q"), y=row, color=_COLOUR, tooltip="tip:N"
            ),
        ]
    layers = alt.layer(
        cells.mark_rect().encode(x=low, x2=high, y=row, color=_COLOUR, opacity=opacity, tooltip="tip:N"),
        cells.mark_text(fontSize=12).encode(
            x=x, y=row, text="text:N", color=alt.Color("ink:N").scale(None), tooltip="tip:N", opacity=fits
        ),
        *sides,
        datasets={"cells": [], "borders": []},
    )
    return _finished(layers, in_rows=True)


def _changes() -> Any:
    """The ratio after / before of every finding with its interval, and its threshold."""
    x = _log_x("ratio", orient="top")
    row = alt.Y("name:O", title=None).scale(domain=alt.ExprRef("rows")).axis(labelLimit=280)
    found, one = _data("findings"), _data("one")
    layers = alt.layer(
        one.mark_rule(strokeWidth=1.5).encode(x=x, color=_COLOUR),
        found.mark_rule(strokeWidth=3, opacity=0.7).encode(
            x=alt.X("low:Q"), x2="high:Q", y=row, color=_COLOUR, tooltip="tip:N"
        ),
        found.mark_tick(thickness=2, size=14).encode(
            x=alt.X("limit:Q"), y=row, color=alt.Color("ink:N").scale(None), tooltip="tip:N"
        ),
        found.mark_point(size=60, filled=True, opacity=1).encode(x=x, y=row, color=_COLOUR, tooltip="tip:N"),
        datasets={"findings": [], "one": []},
    )
    return _finished(layers, in_rows=True)


def _before_after() -> Any:
    """Every cell before and after, beside the line on which they are the same."""
    x, y = _log_x("before", "before"), _log_y("after", "after")
    found, same = _data("findings"), _data("same")
    layers = alt.layer(
        same.mark_line(strokeWidth=1).encode(x=x, y=y, color=_COLOUR),
        found.mark_point(size=55, filled=True, opacity=0.75).encode(x=x, y=y, color=_COLOUR, tooltip="tip:N"),
        datasets={"findings": [], "same": []},
    )
    return _finished(layers)


def _history() -> Any:
    """Figures from run to run with their intervals, where something changed, and where circumstances did."""
    x = alt.X("x:Q", title=None).scale(domain=alt.ExprRef("domainX"), nice=False).axis(**_TICKS, grid=False)
    y = _log_y("y")
    points, marks, borders = _data("points"), _data("marks"), _data("borders")
    layers = alt.layer(
        borders.mark_rule(strokeDash=[4, 4]).encode(x=x, color=_COLOUR, tooltip="tip:N"),
        points.mark_rule(opacity=0.35).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=_COLOUR),
        points.mark_line(strokeWidth=1.5).encode(x=x, y=y, color=_COLOUR, detail="line:N", strokeDash=_DASH),
        points.mark_point(size=26, filled=True, opacity=1).encode(x=x, y=y, color=_COLOUR, tooltip="tip:N"),
        marks.mark_point(size=170, strokeWidth=2, fill="transparent", opacity=1).encode(
            x=x, y=y, stroke=_COLOUR, shape=alt.Shape("shape:N").scale(None).legend(None), tooltip="tip:N"
        ),
        datasets={"points": [], "marks": [], "borders": []},
    )
    return _finished(layers)


def _finished(chart: Any, height: int = HEIGHT, *, in_rows: bool = False) -> Any:
    """With parameters that scripts set, as wide as its place; where it has rows, scripts set its height."""
    settings = {f"{name}{axis}": value for axis in ("X" if in_rows else "XY") for name, value in _SCALE.items()}
    settings |= {"rows": [""]} if in_rows else {}
    params = [alt.param(name, value=value) for name, value in settings.items()]
    return (
        chart.add_params(*params)
        .properties(width="container", height=height)
        .configure(aria=False, view={"stroke": None})
    )


_CHARTS: Mapping[str, Callable[[], Any]] = {
    "curves": _curves,
    "figure": _figure,
    "map": _map,
    "changes": _changes,
    "before-after": _before_after,
    "history": _history,
}
