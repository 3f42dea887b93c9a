"""attnbench gate: has a change made anything worse? Both revisions measured in turns, until all is decided."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from attnbench import files
from attnbench.commands._options import JUDGE, MEASURE_ONLY, device_option, format_option, operators_option
from attnbench.outputs import _formats as formats

if TYPE_CHECKING:
    from attnbench.analysis.compare.findings import Comparison


PANEL = JUDGE


def command(
    suite: Annotated[str, typer.Argument(help="A YAML file in the repository, or a shipped suite's name.")],
    base: Annotated[str | None, typer.Option(help="The revision to compare with, such as origin/main.")] = None,
    head: Annotated[str | None, typer.Option(help="The candidate; default: the working tree as it is.")] = None,
    against: Annotated[Path | None, typer.Option(help="A stored run to compare with, in place of --base.")] = None,
    tier: Annotated[
        Literal["0", "1"], typer.Option(help="0: exact figures alone. 1: then time, in pairs of processes.")
    ] = "1",
    pairs: Annotated[int | None, typer.Option(help="The most pairs of processes; default 60.", min=2)] = None,
    fail_on: Annotated[list[str] | None, typer.Option(help="metric:5%, in place of the suite's `gate:`.")] = None,
    operator: Annotated[list[str] | None, operators_option(MEASURE_ONLY)] = None,
    impl: Annotated[list[str] | None, typer.Option(help=MEASURE_ONLY)] = None,
    device: Annotated[str, device_option()] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder to write; default results/gate-<suite>-<time>.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write Markdown here as well (a step summary).")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here as well.")] = None,
    sarif: Annotated[Path | None, typer.Option(help="Write SARIF here as well, for code scanning.")] = None,
    form: Annotated[str, format_option("comparisons", "How the decision is printed.")] = "table",
) -> None:
    """Decide whether a change makes anything worse, for CI.

    Tier 0 compares FLOPs, peak memory, status and how memory grows, exactly; operations are noted, and gated only
    where the suite or --fail-on names them. Tier 1, whatever tier 0 found, measures both revisions in turns in pairs
    of fresh processes, and adds pairs for the cells that are not decided: looks and error rates are fixed beforehand.

    Each side measures its own suite: what only the base has is gone, what only the candidate has is new.

    Exit code: 0 pass; 1 regression; 2 cannot compare or bad usage; 3 undecided, gone or nothing measured.

    Example: attnbench gate suites/ci.yaml --base origin/main
    """
    from attnbench.measure.platforms import check_can_measure

    check_can_measure("gate")
    from attnbench.errors import BadInput
    from attnbench.measure.gate import GateRequest, against_run, between_revisions
    from attnbench.outputs._comparison import store
    from attnbench.outputs._progress import progress
    from attnbench.plan.gate_thresholds import from_options

    if (base is None) == (against is None):
        raise BadInput("the gate needs --base REV (a git revision) or --against RUN (a stored run), one of the two.")
    for option, place in {"--report": report, "--junit": junit, "--sarif": sarif}.items():
        if place is not None:
            files.check_place(place, option)
    if out is not None:
        files.check_new_folder(out)
    only = (operator or (), impl or ())
    request = GateRequest(suite, only, from_options(fail_on), device, int(tier), pairs, out)
    try:
        with progress() as shown:
            if against is not None:
                comparison, folder = against_run(request, against, shown)
            else:
                assert base is not None
                comparison, folder = between_revisions(request, base, head, shown)
    except KeyboardInterrupt:
        print("interrupted: nothing is decided, and a gate is not continued; run it again", file=sys.stderr)
        raise
    try:
        store(folder, comparison)
        _write(comparison, report, junit, sarif)
    finally:  # a decision of minutes is not lost to a full disk
        formats.show("comparisons", [comparison], form)
        print(f"{folder}", file=sys.stderr)
    raise typer.Exit(comparison.exit_code)


def _write(comparison: Comparison, report: Path | None, junit: Path | None, sarif: Path | None) -> None:
    """The files beside the folder. report: Markdown is added to it."""
    from attnbench.outputs import junit as xml
    from attnbench.outputs import markdown
    from attnbench.outputs import sarif as alerts

    if report is not None:
        files.write_named(report, markdown.comparisons([comparison]), append=True)
    if junit is not None:
        files.write_named(junit, xml.comparisons([comparison]))
    if sarif is not None:
        files.write_named(sarif, alerts.comparisons([comparison]))
