"""What notebooks show: small static tables. Text of a stored run may be anybody's, so all of it is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from attnbench.terminal import escaped
from attnbench.units import count

if TYPE_CHECKING:
    from attnbench.analysis.run import Run
    from attnbench.analysis.summary import PanelReport, Summary


def text(value: object) -> str:
    """A value as HTML text."""
    return html.escape(escaped(str(value)))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of texts."""
    body = "".join(f"<tr>{''.join(f'<td>{text(each)}</td>' for each in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{''.join(f'<th>{text(each)}</th>' for each in head)}</tr></thead>{body}</table>"


def paragraph(words: str) -> str:
    """A paragraph of text."""
    return f"<p>{text(words)}</p>"


def run(stored: Run, summary: Summary) -> str:
    """A stored run: what it is, and for each panel where each series passes the baseline."""
    statuses = stored.results["status"].value_counts()
    cells = ", ".join(f"{number} {status}" for status, number in statuses.items())
    device = stored.environment.get("gpu_name") or stored.environment.get("cpu") or stored.environment.get("device")
    parts = [f"<p><b>{text(stored.name)}</b>: {text(cells or 'no cells')}, {text(device)}, {text(stored.folder)}</p>"]
    for report in summary.panels:
        parts += [paragraph(report.panel.title), *_crossovers(report)]
    return "".join(parts)


def _crossovers(report: PanelReport) -> Iterable[str]:
    """Those of the first metric that has any."""
    from attnbench.outputs._run_tables import crossover_text

    axis = report.panel.axis
    for metric_table in report.tables:
        lines = [line for line in metric_table.lines if line.against_baseline or line.against_exact]
        if lines:
            best_exact = metric_table.quantity.metric.best_exact
            yield table(
                (f"{metric_table.quantity.title}, {axis}", f"against {report.baseline}", f"against {best_exact}"),
                [
                    (
                        line.series.name,
                        crossover_text(line.against_baseline, axis, report.baseline),
                        crossover_text(line.against_exact, axis, best_exact),
                    )
                    for line in lines
                ],
            )
            return
    yield paragraph(f"{count(len(report.panel.series), 'series')}, none of them compared")
