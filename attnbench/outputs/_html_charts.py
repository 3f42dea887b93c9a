"""The charts of a report as Altair specifies them: one of each kind, without data, which scripts fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import altair as alt

from attnbench.outputs._html_page import FILES, Block, script_data
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

_QUIET = 0.22
"""The opacity of the lines that the pointer is not at."""


def chart_scripts() -> tuple[str, ...]:
    """Vega with Vega-Lite, and what fills the charts."""
    return _vega(), (FILES / "charts.js").read_text(encoding="utf-8")


def charts(kinds: Sequence[str]) -> list[Block]:
    """What scripts need for charts of some kinds."""
    settings = {"units": STEPS, "charts": {kind: _specification(kind) for kind in kinds}}
    return [Block("charts", script_data("settings", settings))]


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
    (x, y), colour = _log_log(), alt.Color("colour:N").scale(None).legend(None)
    marks = alt.Chart(alt.NamedData(name="marks"))
    beneath = alt.Chart(alt.NamedData(name="beneath")).mark_line(strokeWidth=5, opacity=0.28)
    layers = alt.layer(
        beneath.encode(x=x, y=y, color=colour),
        *_lines(x, y, colour),
        marks.mark_rule(strokeWidth=2.5, opacity=0.7).encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=colour),
        marks.mark_point(size=90, strokeWidth=1.8, fill="transparent").encode(x=x, y=y, stroke=colour, tooltip="tip:N"),
        datasets={"points": [], "marks": [], "beneath": []},
    )
    settings = {f"{name}{axis}": value for axis in "XY" for name, value in _SCALE.items()}
    return _finished(layers, settings)


def _figure() -> Any:
    """Our curves over the axis of a paper's figure, what they may not pass, and the printed numbers."""
    (x, y), colour = _log_log(), alt.Color("colour:N").scale(None).legend(None)
    printed, limit = alt.Chart(alt.NamedData(name="printed")), alt.Chart(alt.NamedData(name="limit"))
    fill = alt.Fill("fill:N").scale(None).legend(None)
    layers = alt.layer(
        limit.mark_rule(strokeWidth=1.2, strokeDash=[2, 3]).encode(y=y, color=colour),
        *_lines(x, y, colour),
        printed.mark_point(size=110, strokeWidth=1.8, shape="diamond", opacity=1).encode(
            x=x, y=y, stroke=colour, fill=fill, tooltip="tip:N"
        ),
        datasets={"points": [], "printed": [], "limit": []},
    )
    settings = {f"{name}{axis}": value for axis in "XY" for name, value in _SCALE.items()}
    return _finished(layers, settings, FIGURE_HEIGHT)


def _log_log() -> tuple[Any, Any]:
    """The two axes of curves."""
    x = alt.X("x:Q", title=None)
    x = x.scale(type="log", base=2, domain=alt.ExprRef("domainX"), nice=False)
    x = x.axis(**_TICKS, labelFlush=False)
    y = alt.Y("y:Q", title=None).scale(type="log", domain=alt.ExprRef("domainY"), nice=False)
    y = y.axis(values=alt.ExprRef("ticksY"), labelExpr="labelsY[datum.value]", labelOverlap="greedy", minExtent=56)
    return x, y


def _lines(x: Any, y: Any, colour: Any) -> list[Any]:
    """The layers of curves: bands, lines and points, of which the others fade where the pointer is at one."""
    hover = alt.selection_point(name="hover", fields=["series"], on="pointerover", nearest=True, clear="pointerout")
    points, lit = alt.Chart(alt.NamedData(name="points")), alt.condition(hover, alt.value(1), alt.value(_QUIET))
    dash = alt.StrokeDash("dash:N").scale(None).legend(None)
    return [
        points.mark_area(opacity=0.16).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour, detail="series:N"),
        points.mark_line(strokeWidth=1.8).encode(
            x=x, y=y, color=colour, detail="series:N", strokeDash=dash, opacity=lit
        ),
        points.mark_point(size=26, filled=True)
        .encode(x=x, y=y, color=colour, tooltip="tip:N", opacity=lit)
        .add_params(hover),
    ]


def _map() -> Any:
    """Cells over two axes in the colour of what is fastest there, and the borders in each row."""
    x = alt.X("x:Q", title=None).scale(type="log", domain=alt.ExprRef("domainX"), nice=False)
    x = x.axis(**_TICKS, grid=False)
    row = alt.Y("row:O", title=None).scale(domain=alt.ExprRef("rows"), padding=0.06).axis(minExtent=30)
    cells, borders = alt.Chart(alt.NamedData(name="cells")), alt.Chart(alt.NamedData(name="borders"))
    low, high = alt.X("low:Q"), alt.X2("high:Q")
    colour = alt.Color("colour:N").scale(None).legend(None)
    opacity = alt.Opacity("opacity:Q").scale(None).legend(None)
    fits = alt.condition(_FITS, alt.value(1), alt.value(0))
    sides = []
    for side, (offset, dash) in enumerate(((-14, [1, 0]), (14, [5, 3]))):
        own = borders.transform_filter(alt.datum.side == side)
        rule = own.mark_rule(strokeWidth=3, yOffset=offset, strokeDash=dash)
        sides += [
            rule.encode(x=low, x2=high, y=row, color=colour, tooltip="tip:N"),
            own.mark_point(size=70, filled=True, opacity=1, yOffset=offset).encode(
                x=alt.X("at:Q"), y=row, color=colour, tooltip="tip:N"
            ),
        ]
    layers = alt.layer(
        cells.mark_rect().encode(x=low, x2=high, y=row, color=colour, opacity=opacity, tooltip="tip:N"),
        cells.mark_text(fontSize=12).encode(
            x=x, y=row, text="text:N", color=alt.Color("ink:N").scale(None), tooltip="tip:N", opacity=fits
        ),
        *sides,
        datasets={"cells": [], "borders": []},
    )
    settings = {**{f"{name}X": value for name, value in _SCALE.items()}, "rows": [""]}
    return _finished(layers, settings)


def _changes() -> Any:
    """The ratio after / before of every finding with its interval, and its threshold."""
    x = alt.X("ratio:Q", title=None).scale(type="log", domain=alt.ExprRef("domainX"), nice=False)
    x = x.axis(**_TICKS, orient="top")
    row = alt.Y("name:O", title=None).scale(domain=alt.ExprRef("rows")).axis(labelLimit=280)
    found, one = alt.Chart(alt.NamedData(name="findings")), alt.Chart(alt.NamedData(name="one"))
    colour = alt.Color("colour:N").scale(None).legend(None)
    layers = alt.layer(
        one.mark_rule(strokeWidth=1.5).encode(x=x, color=colour),
        found.mark_rule(strokeWidth=3, opacity=0.7).encode(
            x=alt.X("low:Q"), x2="high:Q", y=row, color=colour, tooltip="tip:N"
        ),
        found.mark_tick(thickness=2, size=14).encode(
            x=alt.X("limit:Q"), y=row, color=alt.Color("ink:N").scale(None), tooltip="tip:N"
        ),
        found.mark_point(size=60, filled=True, opacity=1).encode(x=x, y=row, color=colour, tooltip="tip:N"),
        datasets={"findings": [], "one": []},
    )
    settings = {**{f"{name}X": value for name, value in _SCALE.items()}, "rows": [""]}
    return _finished(layers, settings)


def _before_after() -> Any:
    """Every cell before and after, beside the line on which they are the same."""
    x = alt.X("before:Q", title="before").scale(type="log", domain=alt.ExprRef("domainX"), nice=False)
    x = x.axis(**_TICKS)
    y = alt.Y("after:Q", title="after").scale(type="log", domain=alt.ExprRef("domainY"), nice=False)
    y = y.axis(values=alt.ExprRef("ticksY"), labelExpr="labelsY[datum.value]", labelOverlap="greedy", minExtent=56)
    found, same = alt.Chart(alt.NamedData(name="findings")), alt.Chart(alt.NamedData(name="same"))
    colour = alt.Color("colour:N").scale(None).legend(None)
    layers = alt.layer(
        same.mark_line(strokeWidth=1).encode(x=x, y=y, color=colour),
        found.mark_point(size=55, filled=True, opacity=0.75).encode(x=x, y=y, color=colour, tooltip="tip:N"),
        datasets={"findings": [], "same": []},
    )
    settings = {f"{name}{axis}": value for axis in "XY" for name, value in _SCALE.items()}
    return _finished(layers, settings)


def _history() -> Any:
    """Figures from run to run with their intervals, where something changed, and where circumstances did."""
    x = alt.X("x:Q", title=None).scale(domain=alt.ExprRef("domainX"), nice=False)
    x = x.axis(**_TICKS, grid=False)
    y = alt.Y("y:Q", title=None).scale(type="log", domain=alt.ExprRef("domainY"), nice=False)
    y = y.axis(values=alt.ExprRef("ticksY"), labelExpr="labelsY[datum.value]", labelOverlap="greedy", minExtent=56)
    colour = alt.Color("colour:N").scale(None).legend(None)
    dash = alt.StrokeDash("dash:N").scale(None).legend(None)
    points, marks = alt.Chart(alt.NamedData(name="points")), alt.Chart(alt.NamedData(name="marks"))
    borders = alt.Chart(alt.NamedData(name="borders"))
    layers = alt.layer(
        borders.mark_rule(strokeDash=[4, 4]).encode(x=x, color=colour, tooltip="tip:N"),
        points.mark_rule(opacity=0.35).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour),
        points.mark_line(strokeWidth=1.5).encode(x=x, y=y, color=colour, detail="line:N", strokeDash=dash),
        points.mark_point(size=26, filled=True, opacity=1).encode(x=x, y=y, color=colour, tooltip="tip:N"),
        marks.mark_point(size=170, strokeWidth=2, fill="transparent", opacity=1).encode(
            x=x, y=y, stroke=colour, shape=alt.Shape("shape:N").scale(None).legend(None), tooltip="tip:N"
        ),
        datasets={"points": [], "marks": [], "borders": []},
    )
    settings = {f"{name}{axis}": value for axis in "XY" for name, value in _SCALE.items()}
    return _finished(layers, settings)


def _finished(chart: Any, settings: Mapping[str, Any], height: int = HEIGHT) -> Any:
    """With parameters that scripts set, as wide as its place; where it has rows, scripts set its height."""
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
