"""attnbench dispatch: which operator to call at which size, as rules that code can use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from attnbench.axes import AXES
from attnbench.commands._options import DECIDE, format_option, operators_option
from attnbench.metric import DEFAULT_METRIC
from attnbench.outputs import _formats as formats

PANEL = DECIDE


def command(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders that `attnbench run` or `crossover` wrote.", metavar="RUN...")
    ],
    operator: Annotated[
        list[str] | None,
        operators_option(
            "The alternatives: operator (every impl of it) or operator:impl; repeat it or use commas. Default: all "
            "that are not exact."
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="operator or operator:impl; default: exact softmax, the cheapest impl at a size.")
    ] = None,
    undecided: Annotated[
        Literal["baseline", "cheapest"],
        typer.Option(
            help="What is taken where several are not told apart: the baseline, or the one with the least interpolated "
            "time.",
        ),
    ] = "cheapest",
    metric: Annotated[str, typer.Option(help="What is compared: a metric of timed rounds.")] = DEFAULT_METRIC,
    axis: Annotated[str | None, typer.Option(help=f"Only this axis: {', '.join(AXES)}.")] = None,
    form: Annotated[
        str, format_option("rules", "json: thresholds, ranges, regret, as dispatch.schema.json; python: a function.")
    ] = "table",
) -> None:
    """Make rules for code: which operator to call at which size.

    Per panel: the sizes from which on another operator is the cheapest, with their intervals, the ranges in which that
    is undecided, and the regret: the time lost by following the rules, estimated by leaving sizes out. Exit code: 0; 2
    bad usage; 3 where nothing is decided.

    Example: attnbench dispatch results/reference/cpu-sequence --operator local --format python
    """
    from attnbench.analysis.dispatch import dispatch
    from attnbench.analysis.run import read_run
    from attnbench.units import separated

    rules = dispatch([read_run(run) for run in runs], metric, separated(operator or ()), baseline, axis, undecided)
    formats.show("rules", rules, form)
    if not any(each.decided for each in rules.panels):
        raise typer.Exit(3)
