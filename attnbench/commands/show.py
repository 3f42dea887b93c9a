"""attnbench show: the tables of a stored run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.axes import AXES
from attnbench.commands._options import format_option, over_option
from attnbench.outputs import _formats as formats


def command(
    run: Annotated[Path, typer.Argument(help="A folder that `attnbench run` wrote.")],
    metric: Annotated[list[str] | None, typer.Option(help="Only this metric; may be repeated.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="operator or operator:impl to compare with; default: the suite's.")
    ] = None,
    axis: Annotated[str | None, typer.Option(help=f"Only this axis: {', '.join(AXES)}.")] = None,
    over: Annotated[str | None, over_option()] = None,
    form: Annotated[str, format_option("run", "csv holds the figures, json everything.")] = "table",
) -> None:
    """Show a stored run: every metric over the axis, crossovers, growth, and what to use; with --over, of a run that
    varies two axes, a map of what is fastest in every cell, and the border where softmax stops paying.

    Example: attnbench show results/reference/cpu-sequence --metric wall_time --baseline softmax:sdpa

    Example: attnbench show RUN --axis seq_len --over batch
    """
    from attnbench.analysis.run import read_run
    from attnbench.analysis.summary import summarise

    stored = read_run(run)
    if over is None:
        formats.show("run", summarise(stored, metric or (), baseline, axis), form)
        return
    from attnbench.analysis.grid import grids

    formats.show("grids", grids(stored, over, axis, metric or (), baseline), form)
