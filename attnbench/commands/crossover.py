"""attnbench crossover: searches the size at which operators pass a baseline, measuring as little as it needs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from attnbench.axes import AXES
from attnbench.commands._options import (
    MEASURE,
    PROBLEM,
    FormOptions,
    Size,
    device_option,
    dtype_help,
    format_option,
    grouped,
    size_options,
)
from attnbench.metric import DEFAULT_METRIC
from attnbench.outputs import _formats as formats

if TYPE_CHECKING:
    from attnbench.plan.search_request import SearchRequest


SEQ_LEN = 1024
"""The tokens, where they are neither varied nor given."""


@dataclass(frozen=True)
class SearchOptions:
    """What is searched, and when it is precise enough."""

    baseline: Annotated[str, typer.Option(help="operator or operator:impl to compare with.")] = "softmax"
    axis: Annotated[str, typer.Option(help="What is varied.", click_type=click.Choice(list(AXES)))] = "seq_len"
    low: Annotated[int, typer.Option(help="Smallest size; of an image its side.", click_type=Size())] = 64
    high: Annotated[int, typer.Option(help="Largest size; of an image its side.", click_type=Size())] = 65536
    over: Annotated[
        str | None, typer.Option(help="A second axis and its values: a search at each.", metavar="AXIS=…")
    ] = None
    precision: Annotated[
        str | None, typer.Option(help="Half the interval's width at which to stop; default 10%, with --over 20%.")
    ] = None
    metric: Annotated[str, typer.Option(help="What is compared: a metric with a clock.")] = DEFAULT_METRIC


@dataclass(frozen=True)
class ShapeOptions(FormOptions):
    """The problem, apart from its sizes."""

    dtype: Annotated[str, typer.Option(help=dtype_help(), rich_help_panel=PROBLEM)] = "float32"


PANEL = MEASURE


@grouped
def command(
    context: typer.Context,
    search: SearchOptions,
    problem: ShapeOptions,
    sizes: Annotated[dict[str, str | None], size_options(str | None)],
    operator: Annotated[
        list[str] | None, typer.Argument(help="operator or operator:impl.", metavar="OP...", show_default=False)
    ] = None,
    operators_from: Annotated[list[str] | None, typer.Option(help="A .py file or package of your own.")] = None,
    device: Annotated[str, device_option()] = "auto",
    out: Annotated[Path | None, typer.Option(help="Run folder to write; default results/crossover-<time>.")] = None,
    resume: Annotated[Path | None, typer.Option(help="A search to continue; name --operators-from again.")] = None,
    form: Annotated[str, format_option("rows", "json: one object per operator, with --over per value.")] = "table",
) -> None:
    """Search the size from which an operator is cheaper than softmax.

    A few sizes, each measured in pairs with the baseline, until the crossover is as precise as --precision.
    Sizes (K: 1024) are those of every problem, but for that of --axis, which goes from --low to --high. The last line
    of stdout is the run folder, which `attnbench show` and `plot` read like any other. With --over it is searched at
    every value of a second axis, each beginning where the crossings of its neighbours let its own be expected. Exit
    code: 0; 2 bad usage; 3 where nothing could be compared; 130 interrupted, to be continued with --resume.

    Example: attnbench crossover linear_transformer performer --baseline softmax --low 64 --high 64K --precision 10%

    Example: attnbench crossover linear_transformer --axis seq_len --over batch=1,2,4,8
    """
    from attnbench.measure.platforms import check_can_measure

    check_can_measure("crossover")
    from attnbench.commands._standard_streams import lost
    from attnbench.measure.crossover import begin_search, resume_search, run_search
    from attnbench.outputs import _listings as listings
    from attnbench.outputs._progress import progress
    from attnbench.plan.search_request import suite_text

    if resume is not None:
        _check_alone(resume, context)
        opened = resume_search(resume, device, operators_from or ())
    else:
        request = _request(operator or (), search)
        shape = {"dtype": problem.dtype, "causal": problem.causal, **_fixed(sizes, request)}
        text = suite_text(
            request, shape, SEQ_LEN, problem.chosen, problem.scope, problem.param or (), operators_from or ()
        )
        opened = begin_search(request, text, device, out)
    request, folder = opened.request, opened.session.journal.folder
    with progress() as shown:
        outcome = run_search(opened, shown)
    if outcome.reason:
        print(f"the search ended: {outcome.reason}", file=sys.stderr)
    listing = listings.searches(outcome.searches, request.baseline, request.axis, request.over, opened.named)
    formats.show("rows", listing, form, folder)
    if lost():
        print(f"the results are in {folder}; show them with: attnbench show {folder}", file=sys.stderr)
    if outcome.code:
        named = [word for place in operators_from or () for word in ("--operators-from", place)]
        again = shlex.join(["attnbench", "crossover", "--resume", str(folder), *named])
        print(f"what was measured is kept; continue with: {again}", file=sys.stderr)
    if outcome.code or all(row["kind"] == "nothing" for row in listing.rows):
        raise typer.Exit(outcome.code or 3)


def _fixed(sizes: Mapping[str, str | None], request: SearchRequest) -> dict[str, Any]:
    """The sizes that are given. Raises BadInput where what is varied is among them, or one is no plain value."""
    from attnbench.errors import BadInput, refusing
    from attnbench.naming import option
    from attnbench.yaml_file import scalar

    varied = {request.axis: (f"--axis {request.axis}", "--low and --high say where")}
    if request.over:
        varied[request.over] = ("--over", "its values say where")
    for name, (by, where) in varied.items():
        if sizes[name] is not None:
            raise BadInput(f"{option(name)} {sizes[name]}: it is varied, by {by}. Leave it out; {where}.")
    fixed: dict[str, Any] = {}
    for name, value in sizes.items():
        with refusing(f"{option(name)}: ", ". Correct it."):
            fixed |= {name: scalar(value)} if value is not None else {}
    return fixed


def _request(operators: Sequence[str], search: SearchOptions) -> SearchRequest:
    """What the command line asks for. Raises BadInput."""
    from attnbench.errors import BadInput, refusing
    from attnbench.plan.search_request import SearchRequest, clock_column, read_over
    from attnbench.units import fraction, separated

    if not 0 < search.low < search.high:
        raise BadInput(f"--low {search.low} --high {search.high}: allowed: 0 < low < high. Give a larger --high.")
    over, values = ("", ()) if search.over is None else read_over(search.over, search.axis)
    with refusing("--precision: ", ". Give such a percentage."):
        precision = fraction(0.005, 1.0)(search.precision or ("20%" if over else "10%"))
    column = clock_column(search.metric)
    ends = (search.low, search.high)
    return SearchRequest(
        tuple(separated(operators)), search.baseline, search.axis, *ends, precision, column, over, values
    )


def _check_alone(folder: Path, context: typer.Context) -> None:
    """Raises BadInput where other options than a stored search takes are on the command line."""
    from attnbench.errors import BadInput
    from attnbench.naming import option

    alone = ("resume", "device", "form", "operators_from")
    more = [
        "OP" if name == "operator" else option(name)
        for name, value in context.params.items()
        if value and name not in alone and str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    ]
    if more:
        raise BadInput(f"--resume {folder}: a search continues with its own request. Leave out {', '.join(more)}.")
