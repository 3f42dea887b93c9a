"""Markdown: the tables of a run, rows, and the step summary of a build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attnbench.outputs._markdown import escaped
from attnbench.outputs._rows import Listing, text_of

if TYPE_CHECKING:
    from attnbench.analysis.compare.findings import Comparison
    from attnbench.analysis.dispatch import Dispatch
    from attnbench.analysis.grid import Grid
    from attnbench.analysis.history import History
    from attnbench.analysis.reproduction import Reproduction
    from attnbench.analysis.summary import Summary
    from attnbench.outputs._answer import ShortTable
    from attnbench.outputs._run_tables import Part, TextTable


def run(summary: Summary) -> str:
    """The answer: sentences, and a pipe table for each axis; where there is none, all tables."""
    from attnbench.outputs._answer import view

    answer = view(summary)
    if answer is None:
        return tables(summary)
    lines = [escaped(answer.heading), "", *(f"- {escaped(text)}" for text in answer.sentences), ""]
    for table in answer.tables:
        lines += [*_short_table(table), ""]
    lines += [f"{escaped(text)}  " for text in (answer.left_out, *answer.notes) if text]
    return "\n".join(lines) + "\n"


def _short_table(table: ShortTable) -> list[str]:
    columns, heads = table.columns, table.headings
    marks = [" ---: |" if column.kind == "figure" else " --- |" for column in columns]
    rows = zip(*(column.texts for column in columns), strict=True)
    lines = [f"| {' | '.join(map(escaped, heads))} |", "|" + "".join(marks)]
    return lines + [f"| {' | '.join(map(escaped, row))} |" for row in rows]


def tables(summary: Summary) -> str:
    """Headings, pipe tables and notes, ending with a newline."""
    from attnbench.outputs._run_tables import legend, parts

    return _parts(parts(summary), legend(summary))


def grids(grids: Sequence[Grid]) -> str:
    """Maps and the borders in them, as `run`."""
    from attnbench.outputs._grid_tables import legend, parts

    return _parts(parts(grids), legend(grids))


def _parts(parts: Sequence[Part], legend: Sequence[str]) -> str:
    lines = []
    for part in parts:
        lines += [f"## {part.heading}", ""]
        for text_table in part.text_tables:
            lines += [f"### {text_table.title}", "", *_text_table(text_table), ""]
            lines += [f"{escaped(note)}\n" for note in text_table.notes]
        lines += [f"- {escaped(note)}" for note in part.notes]
        lines += [""] if part.notes else []
    lines += [escaped(line) + "  " for line in legend]
    return "\n".join(lines) + "\n"


def rows(listing: Listing) -> str:
    """A pipe table, with what stands above it as paragraphs, and the notes as a list."""
    lines = []
    if listing.shown:
        head = list(listing.shown[0])
        lines = [head, ["---:" if name in listing.numbers else "---" for name in head]]
        lines += [[escaped(text_of(value)) for value in row.values()] for row in listing.shown]
    notes = [f"- {escaped(note)}\n" for note in listing.notes]
    lead = [f"{escaped(line)}\n\n" for line in listing.lead]
    return "".join([*lead, *(f"| {' | '.join(line)} |\n" for line in lines), *(["\n", *notes] if notes else [])])


def comparisons(compared: Sequence[Comparison]) -> str:
    """The step summary of a build."""
    return "".join(map(_comparison, compared))


def rules(dispatch: Dispatch) -> str:
    """A heading and a pipe table for each panel, and what all have in common."""
    from attnbench.outputs import _rules as view

    parts = [f"### {escaped(part.heading)}\n\n{rows(part.listing)}\n" for part in view.parts(dispatch)]
    return "".join([*parts, *(f"{escaped(line)}  \n" for line in view.legend(dispatch))])


def claims(reproduction: Reproduction) -> str:
    """A heading and a pipe table for each paper, and what verdicts mean; of a brief one a pipe table of papers."""
    from attnbench.outputs import _paper_listing as view

    if reproduction.detail == "brief":
        return rows(view.listing(reproduction))
    parts = []
    for each in reproduction.of_papers:
        paper = each.results[0].paper
        head, *table = view.table(each, reproduction, below=False)
        lines = [list(head), ["---:" if name in view.NUMBERS else "---" for name in head]]
        lines += [_claim_row({name: escaped(text) for name, text in row.items()}) for row in table]
        source = f"{escaped(paper.title)}. <{paper.url}> Read: {escaped(paper.source)}."
        parts.append(f"## {each.name}\n\n{source}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n")
    return "".join([*parts, *(f"- {escaped(note)}\n" for note in view.notes(reproduction, "more"))])


def _claim_row(row: Mapping[str, str]) -> list[str]:
    """The fields of a row; the id of a claim, below which its numbers are set in, is bold."""
    name = row["claim"]
    return [name.strip() if name.startswith(" ") else f"**{name}**", *list(row.values())[1:]]


def history(history: History) -> str:
    """What changed, and the panels of all runs, as `tables`."""
    from attnbench.outputs._history import legend, parts

    return _parts(parts(history), legend(history))


def _comparison(comparison: Comparison) -> str:
    from attnbench.outputs import _comparison as view

    mark = {0: "pass", 1: "regression", 3: "undecided"}[comparison.exit_code] if comparison.gated else "comparison"
    lines = [f"### attnbench: {mark}", "", escaped(f"{comparison.before} → {comparison.after}"), ""]
    notes = view.notes(comparison)
    lines += [f"- {escaped(note)}" for note in notes] + ([""] if notes else [])
    findings = view.chosen(comparison)
    lines += [rows(view.listing(findings))] if findings else []
    return "\n".join([*lines, *map(escaped, view.around(comparison, findings))]) + "\n"


def _text_table(text_table: TextTable) -> list[str]:
    lines = ["| " + " | ".join(map(escaped, text_table.columns)) + " |"]
    lines.append("| --- |" + (" ---: |" if text_table.sizes else " --- |") * (len(text_table.columns) - 1))
    for row in text_table.rows:
        cells = [f"**{escaped(cell.text)}**" if cell.best else escaped(cell.text) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
