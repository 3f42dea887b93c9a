"""The tables of a run in Markdown."""

from __future__ import annotations

from attnbench.analysis.summary import Summary
from attnbench.outputs._markdown import escaped
from attnbench.outputs._run_tables import Block, legend, parts


def text(summary: Summary) -> str:
    """Headings, pipe tables and notes, ending with a newline."""
    lines = []
    for part in parts(summary):
        lines += [f"## {part.heading}", ""]
        for block in part.blocks:
            lines += [f"### {block.title}", "", *_table(block), ""]
            lines += [f"{escaped(note)}\n" for note in block.notes]
        lines += [f"- {escaped(note)}" for note in part.notes]
        lines += [""] if part.notes else []
    lines += [escaped(line) + "  " for line in legend(summary)]
    return "\n".join(lines) + "\n"


def _table(block: Block) -> list[str]:
    lines = ["| " + " | ".join(map(escaped, block.columns)) + " |"]
    lines.append("| --- |" + (" ---: |" if block.sizes else " --- |") * (len(block.columns) - 1))
    for row in block.rows:
        cells = [f"**{escaped(cell.text)}**" if cell.best else escaped(cell.text) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
