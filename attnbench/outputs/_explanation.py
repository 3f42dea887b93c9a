"""Why the verdicts of a comparison on a cell are what they are: its findings, and every round with its samples."""

from __future__ import annotations

from attnbench.analysis.compare.findings import Comparison
from attnbench.analysis.compare.matching import aligned
from attnbench.analysis.run import Run
from attnbench.errors import BadInput
from attnbench.outputs._comparison import change, value_text
from attnbench.units import count, shown, suggestion

_MOST_CELLS = 10


def explanations(comparison: Comparison, before: Run, after: Run, cell: str) -> str:
    """The findings and rounds of the cells of that name.

    Args:
        comparison: of the two runs.
        before, after: the runs.
        cell: a cell's key, or a part of one: then of all cells whose keys contain it, at most _MOST_CELLS.

    Raises: BadInput where no key contains it.
    """
    keys = sorted({f.subject for f in comparison.findings if "." in f.subject})
    chosen = [key for key in keys if key == cell] or [key for key in keys if cell in key]
    words = {*keys, *(part for key in keys for part in key.split("."))}
    if not chosen:
        raise BadInput(
            f"--explain {cell}: no cell's key contains it{suggestion(cell, words)}. --format json has all keys."
        )
    before, after = aligned(before, after)
    lines = []
    for key in chosen[:_MOST_CELLS]:
        lines += [key, *_findings(comparison, key), *_rounds("before", before, key), *_rounds("after", after, key)]
    return "\n".join(lines) + "\n"


def _findings(comparison: Comparison, key: str) -> list[str]:
    lines = []
    for f in comparison.findings:
        if f.subject == key:
            before, after = value_text(f.before, f), value_text(f.after, f)
            figures = " ".join(filter(None, (before, "→", after, change(f))))
            lines.append(f"{f.metric}: {figures}: {f.verdict}, because {f.reason}")
    return lines


def _rounds(side: str, run: Run, key: str) -> list[str]:
    """A line for every visit of a cell, with what its samples say: by clock where there are several."""
    samples = run.samples[run.samples["key"] == key]
    clocks = samples["clock"].unique()
    lines = []
    for visit in run.visits[run.visits["key"] == key].to_dict("records"):
        line = f"{side} round {visit['round']} process {visit['process']} {visit['status']} {visit['reason'] or ''}"
        for clock in clocks:
            chosen = (samples["round"] == int(visit["round"])) & (samples["clock"] == clock)
            seconds = samples[chosen]["seconds"]
            if len(seconds):
                line += (
                    f"{f' {clock}' if len(clocks) > 1 else ''} median {shown(float(seconds.median()), 's')}"
                    f" of {count(len(seconds), 'sample')}"
                    f" from {shown(float(seconds.min()), 's')} to {shown(float(seconds.max()), 's')}"
                )
        lines.append(line)
    return lines
