"""attnbench run: measures a suite into a run folder, and shows what came out."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.commands._options import (
    MEASURE,
    MEASURE_ONLY,
    ShownOptions,
    device_option,
    format_option,
    grouped,
    named_again,
    operators_option,
)
from attnbench.outputs import _formats as formats

if TYPE_CHECKING:
    from attnbench.measure.outlook import Outlook
    from attnbench.measure.run_request import RunRequest
    from attnbench.plan.plan import Plan


PANEL = MEASURE


@grouped
def command(
    suite: Annotated[str | None, typer.Argument(help="A YAML file, or the name of a shipped suite.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default results/<suite>-<time>.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of a run to continue.")] = None,
    operator: Annotated[
        list[str] | None,
        operators_option(MEASURE_ONLY),
    ] = None,
    impl: Annotated[list[str] | None, typer.Option(help=MEASURE_ONLY)] = None,
    device: Annotated[str, device_option()] = "auto",
    rounds: Annotated[int | None, typer.Option(help="Timed rounds, so many and no more.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for this command, such as 5m.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells, what is skipped, and the time expected; run none.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse to run while others use the GPU.")] = False,
    shard: Annotated[
        str | None, typer.Option(metavar="K/N", help="Measure one of N parts of the suite; attnbench merge joins them.")
    ] = None,
    form: Annotated[str, format_option("run", "How results are printed.")] = "table",
    *,
    shown: ShownOptions,
) -> None:
    """Measure a suite here, then say where softmax stops paying.

    Every cell is checked, its memory and FLOPs are taken, then its time in as many rounds as crossovers need. What came
    out is said on one screen; --all prints every table.

    --shard 2/8 measures the second of eight parts: units of a block (a panel at one size) in one round, dealt alike on
    every machine, and a fixed number of rounds. It resumes as that part; attnbench merge joins all of them.

    Exit code: 0 only ok and skipped; 1 any wrong, crashed, error, timeout or oom; 2 bad usage; 3 nothing measured;
    130 interrupted. The last line of stdout is the run folder; of stderr where the format is one document for another
    tool.

    Example: attnbench run quick --device cpu
    """
    from attnbench.measure.platforms import check_can_measure

    check_can_measure("run")
    from attnbench.measure.open_run import plan_of
    from attnbench.measure.run_request import RunRequest
    from attnbench.plan import suite as suites

    begun = time.monotonic()
    shown.check()
    request = RunRequest(
        suite=suites.load(suite) if suite is not None else None,
        out=out,
        resume=resume,
        operators=operator or (),
        impls=impl or (),
        device=device,
        rounds=rounds,
        budget=budget,
        strict=strict,
        shard=shard,
    )
    if dry_run:
        _list(plan_of(*request.choose())[0], form)
        return
    raise typer.Exit(_measure(request, form, shown, begun))


def _list(plan: Plan, form: str) -> None:
    from attnbench.measure.outlook import outlook
    from attnbench.outputs import _listings as listings

    expected = outlook(plan)
    formats.show("rows", listings.planned(plan.cells, expected.skipped, expected.seconds), form)
    for line in _expectation(plan, expected):
        print(line, file=sys.stderr)


def _expectation(plan: Plan, outlook: Outlook) -> Iterator[str]:
    from collections import Counter

    from attnbench.measure.visit_log import stops
    from attnbench.plan.time_budget import CALL_BY_ROOFLINE
    from attnbench.units import count, duration

    first, *later = stops(plan.measure)
    visits = count(sum(1 + len(plan.rounds_of(cell)) for cell in plan.cells), "visit")
    yield f"{count(len(plan.cells), 'cell')}, {visits} at most; no cell was measured, nothing written"
    if later and plan.rounds_by_key is None:
        yield f"up to {count(later[-1] - first, 'round')} may be added, where crossovers need them: not in what follows"
    for reason, cells in Counter(outlook.skipped.values()).most_common():
        yield f"skipped on {plan.device}: {count(cells, 'cell')}: {reason}"
    limit = plan.limits.budget_s
    ended = "" if limit is None else f", the budget is {duration(limit)}"
    if limit is not None and limit < outlook.total_s:
        ended += f" and ends it sooner: {'large' if plan.limits.largest_first else 'small'} sizes come first"
    basis = f"a call is taken to last {CALL_BY_ROOFLINE:g} times what its FLOPs and bytes take at this machine's rates"
    if outlook.rated:
        yield f"expected: about {duration(outlook.total_s)}{ended} (an estimate: {basis})"
    else:
        yield f"expected: at least {duration(outlook.total_s)}{ended}: this machine's rates could not be measured"


def _measure(request: RunRequest, form: str, shown: ShownOptions, begun: float) -> int:
    """Runs what is requested and shows its results. Returns the exit code."""
    from attnbench.commands._standard_streams import lost
    from attnbench.measure.run_request import measure
    from attnbench.measure.runner import exit_code
    from attnbench.outputs._progress import progress

    code: int | None = None
    with progress() as live:
        session = request.open(lambda text: print(f"warning: {text}", file=sys.stderr))
        folder = session.journal.folder
        try:
            ended = measure(session, live, begun)
        except KeyboardInterrupt:
            code, ended = 130, None
    if ended is not None:
        print(f"the run ended: {ended}", file=sys.stderr)
        code = exit_code(session.journal.visits) or 1
    shown.show(folder, form)
    if lost():
        print(f"the results are in {folder}; show them with: attnbench show {folder}", file=sys.stderr)
    if code is not None:
        again = shlex.join(["attnbench", "run", *named_again(request), "--resume", str(folder)])
        print(f"what was measured is kept; continue with: {again}", file=sys.stderr)
    return exit_code(session.journal.visits) if code is None else code
