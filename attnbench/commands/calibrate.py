"""attnbench calibrate: what is installed against itself, to know what this machine can see."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from attnbench.commands._options import format_option
from attnbench.outputs import _formats as formats
from attnbench.outputs._rows import Listing, Row


def command(
    suite: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped suite.")],
    pairs: Annotated[int, typer.Option(help="Pairs of processes.", min=3)] = 8,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: CUDA where there is a GPU.")] = "auto",
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
    from attnbench.analysis.compare import tier1_paired
    from attnbench.analysis.compare.findings import readable
    from attnbench.analysis.compare.noise import Calibration, default_path, machine_of
    from attnbench.analysis.compare.noise import write as store
    from attnbench.commands.gate import effective, tell
    from attnbench.errors import BadInput
    from attnbench.files import check_place
    from attnbench.measure.gate_pairs import Stage, both_survive, measure_pairs, plan_like, side, table_of_pairs
    from attnbench.measure.open_run import device_for
    from attnbench.measure.runner import Stopped
    from attnbench.measure.scratch import scratch_folder
    from attnbench.plan import suite as suites
    from attnbench.units import count

    chosen = suites.load(suite)
    path = out or default_path(chosen.name)
    check_place(path, "--out")
    gate = effective(chosen.gate)
    plan, environment = plan_like(chosen, device_for(chosen.where, chosen.impls, device), None)
    with scratch_folder("calibrate") as folder:
        try:
            with (
                side(plan, chosen.text, environment, folder / "one", None, tell) as one,
                side(plan, chosen.text, environment, folder / "two", None, tell) as two,
            ):
                one.check()
                two.check()
                cells = both_survive((one, two), {})
                stage = Stage.of(cells, pairs)
                measure_pairs((one, two), cells, stage, plan.seed, tell)
                table = table_of_pairs((one, two), "wall_time_s", stage, cells)
        except Stopped as stopped:
            raise BadInput(f"nothing could be calibrated: {stopped}.") from None
    if table.empty:
        tell("nothing was measured")
        raise typer.Exit(3)
    measured = tier1_paired.noise(table)
    store(path, Calibration(measured, machine_of(environment), chosen.name))
    keys = [key for key in measured.own if gate.threshold("wall_time", key) is not None]
    thresholds = {key: gate.threshold("wall_time", key) or 0.05 for key in keys or measured.own}
    asked = min(thresholds.values())
    planned, once, twice = tier1_paired.pairs_for(thresholds, len(measured.own), measured)
    rows: list[Row] = []
    shown: list[Row] = []
    for key, own in sorted(measured.own.items(), key=lambda item: -item[1]):
        threshold = gate.threshold("wall_time", key)
        visible = tier1_paired.smallest_change(
            planned,
            len(measured.own),
            asked if threshold is None else threshold,
            own,
            measured.shared,
            tier1_paired.POWER,
        )
        seen = None if threshold is None else tier1_paired.is_seen(visible, threshold)
        rows.append({"cell": key, "noise": own, "visible": visible, "threshold": threshold, "seen": seen})
        text = {"noise": own, "visible": visible, "threshold": threshold}
        texts = {name: None if value is None else f"{value:.1%}" for name, value in text.items()}
        shown.append({"cell": readable(key), **texts, "seen": seen})
    formats.show("rows", Listing(rows, shown, numbers=("noise", "visible", "threshold")), form)
    blind = sum(row["seen"] is False for row in rows)
    for line in (
        f"shared by all cells of a pair: {measured.shared:.1%}; {count(planned, 'pair')} per stage find "
        f"{once.effect:.1%} with {once.power:.0%} and {twice.effect:.1%} with {twice.power:.0%}",
        *([f"{count(blind, 'cell')} with a threshold below what is visible: raise it"] if blind else []),
        f"stored in {path}",
    ):  # fmt: skip
        print(line, file=sys.stderr)
