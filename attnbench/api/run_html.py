"""A stored run in a notebook: what `attnbench show` says of it first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.api.html import paragraph, table, text
from attnbench.outputs._answer import ShortTable, view

if TYPE_CHECKING:
    from attnbench.analysis.run import Run
    from attnbench.analysis.summary import Summary


def run_html(run: Run, summary: Summary) -> str:
    """What it is, a sentence for each panel, and a short table for each axis."""
    statuses = run.results["status"].value_counts()
    cells = ", ".join(f"{number} {status}" for status, number in statuses.items())
    parts = [f"<p><b>{text(run.name)}</b>: {text(cells or 'no cells')}, {text(run.folder)}</p>"]
    shown = view(summary)
    if shown is None:
        return "".join([*parts, paragraph("nothing was measured by which operators can be compared")])
    parts += [paragraph(shown.heading), *map(paragraph, shown.sentences), *map(_table, shown.tables)]
    rest = ["more: .crossovers(), .results, .plot()"] if shown.left_out else []
    return "".join([*parts, *map(paragraph, (*shown.notes, *rest))])


def _table(short: ShortTable) -> str:
    head = [column.full for column in short.columns]
    above = {"": 1, **{mode: len(columns) for mode, columns in short.groups.items()}} if len(short.groups) > 1 else None
    return table(head, zip(*(column.texts for column in short.columns), strict=True), above)
