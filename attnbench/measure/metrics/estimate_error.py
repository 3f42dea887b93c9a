"""How far an operator is from the exact map that it estimates, where that is not softmax attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.metric import Metric

if TYPE_CHECKING:
    from attnbench.measure.worker.visit import Bench

METRIC = Metric(
    column="estimate_error",
    columns={"estimate_error": float},
    unit="",
    meaning="Relative RMS error against an exact map of its own that it estimates; environment.json names the map.",
    title="Error against what is estimated",
    comparable=False,
    of_estimates=True,
    csv_place=7,
    csv_later=("estimate_error",),
)


MATRICES = 3
"""Of N×N float64 numbers for each head: the logits, the weights, and what is added to the logits."""


def check(bench: Bench) -> dict[str, float | int]:
    """The forward output in the working dtype against the exact map in float64, on the first set, where affordable."""
    import torch

    from attnbench.measure.metrics.softmax_error import error
    from attnbench.measure.worker.correctness import affordable
    from attnbench.measure.worker.prepared_cell import as_dtype

    subject = bench.subject
    cell, problem = subject.cell, subject.cell.problem
    estimated = subject.operator.estimates(cell.params) if cell.scope == "core" else None
    if estimated is None or estimated.map is None or problem.past:
        return {}
    pairs = problem.batch * problem.heads * problem.seq_len**2
    if not affordable(subject, 4.0 * pairs * problem.head_dim) or 8 * MATRICES * pairs > subject.memory_limit / 2:
        return {}
    inputs = subject.sets[0]
    with subject.spent.inside(), torch.inference_mode():
        ours = subject.call(problem, cell.params, **inputs.tensors())
        doubled = as_dtype(inputs, torch.float64).tensors()
        return {"estimate_error": error(ours, estimated.map(problem.with_dtype("float64"), cell.params, **doubled))}
