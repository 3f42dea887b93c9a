"""attnbench fleet: a suite measured by many devices, which an engine leases."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import click
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
from attnbench.measure.engines import engine_names
from attnbench.outputs import _formats as formats

PANEL = MEASURE


@grouped
def command(
    suite: Annotated[str | None, typer.Argument(help="A YAML file, or the name of a shipped suite.")] = None,
    engine: Annotated[
        str, typer.Option("--on", click_type=click.Choice(engine_names()), help="What leases the devices.")
    ] = ...,  # type: ignore[assignment]
    out: Annotated[Path | None, typer.Option(help="Folder to write; default results/<suite>-fleet-<time>.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of a fleet to continue.")] = None,
    shards: Annotated[int | None, typer.Option(help="Parts to deal the suite into; default: one per block.")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="At most so many at once; default: all.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster, HOST:PORT or auto; default: one on this machine.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE for the engine: partition=gpu for sbatch, num_cpus=4 for Ray; repeat it."),
    ] = None,
    operator: Annotated[
        list[str] | None,
        operators_option(MEASURE_ONLY),
    ] = None,
    impl: Annotated[list[str] | None, typer.Option(help=MEASURE_ONLY)] = None,
    device: Annotated[str, device_option("auto: CUDA where the engine has GPUs.")] = "auto",
    rounds: Annotated[int | None, typer.Option(help="Timed rounds, so many and no more.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time for measuring on all devices at once, such as 5m; default: the suite's.")
    ] = None,
    form: Annotated[str, format_option("run", "How results are printed.")] = "table",
    *,
    shown: ShownOptions,
) -> None:
    """Measure a suite on many devices that Ray or Slurm lease.

    The suite is dealt into shards. An engine leases a device for each and starts `attnbench run --shard` there: ray on
    a cluster or on this machine, slurm as a job array. What is measured comes into one folder, a shard that is lost is
    measured again, and --resume measures only what is missing. At the end the folder is a run of all of them.

    Exit code: as attnbench run; 1 too where shards are missing; 2 where they cannot be joined. The last line of stdout
    is the folder; of stderr where the format is one document for another tool.

    Example: attnbench fleet sequence --on ray --address auto
    """
    from attnbench.measure.platforms import check_can_measure

    check_can_measure("fleet")
    from attnbench.measure.fleet import FleetRequest, measure
    from attnbench.outputs._progress import progress
    from attnbench.plan import suite as suites
    from attnbench.units import count

    shown.check()
    request = FleetRequest(
        suite=suites.load(suite) if suite is not None else None,
        engine=engine,
        out=out,
        resume=resume,
        shards=shards,
        devices=devices,
        address=address,
        options=option or (),
        operators=operator or (),
        impls=impl or (),
        rounds=rounds,
        budget=budget,
        device=device,
    )
    with progress() as live:
        ended = measure(request, live)
    for text in ended.notes:
        print(text, file=sys.stderr)
    if ended.refused:
        print(f"attnbench: the shards are not joined: {ended.refused}", file=sys.stderr)
    if ended.joined:
        shown.show(ended.folder, form)
    else:
        formats.tell(ended.folder, form)
    again = shlex.join(["attnbench", "fleet", *named_again(request), "--on", engine, "--resume", str(ended.folder)])
    if ended.missing:
        print(
            f"{count(ended.missing, 'shard')} to be measured; what was measured is kept; continue with: {again}",
            file=sys.stderr,
        )
    elif ended.cut:
        left = f"the budget left out a part of {count(ended.cut, 'shard')}"
        print(f"{left}; measure it with: {again} --budget {budget or 'TIME'}", file=sys.stderr)
    raise typer.Exit(ended.exit_code)
