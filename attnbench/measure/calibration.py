"""What is installed measured against itself, in pairs of processes: what is left between the two is noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.analysis.compare.noise import Calibration, machine_of
from attnbench.analysis.compare.tier1_paired import noise
from attnbench.errors import BadInput
from attnbench.measure.gate_pairs import Stage, both_survive, measure_pairs, table_of_pairs
from attnbench.measure.gate_sides import Log, plan_like, side
from attnbench.measure.open_run import device_for
from attnbench.measure.runner import Stopped
from attnbench.measure.scratch import scratch_folder
from attnbench.metric import DEFAULT_METRIC
from attnbench.registry import metrics

if TYPE_CHECKING:
    from attnbench.plan.suite import Suite


def calibrate(suite: Suite, device: str, pairs: int, log: Log) -> Calibration | None:
    """The noise of a suite's cells on this machine; None where no pair of processes gave a time.

    Args:
        suite: what is measured.
        device: auto, or the device to measure on.
        pairs: of processes.
        log: shows progress.

    Raises: BadInput where the measuring is stopped.
    """
    plan, environment = plan_like(suite, device_for(suite.where, suite.impls, device), None)
    with scratch_folder("calibrate") as folder:
        try:
            with (
                side(plan, suite.text, environment, folder / "one", None, log) as one,
                side(plan, suite.text, environment, folder / "two", None, log) as two,
            ):
                one.check()
                two.check()
                cells = both_survive((one, two), {})
                stage = Stage.of(cells, pairs)
                measure_pairs((one, two), cells, stage, plan.seed, log)
                table = table_of_pairs((one, two), metrics()[DEFAULT_METRIC].column, stage, cells)
        except Stopped as stopped:
            raise BadInput(f"nothing could be calibrated: {stopped}.") from None
    return None if table.empty else Calibration(noise(table), machine_of(environment), suite.name)
