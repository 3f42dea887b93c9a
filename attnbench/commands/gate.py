"""attnbench gate: has a change made anything worse? Both revisions measured in turns, decided by a fixed plan."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from attnbench.commands._options import format_option
from attnbench.outputs import _formats as formats

if TYPE_CHECKING:
    from attnbench.analysis.compare.findings import Comparison
    from attnbench.measure.gate_pairs import Only
    from attnbench.plan.suite import Suite
    from attnbench.thresholds import Gate


def command(
    suite: Annotated[str, typer.Argument(help="A YAML file in the repository, or a shipped suite's name.")],
    base: Annotated[str | None, typer.Option(help="The revision to compare with, such as origin/main.")] = None,
    head: Annotated[str | None, typer.Option(help="The candidate; default: the working tree as it is.")] = None,
    against: Annotated[Path | None, typer.Option(help="A stored run to compare with, in place of --base.")] = None,
    tier: Annotated[
        Literal["0", "1"], typer.Option(help="0: exact figures alone. 1: then time, in pairs of processes.")
    ] = "1",
    pairs: Annotated[
        int | None, typer.Option(help="Pairs per stage, in place of the power calculation.", min=2)
    ] = None,
    fail_on: Annotated[list[str] | None, typer.Option(help="metric:5%, in place of the suite's `gate:`.")] = None,
    operator: Annotated[list[str] | None, typer.Option(help="Only these; repeat it or use commas.")] = None,
    impl: Annotated[list[str] | None, typer.Option(help="Only these; repeat it or use commas.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: CUDA where there is a GPU.")] = "auto",
    noise: Annotated[
        Path | None, typer.Option(help="What calibrate stored; default results/noise/<suite>.json.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default results/gate-<suite>-<time>.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write Markdown here as well (a step summary).")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here as well.")] = None,
    form: Annotated[str, format_option("comparisons", "How the decision is printed.")] = "table",
) -> None:
    """Decide whether a change makes anything worse.

    Tier 0 compares FLOPs, peak memory, status and how memory grows, exactly; operations are noted, and gated only
    where the suite or --fail-on names them. Tier 1 measures both revisions in turns in several pairs of fresh
    processes, whatever tier 0 found, and confirms what looks slower once more.

    Each side measures its own suite: what only the base has is gone, what only the candidate has is new.

    Exit code: 0 pass; 1 regression; 2 cannot compare or bad usage; 3 undecided, gone or nothing measured.

    Example: attnbench gate suites/ci.yaml --base origin/main
    """
    from attnbench.measure.platforms import check_can_measure

    check_can_measure("gate")
    from attnbench.commands.compare import thresholds
    from attnbench.errors import BadInput
    from attnbench.files import check_place
    from attnbench.measure.runner import Stopped
    from attnbench.outputs import junit as xml
    from attnbench.outputs import markdown
    from attnbench.outputs._comparison import store
    from attnbench.plan import suite as suites

    if (base is None) == (against is None):
        raise BadInput("the gate needs --base REV (a git revision) or --against RUN (a stored run), one of the two.")
    for option, path in (("--report", report), ("--junit", junit)):
        if path is not None:
            check_place(path, option)
    asked = thresholds(fail_on) if fail_on else None
    only = (operator or (), impl or ())
    try:
        if against is not None:
            chosen = suites.override(suites.load(suite), operators=only[0], impls=only[1])
            folder = out or _default_folder(chosen.name)
            found = _against(chosen, asked or effective(chosen.gate), device, against, folder, only)
        else:
            assert base is not None
            file = suites.find(suite)
            found, folder = _revisions(file, only, asked, device, (base, head), int(tier), pairs, noise, out)
    except Stopped as stopped:
        raise BadInput(f"the gate cannot compare: {stopped}.") from None
    store(folder, found)
    if report is not None:
        _append(report, markdown.comparisons([found]))
    if junit is not None:
        _write(junit, xml.comparisons([found]))
    formats.show("comparisons", [found], form)
    print(f"{folder}", file=sys.stderr)
    raise typer.Exit(found.exit_code)


def effective(gate: Gate) -> Gate:
    """A suite's thresholds; where it has none, 5 % of wall_time."""
    from attnbench.thresholds import Gate

    return gate if gate.thresholds or gate.overrides else Gate({"wall_time": 0.05})


def _default_folder(suite: str) -> Path:
    return Path("results") / f"gate-{suite}-{time.strftime('%Y%m%d-%H%M%S')}"


def tell(text: str) -> None:
    """Progress, apart from the decision."""
    print(text, file=sys.stderr, flush=True)


def _against(suite: Suite, gate: Gate, device: str, baseline: Path, folder: Path, only: Only) -> Comparison:
    from attnbench.analysis.run import read_run
    from attnbench.measure.gate_pairs import against_stored

    stored = read_run(baseline)
    wanted = str(stored.environment.get("device", "cpu")) if device == "auto" else device
    return against_stored(suite, stored, gate, wanted, folder, tell, only)


def _revisions(
    file: Path,
    only: Only,
    asked: Gate | None,
    device: str,
    revisions: tuple[str, str | None],
    tier: int,
    pairs: int | None,
    noise: Path | None,
    out: Path | None,
) -> tuple[Comparison, Path]:
    """file: the suite. only: the command line's operators and impls. asked: its thresholds. Returns the decision and
    the folder with both runs."""
    from dataclasses import replace

    from attnbench.analysis.compare.findings import by_importance, names
    from attnbench.analysis.compare.noise import default_path, noise_for
    from attnbench.analysis.run import read_run
    from attnbench.measure.gate_pairs import UNTIMED, expand_both, loosened, side, tier0, tier1, timed_twins
    from attnbench.measure.git_worktrees import checkouts
    from attnbench.measure.open_run import assembled, device_for, machine
    from attnbench.plan.plan import order_seed

    with checkouts(file, *revisions) as sides:
        suites, notes = expand_both(sides, file, only)
        gate = effective(suites[1].gate) if asked is None else asked
        if asked is None:
            notes += loosened(effective(suites[0].gate), gate)
        folder = out or _default_folder(suites[1].name)
        here = machine(device_for(str(file), suites[1].impls, device))
        measured_noise, said = noise_for(noise or default_path(suites[1].name), here, asked=noise is not None)
        told = [{**here, **suite.definitions, "seed": order_seed(suites[1].text)} for suite in suites]
        plans = [
            assembled(suite.cells, suites[1].measure, suites[1].limits, environment)
            for suite, environment in zip(suites, told, strict=True)
        ]
        with (
            side(plans[0], suites[0].text, told[0], folder / "base", sides[0], tell) as before,
            side(plans[1], suites[1].text, told[1], folder / "head", sides[1], tell) as after,
        ):
            for runner in (before, after):
                runner.check()
            tree = " (the working tree)" if revisions[1] is None else ""
            notes = [f"{sides[0]}, {sides[1]}{tree}", *notes]
            found = tier0(read_run(folder / "base"), read_run(folder / "head"), gate, notes)
            if tier == 0:
                return replace(found, notes=(*found.notes, UNTIMED)), folder
            tell(said)
            timed, more = tier1((before, after), timed_twins((before, after), told), gate, measured_noise, pairs, tell)
        runs = read_run(folder / "base"), read_run(folder / "head")
        named = names(runs[1].results)
        timed = [replace(f, name=named.get(f.subject, f.name)) for f in timed]
        findings = by_importance([*tier0(*runs, gate).findings, *timed])
        return replace(found, findings=findings, notes=(*found.notes, said, *more)), folder


def _write(path: Path, text: str) -> None:
    from attnbench.files import storing

    with storing(path.parent):
        path.write_text(text, encoding="utf-8")


def _append(path: Path, text: str) -> None:
    from attnbench.files import storing

    with storing(path.parent), path.open("a", encoding="utf-8") as file:
        file.write(text)
