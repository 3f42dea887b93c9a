"""attnbench choose: what to use for one problem, under constraints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.analysis.cards import CARDS
from attnbench.commands._options import (
    CHOOSE_ONLY,
    DECIDE,
    ProblemOptions,
    format_option,
    grouped,
    operators_option,
    size_options,
)
from attnbench.measure.device import device_names
from attnbench.outputs import _formats as formats
from attnbench.properties import PROPERTIES

_DEVICES = f"a card ({', '.join(CARDS)}), by its data sheet; or {', '.join(device_names())}: this machine's, measured."


PANEL = DECIDE


@grouped
def command(
    sizes: Annotated[dict[str, list[str] | None], size_options(list[str] | None)],
    problem: ProblemOptions,
    need: Annotated[
        list[str] | None, typer.Option(help=f"What a choice must have, with commas: {', '.join(PROPERTIES)}.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="The most that a call may need: 24GiB, or 80% of the device's; default: all of it."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="A folder that `attnbench run` wrote: times where it has any.")
    ] = None,
    device: Annotated[str | None, typer.Option(help=f"Hardware without a run: {_DEVICES}")] = None,
    metric: Annotated[
        str | None, typer.Option(help="The time of the run that counts; default: wall_time, or device_time.")
    ] = None,
    operators: Annotated[list[str] | None, operators_option(CHOOSE_ONLY)] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw time and memory into this .png, .svg or .pdf file.")
    ] = None,
    form: Annotated[
        str, format_option("rows", "json: the problem, what may be chosen, what may not and why.")
    ] = "table",
) -> None:
    """Say what to use for one problem: operators ranked, and why not.

    Time, memory, state, FLOPs and error of each, and why the others are out.
    Times are a run's: measured, or interpolated between two of its sizes, never beyond them. What it has no time of
    stands apart, by the roofline of the same hardware: the least time that any implementation takes. Exit code: 0; 2
    bad usage; 3 where nothing meets the needs.

    Example: attnbench choose --seq-len 32K --head-dim 64 --causal --dtype bf16 --train --need all_pairs,decode --memory
    24GiB --device H100

    Example: attnbench choose --seq-len 1500 --channels 256 --run results/reference/cpu-sequence --need all_pairs
    """
    from attnbench.measure.candidates import choose
    from attnbench.outputs import _choice as view
    from attnbench.plan.choice_request import ChoiceRequest
    from attnbench.units import separated

    if picture is not None:
        from attnbench.outputs import _choice_picture

        _choice_picture.check(picture)
    choice = choose(
        ChoiceRequest(problem.request(separated(operators or ()), sizes), need or (), memory, run, device, metric)
    )
    formats.show("rows", view.listing(choice), form)
    if picture is not None:
        _choice_picture.draw(choice, picture)
    if not choice.best:
        raise typer.Exit(3)
