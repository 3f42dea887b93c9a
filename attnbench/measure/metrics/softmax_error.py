"""How far an estimate of softmax attention is from it, as the attention concentrates.

Every operator is given the same q, k, v ~ N(0, 1), q and k each times the root of the logit scale, so that the logits
qᵀk / √D have the scale as their standard deviation; D is another number where an operator's q and k have other channels
than v. Beside it stands the error of answering the mean of v (causal: of the v so far), which is softmax attention at
scale 0: an estimate that does no better has learnt nothing of q and k.
"""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING

from attnbench.metric import Curve, Metric

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.measure.worker.visit import Bench

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)

ROWS = 64
"""Queries, evenly spaced, at which outputs are compared: the truth of all of them would cost N²."""

SEED = 7
"""Of q, k and v, whatever the operator."""

LARGEST = 1e9
"""A larger error is that of a denominator of about 0, and is left empty."""

COLUMNS = (*(f"softmax_error_at_{s:g}" for s in SCALES), *(f"mean_error_at_{s:g}" for s in SCALES))

METRIC = Metric(
    column="softmax_error_at_1",
    columns=dict.fromkeys(COLUMNS, float),
    unit="",
    meaning="Relative RMS error against softmax attention of the same q, k, v, by the logits' standard deviation.",
    title="Error against softmax attention",
    comparable=False,
    of_estimates=True,
    csv_place=8,
    csv_later=COLUMNS,
    curve=Curve(
        over="logit scale",
        columns={f"{s:g}": f"softmax_error_at_{s:g}" for s in SCALES},
        main="1",
        beside_name="the mean of v",
        beside={f"{s:g}": f"mean_error_at_{s:g}" for s in SCALES},
    ),
)


def check(bench: Bench) -> dict[str, float | int]:
    """The forward output in the working dtype against float64, where affordable and where q, k and v are all there is
    (a gate, for instance, makes it another function)."""
    import torch

    from attnbench.inputs import normal
    from attnbench.measure.worker.correctness import affordable

    subject = bench.subject
    cell, problem, first = subject.cell, subject.cell.problem, subject.sets[0]
    if (
        problem.past
        or cell.scope != "core"
        or subject.operator.estimates(cell.params) is None
        or set(first.data) != {"q", "k", "v"}
    ):
        return {}
    rows = torch.linspace(0, problem.seq_len - 1, min(ROWS, problem.seq_len), device=first.data["q"].device).long()
    truth_flops = 4 * problem.batch * len(rows) * problem.seq_len * problem.channels
    reference_flops = subject.form.cost(problem, cell.params, "fwd").reference_flops
    if not affordable(subject, float(len(SCALES) * (reference_flops + truth_flops))):
        return {}
    generator = torch.Generator(device=subject.device.type).manual_seed(SEED)
    drawn = {name: normal(problem, generator, *first.data[name].shape) for name in ("q", "k", "v")}
    errors: dict[str, float | int] = {}
    with subject.spent.inside(), torch.inference_mode():
        for scale in SCALES:
            q, k, v = drawn["q"] * scale**0.5, drawn["k"] * scale**0.5, drawn["v"]
            inputs = replace(first, data={"q": q, "k": k, "v": v})
            ours = subject.call(problem, cell.params, **inputs.tensors())[:, :, rows]
            truth = attention(q, k, v, rows, causal=problem.causal)
            mean = attention(0 * q, k, v, rows, causal=problem.causal)
            errors[f"softmax_error_at_{scale:g}"] = error(ours, truth)
            errors[f"mean_error_at_{scale:g}"] = error(mean, truth)
    finite = {name: value for name, value in errors.items() if isfinite(value) and value < LARGEST}
    if len(finite) < len(errors):
        bench.notes.append(f"no finite {', '.join(sorted(errors.keys() - finite.keys()))}")
    return finite


def attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, *, causal: bool) -> Tensor:
    """Softmax attention in float64 at some queries: [B, H, R, D]."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = q[:, :, rows].double(), k.double(), v.double()
    mask = torch.arange(k.shape[-2], device=rows.device) <= rows.unsqueeze(-1) if causal else None
    return scaled_dot_product_attention(q, k, v, mask, enable_gqa=k.shape[1] < q.shape[1])


def error(ours: Tensor, truth: Tensor) -> float:
    """Relative root mean square of the difference."""
    return float((ours.double() - truth).norm() / truth.norm())
