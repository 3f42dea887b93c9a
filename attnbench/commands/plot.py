"""attnbench plot: the pictures of a stored run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from attnbench.axes import AXES
from attnbench.commands._options import READ, SHOW_ONLY, operators_option, over_option

PANEL = READ


def command(
    run: Annotated[Path, typer.Argument(help="A folder that `attnbench run` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures; default: RUN/plots.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Only this metric; repeat it or use commas.")] = None,
    operators: Annotated[list[str] | None, operators_option(SHOW_ONLY)] = None,
    baseline: Annotated[
        str | None, typer.Option(help="operator or operator:impl to compare with; default: the suite's.")
    ] = None,
    axis: Annotated[str | None, typer.Option(help=f"Only this axis: {', '.join(AXES)}.")] = None,
    over: Annotated[str | None, over_option()] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Width of each picture, or width and height: 3.5in, 89mm, 3.5x2.5in; panels by family may be higher."
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Above each picture, instead of its own; none: no title.")] = None,
    form: Annotated[str, typer.Option("--format", help="What is written: png, svg, pdf, with commas.")] = "png,svg",
) -> None:
    """Draw a stored run, for a talk or a paper.

    It shows where each operator passes softmax, with intervals. Written are, of each metric, an overview (ratios to the
    best exact softmax) and curves (the figures), forward pass and training side by side; where one panel cannot show
    all in colour, a panel for each family too. With --over, of a run that varies two axes, a map of what is fastest in
    every cell, and the border where softmax stops paying. Prints what it wrote.

    Needs matplotlib: install attnbench with its extra 'plot'.

    Example: attnbench plot results/reference/cpu-sequence --metric wall_time --format png

    Example: attnbench plot RUN --metric wall_time --operators softmax,rfa,sinkhorn --size 3.5in --format pdf

    Example: attnbench plot RUN --axis seq_len --over batch
    """
    from attnbench.analysis.grid import grids
    from attnbench.analysis.run import read_run
    from attnbench.analysis.summary import check_shown, summarise
    from attnbench.errors import BadInput
    from attnbench.files import storing
    from attnbench.outputs.plot import draw, draw_maps, read_formats, undrawn, wanted
    from attnbench.units import separated

    check_shown(metric or (), axis, None)
    picture, forms = wanted(size, title), read_formats(form)
    stored = read_run(run)
    chosen = separated(operators or ())
    notes: list[str] = []
    draw_into: Callable[..., list[Path]]
    if over is None:
        summary = summarise(stored, metric or (), baseline, axis, chosen)
        notes = undrawn(summary)
        draw_into = partial(draw, summary, stored.environment.get("families", {}), operators=chosen)
    elif chosen:
        raise BadInput("--over: a map is of all operators. Leave out --operators.")
    else:
        draw_into = partial(draw_maps, grids(stored, over, axis, metric or (), baseline))
    folder = out or run / "plots"
    if out is None and folder.is_symlink():
        raise BadInput(f"{folder}: a link, by which a foreign run could write anywhere. Name a folder: --out.")
    with storing(f"--out {folder}", "Give another folder."):
        written = draw_into(folder=folder, forms=forms, wanted=picture)
    for path in written:
        print(path)
    for note in notes:
        print(note, file=sys.stderr)
