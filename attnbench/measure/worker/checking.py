"""A check in the measured process: whether a cell is right, what it needs, and what it executes."""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from time import perf_counter

from attnbench.measure.device import Device, device_of
from attnbench.measure.protocol import CheckRequest, VisitAnswer
from attnbench.measure.worker import operations
from attnbench.measure.worker.block import compilations
from attnbench.measure.worker.changes import Observer, change_of, changed
from attnbench.measure.worker.correctness import (
    AFTER_CHANGE,
    Checked,
    affordable,
    check_reduced,
    compare,
    reduced_problem,
    require_finite,
    validated,
)
from attnbench.measure.worker.failures import at_size, guarded
from attnbench.measure.worker.fingerprints import digests, fingerprint, moved
from attnbench.measure.worker.lifetime import limit_host_memory
from attnbench.measure.worker.prepared_cell import (
    Misfit,
    Outputs,
    Subject,
    Wrong,
    bytes_of,
    forget_compiled,
    subject_of,
)
from attnbench.measure.worker.returned import not_finite
from attnbench.measure.worker.shared_state import same_random_numbers
from attnbench.measure.worker.storable import storable
from attnbench.measure.worker.visit import Bench, figures
from attnbench.operator import Inputs
from attnbench.registry import compiles, source_of

TRIALS = ((1e-3, 8), (0.05, 3), (math.inf, 1))
"""(seconds, writes): of calls shorter than that so many tell which outputs follow: rounding moves some now and then."""


def check(request: CheckRequest) -> VisitAnswer:
    """Makes a check. What an operator does wrong in it is its status and reason."""
    begun = perf_counter()
    same_random_numbers()
    device = device_of(request.device)
    with ExitStack() as opened:
        answer = storable(guarded(VisitAnswer, device, lambda: _check(_bench(request, device, opened))))
    if request.cell.impl == "compiled":
        forget_compiled()
    gc.collect()
    gc.freeze()
    return replace(answer, metrics={**answer.metrics, "visit_s": perf_counter() - begun})


def _bench(request: CheckRequest, device: Device, opened: ExitStack) -> Bench:
    limit_host_memory(request.host_limit)
    source = source_of(request.cell.operator, request.operators_from)
    subject = subject_of(request.cell, source, device, request.memory_limit, request.forecast)
    opened.callback(subject.release)
    return Bench(subject)


def _check(bench: Bench) -> VisitAnswer:
    """Checks, counts, and takes memory and operations."""
    subject = bench.subject
    if compiles(subject.cell.impl):
        before = compilations()
        timed_s, *reduced_s = _first_calls(subject)
        bench.metrics["compile_s"] = sum((timed_s, *reduced_s))
        bench.metrics["recompile_s"] = timed_s if compilations() > before else 0.0
    findings = check_impl(subject)
    bench.checked.update(vars(findings.checked))
    bench.metrics.update(figures(bench, "check"))
    bench.metrics.update({f"answer_{number}": answer for number, answer in enumerate(findings.answers)})
    bench.metrics.update(held_bytes=findings.held_bytes, check_time_s=findings.call_s)
    if findings.following is not None:
        bench.metrics["following"] = findings.following
    counts = operations.operations(subject, findings.dispatched)
    bench.metrics["operator_s"] = subject.spent.seconds
    return bench.answer(kernel=operations.kernel(subject, counts), operations=counts)


def _first_calls(subject: Subject) -> list[float]:
    """Calls at each size that is going to be checked. Returns: seconds of each, the timed one first."""
    problems = {subject.cell.problem: subject.sets[0]}
    reduced = None if subject.cell.impl == "compiled" else reduced_problem(subject)
    if reduced is not None:
        problems[reduced] = subject.inputs(reduced, seed=0)
    seconds = []
    for problem, inputs in problems.items():
        begun = subject.spent.seconds
        with at_size(problem) if problem == reduced else nullcontext():
            Observer(subject, problem).returned(subject.bind(validated(subject), problem, inputs))
        seconds.append(subject.spent.seconds - begun)
    return seconds


@dataclass(frozen=True)
class Findings:
    """What a check's calls at the timed size give, beside its answer.

    Args:
        checked: the worst tensor of the largest size that was compared.
        answers: fingerprints of the outputs, by input set.
        following: which outputs follow every write to an input, as bits, that of the output first; None in fwd, where
            there is one alone.
        dispatched: operators of a call, with their counts.
        call_s: seconds of a call.
        held_bytes: of its input sets, its cotangent, and the outputs of a call.
    """

    checked: Checked
    answers: tuple[float, ...]
    following: int | None
    dispatched: Mapping[str, int]
    call_s: float
    held_bytes: int


def check_impl(subject: Subject) -> Findings:
    """Checks at a reduced size, and calls at the timed one: each set, of which the outputs must be finite and others,
    and one again after values of it have changed in place. They are compared with the reference's where that is
    affordable in float64, those of the reference itself once. Raises Wrong, Misfit.
    """
    for inputs in subject.sets:
        misfit = not_finite(inputs)
        if misfit is not None:
            raise Misfit(misfit)
    problem, impl = subject.cell.problem, subject.cell.impl
    compared = affordable(subject)
    checked: list[Checked | None] = []
    if impl != "compiled" and not (impl == "reference" and compared):
        checked.append(check_reduced(subject))
    first, second = (subject.bind(validated(subject), problem, inputs) for inputs in subject.sets)
    observer, dispatched = Observer(subject, problem), Counter[str]()
    outputs = observer.outputs(first)
    answer, held_bytes = _answer(subject, subject.sets[0], outputs), bytes_of([*subject.held(), *outputs])
    if compared:
        checked = [compare(subject, problem, subject.sets[0], outputs)]
    other = _answer(subject, subject.sets[1], observer.outputs(operations.counting(second, dispatched)))
    if answer.digests == other.digests and outputs[0].numel():
        raise Wrong("it gives the same answer for different inputs")
    observer.settle()  # before anything is written: an output may be a view of its input
    inputs, begun = subject.sets[1], subject.spent.seconds
    with changed(inputs, change_of(inputs, seed=1)):
        outputs = observer.outputs(second)
        call_s = subject.spent.seconds - begun
        require_finite(subject, problem, inputs, outputs)
        if compared and impl != "reference":
            checked.append(compare(subject, problem, inputs, outputs, AFTER_CHANGE))
        observer.settle()
    following = None
    if subject.cell.mode == "fwd_bwd":
        following = _following(subject, other.digests, digests(outputs), second, call_s)
    answers = answer.fingerprint, other.fingerprint
    return Findings(_worst(checked), answers, following, dispatched, call_s, held_bytes)


@dataclass(frozen=True)
class _Answer:
    """What stands for the outputs of a call."""

    fingerprint: float
    digests: tuple[int, ...]


def _answer(subject: Subject, inputs: Inputs, outputs: Outputs) -> _Answer:
    require_finite(subject, subject.cell.problem, inputs, outputs)
    return _Answer(fingerprint(outputs), digests(outputs))


def _worst(checked: Sequence[Checked | None]) -> Checked:
    """Of the last size that was compared. Raises Wrong where there is none."""
    compared = [each for each in checked if each is not None]
    if not compared:
        raise Wrong("it cannot be checked: no reduced size is defined, and the timed one is too large for float64")
    return max(compared, key=lambda each: each.relative_error / each.tolerance if each.tolerance else 0.0)


def _following(
    subject: Subject, before: tuple[int, ...], after: tuple[int, ...], call: Callable[[], Outputs], call_s: float
) -> int:
    """Which outputs follow every one of some writes to the second set: of gradients not all need to.

    Args:
        subject: that is checked.
        before: digests of its outputs on the set as it was drawn.
        after: the same after a first write.
        call: on the set.
        call_s: seconds of it.
    """
    inputs, observer = subject.sets[1], Observer(subject, subject.cell.problem)
    follow = moved(before, after)
    for seed in range(2, 1 + next(writes for most_s, writes in TRIALS if call_s < most_s)):
        with changed(inputs, change_of(inputs, seed)):
            follow &= moved(before, digests(observer.returned(call)))
    return follow
