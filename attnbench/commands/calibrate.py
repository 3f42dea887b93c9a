"""attnbench calibrate: what is installed against itself, to know what this machine can see."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnbench.commands._options import device_option, format_option
from attnbench.outputs import _formats as formats


def command(
    suite: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped suite.")],
    pairs: Annotated[int, typer.Option(help="Pairs of processes.", min=3)] = 8,
    device: Annotated[str, device_option()] = "auto",
    out: Annotated[Path | None, typer.Option(help="File to write; default results/noise/<suite>.json.")] = None,
    form: Annotated[str, format_option("rows", "How it is printed.")] = "table",
) -> None:
    """Measure the noise of this machine, and the smallest change that `attnbench gate` can see on it.

    noise: standard deviation of one pair's ratio. visible: the smallest slow-down found with 80 % power in the pairs
    that the gate would plan. threshold: the suite's. seen: whether a slow-down of the threshold is visible; empty
    where there is no threshold.

    Example: attnbench calibrate suites/ci.yaml
    """
    from attnbench.measure.platforms import check_can_measure

    check_can_measure("calibrate")
    from attnbench.analysis.compare.noise import default_path
    from attnbench.analysis.compare.noise import write as store
    from attnbench.analysis.compare.visible import visibility
    from attnbench.files import check_place
    from attnbench.measure.calibration import calibrate
    from attnbench.outputs._listings import visible_changes
    from attnbench.outputs._progress import log
    from attnbench.plan import suite as suites
    from attnbench.plan.gate_thresholds import effective
    from attnbench.units import count

    chosen = suites.load(suite)
    path = out or default_path(chosen.name)
    check_place(path, "--out")
    calibration = calibrate(chosen, device, pairs, log)
    if calibration is None:
        log("nothing was measured")
        raise typer.Exit(3)
    store(path, calibration)
    visible = visibility(calibration.noise, effective(chosen.gate))
    formats.show("rows", visible_changes(visible), form)
    once, twice = visible.once, visible.twice
    log(
        f"shared by all cells of a pair: {calibration.noise.shared:.1%}; {count(visible.pairs, 'pair')} per stage find "
        f"{once.effect:.1%} with {once.power:.0%} and {twice.effect:.1%} with {twice.power:.0%}"
    )
    if blind := sum(change.seen is False for change in visible.changes):
        log(f"{count(blind, 'cell')} with a threshold below what is visible: raise it")
    log(f"stored in {path}")
