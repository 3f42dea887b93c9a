"""Whether calls compute while they are timed: the output of a timed call, kept and compared.

Right before some samples an element of each data tensor of an input set is written, where no cache looks, and the
output of one timed call on that set is kept. It must follow the write, and be what untimed calls right after it give;
and with the write undone a call must give again what it gave before. So an impl that computes in untimed calls alone,
in every k-th call, or until it has seen its inputs, is wrong wherever it is timed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnbench.inputs import torch_dtype
from attnbench.measure.worker.changes import Observer, change_of, changed, require_plain, require_same
from attnbench.measure.worker.correctness import largest_of, names_of, require_finite
from attnbench.measure.worker.error_bound import ceiling_of
from attnbench.measure.worker.fingerprints import digests, fingerprint, moved
from attnbench.measure.worker.input_pool import InputPool
from attnbench.measure.worker.prepared_cell import Outputs, Subject, Wrong
from attnbench.operator import Inputs

ANSWER_SLACK = 4.0
"""Sums with random signs differ by about a root mean square of the errors; this many times the largest is never."""

NOISE_EPS = 16
"""Sums in another order differ by less than so many eps of the largest value."""

REPEATED = 3
"""Calls made again where an answer stayed the same."""

TRIALS = 16
"""Further writes where an answer stayed the same, of which at least one must move it."""

ONLY_SOME = "calls with the same inputs give different answers: only some of them compute"

_drawn = random.Random()
"""Of the system's own seed: what is checked is unknown beforehand."""


@dataclass
class Watched:
    """A timed call whose outputs are kept: the one after `skipped` others on input set `number`."""

    number: int
    skipped: int = 0
    outputs: Outputs | None = None
    copies: Outputs = ()

    def within(self, numbers: Sequence[int], calls: Sequence[Callable[[], Outputs]]) -> list[Callable[[], Outputs]]:
        """The calls of a sample, on the input sets of these numbers; what the watched one returns is kept."""
        watched = list(calls)
        for place, number in enumerate(numbers):
            if number == self.number and self.outputs is None:
                if not self.skipped:
                    watched[place] = self._keeping(calls[place])
                    break
                self.skipped -= 1
        return watched

    def _keeping(self, call: Callable[[], Outputs]) -> Callable[[], Outputs]:
        def keeping() -> Outputs:
            self.outputs = outputs = call()
            return outputs

        return keeping

    def copy(self) -> None:
        """Copies what the call has returned, before anything else is called."""
        if self.outputs is not None and not self.copies:
            self.copies = tuple(tensor.detach().clone() for tensor in self.outputs)

    def require_kept(self, subject: Subject) -> None:
        """Raises Wrong where what the call has returned is no plain tensor, or is no longer what it was."""
        assert self.outputs is not None
        require_plain(subject, self.outputs, subject.cell.problem)
        require_same(tuple(tensor.detach() for tensor in self.outputs), self.copies)


@dataclass
class TimedChecks:
    """What is known of a member's outputs, and which of its timed calls are checked.

    Args:
        subject: that is timed.
        pool: in which its data tensors are.
        expected: fingerprints of its outputs by input set.
        tolerance: the bound of its check, over the largest value; None: CEILING.
        following: which outputs follow when values of inputs change, as bits, that of the output first.
        short: whether untimed calls cost little: then several are made, and the write is undone at once.
        known: digests of the outputs by input set.
        made: how many timed calls were checked.
    """

    subject: Subject
    pool: InputPool
    expected: dict[int, float]
    tolerance: float | None
    following: int = 1
    short: bool = False
    known: dict[int, tuple[int, ...]] = field(default_factory=dict)
    made: int = 0
    _unsure: int = 0
    _return: tuple[int, tuple[int, ...]] | None = None

    @property
    def allowed(self) -> float:
        """What an answer may differ from another of the same inputs, over its largest value."""
        problem = self.subject.cell.problem
        least = 4 * torch.finfo(torch_dtype(problem)).eps
        return ceiling_of(self.subject, problem) if self.tolerance is None else max(self.tolerance, least)

    def first(self, number: int, outputs: Outputs) -> None:
        """Takes note of the first outputs on an input set. Raises Wrong where they are not finite, not those that were
        checked, or those of another set."""
        require_finite(self.subject, self.subject.cell.problem, self.subject.sets[number], outputs)
        now = fingerprint(outputs)
        before = self.expected.setdefault(number, now)
        allowed = ANSWER_SLACK * self.allowed
        if not abs(now - before) <= allowed:
            raise Wrong(
                f"its answer is not the one that was checked: their sums with random signs are {now:.6g} "
                f"and {before:.6g}; allowed {allowed:.1e} apart"
            )
        values = digests(outputs)
        if values in self.known.values() and outputs[0].numel():
            raise Wrong("it gives the same answer for different inputs")
        self.known[number] = values

    def first_timed(self, number: int, take: Callable[[Watched], None]) -> None:
        """Takes note of the first outputs on an input set, of a timed call. Raises Wrong. take: see `after_write`."""
        self.first(number, self._timed_outputs(number, take))

    def _timed_outputs(self, number: int, take: Callable[[Watched], None]) -> Outputs:
        """Copies of what a timed call on an input set gives, with its values as they were drawn. Raises Wrong."""
        self._restore(number)
        watched = Watched(number)
        take(watched)
        watched.require_kept(self.subject)
        return watched.copies

    def after_write(self, number: int, take: Callable[[Watched], None]) -> None:
        """Writes to an input set, lets timed calls be made, and checks one of them. Raises Wrong.

        Args:
            number: of the set, whose outputs are known.
            take: (watched) makes timed calls until the watched one has been among them.
        """
        subject, inputs, call = self.subject, self.subject.sets[number], self.subject.calls[number]
        other, short = (number + 1) % len(subject.sets), self.short
        for each in (number, other) if short else (number,):
            self._restore(each)
        watched = Watched(number, _drawn.choice((0, _drawn.randrange(REPEATED))) if short else 0)
        observer = Observer(subject, subject.cell.problem)
        change = change_of(inputs, seed=_drawn.getrandbits(32))
        with changed(inputs, change):
            take(watched)
            values = digests(watched.copies)
            follows = self._check_written(watched, values, observer)
            if short:
                self._require_first(other, observer.outputs(subject.calls[other]))
            observer.settle()  # before the write is undone: an output may be a view of its input
            watched.require_kept(subject)
        if follows:
            self.made, self._unsure, self._return = self.made + 1, 0, (number, values)
            if short:  # one call either way: what computes in every k-th call is wrong in one of them
                self.returned(number, observer.outputs(call))
                observer.settle()
                with changed(inputs, change):
                    self._require_equal(inputs, watched.copies, observer.outputs(call))
                    observer.settle()
        else:
            self._check_others(number)
        written = self.pool.written(number, inputs)
        if written:
            self._restore(number)
            raise Wrong(f"it writes to its input '{written[0]}'")

    def awaited(self) -> int | None:
        """The input set on which a call must give its answer of before; None where no write was undone since."""
        return None if self._return is None else self._return[0]

    def after_return(self, take: Callable[[Watched], None]) -> None:
        """Checks a timed call on the awaited input set. Raises Wrong. take: see `after_write`."""
        number = self.awaited()
        assert number is not None
        self.returned(number, self._timed_outputs(number, take))

    def returned(self, number: int, outputs: Outputs) -> None:
        """Checks outputs on the awaited input set. Raises Wrong."""
        before, self._return = self._return, None
        self._require_first(number, outputs, before[1] if before else ())

    def _require_first(self, number: int, outputs: Outputs, written: tuple[int, ...] = ()) -> None:
        """Raises Wrong where outputs on a set are not its first ones. written: the digests of those that a write to it
        had moved them to."""
        values = digests(outputs)
        if values == self.known[number]:
            return
        apart = abs(fingerprint(outputs) - self.expected[number])
        stale = any(now == then != first for now, then, first in zip(values, written, self.known[number], strict=False))
        if stale or not apart <= ANSWER_SLACK * self.allowed:
            raise Wrong(
                "it no longer gives its first answer while it is timed: their sums with random signs are "
                f"{apart:.2e} apart; allowed {ANSWER_SLACK * self.allowed:.1e}"
            )
        self.known[number] = values

    def _check_written(self, watched: Watched, values: tuple[int, ...], observer: Observer) -> bool:
        """Compares the watched call with an untimed one. Returns whether its answer followed the write.

        Args:
            watched: the call.
            values: the digests of its outputs.
            observer: by which others are made.
        """
        watched.require_kept(self.subject)
        call = self.subject.calls[watched.number]
        again = observer.outputs(call)
        self._require_equal(self.subject.sets[watched.number], watched.copies, again)
        known = self.known[watched.number]
        written = moved(known, values)
        if written != moved(known, digests(again)):
            raise Wrong(ONLY_SOME)
        if self._follows(written):
            return True
        self._require_noise(watched.copies, [observer.outputs(call) for _ in range(REPEATED)])
        return not watched.copies[0].numel()

    def _follows(self, written: int) -> bool:
        """Whether all that must follow a write are among the outputs that it moved, as bits."""
        return written & self.following == self.following

    def _require_equal(self, inputs: Inputs, timed: Outputs, again: Outputs) -> None:
        for name, ours, theirs in zip(names_of(self.subject, inputs), timed, again, strict=False):
            if ours.shape != theirs.shape:
                raise Wrong(f"{ONLY_SOME}: {name} is {list(ours.shape)}, then {list(theirs.shape)}")
            error = 0.0 if torch.equal(ours, theirs) else largest_of(_wide(ours) - _wide(theirs))
            if not error <= self.allowed * largest_of(theirs):
                raise Wrong(
                    f"a timed call gives another answer than an untimed one with the same inputs: {name} differs by "
                    f"{error / (largest_of(theirs) or 1.0):.2e}; allowed {self.allowed:.2e}"
                )

    def _require_noise(self, first: Outputs, others: Sequence[Outputs]) -> None:
        noise = NOISE_EPS * torch.finfo(torch_dtype(self.subject.cell.problem)).eps
        for other in others:
            for tensor, again in zip(first, other, strict=True):
                if largest_of(_wide(again) - _wide(tensor)) > noise * largest_of(tensor):
                    raise Wrong(ONLY_SOME)

    def _check_others(self, number: int) -> None:
        """Where a write moved nothing: others must, or calls do not look at their inputs."""
        observer, inputs = Observer(self.subject, self.subject.cell.problem), self.subject.sets[number]
        written = 0
        for _ in range(TRIALS):
            with changed(inputs, change_of(inputs, seed=_drawn.getrandbits(32))):
                outputs = observer.returned(self.subject.calls[number])
                written |= moved(self.known[number], digests(outputs))
        if not self._follows(written):
            raise Wrong("its answer stays the same when values of its inputs change in place")
        self._unsure += 1
        if self._unsure >= REPEATED:
            self.made, self._unsure = self.made + 1, 0

    def _restore(self, number: int) -> None:
        """Gives an input set its values again where another member has written to them."""
        subject = self.subject
        if self.pool.written(number, subject.sets[number]):
            self.pool.restore(number, subject.sets[number], subject.inputs(subject.cell.problem, number))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.element_size() < 4 else tensor
