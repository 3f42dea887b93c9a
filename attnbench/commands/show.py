"""attnbench show: what a stored run says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.commands._options import (
    READ,
    SHOW_ONLY,
    ShownOptions,
    format_option,
    grouped,
    operators_option,
    over_option,
)
from attnbench.outputs import _formats as formats

PANEL = READ


@grouped
def command(
    run: Annotated[Path, typer.Argument(help="A folder that `attnbench run` wrote.")],
    operators: Annotated[list[str] | None, operators_option(SHOW_ONLY)] = None,
    baseline: Annotated[
        str | None, typer.Option(help="operator or operator:impl to compare with; default: the suite's.")
    ] = None,
    over: Annotated[str | None, over_option()] = None,
    form: Annotated[str, format_option("run", "csv holds the figures, json everything.")] = "table",
    *,
    shown: ShownOptions,
) -> None:
    """Say where softmax stops paying in a stored run, and what to use.

    --all prints every table. --over makes a map of a run that varies two axes: what is fastest in every cell, and the
    border where softmax stops paying. Exit code: 0; 2 bad usage; 3 where nothing was measured.

    Example: attnbench show results/reference/cpu-sequence

    Example: attnbench show RUN --all --metric wall_time --baseline softmax:sdpa

    Example: attnbench show RUN --axis seq_len --over batch
    """
    from attnbench.analysis.run import read_run
    from attnbench.errors import BadInput
    from attnbench.units import separated

    shown.check()
    stored = read_run(run)
    chosen = separated(operators or ())
    if over is None:
        formats.show("run", shown.summary(stored, baseline, chosen), form, all_tables=shown.all_tables)
        if not stored.has_measured:
            raise typer.Exit(3)
        return
    if chosen or shown.all_tables or shown.sort:
        raise BadInput("--over: a map is of all operators. Leave out --operators, --sort and --all.")
    from attnbench.analysis.grid import grids

    formats.show("grids", grids(stored, over, shown.axis, shown.metric or (), baseline), form)
