"""attnbench plot: the pictures of a stored run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from attnbench.axes import AXES
from attnbench.commands._options import over_option


def command(
    run: Annotated[Path, typer.Argument(help="A folder that `attnbench run` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures; default: RUN/plots.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Only this metric; may be repeated.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="operator or operator:impl to compare with; default: the suite's.")
    ] = None,
    axis: Annotated[str | None, typer.Option(help=f"Only this axis: {', '.join(AXES)}.")] = None,
    over: Annotated[str | None, over_option()] = None,
    form: Annotated[Literal["both", "png", "svg"], typer.Option("--format", help="What is written.")] = "both",
) -> None:
    """Draw a stored run: log-log time, memory, FLOPs and energy, with intervals and crossovers; with --over, of a run
    that varies two axes, a map of what is fastest in every cell, and the border where softmax stops paying. Prints what
    it wrote.

    Needs matplotlib: install attnbench with its extra 'plot'.

    Example: attnbench plot results/reference/cpu-sequence --metric wall_time --format png

    Example: attnbench plot RUN --axis seq_len --over batch
    """
    from attnbench.analysis.grid import grids
    from attnbench.analysis.run import read_run
    from attnbench.analysis.summary import summarise
    from attnbench.errors import BadInput
    from attnbench.outputs.plot import PictureFormat, draw, draw_maps

    stored = read_run(run)
    draw_into: Callable[..., list[Path]]
    if over is None:
        draw_into = partial(
            draw, summarise(stored, metric or (), baseline, axis), stored.environment.get("families", {})
        )
    else:
        draw_into = partial(draw_maps, grids(stored, over, axis, metric or (), baseline))
    forms: tuple[PictureFormat, ...] = ("png", "svg") if form == "both" else (form,)
    folder = out or run / "plots"
    if out is None and folder.is_symlink():
        raise BadInput(f"{folder}: a link, by which a foreign run could write anywhere. Name a folder: --out.")
    try:
        written = draw_into(folder, forms)
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot be written: {error.strerror}. Give another folder.") from None
    for path in written:
        print(path)
