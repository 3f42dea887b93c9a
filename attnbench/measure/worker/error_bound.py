"""How far an impl may be from the float64 reference.

The bound on an error is twice the error that the working-dtype reference itself has against the float64 reference on
the same values, plus eps · max|truth|, and never more than CEILING · max|truth|; all of it times the factor of an
operator that states an exception. Outputs and gradients each have their own bound. In float64 there is nothing finer
to compare with, and CEILING is the bound.

At degenerate sizes (one token, one channel of a head) gradients are differences of equal terms: the truth is 0, or as
small as an operator's ε, and what is computed is the terms' rounding, which no share of the truth bounds. So a
gradient's bound has an absolute part. With cotangent c and output y, gradients are those of ℓ = Σ c_i y_i. The part of
one token and head is an inner product, computed in any order to within γ_n Σ |c_i y_i|, γ_n = nu / (1 − nu), n the
multiply-adds behind an element of y (Higham 2002, "Accuracy and Stability of Numerical Algorithms", sec. 3.1, and 3.5
for products of matrices); and each of the products stored on the way (STORED) is rounded, by eps times its size,
√Σ (c_i y_i)² for terms of either sign. A gradient of t says how much ℓ changes where t changes by as much as its root
mean square: below that error over that root nothing can be told of it. Tokens' errors in a parameter's gradient have
either sign too, and add up as the root of their number. The absolute part is at most CEILING times the terms; it is the
bound of a truth below it, and CEILING · max|truth| is never less.

torch's SDPA on a CPU has an exponential of 20 bits, whose error stands in place of eps: for impls named `sdpa`, and for
any other that is beyond its bound and is then seen to dispatch it.

Where few tokens are new, every row is a sum of about N terms of either sign, and none is a short one that would set the
scale. Added one after the other, the partial sums grow as √j, and their roundings, each of half an eps at most, to
eps · √(N/8) of the sum; the reference's products add in a better order. So twice that is allowed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.inputs import torch_dtype
from attnbench.measure.tolerance import CEILING, STORED
from attnbench.measure.worker.operations import counting
from attnbench.measure.worker.prepared_cell import Subject, cotangent
from attnbench.operator import Inputs
from attnbench.problem import Dtype, Problem


@dataclass(frozen=True)
class Terms:
    """What a gradient is the sum of: the size of its terms, and what rounding makes of them."""

    size: float
    rounding: float


NO_TERMS = Terms(0.0, 0.0)


def working_dtype(subject: Subject, problem: Problem) -> Dtype:
    """Whose bits the products have: of float32 products in TF32 as many as float16's."""
    return "float16" if problem.dtype == "float32" and subject.device.tf32() else problem.dtype


def ceiling_of(subject: Subject, problem: Problem) -> float:
    """CEILING of the products' bits."""
    return CEILING[working_dtype(subject, problem)]


def bound_of(subject: Subject, problem: Problem, reference_error: float, scale: float, terms: Terms) -> float:
    """How far an output or a gradient may be from the truth.

    Twice the reference's error plus eps · scale; at most CEILING · scale, or the terms' rounding where that is more;
    times the operator's stated factor. An error that is small by luck, where a tensor has few numbers, stands for
    √STORED roundings of its terms.

    Args:
        subject: the impl that is checked.
        problem: the sizes it is checked at.
        reference_error: of the reference in the working dtype.
        scale: the truth's largest value.
        terms: what the gradient is the sum of.
    """
    factor = subject.operator.tolerance[0] if subject.operator.tolerance else 1.0
    ceiling = max(ceiling_of(subject, problem) * scale, terms.rounding)
    eps = _eps(subject, problem)
    in_a_row = math.sqrt(problem.seq_len / 2) * _sum_eps(problem) if problem.past else 0.0
    derived = max(2 * reference_error, math.sqrt(STORED) * eps * terms.size) + (eps + in_a_row) * scale
    if scale == 0 and terms.rounding == 0:  # a truth of zeros has no scale of its own
        return factor * derived
    if problem.dtype == "float64" or scale <= terms.rounding or not math.isfinite(derived):
        return factor * ceiling
    return factor * min(derived, ceiling)


def seen_to_be_sdpa(subject: Subject, problem: Problem, inputs: Inputs) -> bool:
    """Whether an impl of another name is seen now, for the first time, to dispatch torch's SDPA: from then on its
    exponential is that of the device's SDPA, which may be less exact than a rounding."""
    named = subject.cell.impl in ("reference", "sdpa")
    if named or not subject.device.sdpa_eps or problem.dtype == "float64" or subject.precision.sdpa is not None:
        return False
    dispatched = Counter[str]()
    subject.perform(counting(subject.bind(subject.call, problem, inputs), dispatched))
    subject.precision.sdpa = any("scaled_dot_product" in name for name in dispatched)
    return subject.precision.sdpa


def _eps(subject: Subject, problem: Problem) -> float:
    eps = torch.finfo(getattr(torch, working_dtype(subject, problem))).eps
    is_sdpa = subject.cell.impl == "sdpa" or subject.precision.sdpa
    return max(eps, subject.device.sdpa_eps) if is_sdpa else eps


def terms_of(subject: Subject, problem: Problem, inputs: Inputs, output: Tensor) -> Iterator[Terms]:
    """What each gradient is the sum of; nothing in fwd. output: the truth."""
    if subject.cell.mode == "fwd":
        return
    products = (cotangent(output, torch_dtype(subject.cell.problem)) * output).abs()
    tokens = problem.batch * problem.seq_len
    size = math.sqrt(float(products.square().sum()) / (tokens * problem.heads))
    added = _gamma(subject, problem) * float(products.sum()) / (tokens * problem.heads)
    rounding = min(added + STORED * _eps(subject, problem) * size, ceiling_of(subject, problem) * size)
    for name, tensor in inputs.differentiated().items():
        typical = float(tensor.double().square().mean().sqrt()) if tensor.numel() else 0.0
        factor = (math.sqrt(tokens) if name in inputs.parameters else 1.0) / typical if typical else 0.0
        yield Terms(size * factor, rounding * factor)


def _gamma(subject: Subject, problem: Problem) -> float:
    """γ_n."""
    flops = subject.form.cost(problem, subject.cell.params, "fwd").reference_flops
    n = flops / (2 * problem.batch * problem.seq_len * problem.channels)
    u = _sum_eps(problem) / 2
    return n * u / (1 - n * u) if n * u < 1 else math.inf


def _sum_eps(problem: Problem) -> float:
    """Of the dtype in which sums are taken: half precisions are added up in float32."""
    return torch.finfo(torch.float64 if problem.dtype == "float64" else torch.float32).eps
