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
from attnbench.measure.worker.changes import Change, Observer, change_of, changed
from attnbench.measure.worker.prepared_cell import Misfit, Outputs, Subject, Wrong, as_dtype, cotangent
from attnbench.measure.worker.returned import described, misfit_of_output, not_finite
from attnbench.operator import Inputs
from attnbench.problem import ITEM_BYTES, Dtype, Params, Problem
from attnbench.registry import outside_definition

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


SHORT_CALL_S = 0.01
"""Calls shorter than this are made with two changes of each set; longer ones with one of the first two sets."""

NOISE_EPS = 16
"""Sums in another order differ by less than so many eps of the largest value."""

REPEATED = 3
"""Calls made again where an answer stayed the same although an input had changed."""


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


@dataclass(frozen=True)
class Followed:
    """How far the outputs of set `index` were from its first ones while a change was in place: largest differences."""

    index: int
    change: Change
    distances: tuple[float, ...]


@dataclass(frozen=True)
class First:
    """What the calls gave before timing: the outputs on each set, and how these follow changes of its values."""

    outputs: list[Outputs]
    followed: list[Followed]


def before(subject: Subject) -> Checked:
    """Checks at a reduced odd size, in float64 where the impl takes it and in the working dtype, then at the timed size
    where the float64 reference is affordable; elsewhere that outputs are finite. Each time also after values of the
    same tensors have changed in place. Raises Wrong, Misfit.
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
        _leaves_inputs_alone(subject, reduced)
        found = _hold(subject, reduced, subject.inputs(reduced, seed=12))
        for seed in (13, 14):
            inputs = subject.inputs(reduced, seed)
            _hold(subject, reduced, inputs, change_of(inputs, seed))
    if whole:
        sets = subject.sets[: 1 if own else 2]
        each = [_hold(subject, subject.cell.problem, inputs, *_changes(inputs, i)) for i, inputs in enumerate(sets)]
        found = max(each, key=lambda c: c.relative_error / c.tolerance if c.tolerance else 0.0)
    elif found is None:
        raise Wrong("it cannot be checked: no reduced size is defined, and the timed one is too large for float64")
    return found


def _changes(inputs: Inputs, index: int) -> list[Change]:
    """Every set but the first is held to the reference only after a change."""
    return [change_of(inputs, index)] if index else []


def first_outputs(subject: Subject) -> list[Outputs]:
    """The outputs on each set. Raises Wrong where they are not finite, or the same for different inputs."""
    observer = Observer(subject, subject.cell.problem)
    outputs = [observer.outputs(call) for call in subject.calls]
    observer.settle()
    for output in outputs:
        _finite(subject, output)
    if _equal(outputs[0], outputs[1]) and outputs[0][0].numel():
        raise Wrong("it gives the same answer for different inputs")
    return outputs


def first(subject: Subject) -> First:
    """What the calls give before they are timed. Raises Wrong: see `first_outputs`, and where answers do not follow
    when values change in place.
    """
    begun = subject.spent.seconds
    outputs = first_outputs(subject)
    short = subject.spent.seconds - begun < SHORT_CALL_S * len(outputs)
    observer = Observer(subject, subject.cell.problem)
    followed: list[Followed] = []
    for trial in range(2 if short else 1):
        for index in range(len(outputs) if short else 2):
            change = change_of(subject.sets[index], seed=100 * trial + index)
            followed.append(_follow(subject, observer, outputs[index], index, change))
    if not any(any(each.distances) for each in followed) and outputs[0][0].numel():
        raise Wrong("its answer stays the same when values of its inputs change in place")
    return First(outputs, followed)


def _follow(subject: Subject, observer: Observer, first: Outputs, index: int, change: Change) -> Followed:
    """Calls a set with a change in place; where its answer stays the same, again: it must go on staying the same."""
    call = subject.calls[index]
    noise = NOISE_EPS * torch.finfo(torch_dtype(subject.cell.problem)).eps
    with changed(subject.sets[index], change):
        distances = _distances(observer.returned(call), first)
        for _ in range(0 if any(distances) else REPEATED):
            again = _distances(observer.returned(call), first)
            if any(distance > noise * _largest(tensor) for distance, tensor in zip(again, first, strict=True)):
                raise Wrong("calls with the same inputs give different answers: only some of them compute")
    return Followed(index, change, distances)


def answers(each: Sequence[Outputs]) -> list[float]:
    """One number for each set's outputs that any wrong value changes: each over its largest value, summed with random
    signs. Divided by the root of the count, so that errors of some relative size move it by about as much.
    """
    totals, count = [0.0] * len(each), 0
    for index, tensor in enumerate(each[0]):
        generator = torch.Generator(device=tensor.device).manual_seed(index)
        signs = torch.randint(0, 2, tensor.shape, generator=generator, device=tensor.device, dtype=torch.int8)
        signs.mul_(2).sub_(1)
        for number, outputs in enumerate(each):
            largest = _largest(outputs[index]) or 1.0
            totals[number] += float((outputs[index].double() * signs).sum()) / largest
        count += tensor.numel()
    return [abs(total) / math.sqrt(max(count, 1)) for total in totals]


def same_answers(
    subject: Subject, first: Sequence[Outputs], expected: Sequence[float], tolerance: float | None
) -> None:
    """Checks that the answers are those that were checked in another process. Raises Wrong."""
    allowed = ANSWER_SLACK * _allowed(subject, tolerance)
    for now, before in zip(answers(first), expected, strict=False):
        if not abs(now - before) <= allowed:
            raise Wrong(
                f"its answer is not the one that was checked: their sums with random signs are {now:.6g} "
                f"and {before:.6g}; allowed {allowed:.1e} apart"
            )


def _allowed(subject: Subject, tolerance: float | None) -> float:
    """What an answer may differ from another of the same inputs, over its largest value."""
    floor = 4 * torch.finfo(torch_dtype(subject.cell.problem)).eps
    return CEILING[subject.cell.problem.dtype] if tolerance is None else max(tolerance, floor)


def after(subject: Subject, first: First, tolerance: float | None) -> None:
    """Checks that calls still give what they gave first, also while values of a set are changed in place. Raises Wrong.

    tolerance: the bound of the check before, over the largest value; None: CEILING.
    """
    allowed = _allowed(subject, tolerance)
    observer = Observer(subject, subject.cell.problem)
    for index, call in enumerate(subject.calls):
        for number, before in enumerate(f for f in first.followed if f.index == index):
            _follows_as_before(subject, observer, first.outputs[index], before, allowed)
            if number == 0:  # an answer kept from the change would be given now
                _gives_first(subject, observer, call, first.outputs[index], allowed)
        if all(f.index != index for f in first.followed):
            _gives_first(subject, observer, call, first.outputs[index], allowed)
    observer.settle()


def _gives_first(
    subject: Subject, observer: Observer, call: Callable[[], Outputs], expected: Outputs, allowed: float
) -> None:
    _same(subject, observer.outputs(call), expected, allowed, "after timing it no longer gives its first answer")


def _follows_as_before(subject: Subject, observer: Observer, first: Outputs, before: Followed, allowed: float) -> None:
    now = _follow(subject, observer, first, before.index, before.change)
    largest = map(_largest, first)
    each = zip(_names(subject), largest, before.distances, now.distances, strict=True)
    for name, of_first, then, distance in each:
        scale = max(of_first, then)
        if not abs(distance - then) <= allowed * scale or (any(before.distances) and not any(now.distances)):
            raise Wrong(
                f"after timing its answer does not follow when values change in place: {name} then differs from "
                f"the first by {distance / (scale or 1.0):.2e}; before timing by {then / (scale or 1.0):.2e}"
            )


def affordable(subject: Subject, flops: float | None = None) -> bool:
    """Whether the float64 reference may run at the timed size: FLOPs (`flops` where given), and half the memory."""
    cell = subject.cell
    if flops is None:
        flops = subject.form.cost(cell.problem, cell.params, cell.mode).reference_flops
    if flops > AFFORDABLE_FLOPS[subject.device]:
        return False
    needed = subject.forecast.reference_bytes
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


def _hold(subject: Subject, problem: Problem, inputs: Inputs, *changes: Change) -> Checked:
    """Holds the impl against the reference on these inputs; after changes in place, where there are any."""
    call = subject.bind(_looked_at(subject), problem, inputs)
    observer = Observer(subject, problem)
    worst = None if changes else _compare(subject, problem, inputs, observer.outputs(call))
    for change in changes:
        observer.outputs(call)
        with changed(inputs, change):
            worst = _compare(subject, problem, inputs, observer.outputs(call), "after a change in place, ")
            observer.settle()  # before the change is undone: an output may be a view of its input
    assert worst is not None
    return worst


def _compare(subject: Subject, problem: Problem, inputs: Inputs, outputs: Outputs, when: str = "") -> Checked:
    """The outputs of an impl on these inputs against the float64 reference's. when: for the text of Wrong."""
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
                f"{when}{name} differs from the float64 reference by {checked.relative_error:.2e} of "
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
        error, scale = _largest(_wide(ours) - _wide(theirs)), _largest(theirs)
        if not error <= allowed * scale:
            raise Wrong(f"{complaint}: {name} differs by {error / (scale or 1.0):.2e}; allowed {allowed:.2e}")


def _finite(subject: Subject, outputs: Outputs) -> None:
    for name, tensor in zip(_names(subject), outputs, strict=True):
        if not math.isfinite(_largest(tensor)):
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
    """The largest absolute value, NaN where there is one; in one pass over the tensor."""
    if not tensor.numel():
        return 0.0
    low, high = tensor.aminmax()
    return float(torch.maximum(-low, high))


def _equal(a: Outputs, b: Outputs) -> bool:
    return all(torch.equal(ours, theirs) for ours, theirs in zip(a, b, strict=True))


def _distances(outputs: Outputs, others: Outputs) -> tuple[float, ...]:
    """The largest difference of each tensor."""
    return tuple(_largest(_wide(a) - _wide(b)) for a, b in zip(outputs, others, strict=True))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.element_size() < 4 else tensor


def _leaves_inputs_alone(subject: Subject, problem: Problem) -> None:
    """Raises Wrong where a call writes to its inputs, or returns the memory of one that the reference does not."""
    inputs = subject.inputs(problem, seed=15)
    before = {name: tensor.clone() for name, tensor in inputs.tensors().items()}
    output = subject.once(_looked_at(subject), problem, inputs)[0]
    written = [name for name, tensor in inputs.tensors().items() if not torch.equal(tensor, before[name])]
    if written:
        raise Wrong(f"it writes to its input '{written[0]}'")
    shared = _sharing(inputs, output) - _sharing(inputs, subject.once(subject.form.reference, problem, inputs)[0])
    if shared:
        raise Wrong(f"the output shares the memory of its input '{min(shared)}'; the reference's does not")


def _sharing(inputs: Inputs, output: Tensor) -> set[str]:
    place = output.untyped_storage().data_ptr()
    return {name for name, tensor in inputs.tensors().items() if tensor.untyped_storage().data_ptr() == place}
