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
    columns=("flops", "reference_flops", "flops_counted"),
    exact=True,
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
    }
    left_out = {name: amount for name, amount in cost.uncounted.items() if amount}
    if left_out:
        named = ", ".join(f"{name} ({amount} FLOPs)" for name, amount in left_out.items())
        bench.notes.append(f"flops_counted leaves out {named}")
    if cost.reference_flops and sum(left_out.values()) == cost.reference_flops:
        return found
    counted = _counted(bench)
    if counted is None:
        bench.notes.append("flops_counted is empty: the reference does not run on fake tensors")
        return found
    found["flops_counted"] = counted
    if counted != cost.reference_flops - sum(left_out.values()):
        stated = cost.reference_flops - sum(left_out.values())
        bench.warnings.append(f"torch counted {counted} FLOPs on the reference, its cost states {stated}")
    return found


def _counted(bench: Bench) -> int | None:
    from contextlib import nullcontext

    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from attnbench.footprint import output_like, run

    cell, form = bench.subject.cell, bench.subject.form
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            inputs = form.make_inputs(cell.problem, cell.params, torch.Generator().manual_seed(0))
            cotangent = None
            if cell.mode == "fwd_bwd":
                cotangent = output_like(form.reference, cell.problem, cell.params, inputs)
            with FlopCounterMode(display=False) as counter:
                run(form.reference, cell.problem, cell.params, inputs, cotangent, within=nullcontext())
    except Exception:  # the count is one of three figures; an operator that fake tensors cannot run keeps the others
        return None
    return int(counter.get_total_flops())
