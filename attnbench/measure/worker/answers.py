"""Whether calls compute while they are timed: answers must follow when values of their inputs change in place, and be
the same before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.inputs import torch_dtype
from attnbench.measure.worker.changes import Change, Observer, change_of, changed
from attnbench.measure.worker.correctness import largest_of, names_of, require_finite
from attnbench.measure.worker.error_bound import CEILING
from attnbench.measure.worker.fingerprints import fingerprint
from attnbench.measure.worker.prepared_cell import Outputs, Subject, Wrong

ANSWER_SLACK = 4.0
"""Sums with random signs differ by about a root mean square of the errors; this many times the largest is never."""

SHORT_CALL_S = 0.01
"""Calls shorter than this are made with two changes of each set; longer ones with one of the first two sets."""

NOISE_EPS = 16
"""Sums in another order differ by less than so many eps of the largest value."""

REPEATED = 3
"""Calls made again where an answer stayed the same although an input had changed."""


@dataclass(frozen=True)
class ChangedAnswer:
    """How far the outputs of set `index` were from its first ones while a change was in place: largest differences."""

    index: int
    change: Change
    distances: tuple[float, ...]


@dataclass(frozen=True)
class FirstAnswers:
    """What the calls gave before timing: the outputs on each set, and how these follow changes of its values."""

    outputs: list[Outputs]
    changed: list[ChangedAnswer]


def first_outputs(subject: Subject) -> list[Outputs]:
    """The outputs on each set. Raises Wrong where they are not finite, or the same for different inputs."""
    observer = Observer(subject, subject.cell.problem)
    outputs = [observer.outputs(call) for call in subject.calls]
    observer.settle()
    for output in outputs:
        require_finite(subject, output)
    if all(map(torch.equal, outputs[0], outputs[1])) and outputs[0][0].numel():
        raise Wrong("it gives the same answer for different inputs")
    return outputs


def first_answers(subject: Subject) -> FirstAnswers:
    """What the calls give before they are timed. Raises Wrong: see `first_outputs`, and where answers do not follow
    when values change in place.
    """
    begun = subject.spent.seconds
    outputs = first_outputs(subject)
    short = subject.spent.seconds - begun < SHORT_CALL_S * len(outputs)
    observer = Observer(subject, subject.cell.problem)
    answers: list[ChangedAnswer] = []
    for trial in range(2 if short else 1):
        for index in range(len(outputs) if short else 2):
            change = change_of(subject.sets[index], seed=100 * trial + index)
            answers.append(_changed_answer(subject, observer, outputs[index], index, change))
    if not any(any(answer.distances) for answer in answers) and outputs[0][0].numel():
        raise Wrong("its answer stays the same when values of its inputs change in place")
    return FirstAnswers(outputs, answers)


def _changed_answer(subject: Subject, observer: Observer, first: Outputs, index: int, change: Change) -> ChangedAnswer:
    """Calls a set with a change in place; where its answer stays the same, again: it must go on staying the same."""
    call = subject.calls[index]
    noise = NOISE_EPS * torch.finfo(torch_dtype(subject.cell.problem)).eps
    with changed(subject.sets[index], change):
        distances = _distances(observer.returned(call), first)
        for _ in range(0 if any(distances) else REPEATED):
            again = _distances(observer.returned(call), first)
            if any(distance > noise * largest_of(tensor) for distance, tensor in zip(again, first, strict=True)):
                raise Wrong("calls with the same inputs give different answers: only some of them compute")
    return ChangedAnswer(index, change, distances)


def check_fingerprints(
    subject: Subject, outputs: Sequence[Outputs], expected: Sequence[float], tolerance: float | None
) -> None:
    """Checks that outputs are those that were checked in another process. Raises Wrong.

    Args:
        subject: whose outputs they are.
        outputs: on each set.
        expected: the fingerprints of the outputs that were checked.
        tolerance: see `check_after_timing`.
    """
    allowed = ANSWER_SLACK * _allowed_difference(subject, tolerance)
    for now, before in zip(map(fingerprint, outputs), expected, strict=False):
        if not abs(now - before) <= allowed:
            raise Wrong(
                f"its answer is not the one that was checked: their sums with random signs are {now:.6g} "
                f"and {before:.6g}; allowed {allowed:.1e} apart"
            )


def check_after_timing(subject: Subject, first: FirstAnswers, tolerance: float | None) -> None:
    """Checks that calls still give what they gave first, also while values of a set are changed in place. Raises Wrong.

    Args:
        subject: that was timed.
        first: what its calls gave before.
        tolerance: the bound of its check, over the largest value; None: CEILING.
    """
    allowed = _allowed_difference(subject, tolerance)
    observer = Observer(subject, subject.cell.problem)
    for index, call in enumerate(subject.calls):
        for number, before in enumerate(answer for answer in first.changed if answer.index == index):
            _check_changed_answer(subject, observer, first.outputs[index], before, allowed)
            if number == 0:  # an answer kept from the change would be given now
                _check_first_answer(subject, observer, call, first.outputs[index], allowed)
        if all(answer.index != index for answer in first.changed):
            _check_first_answer(subject, observer, call, first.outputs[index], allowed)
    observer.settle()


def _allowed_difference(subject: Subject, tolerance: float | None) -> float:
    """What an answer may differ from another of the same inputs, over its largest value."""
    least = 4 * torch.finfo(torch_dtype(subject.cell.problem)).eps
    return CEILING[subject.cell.problem.dtype] if tolerance is None else max(tolerance, least)


def _check_first_answer(
    subject: Subject, observer: Observer, call: Callable[[], Outputs], expected: Outputs, allowed: float
) -> None:
    complaint = "after timing it no longer gives its first answer"
    for name, now, before in zip(names_of(subject), observer.outputs(call), expected, strict=True):
        if now.shape != before.shape:
            raise Wrong(f"{complaint}: {name} is {list(now.shape)}, was {list(before.shape)}")
        error, scale = largest_of(_wide(now) - _wide(before)), largest_of(before)
        if not error <= allowed * scale:
            raise Wrong(f"{complaint}: {name} differs by {error / (scale or 1.0):.2e}; allowed {allowed:.2e}")


def _check_changed_answer(
    subject: Subject, observer: Observer, first: Outputs, before: ChangedAnswer, allowed: float
) -> None:
    now = _changed_answer(subject, observer, first, before.index, before.change)
    columns = zip(names_of(subject), map(largest_of, first), before.distances, now.distances, strict=True)
    for name, largest, distance_before, distance in columns:
        scale = max(largest, distance_before)
        stays = any(before.distances) and not any(now.distances)
        if not abs(distance - distance_before) <= allowed * scale or stays:
            raise Wrong(
                f"after timing its answer does not follow when values change in place: {name} then differs from "
                f"the first by {distance / (scale or 1.0):.2e}; before timing by {distance_before / (scale or 1.0):.2e}"
            )


def _distances(outputs: Outputs, others: Outputs) -> tuple[float, ...]:
    """The largest difference of each tensor."""
    return tuple(largest_of(_wide(a) - _wide(b)) for a, b in zip(outputs, others, strict=True))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.element_size() < 4 else tensor
