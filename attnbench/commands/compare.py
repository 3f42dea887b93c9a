"""attnbench compare: two or more stored runs, cell by cell; with thresholds, a gate."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.commands._options import format_option
from attnbench.outputs import _formats as formats

if TYPE_CHECKING:
    from attnbench.analysis.compare.findings import Comparison
    from attnbench.analysis.run import Run
    from attnbench.outputs._rows import Row
    from attnbench.thresholds import Gate


def command(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders: the first is compared with each other.", metavar="A B...")
    ],
    fail_on: Annotated[
        list[str] | None, typer.Option(help="metric:5%, makes it a gate; repeat it or use commas.")
    ] = None,
    across_machines: Annotated[
        bool, typer.Option("--across-machines", help="Compare what is exact, and ratios to the baseline.")
    ] = False,
    explain: Annotated[
        str | None, typer.Option(help="A cell's key, or a part of one: its rounds, and why its verdicts.")
    ] = None,
    form: Annotated[str, format_option("comparisons", "How it is printed.")] = "table",
) -> None:
    """Compare stored runs: ratio, interval and verdict per cell and metric, what changed first.

    Exit code: 0 pass; with --fail-on 1 regression, 3 undecided or nothing measured; 2 cannot compare or bad usage.
    Runs measured one after the other differ by what the machine did meanwhile: `attnbench gate` takes turns instead.

    Example: attnbench compare results/before results/after --fail-on wall_time:5%,peak_memory:0%
    """
    from attnbench.analysis.compare.stored_runs import compare
    from attnbench.analysis.run import read_run
    from attnbench.errors import BadInput

    if len(runs) < 2:
        raise BadInput("compare needs two run folders: attnbench compare BEFORE AFTER.")
    gate = thresholds(fail_on) if fail_on else None
    first, *others = (read_run(path) for path in runs)
    found = [compare(first, other, gate, across_machines=across_machines) for other in others]
    if explain is not None:
        for comparison, other in zip(found, others, strict=True):
            _explain(comparison, first, other, explain)
    else:
        formats.show("comparisons", found, form)
    codes = {comparison.exit_code for comparison in found}
    raise typer.Exit(next((code for code in (1, 3) if code in codes), 0))


def thresholds(given: Sequence[str]) -> Gate:
    """--fail-on as a gate. Raises BadInput."""
    from attnbench.plan.mistakes import Notes
    from attnbench.plan.schema import gated_names
    from attnbench.thresholds import Gate
    from attnbench.units import fraction, quoted, suggestion

    known = gated_names()
    notes = Notes("the command line")
    found = {}
    for part in (part.strip() for text in given for part in text.split(",")):
        metric, _, text = part.partition(":")
        if metric not in known:
            near = suggestion(metric, known)
            notes.add("--fail-on", f"{quoted(metric)} is no metric{near}; allowed: {', '.join(known)}")
            continue
        try:
            found[metric] = fraction(0.0, 100.0)(text)
        except ValueError as error:
            notes.add(f"--fail-on {metric}", str(error))
    notes.close()
    return Gate(found)


def _explain(found: Comparison, before: Run, after: Run, cell: str) -> None:
    from attnbench.analysis.compare.matching import aligned
    from attnbench.errors import BadInput
    from attnbench.outputs._comparison import explanation
    from attnbench.units import suggestion

    keys = sorted({f.subject for f in found.findings if "." in f.subject})
    chosen = [key for key in keys if key == cell] or [key for key in keys if cell in key]
    if not chosen:
        raise BadInput(
            f"--explain {cell}: no cell's key contains it{suggestion(cell, keys)}. --format json has all keys."
        )
    before, after = aligned(before, after)
    for key in chosen[:10]:
        rows = [*_rounds("before", before, key), *_rounds("after", after, key)]
        sys.stdout.write(explanation(found, key, rows))


def _rounds(side: str, run: Run, key: str) -> list[Row]:
    """Every visit of a cell with its samples."""
    from attnbench.units import count, shown

    samples = run.samples[(run.samples["key"] == key) & (run.samples["clock"] == "wall")]
    rows: list[Row] = []
    for visit in run.visits[run.visits["key"] == key].to_dict("records"):
        own = samples[samples["round"] == int(visit["round"])]["seconds"]
        row: dict[str, object] = {
            side: f"round {visit['round']}",
            "process": visit["process"],
            visit["status"]: visit["reason"] or "",
        }
        if len(own):
            row |= {
                "median": shown(float(own.median()), "s"),
                "of": count(len(own), "sample"),
                "from": f"{shown(float(own.min()), 's')} to {shown(float(own.max()), 's')}",
            }
        rows.append(row)
    return rows
