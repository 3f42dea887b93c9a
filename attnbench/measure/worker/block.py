"""The open block: cells that are made ready once and kept alive together, for turns that take a sample of every one.

The only try/except around the calls of an operator is `failures.guarded`, here and in a check.
"""

from __future__ import annotations

import contextlib
import gc
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar

from attnbench.measure.device import Device, device_of
from attnbench.measure.protocol import (
    NOTHING_KNOWN,
    CellAnswer,
    FinishRequest,
    PreparedAnswer,
    PrepareRequest,
    SampleAnswer,
    SampleRequest,
    VisitAnswer,
    is_steady,
)
from attnbench.measure.worker import clocks
from attnbench.measure.worker.changes import Observer
from attnbench.measure.worker.clocks import Call, Clock
from attnbench.measure.worker.failures import guarded
from attnbench.measure.worker.input_pool import InputPool
from attnbench.measure.worker.lifetime import limit_host_memory
from attnbench.measure.worker.prepared_cell import Subject, bytes_of, forget_compiled, grad_mode, subject_of
from attnbench.measure.worker.shared_state import same_random_numbers
from attnbench.measure.worker.storable import storable
from attnbench.measure.worker.timed_checks import TimedChecks, Watched
from attnbench.measure.worker.visit import Bench, figures, metrics
from attnbench.plan.settings import ALONE_S, MOST_CALLS, SAMPLE_S, batch_of, stays_with_one_set, untimed_calls
from attnbench.problem import Cell
from attnbench.registry import source_of

CHECKED = 8
"""One sample in so many is checked; of the first, one among the six that every visit has."""

FIRST_CHECKED = 6

CHEAP_CALL_S = 1e-3
"""A visit of calls shorter than this has CHEAP_CHECKS checks at least, made at its end where its samples had fewer."""

CHEAP_CHECKS = 3

_drawn = random.Random()
"""Of the system's own seed: which samples are checked is unknown beforehand."""

Taken = list[tuple[str, float, str]]
A = TypeVar("A", bound=CellAnswer)


@dataclass
class Member:
    """A cell that is alive in the open block.

    Attributes:
        subject: it, ready to be called.
        checks: of its timed calls.
        timers: by the name of a metric's clock.
        call_s: seconds of the fastest call so far.
        visit_s: seconds of its requests.
        most_samples: that its visit has; None: not known.
    """

    subject: Subject
    checks: TimedChecks
    timers: dict[str, Clock] = field(default_factory=dict)
    call_s: float = 0.0
    visit_s: float = 0.0
    most_samples: int | None = None
    _one_set: bool = False
    _turn: int = 0
    _samples: int = 0
    _checked: int = field(default_factory=lambda: _drawn.randrange(FIRST_CHECKED))

    def prepare(self) -> tuple[float, float]:
        """Calls each input set, or the first alone where that takes long, and compares what they give with the check's.

        Returns: seconds of the first call, and of the fastest later one, if any.
        Raises: Wrong.
        """
        subject = self.subject
        observer = Observer(subject, subject.cell.problem)
        seconds: list[float] = []
        for number, call in enumerate(subject.calls):
            if seconds and seconds[0] >= ALONE_S:
                break
            begun = subject.spent.seconds
            outputs = observer.outputs(call)
            seconds.append(subject.spent.seconds - begun)
            self.checks.first(number, outputs)
        observer.settle()
        clocks.raise_clock(subject)
        self._turn = len(seconds)
        if stays_with_one_set(seconds[0], self.most_samples):
            self._one_set, self._checked = True, 0
        self.call_s = min(seconds[1:] or seconds)
        if self.call_s < CHEAP_CALL_S:
            with grad_mode(subject.cell.mode), subject.spent.inside():
                self.call_s = min(self.call_s, *(clocks.once(subject, call) for call in subject.calls))
        self._note(self.call_s)
        for module in metrics():
            timer = module.timer(subject, self.call_s) if hasattr(module, "timer") else None
            if timer is not None:
                self.timers[module.METRIC.clock] = timer
        return seconds[0], self.call_s

    @property
    def _sets(self) -> int:
        """How many input sets its timed calls take in turn."""
        return 1 if self._one_set else len(self.subject.sets)

    def sample(self) -> Taken:
        """One turn's sample. Raises Wrong; RuntimeError where torch compiles in every one."""
        for _ in range(2):
            compiled, taken = compilations(), self._checked_sample()
            if compilations() == compiled:
                return taken
        raise RuntimeError("torch compiles it anew in timed calls: it has no time of its own")

    def _checked_sample(self) -> Taken:
        taken: Taken = []

        def take(watched: Watched | None = None) -> None:
            taken.extend(self._take(watched))

        self._take_all_sets_where_short()
        self._warm()
        upcoming = self._turn % self._sets
        number = _drawn.randrange(self._sets) if self.checks.short else upcoming
        if upcoming not in self.checks.known:
            self.checks.first_timed(upcoming, take)
        elif self._samples >= self._checked and self.checks.awaited() is None:
            self._checked += CHECKED
            self.checks.after_write(number, take)
        elif self.checks.awaited() == upcoming:
            self.checks.after_return(take)
        else:
            take()
        self._samples += 1
        return taken

    def _warm(self) -> None:
        untimed = untimed_calls(self.call_s)
        if untimed:
            with grad_mode(self.subject.cell.mode), self.subject.spent.inside():
                for number in self._numbers(untimed):
                    self._note(clocks.once(self.subject, self.subject.calls[number]))

    def _note(self, seconds: float) -> None:
        """Takes note of the time of a call by the host's clock."""
        self.call_s = min(self.call_s, seconds)
        self.checks.short = self.call_s < SAMPLE_S

    def _take(self, watched: Watched | None) -> Taken:
        """The timed calls of a sample, by every clock; of those by one, one is watched."""
        watching = _drawn.choice(list(self.timers))
        return [
            (name, seconds, flags)
            for name, timer in self.timers.items()
            for seconds, flags in self._timed(timer, watched if name == watching else None)
        ]

    def _timed(self, timer: Clock, watched: Watched | None) -> list[tuple[float, str]]:
        size = self._batch(timer)
        taken: list[tuple[float, str]] = []
        with grad_mode(self.subject.cell.mode), self.subject.spent.inside():
            begun = perf_counter()
            while len(taken) < MOST_CALLS or (watched and watched.outputs is None):
                seconds, flags = timer.sample(self._calls(size, watched))
                taken.append((seconds / size, "+".join(flags)))
                if timer.batches:
                    self._note(seconds / size)
                if watched:
                    watched.copy()
                if perf_counter() - begun >= SAMPLE_S and not (watched and watched.outputs is None):
                    break
        return taken

    def _batch(self, timer: Clock) -> int:
        """The calls that make one figure of a clock."""
        return batch_of(self.call_s, self._sets) if timer.batches else 1

    def _numbers(self, count: int) -> list[int]:
        """The input sets of the next calls: that of the call before only where there is one alone."""
        begun, self._turn = self._turn, self._turn + count
        return [number % self._sets for number in range(begun, self._turn)]

    def _calls(self, count: int, watched: Watched | None) -> Sequence[Call]:
        numbers = self._numbers(count)
        calls = [self.subject.calls[number] for number in numbers]
        return watched.within(numbers, calls) if watched else calls

    def _take_all_sets_where_short(self) -> None:
        """Where its first call alone took long, it is checked as any that is short."""
        if not (self._one_set and self.checks.short):
            return
        self._one_set = False
        observer = Observer(self.subject, self.subject.cell.problem)
        for number in range(1, self._sets):
            self.checks.first(number, observer.outputs(self.subject.calls[number]))
        observer.settle()

    def finish(self) -> None:
        """The checks that its samples have not had. Raises Wrong."""
        least = CHEAP_CHECKS if self.call_s < CHEAP_CALL_S else 1
        self._take_all_sets_where_short()
        while self.checks.made < least:
            number = _drawn.choice(list(self.checks.known))
            self.checks.after_write(number, self._until)
        awaited = self.checks.awaited()
        if awaited is not None:
            observer = Observer(self.subject, self.subject.cell.problem)
            self.checks.returned(awaited, observer.outputs(self.subject.calls[awaited]))
            observer.settle()

    def _until(self, watched: Watched) -> None:
        """Timed calls that are stored nowhere, until the watched one has been among them."""
        timer = next(iter(self.timers.values()))
        size = self._batch(timer)
        with grad_mode(self.subject.cell.mode), self.subject.spent.inside():
            while watched.outputs is None:
                timer.sample(self._calls(size, watched))
                watched.copy()


@dataclass
class Block:
    """The members that are alive together. cells: of all that were prepared since it was opened, by key."""

    cells: dict[str, Cell] = field(default_factory=dict)
    _members: dict[str, Member] = field(default_factory=dict)
    _pool: InputPool = field(default_factory=InputPool)
    _devices: dict[str, Device] = field(default_factory=dict)

    def prepare(self, request: PrepareRequest) -> PreparedAnswer:
        """See `PrepareRequest`."""
        begun = perf_counter()
        key = request.cell.key
        self._free(key)
        self.cells[key] = request.cell
        answer = guarded(PreparedAnswer, device_of(request.device), lambda: self._prepare(request))
        if answer.status != "ok":
            self._free(key)
        else:
            self._members[key].visit_s += perf_counter() - begun
        return storable(answer)

    def _prepare(self, request: PrepareRequest) -> PreparedAnswer:
        same_random_numbers()
        limit_host_memory(request.host_limit)
        source = source_of(request.cell.operator, request.operators_from)
        device = self._devices[request.device] = device_of(request.device)
        subject = subject_of(request.cell, source, device, request.memory_limit, NOTHING_KNOWN, self._pool.share)
        expected = dict(enumerate(request.answers))
        checks = TimedChecks(subject, self._pool, expected, request.tolerance, request.following)
        member = Member(subject, checks, most_samples=request.most_samples)
        before = self._held_bytes()
        self._members[request.cell.key] = member
        first_call_s, call_s = member.prepare()
        return PreparedAnswer("ok", first_call_s=first_call_s, call_s=call_s, held_bytes=self._held_bytes() - before)

    def _held_bytes(self) -> int:
        return bytes_of(tensor for member in self._members.values() for tensor in member.subject.held())

    def sample(self, request: SampleRequest) -> SampleAnswer:
        """See `SampleRequest`."""
        return storable(self._ask(request.key, SampleAnswer, _sample))

    def finish(self, request: FinishRequest) -> VisitAnswer:
        """See `FinishRequest`."""
        answer = self._ask(request.key, VisitAnswer, _finish)
        self._free(request.key)
        return storable(answer)

    def release(self) -> None:
        """Frees all members, what torch has compiled for them, and the memory that they have left free."""
        if not self.cells:
            return
        compiled = any(cell.impl == "compiled" for cell in self.cells.values())
        for key in list(self._members):
            self._free(key)
        self._pool = InputPool()
        self.cells.clear()
        if compiled:
            forget_compiled()
        gc.collect()
        gc.freeze()
        for device in self._devices.values():
            with contextlib.suppress(RuntimeError):
                device.empty_cache()

    def _ask(self, key: str, kind: type[A], request: Callable[[Member], A]) -> A:
        """An answer about a member, which is freed where that is not "ok"."""
        begun = perf_counter()
        member = self._members[key]
        same_random_numbers()
        answer = guarded(kind, member.subject.device, lambda: request(member))
        member.visit_s += perf_counter() - begun
        if answer.status != "ok":
            self._free(key)
        elif isinstance(answer, VisitAnswer):
            answer.metrics["visit_s"] = member.visit_s
        return answer

    def _free(self, key: str) -> None:
        member = self._members.pop(key, None)
        if member is not None:
            member.subject.release()


def _sample(member: Member) -> SampleAnswer:
    taken = member.sample()
    steady = {name for name, _, flags in taken if is_steady(flags)}
    lost = [name for name in member.timers if name not in steady]
    return SampleAnswer("ok", samples=taken, throttled=bool(lost))


def _finish(member: Member) -> VisitAnswer:
    member.finish()
    bench = Bench(member.subject)
    bench.metrics.update(figures(bench, "finish"))
    bench.metrics["operator_s"] = member.subject.spent.seconds
    return bench.answer()


def compilations() -> int:
    """How often torch has compiled something in this process."""
    utils = sys.modules.get("torch._dynamo.utils")
    return int(utils.counters["frames"]["total"]) if utils is not None else 0
