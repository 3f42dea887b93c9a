"""What a causal form keeps of all N tokens to continue from: a cache, which grows with N, or a state of fixed size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.metric import Metric

if TYPE_CHECKING:
    from attnbench.measure.worker.visit import Bench

METRIC = Metric(
    column="state_bytes",
    columns={"state_bytes": int},
    unit="bytes",
    meaning="What a causal form keeps of all tokens to continue from: a cache, or a state of fixed size (analytic).",
    title="State (analytic)",
    label="state",
    place=6,
    exact=True,
    analytic=True,
    least="leanest",
)


def check(bench: Bench) -> dict[str, float | int]:
    """From `cost`; nothing where the form is not causal or cannot continue."""
    cell = bench.subject.cell
    held = bench.subject.form.cost(cell.problem, cell.params, cell.mode).state_bytes
    return {} if held is None else {"state_bytes": held}
