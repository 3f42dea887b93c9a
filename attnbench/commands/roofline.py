"""attnbench roofline: measured times over the least that this hardware needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.commands._options import READ, format_option
from attnbench.outputs import _formats as formats

PANEL = READ


def command(
    run: Annotated[Path, typer.Argument(help="A folder that `attnbench run` wrote.", metavar="RUN")],
    form: Annotated[str, format_option("rows", "json: one object per timed cell.")] = "table",
) -> None:
    """Say how far a stored run is from what the hardware could do.

    Per series and size: the time over the larger of products / matmul rate and bytes moved / copy rate. Exit code: 0;
    2 bad usage; 3 where nothing was timed.

    Example: attnbench roofline results/gpu-20260101-120000
    """
    from attnbench.analysis.roofline import measured_rates, rooflines
    from attnbench.analysis.run import read_run
    from attnbench.outputs import _listings as listings

    stored = read_run(run)
    rates = measured_rates(stored)
    timed = rooflines(stored.results, rates)
    formats.show("rows", listings.rooflines(timed, rates), form)
    if not timed:
        raise typer.Exit(3)
