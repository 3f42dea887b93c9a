"""The report of a comparison: the decision, every finding before and after, and what could not be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from attnbench.analysis.compare.findings import Comparison, Finding
from attnbench.outputs import _comparison as view
from attnbench.outputs._html_charts import chart_page
from attnbench.outputs._html_page import Block, part, script_data, section
from attnbench.outputs._run_tables import Field, TextTable
from attnbench.registry import metrics

_AT_ONCE = 200
"""Findings in one part of the page, so that of very many some can be left out."""


def comparisons_page(compared: Sequence[Comparison]) -> str:
    """The document."""
    blocks = [block for i, each in enumerate(compared) for block in _blocks(each, i, len(compared) > 1)]
    gated = any(each.gated for each in compared)
    sides = " → ".join([compared[0].before, *(each.after for each in compared)]) if compared else ""
    title = f"attnbench {'gate' if gated else 'compare'}: {sides}"
    return chart_page(title, blocks, ["changes", "before-after"], "--format json holds all of it.")


def _blocks(comparison: Comparison, number: int, several: bool) -> Iterator[Block]:
    content = part("paragraph", f"{comparison.before} → {comparison.after}") if several else ""
    content += part("notes", view.notes(comparison))
    yield section("decision", f"decision-{number}", comparison.decision, content)
    findings = view.chosen(comparison)
    if findings:
        yield Block(
            "what changed", part("text_table", _table("What changed, and what is not decided", findings)), rank=1
        )
    yield Block("what has no partner", part("notes", view.beside(comparison)), rank=1)
    every = comparison.findings
    group = str(number)
    drawn = [f for f in every if f.ratio is not None and math.isfinite(f.ratio) and f.ratio > 0]
    if drawn:
        chart = part("chart", "findings", group, f"{comparison.before} and {comparison.after}")
        yield section("charts", f"charts-{number}", "Before and after", chart)
    for first in range(0, len(drawn), _AT_ONCE):
        some = [_drawn(f) for f in drawn[first : first + _AT_ONCE]]
        yield Block(
            _numbers("charts of findings", first, some), script_data("findings", {"group": group, "findings": some}), 2
        )
    for first in range(0, len(every), _AT_ONCE):
        some_of_all = every[first : first + _AT_ONCE]
        name = _numbers("findings", first, some_of_all)
        table = part("text_table", _table(name.capitalize(), some_of_all))
        yield Block(name, part("panel", name.capitalize(), table, False), rank=3)


def _numbers(what: str, first: int, some: Sequence[object]) -> str:
    return f"{what} {first + 1} to {first + len(some)}"


def _drawn(f: Finding) -> dict[str, Any]:
    metric = metrics().get(f.metric)
    before, after = (view.value_text(value, f) for value in (f.before, f.after))
    lines = (f.name, f"{f.metric}: {before} → {after} {view.change(f)}", f"{f.verdict}: {f.reason}")
    return {
        "name": f.name,
        "metric": f.metric,
        "unit": metric.unit if metric else "",
        "verdict": f.verdict,
        "before": _number(f.before),
        "after": _number(f.after),
        "ratio": f.ratio,
        "low": _finite(f.low),
        "high": _finite(f.high),
        "limit": None if f.threshold is None else 1 + f.threshold,
        "tip": "\n".join(lines),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None


def _table(title: str, findings: Sequence[Finding]) -> TextTable:
    listing = view.listing(findings)
    rows = []
    for f, row in zip(findings, listing.rows, strict=True):
        orders = {"before": _number(f.before), "after": _number(f.after), "change": f.ratio}
        cells = {name: Field(str(text), order=orders.get(name)) for name, text in row.items()}
        rows.append((cells.pop("what"), *cells.values()))
    names = list(listing.rows[0])
    names.remove("what")
    return TextTable(title, ("what", *names), tuple(rows))


def _number(value: float | str | None) -> float | None:
    return None if isinstance(value, str) else value
