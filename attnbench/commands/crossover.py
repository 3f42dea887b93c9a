"""attnbench crossover: searches the size at which operators pass a baseline, measuring as little as it needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click
import typer

from attnbench.axes import AXES
from attnbench.commands._options import format_option
from attnbench.metric import DEFAULT_METRIC
from attnbench.outputs import _formats as formats
from attnbench.outputs._rows import Listing, Row

if TYPE_CHECKING:
    from attnbench.analysis.crossover_search import Search
    from attnbench.measure.open_run import Session
    from attnbench.plan.search_request import SearchRequest
    from attnbench.problem import Cell


def _size(given: str | int) -> int:
    """A size as a suite reads it; ValueError where it is none."""
    from attnbench.axes import MAX_TOKENS
    from attnbench.units import whole
    from attnbench.yaml_file import scalar

    return whole(1, MAX_TOKENS)(scalar(str(given)))


_MEANINGS = "; ".join(f"{name}: {axis.meaning}" for name, axis in AXES.items())
_SIZE: dict[str, Any] = {"parser": _size, "metavar": "INTEGER"}


def command(
    context: typer.Context,
    operator: Annotated[
        list[str] | None, typer.Argument(help="operator or operator:impl.", metavar="OP...", show_default=False)
    ] = None,
    baseline: Annotated[str, typer.Option(help="operator or operator:impl to compare with.")] = "softmax",
    axis: Annotated[
        str, typer.Option(help=f"What is varied. {_MEANINGS}.", click_type=click.Choice(list(AXES)))
    ] = "seq_len",
    low: Annotated[int, typer.Option(help="Smallest size; of an image its side.", **_SIZE)] = 64,
    high: Annotated[int, typer.Option(help="Largest size; of an image its side.", **_SIZE)] = 65536,
    precision: Annotated[str, typer.Option(help="Half the interval's width at which to stop.")] = "10%",
    metric: Annotated[str, typer.Option(help="What is compared: a metric with a clock.")] = DEFAULT_METRIC,
    seq_len: Annotated[int, typer.Option(help="Tokens, where they are not varied.", **_SIZE)] = 1024,
    channels: Annotated[int, typer.Option(help="Channels of all heads together.", **_SIZE)] = 256,
    heads: Annotated[int, typer.Option(help="Number of heads; divides the channels.", **_SIZE)] = 8,
    batch: Annotated[int, typer.Option(help="Number of samples.", **_SIZE)] = 1,
    dtype: Annotated[str, typer.Option(help="float64, float32, bfloat16 or float16.")] = "float32",
    causal: Annotated[bool, typer.Option("--causal", help="Token i sees only tokens up to i.")] = False,
    mode: Annotated[str, typer.Option(help="fwd, or fwd_bwd.")] = "fwd",
    scope: Annotated[str, typer.Option(help="core, or layer (with the projections).")] = "core",
    param: Annotated[
        list[str] | None, typer.Option(help="key=value; applied to the operators that have the key.")
    ] = None,
    operators_from: Annotated[list[str] | None, typer.Option(help="A .py file or package of your own.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: CUDA where there is a GPU.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Run folder to write; default results/crossover-<time>.")] = None,
    resume: Annotated[Path | None, typer.Option(help="A search to go on with; name --operators-from again.")] = None,
    form: Annotated[str, format_option("rows", "json: one object per operator.")] = "table",
) -> None:
    """Search the crossover of operators with a baseline: a few sizes, each measured in pairs, until it is precise.

    The last line of stdout is the run folder, which `attnbench show` and `plot` read like any other. Exit code: 0; 2
    bad usage; 3 where nothing could be compared; 130 interrupted, to be gone on with by --resume.

    Example: attnbench crossover linear_transformer performer --baseline softmax --low 64 --high 65536 --precision 10%
    """
    from attnbench.measure.platforms import check_can_measure

    check_can_measure("crossover")
    from attnbench.commands._standard_streams import lost
    from attnbench.measure.open_run import begin, device_for
    from attnbench.measure.stored_search import name_sizes, write_request
    from attnbench.plan import suite as suites
    from attnbench.plan.cells import cells
    from attnbench.plan.search_request import SearchRequest, clock_column, suite_text

    if resume is not None:
        request, session = _go_on(resume, device, operators_from or [], context)
        templates = _templates(session.plan.cells, request.names())
    else:
        request = SearchRequest(
            tuple(operator or ()), baseline, axis, *_range(low, high), _precision(precision), clock_column(metric)
        )
        shape = {"batch": batch, "heads": heads, "channels": channels, "dtype": dtype, "causal": causal}
        text = suite_text(request, shape, seq_len, mode, scope, param or [], operators_from or [])
        suite = suites.from_text(text, "the command line", Path.cwd())
        templates = _templates(cells(suite), request.names())
        session = begin(suite, device_for(suite.where, suite.impls, device), out)
        write_request(request, session.journal.folder)
    searches, code = _run(request, session, templates)
    folder = session.journal.folder
    name_sizes(request, folder, session.journal.visits)
    session.journal.close()
    rows = [_row(each, request.baseline, request.axis) for each in searches]
    listing = Listing(rows, [_glance(row) for row in rows], numbers=("sizes",), sentences=("ended",))
    formats.show("rows", listing, form, folder)
    if lost():
        print(f"the results are in {folder}; show them with: attnbench show {folder}", file=sys.stderr)
    if code:
        print(f"what was measured is kept; go on with: attnbench crossover --resume {folder}", file=sys.stderr)
    if code or not any(row["kind"] != "nothing" for row in rows):
        raise typer.Exit(code or 3)


def _range(low: int, high: int) -> tuple[int, int]:
    from attnbench.errors import BadInput

    if not 0 < low < high:
        raise BadInput(f"--low {low} --high {high}: allowed: 0 < low < high. Give a larger --high.")
    return low, high


def _precision(text: str) -> float:
    from attnbench.errors import BadInput
    from attnbench.units import fraction

    try:
        return fraction(0.005, 1.0)(text)
    except ValueError as error:
        raise BadInput(f"--precision: {error}. Give such a percentage.") from None


def _go_on(
    folder: Path, device: str, operators_from: Sequence[str], context: typer.Context
) -> tuple[SearchRequest, Session]:
    """A stored search, with its journal open. Raises BadInput where anything else is asked of it."""
    from attnbench.errors import BadInput
    from attnbench.measure.open_run import go_on, stored_search
    from attnbench.measure.stored_search import name_sizes, read_request
    from attnbench.store.reading import read_visits

    alone = ("resume", "device", "form", "operators_from")
    more = [
        "OP" if name == "operator" else f"--{name.replace('_', '-')}"
        for name, value in context.params.items()
        if value and name not in alone and str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    ]
    if more:
        raise BadInput(f"--resume {folder}: the search goes on with what it was asked. Leave out {', '.join(more)}.")
    request = read_request(folder)
    stored_search(folder, operators_from)
    name_sizes(request, folder, read_visits(folder))  # a killed search had no time to
    return request, go_on(stored_search(folder, operators_from), device, folder)


def _templates(cells: Sequence[Cell], names: Sequence[tuple[str, str]]) -> dict[str, Cell]:
    """A cell per operator:impl, the baseline's last. Raises BadInput where an operator has no such impl."""
    from attnbench.errors import BadInput

    found = {}
    for operator, impl in names:
        own = [cell for cell in cells if cell.operator == operator and impl in (cell.impl, cell.impl.split(":")[0])]
        if not own:
            raise BadInput(
                f"{operator}:{impl}: {operator} has no impl {impl}. See `attnbench list operators {operator}`."
            )
        found[f"{operator}:{impl}"] = own[0]
    return found


def _run(request: SearchRequest, session: Session, templates: dict[str, Cell]) -> tuple[list[Search], int]:
    """Runs a search per operator. Returns them with the exit code of how they ended."""
    import math
    from dataclasses import replace

    from attnbench.analysis.crossover_search import Search, search
    from attnbench.measure.crossover_probes import Probes, Unplanned
    from attnbench.measure.worker_pool import Stopped
    from attnbench.outputs._progress import progress

    base = templates[":".join(request.names()[-1])]
    series = {name: cell for name, cell in templates.items() if cell is not base}
    axis = AXES[request.axis]
    first, last = (math.prod(axis.uniform(end)) for end in (request.low, request.high))
    nearest = axis.allowed(base.problem)
    with progress() as told:
        plan = replace(session.plan, cells=())
        probes = Probes(plan, session.journal, Unplanned(told), axis, series, base, request.column)
        searches = [
            Search(name, probes, first, last, request.precision, nearest, plan.measure.rounds) for name in series
        ]
        try:
            search(searches, probes.next_round)
            probes.close()
        except KeyboardInterrupt:
            code = 130
        except Stopped as stopped:
            print(f"the search ended: {stopped}", file=sys.stderr)
            code = 3
        else:
            return searches, 0
        finally:
            probes.kill()
    for each in searches:
        each.ended = each.ended or "interrupted"
    return searches, code


def _row(each: Search, baseline: str, axis: str) -> Row:
    from dataclasses import asdict

    from attnbench.outputs._run_tables import crossover_text

    found = each.found()
    near = each.crossing()
    beyond = each.beyond
    return {
        "series": each.series,
        "baseline": baseline,
        "axis": axis,
        "kind": found.kind,
        "crossover": crossover_text(found, axis, baseline),
        "crossing": asdict(near) if near else None,
        "crossings": [asdict(crossing) for crossing in found.crossings],
        "sizes": each.sizes,
        "rounds": each.rounds,
        "one_call": {"size": beyond.size, "ratio": _ratio(beyond)} if beyond else None,
        "ended": each.ended,
        "warnings": each.warnings(),
    }


def _ratio(pair: Any) -> float | None:
    import math

    from attnbench.analysis.crossover_search import side

    gap = side(pair)
    return math.exp(gap) if gap is not None and math.isfinite(gap) else None


def _glance(row: Row) -> Row:
    one = row["one_call"]
    told = f"; one call at {one['size']}: {one['ratio']:.2f}× the baseline" if one and one["ratio"] else ""
    return {
        "series": row["series"],
        f"against {row['baseline']}": row["crossover"],
        "sizes": len(row["sizes"]),
        "ended": row["ended"] + told + "".join(f"; {text}" for text in row["warnings"]),
    }
