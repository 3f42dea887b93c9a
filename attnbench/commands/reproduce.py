"""attnbench reproduce: what papers claim of cost beside ours; measured where that is asked for."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.commands._options import DECIDE, device_option, format_option
from attnbench.outputs import _formats as formats

if TYPE_CHECKING:
    from attnbench.analysis.claims import Paper

PANEL = DECIDE


def command(
    paper: Annotated[
        list[str] | None, typer.Argument(help="Names of papers; default: all.", metavar="[PAPER]...")
    ] = None,
    explain: Annotated[
        list[str] | None,
        typer.Option(help="A claim's id, such as H2: its source, expressions and commands.", show_default=False),
    ] = None,
    brief: Annotated[bool, typer.Option("--brief", help="One row a paper.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the claims of time here first.")] = False,
    budget: Annotated[str | None, typer.Option(help="Time for --measure, of all suites together: 15m.")] = None,
    device: Annotated[str, device_option()] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the runs of --measure; runs in it are continued.")
    ] = None,
    runs: Annotated[
        Path | None, typer.Option(help="Folder of stored runs; default, in a checkout: results/reference/papers.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Also draw our curves over the papers' axes, into this folder.")
    ] = None,
    form: Annotated[
        str,
        format_option("claims", "json: one object per number. html: a page, with our curves over the papers' axes."),
    ] = "table",
) -> None:
    """Hold the cost claims of papers against ours.

    A claim is reproduced, or differs. Counts are exact: they reproduce where they round to the printed digits, else the
    terms between both are shown. Memory is from shapes. Claims of time are held against stored runs, or measured first
    with --measure: their rule stands beside them, and an interval that crosses its limit is not decided. What needs a
    network, data or another machine is not testable here.

    Exit code 1 where a number that was read, and was reproduced when its file was written, no longer is; never by a
    claim of time.

    Example: attnbench reproduce hamburger --explain H2

    Example: attnbench reproduce kanets --measure --budget 2m

    Example: attnbench reproduce --format html > papers.html
    """
    from attnbench.analysis.reproduction import Detail, Reproduction
    from attnbench.measure.paper_figures import drawn_figures
    from attnbench.measure.paper_runs import check_options
    from attnbench.measure.papers import papers
    from attnbench.measure.reproduce import claims_named, commands, reproduce
    from attnbench.measure.timed_claims import check_any_used, stored_times

    check_options(measure=measure, budget=budget, out=out, runs=runs)
    if pictures is not None:
        from attnbench.outputs import _paper_pictures

        _paper_pictures.check()
    every, code = papers(paper or ()), 0
    chosen = claims_named(every, explain or ())
    if measure:
        runs, code = _measure(chosen, out, device, budget)
    times = stored_times(runs)
    results = reproduce(chosen, times)
    if not measure:
        check_any_used(runs, times, [result.timing for result in results if result.timing])
    detail: Detail = "brief" if brief else "explained" if explain else "claims"
    formats.show("claims", Reproduction(results, commands(results), detail, lambda: drawn_figures(every, times)), form)
    if pictures is not None:
        _paper_pictures.draw(drawn_figures(every, times), pictures)
    if code or any(result.lost for result in results):
        raise typer.Exit(code or 1)


def _measure(chosen: list[Paper], out: Path | None, device: str, budget: str | None) -> tuple[Path, int]:
    """Measures the suites of some papers. Returns the folder of their runs, and 130 where that was interrupted."""
    from attnbench.measure.paper_runs import BUDGET, paper_runs, suites_of
    from attnbench.measure.platforms import check_can_measure
    from attnbench.measure.run_request import measure
    from attnbench.measure.worker_pool import lasting_workers
    from attnbench.outputs._progress import progress

    check_can_measure("reproduce --measure")
    folder, every = paper_runs(suites_of(chosen), out, device, budget or BUDGET)
    warned: set[str] = set()

    def warn(text: str) -> None:
        if text not in warned:
            print(f"warning: {text}", file=sys.stderr)
        warned.add(text)

    with lasting_workers() as lasting:
        for each in every:
            begun = time.monotonic()
            if each.request is None:
                print(f"{each.name}: the budget does not reach it", file=sys.stderr)
                continue
            print(f"{each.name}: {each.folder}", file=sys.stderr)
            with progress() as live:
                session = each.request.open(warn)
                try:
                    ended = measure(session, live, begun, lasting(session.plan))
                except KeyboardInterrupt:
                    print(f"what was measured is kept; the same command with --out {folder} continues", file=sys.stderr)
                    return folder, 130
            if ended is not None:
                print(f"the run ended: {ended}", file=sys.stderr)
    print(f"the runs are in {folder}; show them again with: --runs {folder}", file=sys.stderr)
    return folder, 0
