"""attnbench compare: two or more stored runs, cell by cell; with thresholds, a gate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from attnbench.commands._options import JUDGE, format_option
from attnbench.outputs import _formats as formats

PANEL = JUDGE


def command(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders: the first is compared with each other.", metavar="A B...")
    ],
    fail_on: Annotated[
        list[str] | None, typer.Option(help="metric:5%, makes it a gate; repeat it or use commas.")
    ] = None,
    across_machines: Annotated[
        bool, typer.Option("--across-machines", help="Compare although their machines or software differ.")
    ] = False,
    explain: Annotated[
        str | None, typer.Option(help="A cell's key, or a part of one: its rounds, and why its verdicts.")
    ] = None,
    form: Annotated[str, format_option("comparisons", "How it is printed.")] = "table",
) -> None:
    """Say what changed between stored runs.

    Ratio, interval and verdict per cell and metric, what changed first.

    Exit code: 0 pass; with --fail-on 1 regression, 3 undecided or nothing measured; 2 cannot compare or bad usage.
    Runs measured one after the other differ by what the machine did meanwhile: a time is judged beside the others that
    were measured in turns with it, and the first lines say what that can show. `attnbench gate` takes turns instead.

    Example: attnbench compare results/before results/after --fail-on wall_time:5%,peak_memory:0%
    """
    from attnbench.analysis.compare.findings import exit_code
    from attnbench.analysis.compare.stored_runs import compare
    from attnbench.analysis.run import read_run
    from attnbench.errors import BadInput
    from attnbench.outputs._explanation import explanations
    from attnbench.plan.gate_thresholds import from_options

    if len(runs) < 2:
        raise BadInput("compare needs two run folders: attnbench compare BEFORE AFTER.")
    gate = from_options(fail_on)
    first, *others = (read_run(path) for path in runs)
    comparisons = [compare(first, other, gate, across_machines=across_machines) for other in others]
    if explain is None:
        formats.show("comparisons", comparisons, form)
    else:
        for comparison, other in zip(comparisons, others, strict=True):
            sys.stdout.write(explanations(comparison, first, other, explain))
    raise typer.Exit(exit_code(comparisons))
