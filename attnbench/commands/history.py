"""attnbench history: a folder of stored runs, by time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.axes import AXES
from attnbench.commands._options import READ, SHOW_ONLY, format_option, operators_option
from attnbench.outputs import _formats as formats

PANEL = READ


def command(
    folder: Annotated[Path, typer.Argument(help="A folder that holds run folders, and gates.")] = Path("results"),
    metric: Annotated[
        list[str] | None, typer.Option(help="Show these metrics; repeat it or use commas; default: wall_time.")
    ] = None,
    operators: Annotated[list[str] | None, operators_option(SHOW_ONLY)] = None,
    axis: Annotated[str | None, typer.Option(help=f"Show only this axis: {', '.join(AXES)}.")] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="Show only these sizes, as 2K or 32x32; repeat it or use commas.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="operator or operator:impl to compare with; default: the newest suite's.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every size and run in tables, and the crossovers of every run.")
    ] = False,
    form: Annotated[str, format_option("history", "csv holds the figures, json everything.")] = "table",
) -> None:
    """Say what changed from run to run, by commit and date.

    Of each series the figures, and the crossovers of the newest runs. A change is exact (FLOPs, memory: another figure
    in the same circumstances), paired (a gate measured both sides in turns) or unpaired (times of other days moved
    beside those of the other operators: worth a gate, no proof). Between other machines, torch versions or contracts
    nothing is called changed. Runs that cannot be read are named and left out.

    Needs DuckDB: install attnbench with its extra 'history'.

    Example: attnbench history results --metric wall_time,flops --operators performer,linformer

    Example: attnbench history nightly --format html > history.html
    """
    from attnbench.analysis.history import HistoryRequest, history
    from attnbench.units import separated

    request = HistoryRequest(separated(metric or ()), separated(operators or ()), axis, size or (), baseline, every)
    formats.show("history", history(folder, request), form)
