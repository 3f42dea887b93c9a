"""attnbench run: measures a suite into a run folder, and shows what came out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.commands._options import device_option, format_option
from attnbench.outputs import _formats as formats

if TYPE_CHECKING:
    from attnbench.measure.open_run import Session
    from attnbench.measure.outlook import Outlook
    from attnbench.plan.plan import Plan


def command(
    suite: Annotated[str | None, typer.Argument(help="A YAML file, or the name of a shipped suite.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default results/<suite>-<time>.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of a run to continue.")] = None,
    operator: Annotated[list[str] | None, typer.Option(help="Only these; repeat it or use commas.")] = None,
    impl: Annotated[list[str] | None, typer.Option(help="Only these; repeat it or use commas.")] = None,
    device: Annotated[str, device_option()] = "auto",
    rounds: Annotated[int | None, typer.Option(help="Timed rounds, so many and no more.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for this command, such as 5m.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells, what is skipped, and the time expected; run none.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse to run while others use the GPU.")] = False,
    form: Annotated[str, format_option("run", "How results are printed.")] = "table",
) -> None:
    """Measure a suite: check every cell, take its memory and FLOPs, then its time in as many rounds as crossovers need.

    Exit code: 0 only ok and skipped; 1 any wrong, crashed, error, timeout or oom; 2 bad usage; 3 nothing measured;
    130 interrupted. The last line of stdout is the run folder.

    Example: attnbench run quick --device cpu
    """
    from attnbench.measure.platforms import check_can_measure

    check_can_measure("run")
    from attnbench.errors import BadInput
    from attnbench.measure import open_run as sessions
    from attnbench.measure.device import choose_device
    from attnbench.plan import suite as suites

    begun = time.monotonic()
    if resume is not None and out is not None:
        raise BadInput("--resume and --out: a run continues in its own folder. Give one of the two.")
    if suite is None and resume is None:
        raise BadInput("no SUITE was given. `attnbench list suites` shows those that come with attnbench.")
    chosen = suites.load(suite) if suite is not None else sessions.stored_suite(resume or Path())
    own_budget = budget if resume is None else None
    chosen = suites.override(chosen, operators=operator or (), impls=impl or (), rounds=rounds, budget=own_budget)
    if resume is not None and budget is not None:
        chosen = suites.with_budget(chosen, budget)
    on = choose_device(device) if resume is not None else sessions.device_for(chosen.where, chosen.impls, device)
    if dry_run:
        _list(sessions.plan_of(chosen, on)[0], form)
        return
    users = sessions.other_users(on)
    if strict and users:
        raise BadInput(f"--strict: {users[0]}. See to that, or run without --strict.")
    for text in [*users, *sessions.disturbances()]:
        print(f"warning: {text}", file=sys.stderr)
    session = sessions.begin(chosen, on, out) if resume is None else sessions.resume(chosen, device, resume)
    if not session.environment.get("rates"):
        print("note: this machine's rates are not measured: the budget is too short, or it failed", file=sys.stderr)
    raise typer.Exit(_measure(session, form, begun))


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
    from attnbench.outputs._progress import duration
    from attnbench.plan.time_budget import CALL_BY_ROOFLINE
    from attnbench.units import count

    first, *later = stops(plan.measure)
    visits = count(len(plan.cells) * (1 + first), "visit")
    yield f"{count(len(plan.cells), 'cell')}, {visits} at most; no cell was measured, nothing written"
    if later:
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


def _measure(session: Session, form: str, begun: float) -> int:
    """Runs the session and shows its results. Returns the exit code."""
    from attnbench.commands._standard_streams import lost
    from attnbench.measure.runner import Runner, Stopped, exit_code
    from attnbench.outputs._progress import progress

    folder = session.journal.folder
    code: int | None = None
    try:
        with progress() as shown:
            Runner(session.plan, session.journal, shown, begun=begun).run()
    except KeyboardInterrupt:
        code = 130
    except Stopped as stopped:
        print(f"the run ended: {stopped}", file=sys.stderr)
        code = exit_code(session.journal.visits) or 1
    finally:
        session.journal.close()
    _show(folder, form)
    if lost():
        print(f"the results are in {folder}; show them with: attnbench show {folder}", file=sys.stderr)
    if code is not None:
        print(f"what was measured is kept; continue with: attnbench run --resume {folder}", file=sys.stderr)
    return exit_code(session.journal.visits) if code is None else code


def _show(folder: Path, form: str) -> None:
    """Prints the results so far, and the folder; why they cannot be shown, where that is so."""
    from attnbench.analysis.run import read_run
    from attnbench.analysis.summary import summarise
    from attnbench.errors import BadInput

    try:
        formats.show("run", summarise(read_run(folder)), form, folder)
    except BadInput as error:
        print(f"attnbench: {error}", file=sys.stderr)
        if not formats.holds_folder(form):
            print(folder)
