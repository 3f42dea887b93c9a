"""attnbench gate: has a change made anything worse? Both revisions measured in turns, decided by a fixed plan."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from attnbench.analysis.finding import Comparison
    from attnbench.settings import Gate
    from attnbench.suite import Suite

Format = Literal["table", "json", "markdown", "csv", "junit"]


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
    noise: Annotated[Path | None, typer.Option(help="A noise floor; default results/noise/<suite>.json.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default results/gate-<suite>-<time>.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write Markdown here as well (a step summary).")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML here as well.")] = None,
    form: Annotated[Format, typer.Option("--format", help="How the decision is printed.")] = "table",
) -> None:
    """Decide whether a change makes anything worse.

    Tier 0 compares FLOPs, peak memory, status and how memory grows, exactly; operations are noted, and gated only
    where the suite or --fail-on names them. Tier 1 measures both revisions in turns in several pairs of fresh
    processes, whatever tier 0 found, and confirms what looks slower once more.

    Exit code: 0 pass; 1 regression; 2 cannot compare or bad usage; 3 undecided or nothing measured.

    Example: attnbench gate suites/ci.yaml --base origin/main
    """
    from attnbench.platforms import check_can_measure

    check_can_measure("gate")
    from attnbench import suite as suites
    from attnbench.commands.compare import thresholds, write
    from attnbench.errors import BadInput
    from attnbench.files import check_place
    from attnbench.gating import store
    from attnbench.outputs import comparison
    from attnbench.outputs import junit as xml
    from attnbench.runner import Stopped

    if (base is None) == (against is None):
        raise BadInput("the gate needs --base REV (a git revision) or --against RUN (a stored run), one of the two.")
    for option, path in (("--report", report), ("--junit", junit)):
        if path is not None:
            check_place(path, option)
    chosen = suites.override(suites.load(suite), operators=operator or (), impls=impl or ())
    gate = thresholds(fail_on) if fail_on else effective(chosen)
    folder = out or Path("results") / f"gate-{chosen.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        if against is not None:
            found = _against(chosen, gate, device, against, folder)
        else:
            assert base is not None
            found = _revisions(chosen, gate, device, (base, head), int(tier), pairs, noise, folder)
    except Stopped as stopped:
        raise BadInput(f"the gate cannot compare: {stopped}.") from None
    store(folder, found)
    if report is not None:
        _append(report, comparison.markdown_text(found))
    if junit is not None:
        _write(junit, xml.text(found))
    write([found], form)
    print(f"{folder}", file=sys.stderr)
    raise typer.Exit(found.exit_code)


def effective(suite: Suite) -> Gate:
    """The suite's thresholds; where it has none, 5 % of wall_time."""
    from attnbench.settings import Gate

    return suite.gate if suite.gate.thresholds or suite.gate.overrides else Gate({"wall_time": 0.05})


def tell(text: str) -> None:
    """Progress, apart from the decision."""
    print(text, file=sys.stderr, flush=True)


def _against(suite: Suite, gate: Gate, device: str, baseline: Path, folder: Path) -> Comparison:
    from attnbench.gating import against_stored
    from attnbench.record import read_run

    stored = read_run(baseline)
    wanted = str(stored.environment.get("device", "cpu")) if device == "auto" else device
    return against_stored(suite, stored, gate, wanted, folder, tell)


def _revisions(
    suite: Suite,
    gate: Gate,
    device: str,
    revisions: tuple[str, str | None],
    tier: int,
    pairs: int | None,
    noise: Path | None,
    folder: Path,
) -> Comparison:
    from dataclasses import replace

    from attnbench.analysis.finding import by_importance, names
    from attnbench.checkout import checkouts
    from attnbench.gating import UNTIMED, plan_like, side, tier0, tier1
    from attnbench.noise import default_path, floor_for
    from attnbench.record import read_run
    from attnbench.session import device_for

    place = Path(suite.where).resolve()
    with checkouts(place, suite.operators_from, *revisions) as (base, head):
        plan, environment = plan_like(suite, device_for(suite, device), None)
        floor, said = floor_for(noise or default_path(suite.name), environment, asked=noise is not None)
        with (
            side(plan, suite, environment, folder / "base", base, tell) as before,
            side(plan, suite, environment, folder / "head", head, tell) as after,
        ):
            for runner in (before, after):
                runner.scout()
            runs = (read_run(folder / "base"), read_run(folder / "head"))
            tree = " (the working tree)" if revisions[1] is None else ""
            found = tier0(*runs, gate, [f"base {base.revision[:12]}, head {head.revision[:12]}{tree}"])
            if tier == 0:
                return replace(found, notes=(*found.notes, UNTIMED))
            tell(said)
            timed, notes = tier1((before, after), gate, floor, pairs, plan.seed, tell)
        statuses = tier0(read_run(folder / "base"), read_run(folder / "head"), gate)
        named = names(read_run(folder / "head").results)
        timed = [replace(f, name=named.get(f.subject, f.name)) for f in timed]
        findings = by_importance([*statuses.findings, *timed])
        return replace(found, findings=findings, notes=(*found.notes, said, *notes))


def _write(path: Path, text: str) -> None:
    from attnbench.files import storing

    with storing(path.parent):
        path.write_text(text, encoding="utf-8")


def _append(path: Path, text: str) -> None:
    from attnbench.files import storing

    with storing(path.parent), path.open("a", encoding="utf-8") as file:
        file.write(text)
