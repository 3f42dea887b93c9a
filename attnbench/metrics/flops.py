"""Analytic FLOPs of the definition, beside what the reference executes and what torch counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.metric import Metric

if TYPE_CHECKING:
    from attnbench.subject import Bench

METRIC = Metric(
    column="flops",
    unit="flop",
    meaning="Analytic FLOPs of the definition, beside what the reference executes and what torch counted.",
    columns=("flops", "reference_flops", "flops_counted", "passes"),
    exact=True,
    least="cheapest",
)


def scout(bench: Bench) -> dict[str, float | int]:
    """From `cost`, and from torch's FlopCounterMode on the reference, run on fake tensors.

    What torch cannot count is named in the visit's reason; where it counts nothing although the reference has
    products, flops_counted stays empty.
    """
    subject = bench.subject
    cell = subject.cell
    cost = subject.form.cost(cell.problem, cell.params, cell.mode)
    found: dict[str, float | int] = {
        "flops": cost.flops,
        "reference_flops": cost.reference_flops,
        "bytes_required": cost.bytes_required,
        "passes": cost.passes,
    }
    left_out = {name: amount for name, amount in cost.uncounted.items() if amount}
    if left_out:
        named = ", ".join(f"{name} ({amount} FLOPs)" for name, amount in left_out.items())
        bench.notes.append(f"flops_counted leaves out {named}")
    if cost.reference_flops and sum(left_out.values()) == cost.reference_flops:
        return found
    counted = subject.foreseen.flops_counted
    if counted is None:
        bench.notes.append("flops_counted is empty: the reference does not run on fake tensors")
        return found
    found["flops_counted"] = counted
    if counted != cost.reference_flops - sum(left_out.values()):
        stated = cost.reference_flops - sum(left_out.values())
        bench.warnings.append(f"torch counted {counted} FLOPs on the reference, its cost states {stated}")
    return found
