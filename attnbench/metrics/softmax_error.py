"""How far the operator is from the exact map it estimates: relative root mean square of the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.metric import Metric

if TYPE_CHECKING:
    from attnbench.subject import Bench

METRIC = Metric(
    column="softmax_error",
    unit="",
    meaning="Relative root mean square difference from the exact map it estimates; empty where it estimates none.",
    columns=("softmax_error",),
    exact=False,
    comparable=False,
)


def scout(bench: Bench) -> dict[str, float | int]:
    """The forward output in the working dtype against the exact map in float64, on the first set, where affordable."""
    import torch

    from attnbench.check import affordable
    from attnbench.subject import as_dtype

    subject = bench.subject
    cell, problem = subject.cell, subject.cell.problem
    exact = subject.operator.estimates(cell.params) if cell.scope == "core" else None
    if exact is None or not affordable(subject, 4.0 * problem.batch * problem.seq_len**2 * problem.channels):
        return {}
    inputs = subject.sets[0]
    with subject.spent.inside(), torch.inference_mode():
        ours = subject.call(problem, cell.params, **inputs.tensors()).double()
        truth = exact(problem.with_dtype("float64"), cell.params, **as_dtype(inputs, torch.float64).tensors())
        return {"softmax_error": float((ours - truth).norm() / truth.norm())}
