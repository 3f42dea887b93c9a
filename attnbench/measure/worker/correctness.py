"""Whether an impl computes its operator: its outputs and gradients beside those of the float64 reference.

`error_bound` says what may differ, and `answers` whether calls still compute when they are timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnbench.inputs import torch_dtype
from attnbench.measure.worker.changes import Change, Observer, change_of, changed, require_plain
from attnbench.measure.worker.error_bound import NO_TERMS, bound_of, ceiling_of, seen_to_be_sdpa, terms_of
from attnbench.measure.worker.failures import at_size
from attnbench.measure.worker.prepared_cell import Misfit, Outputs, Subject, Wrong, as_dtype, as_outputs
from attnbench.measure.worker.returned import described
from attnbench.operator import Inputs
from attnbench.problem import ITEM_BYTES, Followed, Params, Problem
from attnbench.registry import outside_definition, why_not_impl
from attnbench.units import count

ODD_SIDES = ((7, 9), (11, 13), (17, 19), (31, 33))
"""Height × width of the reduced image, tried in this order; a reduced sequence has as many tokens. On a
device that is not the host the order is the other one: a thousand tokens take it no longer than a few, they are many
blocks of a kernel instead of one, and with less than 128 FlexAttention takes a kernel that is never timed, its decoding
one.
"""


AFTER_CHANGE = "after a change in place, "
"""How a sentence begins about outputs on inputs that were called before with other values."""


@dataclass(frozen=True)
class Checked:
    """The worst tensor of the largest size checked: its error and bound, both over its largest value."""

    relative_error: float
    tolerance: float
    checked_seq_len: int


def check_reduced(subject: Subject) -> Checked | None:
    """Checks at a reduced odd size, in float64 where the impl takes it and in the working dtype, also after values of
    the same tensors have changed in place. None: no such size is defined. Raises Wrong.
    """
    reduced = reduced_problem(subject)
    if reduced is None:
        return None
    with at_size(reduced):
        return _check_at(subject, reduced)


def _check_at(subject: Subject, reduced: Problem) -> Checked:
    _leaves_inputs_alone(subject, reduced)
    double = reduced.with_dtype("float64")
    if subject.cell.impl != "reference" and double != reduced and _takes(subject, double):
        _check_on(subject, double, subject.inputs(double, seed=11))
    checked = _check_on(subject, reduced, subject.inputs(reduced, seed=12))
    for seed in (13, 14):
        inputs = subject.inputs(reduced, seed)
        _check_on(subject, reduced, inputs, change_of(inputs, seed))
    return checked


def affordable(subject: Subject, flops: float | None = None) -> bool:
    """Whether the float64 reference may run at the timed size: by its FLOPs, and half the memory.

    flops: of something else that is to run there; None: the reference's.
    """
    cell = subject.cell
    if flops is None:
        flops = subject.form.cost(cell.problem, cell.params, cell.mode).reference_flops
    if flops > subject.device.affordable_flops:
        return False
    reference_bytes = subject.forecast.reference_bytes
    if reference_bytes is None:  # judged by its FLOPs alone
        return True
    return reference_bytes * ITEM_BYTES["float64"] / cell.problem.item_bytes <= subject.memory_limit / 2


def reduced_problem(subject: Subject) -> Problem | None:
    """The first odd problem in the operator's definition that its impl takes, with the timed channels; or None.

    As many tokens are new as in the timed one, or the same share of them.
    """
    timed = subject.cell.problem
    sides = ODD_SIDES if subject.device.is_host else reversed(ODD_SIDES)
    for candidate in _odd(replace(timed, batch=min(2, timed.batch), query_len=Followed()), sides):
        if timed.past:
            tokens = candidate.seq_len
            share = max(1, min(tokens - 1, round(tokens * timed.query_len / timed.seq_len)))
            candidate = replace(candidate, query_len=timed.query_len if timed.query_len < tokens else share)
        if _takes(subject, candidate):
            return candidate
    return None


def _odd(problem: Problem, sides: Iterable[tuple[int, int]]) -> Iterator[Problem]:
    for height, width in sides:
        if problem.domain == "image":
            yield replace(problem, seq_len=height * width, height=height, width=width)
        else:
            yield replace(problem, seq_len=height * width)


def _takes(subject: Subject, problem: Problem) -> bool:
    cell = subject.cell
    if outside_definition(subject.operator, problem, cell.params, cell.scope) is not None:
        return False
    impl, device = subject.form.impls.get(cell.impl), subject.device.type
    return impl is None or why_not_impl(impl, cell.impl, problem, cell.params, cell.mode, device) is None


def _check_on(subject: Subject, problem: Problem, inputs: Inputs, change: Change | None = None) -> Checked:
    """Compares the impl with the reference on these inputs; after a change in place, where there is one."""
    call = subject.bind(validated(subject), problem, inputs)
    observer = Observer(subject, problem)
    outputs = observer.outputs(call)
    if change is None:
        return compare(subject, problem, inputs, outputs)
    with changed(inputs, change):
        worst = compare(subject, problem, inputs, observer.outputs(call), AFTER_CHANGE)
        observer.settle()  # before the change is undone: an output may be a view of its input
    return worst


def compare(subject: Subject, problem: Problem, inputs: Inputs, outputs: Outputs, when: str = "") -> Checked:
    """The outputs of an impl on these inputs against the float64 reference's. Raises Wrong, Misfit.

    when: for the text of Wrong.
    """
    try:
        return _compared(subject, problem, inputs, outputs, when)
    except Wrong:
        if not seen_to_be_sdpa(subject, problem, inputs):
            raise
    return _compared(subject, problem, inputs, outputs, when)


def _compared(subject: Subject, problem: Problem, inputs: Inputs, outputs: Outputs, when: str) -> Checked:
    require_finite(subject, problem, inputs, outputs)
    truth = _truth(subject, problem, inputs)
    if problem.dtype == "float64":
        low = truth
    else:
        low = outputs if subject.call is subject.form.reference else subject.defined(problem, inputs)
    worst = Checked(0.0, 0.0, problem.seq_len)
    if len(outputs) != len(truth):
        raise Wrong(f"a call gives {count(len(outputs), 'tensor')}; the reference's {len(truth)}")
    states = [NO_TERMS] * (len(truth) - 1 if subject.cell.mode == "fwd" else 0)
    every_terms = [NO_TERMS, *states, *terms_of(subject, problem, inputs, truth[0])]
    for name, ours, theirs, exact, terms in zip(
        names_of(subject, inputs), outputs, low, truth, every_terms, strict=False
    ):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise Wrong(f"{name} is {described(ours)}; the reference gives {described(theirs)}")
        scale = largest_of(exact)
        error, bound = largest_of(ours - exact), bound_of(subject, problem, largest_of(theirs - exact), scale, terms)
        cancels = terms.rounding > ceiling_of(subject, problem) * scale
        size = (max(scale, terms.size) if cancels else scale) or 1.0
        checked = Checked(error / size, bound / size, problem.seq_len)
        if not error <= bound:
            raise Wrong(
                f"{when}{name} differs from the float64 reference by {checked.relative_error:.2e} of "
                f"{'the terms that cancel in it' if cancels else 'its largest value'}; "
                f"allowed {checked.tolerance:.2e} in {problem.dtype}"
            )
        if not worst.tolerance or error * worst.tolerance >= worst.relative_error * bound / size:
            worst = checked
    return worst


def validated(subject: Subject) -> Callable[..., Tensor]:
    """The impl, which raises Wrong where it returns what no output can be."""

    def call(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
        output = subject.call(problem, params, **tensors)
        require_plain(subject, as_outputs(output, problem), problem)
        return output

    return call


def require_finite(subject: Subject, problem: Problem, inputs: Inputs, outputs: Outputs) -> None:
    """Raises Wrong where a value of a call's outputs on these inputs is NaN or infinite; Misfit where the truth is seen
    to be beyond what the dtype holds."""
    for name, tensor in zip(names_of(subject, inputs), outputs, strict=False):
        if not math.isfinite(largest_of(tensor)):
            _require_held(subject, problem, inputs)
            count = int((~tensor.isfinite()).sum())
            raise Wrong(f"{name} has {count} of {tensor.numel()} values that are NaN or infinite")


def _truth(subject: Subject, problem: Problem, inputs: Inputs) -> Outputs:
    double = as_dtype(inputs, torch.float64)
    return subject.defined(problem.with_dtype("float64"), double)


def _require_held(subject: Subject, problem: Problem, inputs: Inputs) -> None:
    """Raises Misfit where the truth, if it is affordable, is beyond what the dtype holds: no impl is to blame."""
    if problem == subject.cell.problem and not affordable(subject):
        return
    most = torch.finfo(torch_dtype(problem)).max
    for name, tensor in zip(names_of(subject, inputs), _truth(subject, problem, inputs), strict=False):
        if (largest := largest_of(tensor)) > most:
            raise Misfit(
                f"{name} has values up to {largest:.2e} by the float64 reference, where {problem.dtype} ends at "
                f"{most:.2e}: measure it in another dtype, or at fewer tokens"
            )


def names_of(subject: Subject, inputs: Inputs) -> list[str]:
    """What messages call each output of a call on these inputs: new states in fwd, gradients in fwd_bwd."""
    if subject.cell.mode == "fwd":
        return ["the output", *(f"the new state '{name}'" for name in inputs.state)]
    return ["the output", *(f"the gradient of {name}" for name in inputs.differentiated())]


def largest_of(tensor: Tensor) -> float:
    """The largest absolute value, NaN where there is one; in one pass over the tensor."""
    if not tensor.numel():
        return 0.0
    low, high = tensor.aminmax()
    return float(torch.maximum(-low, high))


def _leaves_inputs_alone(subject: Subject, problem: Problem) -> None:
    """Raises Wrong where a call writes to its inputs, leaves another state than the reference, or returns the memory of
    an input that the reference does not."""
    inputs, theirs = subject.inputs(problem, seed=15), subject.inputs(problem, seed=15)
    before = {name: tensor.clone() for name, tensor in inputs.tensors().items() if name not in inputs.state}
    output = subject.once(validated(subject), problem, inputs)[0]
    written = [name for name, tensor in before.items() if not torch.equal(tensor, inputs.tensors()[name])]
    if written:
        raise Wrong(f"it writes to its input '{written[0]}'")
    shared = _sharing(inputs, output) - _sharing(theirs, subject.defined(problem, theirs)[0])
    for name, tensor in inputs.state.items():
        apart, scale = largest_of(tensor - theirs.state[name]), largest_of(theirs.state[name])
        if not apart <= ceiling_of(subject, problem) * scale:
            raise Wrong(f"it leaves another state '{name}' than the reference: they differ by {apart / scale:.2e}")
    if shared:
        raise Wrong(f"the output shares the memory of its input '{min(shared)}'; the reference's does not")


def _sharing(inputs: Inputs, output: Tensor) -> set[str]:
    """The inputs whose memory an output is in."""
    address = output.untyped_storage().data_ptr()
    return {name for name, tensor in inputs.tensors().items() if tensor.untyped_storage().data_ptr() == address}
