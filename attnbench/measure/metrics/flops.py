"""Analytic FLOPs of the definition, beside what the reference executes and what torch counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.metric import Executed, Metric

if TYPE_CHECKING:
    from attnbench.measure.worker.visit import Bench

METRIC = Metric(
    column="flops",
    columns={
        "flops": int,
        "reference_flops": int,
        "flops_counted": int,
        "flops_uncounted": int,
        "impl_flops": int,
        "bytes_required": int,
        "bytes_moved": int,
    },
    unit="flop",
    meaning="Analytic FLOPs of the definition, beside what the reference executes and what torch counted.",
    title="FLOPs (analytic)",
    label="FLOPs",
    place=4,
    exact=True,
    guarded=("reference_flops", "flops_counted"),
    analytic=True,
    least="cheapest",
    growth="time",
    executed=Executed(stated="reference_flops", counted="flops_counted", uncounted="flops_uncounted"),
    csv_place=3,
    csv_later=("flops_uncounted", "impl_flops", "bytes_moved"),
)


def check(bench: Bench) -> dict[str, float | int]:
    """From `cost`, and from torch's FlopCounterMode on the reference, run on fake tensors.

    What torch cannot count is stored beside it and named in the visit's reason; where it counts nothing because it can
    count nothing of the reference, flops_counted stays empty.
    """
    subject = bench.subject
    cell = subject.cell
    cost = subject.form.cost(cell.problem, cell.params, cell.mode)
    left_out = {name: amount for name, amount in cost.uncounted.items() if amount}
    uncounted = sum(left_out.values())
    figures: dict[str, float | int] = {
        "flops": cost.flops,
        "reference_flops": cost.reference_flops,
        "flops_uncounted": uncounted,
        "bytes_required": cost.bytes_required,
        "bytes_moved": cost.bytes_moved,
    }
    impl = subject.form.impls.get(cell.impl)
    if impl is not None and impl.flops is not None:  # a cheaper exact form
        figures["impl_flops"] = impl.flops(cell.problem, cell.params, cell.mode)
    if left_out:
        named = ", ".join(f"{name} ({amount} FLOPs)" for name, amount in left_out.items())
        bench.notes.append(f"flops_counted leaves out {named}")
    counted = subject.forecast.flops_counted
    if not counted and cost.reference_flops and uncounted == cost.reference_flops:
        return figures
    if counted is None:
        bench.notes.append("flops_counted is empty: the reference does not run on fake tensors")
        return figures
    figures["flops_counted"] = counted
    stated = cost.reference_flops - uncounted
    if counted != stated:
        bench.warnings.append(f"torch counted {counted} FLOPs on the reference, its cost states {stated}")
    return figures
