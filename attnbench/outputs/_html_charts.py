"""The charts of a report as Altair specifies them: one of each kind, without data, which scripts fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import altair as alt

from attnbench.outputs._html_page import FILES, Block, script_data
from attnbench.units import STEPS

HEIGHT = 440
"""Of the curves, in pixels."""

_SCALE: Mapping[str, Any] = {"domain": [1, 2], "ticks": [1], "labels": {}}
"""What scripts set of a logarithmic scale; labels: by the tick."""

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
    hover = alt.selection_point(name="hover", fields=["series"], on="pointerover", nearest=True, clear="pointerout")
    x = alt.X("x:Q", title=None)
    x = x.scale(type="log", base=2, domain=alt.ExprRef("domainX"), nice=False)
    x = x.axis(values=alt.ExprRef("ticksX"), labelExpr="labelsX[datum.value]", labelOverlap="greedy", labelFlush=False)
    y = alt.Y("y:Q", title=None).scale(type="log", domain=alt.ExprRef("domainY"), nice=False)
    y = y.axis(values=alt.ExprRef("ticksY"), labelExpr="labelsY[datum.value]", labelOverlap="greedy", minExtent=56)
    colour = alt.Color("colour:N").scale(None).legend(None)
    lit = alt.condition(hover, alt.value(1), alt.value(_QUIET))
    points, marks = alt.Chart(alt.NamedData(name="points")), alt.Chart(alt.NamedData(name="marks"))
    beneath = alt.Chart(alt.NamedData(name="beneath")).mark_line(strokeWidth=5, opacity=0.28)
    line = points.mark_line(strokeWidth=1.8)
    dash = alt.StrokeDash("dash:N").scale(None).legend(None)
    layers = alt.layer(
        beneath.encode(x=x, y=y, color=colour),
        points.mark_area(opacity=0.16).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour, detail="series:N"),
        line.encode(x=x, y=y, color=colour, detail="series:N", strokeDash=dash, opacity=lit),
        points.mark_point(size=26, filled=True)
        .encode(x=x, y=y, color=colour, tooltip="tip:N", opacity=lit)
        .add_params(hover),
        marks.mark_rule(strokeWidth=2.5, opacity=0.7).encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=colour),
        marks.mark_point(size=90, strokeWidth=1.8, fill="transparent").encode(x=x, y=y, stroke=colour, tooltip="tip:N"),
        datasets={"points": [], "marks": [], "beneath": []},
    )
    settings = {f"{name}{axis}": value for axis in "XY" for name, value in _SCALE.items()}
    return _finished(layers, settings).properties(height=HEIGHT)


def _finished(chart: Any, settings: Mapping[str, Any]) -> Any:
    """With parameters that scripts set, as wide as its place."""
    params = [alt.param(name, value=value) for name, value in settings.items()]
    return chart.add_params(*params).properties(width="container").configure(aria=False, view={"stroke": None})


_CHARTS: Mapping[str, Callable[[], Any]] = {"curves": _curves}
