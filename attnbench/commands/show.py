"""attnbench show: the tables of a stored run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

Format = Literal["table", "json", "csv", "markdown"]


def command(
    run: Annotated[Path, typer.Argument(help="A folder that `attnbench run` wrote.")],
    metric: Annotated[list[str] | None, typer.Option(help="Only this metric; may be repeated.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="operator or operator:impl to compare with; default: the suite's.")
    ] = None,
    axis: Annotated[str | None, typer.Option(help="Only this axis: seq_len, image_size or channels.")] = None,
    form: Annotated[Format, typer.Option("--format", help="csv holds the figures, json everything.")] = "table",
) -> None:
    """Show a stored run: every metric over the axis, crossovers, exponents, and what to use.

    Example: attnbench show results/reference/cpu-sequence --metric wall_time --baseline softmax:sdpa
    """
    from attnbench.analysis.run import read_run
    from attnbench.analysis.summary import summarise

    summary = summarise(read_run(run), metric or (), baseline, axis)
    if form == "table":
        from attnbench import terminal
        from attnbench.outputs import table

        table.write(summary, terminal.console())
    elif form == "json":
        from attnbench.outputs import json

        sys.stdout.write(json.text(summary))
    elif form == "csv":
        from attnbench.outputs import csv

        sys.stdout.write(csv.text(summary))
    else:
        from attnbench.outputs import markdown

        sys.stdout.write(markdown.text(summary))
