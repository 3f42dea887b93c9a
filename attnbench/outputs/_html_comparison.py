"""The report of a comparison: the decision, every finding before and after, and what could not be compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attnbench.analysis.compare.findings import Comparison, Finding
from attnbench.outputs import _comparison as view
from attnbench.outputs._html_page import Block, page, part
from attnbench.outputs._run_tables import Field, TextTable

_IN_A_TABLE = 200
"""Findings in one table, so that of very many some can be left out."""


def comparisons_page(compared: Sequence[Comparison]) -> str:
    """The document."""
    blocks = [block for i, each in enumerate(compared) for block in _blocks(each, i)]
    gated = any(each.gated for each in compared)
    title = f"attnbench {'gate' if gated else 'compare'}: {'; '.join(each.decision for each in compared)}"
    return page(title, (), blocks, (), "--format json holds all of it.")


def _blocks(comparison: Comparison, number: int) -> Iterator[Block]:
    from markupsafe import Markup

    heading = f"{comparison.before} → {comparison.after}"
    head = part("section", f"decision-{number}", comparison.decision, Markup("<p>{}</p>").format(heading))
    yield Block("decision", head + part("notes", comparison.notes))
    findings = view.chosen(comparison)
    if findings:
        yield Block("what changed", part("text_table", _table("What changed, and what is not decided", findings)))
    yield Block("the rest", part("notes", view.around(comparison, findings)))
    every = comparison.findings
    for first in range(0, len(every), _IN_A_TABLE):
        group = every[first : first + _IN_A_TABLE]
        name = f"findings {first + 1} to {first + len(group)}"
        table = part("text_table", _table(name.capitalize(), group))
        yield Block(name, part("panel", name.capitalize(), table, False), rank=2)


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
