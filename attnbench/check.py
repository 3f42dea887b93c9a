"""Whether an impl computes its operator: before time is taken, and again after it.

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
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnbench.inputs import torch_dtype
from attnbench.operator import Inputs
from attnbench.problem import ITEM_BYTES, Dtype, Params, Problem
from attnbench.registry import outside_definition
from attnbench.returned import described, misfit_of_output, not_finite
from attnbench.subject import Misfit, Outputs, Subject, as_dtype, cotangent

CEILING: dict[Dtype, float] = {"float64": 1e-9, "float32": 1e-3, "float16": 5e-2, "bfloat16": 1e-1}
"""Largest error over the largest value that is ever accepted."""

AFFORDABLE_FLOPS = {"cpu": 1e10, "cuda": 2e13}
"""A reference that executes more than this is not run in float64 at the timed size: about a second on each device."""

STORED = 8
"""Products stored in the working dtype between ℓ and a gradient: an attention's six, and the norm or map before it."""

ANSWER_SLACK = 4.0
"""Sums with random signs differ by about a root mean square of the errors; this many times the largest is never."""

CPU_SDPA_EPS = 2.0**-18
"""Stands for eps in float32 SDPA on the CPU: torch's kernel there has an exponential of 20 bits (`exp_u20`), and the
error of a weight is that of an exponential and of their sum."""

ODD_SIDES = ((7, 9), (11, 13), (17, 19), (31, 33))
"""Height × width of the reduced image, tried in this order; a reduced sequence has as many tokens."""


class Wrong(Exception):
    """The impl does not compute its operator. The text says what differs, by how much, and what was allowed."""


@dataclass(frozen=True)
class Checked:
    """The worst tensor of the largest size checked: its error and bound, both over its largest value."""

    relative_error: float
    tolerance: float
    checked_seq_len: int


@dataclass(frozen=True)
class Terms:
    """What a gradient is the sum of: the size of its terms, and what rounding makes of them."""

    size: float
    rounding: float


NO_TERMS = Terms(0.0, 0.0)


def before(subject: Subject) -> Checked:
    """Checks at a reduced odd size, in float64 where the impl takes it and in the working dtype, then at the timed size
    where the float64 reference is affordable; elsewhere that outputs are finite. Raises Wrong, Misfit.
    """
    for inputs in subject.sets[:2]:
        misfit = not_finite(inputs)
        if misfit is not None:
            raise Misfit(misfit)
    own = subject.cell.impl == "reference"
    whole = affordable(subject)
    found: Checked | None = None
    reduced = reduced_problem(subject) if subject.cell.impl != "compiled" and not (own and whole) else None
    if reduced is not None:
        double = reduced.with_dtype("float64")
        if not own and double != reduced and _takes(subject, double):
            _hold(subject, double, subject.inputs(double, seed=11))
        found = _hold(subject, reduced, subject.inputs(reduced, seed=12))
    if whole:
        each = [_hold(subject, subject.cell.problem, inputs) for inputs in subject.sets[: 1 if own else 2]]
        found = max(each, key=lambda c: c.relative_error / c.tolerance if c.tolerance else 0.0)
    elif found is None:
        raise Wrong("it cannot be checked: no reduced size is defined, and the timed one is too large for float64")
    return found


def first_outputs(subject: Subject) -> list[Outputs]:
    """The outputs on each set. Raises Wrong where they are not finite, or the same for different inputs."""
    outputs = [subject.perform(call) for call in subject.calls]
    for output in outputs:
        _finite(subject, output)
    if all(torch.equal(a, b) for a, b in zip(outputs[0], outputs[1], strict=True)) and outputs[0][0].numel():
        raise Wrong("it gives the same answer for different inputs")
    return outputs


def answer(outputs: Outputs) -> float:
    """One number that any wrong value changes: the outputs, each over its largest value, summed with random signs.

    Divided by the root of the count, so that errors of some relative size move it by about as much.
    """
    total, count = 0.0, 0
    for index, tensor in enumerate(outputs):
        generator = torch.Generator(device=tensor.device).manual_seed(index)
        signs = torch.randint(0, 2, tensor.shape, generator=generator, device=tensor.device, dtype=torch.int8)
        total += float((tensor.double() * signs.mul_(2).sub_(1)).sum()) / (_largest(tensor) or 1.0)
        count += tensor.numel()
    return abs(total) / math.sqrt(max(count, 1))


def same_answers(
    subject: Subject, first: Sequence[Outputs], expected: Sequence[float], tolerance: float | None
) -> None:
    """Checks that the answers are those which the scout checked in another process. Raises Wrong."""
    allowed = ANSWER_SLACK * _allowed(subject, tolerance)
    for outputs, before in zip(first, expected, strict=False):
        if not abs(answer(outputs) - before) <= allowed:
            raise Wrong(
                f"its answer is not the one that was checked: their sums with random signs are {answer(outputs):.6g} "
                f"and {before:.6g}; allowed {allowed:.1e} apart"
            )


def _allowed(subject: Subject, tolerance: float | None) -> float:
    """What an answer may differ from another of the same inputs, over its largest value."""
    floor = 4 * torch.finfo(torch_dtype(subject.cell.problem)).eps
    return CEILING[subject.cell.problem.dtype] if tolerance is None else max(tolerance, floor)


def after(subject: Subject, first: Sequence[Outputs], tolerance: float | None) -> None:
    """Checks that calls still give `first`, and follow when the values of a set change in place. Raises Wrong.

    tolerance: the bound of the check before, over the largest value; None: CEILING.
    """
    allowed = _allowed(subject, tolerance)
    for call, expected in zip(subject.calls, first, strict=True):
        _same(subject, subject.perform(call), expected, allowed, "after timing it no longer gives its first answer")
    if _overwrite(subject.sets[0], subject.sets[1]):
        changed = subject.perform(subject.calls[0])
        _same(subject, changed, first[1], allowed, "its answer does not follow when the inputs' values change in place")


def affordable(subject: Subject, flops: float | None = None) -> bool:
    """Whether the float64 reference may run at the timed size: FLOPs (`flops` where given), and half the memory."""
    cell = subject.cell
    if flops is None:
        flops = subject.form.cost(cell.problem, cell.params, cell.mode).reference_flops
    if flops > AFFORDABLE_FLOPS[subject.device]:
        return False
    needed = subject.foreseen.reference_bytes
    if needed is None:  # judged by its FLOPs alone
        return True
    return needed * ITEM_BYTES["float64"] / cell.problem.item_bytes <= subject.memory_limit / 2


def reduced_problem(subject: Subject) -> Problem | None:
    """The smallest odd problem in the operator's definition that its impl takes, with the timed channels; or None."""
    problem = replace(subject.cell.problem, batch=min(2, subject.cell.problem.batch))
    for candidate in _odd(problem):
        if _takes(subject, candidate):
            return candidate
    return None


def _odd(problem: Problem) -> Iterator[Problem]:
    for height, width in ODD_SIDES:
        if problem.domain == "image":
            yield replace(problem, seq_len=height * width, height=height, width=width)
        else:
            yield replace(problem, seq_len=height * width)


def _takes(subject: Subject, problem: Problem) -> bool:
    cell = subject.cell
    if outside_definition(subject.operator, problem, cell.params, cell.scope) is not None:
        return False
    impl = subject.form.impls.get(cell.impl)
    return impl is None or impl.why_not(problem, cell.params, subject.device) is None


def _hold(subject: Subject, problem: Problem, inputs: Inputs) -> Checked:
    """Holds the impl against the reference on these inputs."""
    outputs = subject.once(_looked_at(subject), problem, inputs)
    _finite(subject, outputs)
    reference = subject.form.reference
    double = as_dtype(inputs, torch.float64)
    truth = subject.once(reference, problem.with_dtype("float64"), double)
    if problem.dtype == "float64":
        low = truth
    else:
        low = outputs if subject.call is reference else subject.once(reference, problem, inputs)
    worst = Checked(0.0, 0.0, problem.seq_len)
    every_terms = [NO_TERMS, *_terms(subject, problem, inputs, truth[0])]
    for name, ours, theirs, exact, terms in zip(_names(subject), outputs, low, truth, every_terms, strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise Wrong(f"{name} is {described(ours)}; the reference gives {described(theirs)}")
        scale = _largest(exact)
        error, bound = _largest(ours - exact), _bound(subject, problem, _largest(theirs - exact), scale, terms)
        cancels = terms.rounding > CEILING[problem.dtype] * scale
        size = (max(scale, terms.size) if cancels else scale) or 1.0
        checked = Checked(error / size, bound / size, problem.seq_len)
        if not error <= bound:
            raise Wrong(
                f"{name} differs from the float64 reference by {checked.relative_error:.2e} of "
                f"{'the terms that cancel in it' if cancels else 'its largest value'}; "
                f"allowed {checked.tolerance:.2e} ({problem.dtype}, {problem.size})"
            )
        if not worst.tolerance or error * worst.tolerance >= worst.relative_error * bound / size:
            worst = checked
    return worst


def _looked_at(subject: Subject) -> Callable[..., Tensor]:
    """The impl, which raises Wrong where it returns what no output can be."""

    def call(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
        output = subject.call(problem, params, **tensors)
        differentiable = subject.cell.mode == "fwd_bwd"
        misfit = misfit_of_output(output, problem, subject.device, differentiable=differentiable)
        if misfit is not None:
            raise Wrong(misfit)
        return output

    return call


def _bound(subject: Subject, problem: Problem, own: float, scale: float, terms: Terms) -> float:
    """Twice the reference's own error plus eps · scale; at most CEILING · scale, or the terms' rounding where that is
    more; times the operator's stated factor. An own error that is small by luck, where a tensor has few numbers, stands
    for √STORED roundings of its terms.
    """
    factor = subject.operator.tolerance[0] if subject.operator.tolerance else 1.0
    ceiling = max(CEILING[problem.dtype] * scale, terms.rounding)
    eps = _eps(subject, problem)
    derived = max(2 * own, math.sqrt(STORED) * eps * terms.size) + eps * scale
    if scale == 0 and terms.rounding == 0:  # a truth of zeros has no scale of its own
        return factor * derived
    if problem.dtype == "float64" or scale <= terms.rounding or not math.isfinite(derived):
        return factor * ceiling
    return factor * min(derived, ceiling)


def _eps(subject: Subject, problem: Problem) -> float:
    eps = torch.finfo(torch_dtype(problem)).eps
    return max(eps, CPU_SDPA_EPS) if subject.cell.impl == "sdpa" and subject.device == "cpu" else eps


def _terms(subject: Subject, problem: Problem, inputs: Inputs, output: Tensor) -> Iterator[Terms]:
    """Of each gradient; nothing in fwd. output: the truth."""
    if subject.cell.mode == "fwd":
        return
    products = (cotangent(output, torch_dtype(subject.cell.problem)) * output).abs()
    tokens = problem.batch * problem.seq_len
    size = math.sqrt(float(products.square().sum()) / (tokens * problem.heads))
    added = _gamma(subject, problem) * float(products.sum()) / (tokens * problem.heads)
    rounding = min(added + STORED * _eps(subject, problem) * size, CEILING[problem.dtype] * size)
    for name, tensor in inputs.differentiated().items():
        typical = float(tensor.double().square().mean().sqrt()) if tensor.numel() else 0.0
        factor = (math.sqrt(tokens) if name in inputs.parameters else 1.0) / typical if typical else 0.0
        yield Terms(size * factor, rounding * factor)


def _gamma(subject: Subject, problem: Problem) -> float:
    """γ_n. Half precisions are added up in float32."""
    flops = subject.form.cost(problem, subject.cell.params, "fwd").reference_flops
    n = flops / (2 * problem.batch * problem.seq_len * problem.channels)
    u = torch.finfo(torch.float64 if problem.dtype == "float64" else torch.float32).eps / 2
    return n * u / (1 - n * u) if n * u < 1 else math.inf


def _same(subject: Subject, outputs: Outputs, expected: Outputs, allowed: float, complaint: str) -> None:
    for name, ours, theirs in zip(_names(subject), outputs, expected, strict=True):
        if ours.shape != theirs.shape:
            raise Wrong(f"{complaint}: {name} is {list(ours.shape)}, was {list(theirs.shape)}")
        error, scale = _largest(ours.double() - theirs.double()), _largest(theirs)
        if not error <= allowed * scale:
            raise Wrong(f"{complaint}: {name} differs by {error / (scale or 1.0):.2e}; allowed {allowed:.2e}")


def _finite(subject: Subject, outputs: Outputs) -> None:
    for name, tensor in zip(_names(subject), outputs, strict=True):
        if not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise Wrong(f"{name} has {bad} of {tensor.numel()} values that are NaN or infinite")


def _names(subject: Subject) -> list[str]:
    if subject.cell.mode == "fwd":
        return ["the output"]
    if "names" not in subject.__dict__:
        small = reduced_problem(subject) or subject.cell.problem
        subject.__dict__["names"] = [f"the gradient of {n}" for n in subject.inputs(small, 0).differentiated()]
    return ["the output", *subject.__dict__["names"]]


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _overwrite(target: Inputs, source: Inputs) -> bool:
    """Gives every tensor of `target` the values of `source`, in place; False where that cannot be done."""
    pairs = [(tensor, source.tensors().get(name)) for name, tensor in target.tensors().items()]
    ready: list[Callable[[], Tensor]] = []
    for into, values in pairs:
        if values is None or values.shape != into.shape or not into.is_contiguous():
            return False
        ready.append(lambda into=into, values=values: into.copy_(values))  # type: ignore[misc]
    with torch.no_grad():
        for copy in ready:
            copy()
    return True
