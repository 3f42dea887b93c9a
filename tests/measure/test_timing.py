"""How calls are timed, on a host clock, a GPU and CUDA events that only pretend."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from attnbench.measure.device import Device, cpu, cuda
from attnbench.measure.protocol import SampleAnswer
from attnbench.measure.worker import block, clocks
from attnbench.measure.worker.block import Member
from attnbench.measure.worker.prepared_cell import Spent
from attnbench.plan.settings import MOST_CALLS, SAMPLE_S, UNTIMED_CALLS, batch_of

NEVER = 10**9
"""Samples before the first that is checked."""


class Machine:
    """A clock that moves only while a call runs, and a GPU that is asked after every sample.

    seconds: of the call with this number. flags: of the sample with this number. clocks: MHz, one answer after
    another, the last one for ever.
    """

    l2_bytes = 1024
    max_sm_clock_hz = 1e9

    def __init__(
        self,
        seconds: Callable[[int], float],
        flags: Callable[[int], list[str]] = lambda sample: [],
        clocks: tuple[int | None, ...] = (1980,),
    ) -> None:
        self.seconds, self.answer, self.clocks = seconds, flags, list(clocks)
        self.now, self.calls, self.asked = 0.0, 0, 0
        self.done: list[str] = []

    def call(self) -> tuple[Any, ...]:
        self.now += self.seconds(self.calls)
        self.calls += 1
        self.done.append("call")
        return ()

    def flags(self) -> list[str]:
        self.asked += 1
        return self.answer(self.asked - 1)

    def sm_clock_mhz(self) -> int | None:
        return self.clocks.pop(0) if len(self.clocks) > 1 else self.clocks[0]

    def subject(self, device: Device = cuda.DEVICE, synchronises: bool = False) -> Any:
        return SimpleNamespace(
            cell=SimpleNamespace(mode="fwd"),
            calls=(self.call, self.call),
            sets=((), ()),
            device=device,
            spent=Spent(),
            synchronise=lambda: None,
            synchronises=synchronises,
        )


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    def made(*given: Any, **more: Any) -> Machine:
        machine = Machine(*given, **more)
        for module in (block, clocks, cuda):
            monkeypatch.setattr(module, "perf_counter", lambda: machine.now)
        monkeypatch.setattr(cuda, "gpu", lambda: machine)
        monkeypatch.setattr(clocks, "_involuntary_switches", lambda: 0)
        return machine

    return made


def member(machine: Machine, call_s: float, device: Device = cuda.DEVICE) -> Member:
    """One that is never checked, and of which the host's clock alone takes samples."""
    subject = machine.subject(device)
    checks: Any = SimpleNamespace(short=call_s < SAMPLE_S, known=(0, 1), awaited=lambda: None)
    return Member(subject, checks, {"wall": clocks.host_clock(subject)}, call_s, _checked=NEVER)


def sampled(machine: Machine, call_s: float, device: Device = cuda.DEVICE) -> SampleAnswer:
    return block._sample(member(machine, call_s, device))


@pytest.mark.parametrize(
    ("call_s", "untimed", "timed"),
    [(1e-3, 2, 8), (3e-3, 2, 4), (0.9e-2, 1, 2), (6e-3, 1, 2), (4.9e-3, 2, 3), (1e-2, 0, 1), (0.3, 0, 1), (2e-4, 2, 8)],
)
def test_a_sample_is_warm_and_lasts_ten_milliseconds_or_eight_calls(
    pretend: Callable[..., Machine], call_s: float, untimed: int, timed: int
) -> None:
    machine = pretend(lambda call: 3 * call_s if call == 0 else call_s)
    of = member(machine, call_s)
    if not untimed:
        machine.call()  # the first call of all would be in a sample
    answer = block._sample(of)
    assert len(answer.samples) == timed
    assert machine.calls == (untimed or 1) + timed
    assert [seconds for _, seconds, _ in answer.samples] == pytest.approx([call_s] * timed), "the cold call is in none"


def test_the_first_call_of_a_turn_would_be_in_the_samples_were_it_not_warm(
    pretend: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    monkeypatch.setattr(Member, "_warm", lambda member: None)
    machine = pretend(lambda call: 3e-3 if call == 0 else 1e-3)
    assert sampled(machine, 1e-3).samples[0][1] == pytest.approx(3e-3)


def test_short_calls_are_timed_in_batches_of_whole_rotations(pretend: Callable[..., Machine]) -> None:
    machine = pretend(lambda call: 1e-5)
    answer = sampled(machine, 1e-5)
    assert len(answer.samples) == MOST_CALLS
    size, rest = divmod(machine.calls - UNTIMED_CALLS, MOST_CALLS)
    assert (size, rest) == (10, 0)
    assert [seconds for _, seconds, _ in answer.samples] == pytest.approx([1e-5] * MOST_CALLS)
    assert [batch_of(call_s, 3) for call_s in (1e-4, 0.9e-4, 3e-5, 1e-6)] == [1, 3, 3, 102]


def test_a_call_that_was_slow_once_is_not_taken_for_a_long_one_for_ever(pretend: Callable[..., Machine]) -> None:
    machine = pretend(lambda call: 1e-3)
    of = member(machine, 0.05)
    assert len(block._sample(of).samples) == MOST_CALLS
    assert machine.calls == MOST_CALLS
    block._sample(of)
    assert machine.calls == 2 * MOST_CALLS + UNTIMED_CALLS


def half_throttled(sample: int) -> list[str]:
    return ["throttled"] if sample % 2 else []


@pytest.mark.parametrize(
    ("flags", "lost", "throttled"),
    [
        (half_throttled, 4, False),
        (lambda sample: [], 0, False),
        (lambda sample: ["throttled"], 8, True),
        (lambda sample: ["capped"], 0, False),
    ],
    ids=["half", "none", "all", "capped"],
)
def test_throttled_samples_are_kept_and_said(
    pretend: Callable[..., Machine], flags: Callable[[int], list[str]], lost: int, throttled: bool
) -> None:
    answer = sampled(pretend(lambda call: 1e-3, flags), 1e-3)
    assert len(answer.samples) == MOST_CALLS
    assert sum(told == "throttled" for _, _, told in answer.samples) == lost
    assert answer.throttled is throttled


def test_a_sample_that_lost_the_processor_is_marked(
    pretend: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = pretend(lambda call: 1e-3)
    monkeypatch.setattr(clocks, "_involuntary_switches", lambda: (machine.calls - UNTIMED_CALLS) // 4)
    answer = sampled(machine, 1e-3, cpu.DEVICE)
    assert [told for _, _, told in answer.samples] == ["", "", "", "switched"] * 2
    assert machine.asked == 0, "no GPU is asked on a CPU"


@pytest.mark.parametrize(
    ("rates", "seconds"),
    [
        ((None,), 0.0),
        ((1980,), 1 * clocks.WARM_UP_S),
        ((300, 900, 1500, 1980, 1980), 4 * clocks.WARM_UP_S),
        (tuple(range(300, 90_000, 300)), clocks.CLOCK_UP_S),
    ],
    ids=["unknown", "steady", "rising", "for ever"],
)
def test_warming_up_lasts_until_the_clock_is_up_and_no_longer_than_its_limit(
    pretend: Callable[..., Machine], rates: tuple[int | None, ...], seconds: float
) -> None:
    machine = pretend(lambda call: 1e-3, clocks=rates)
    clocks.raise_clock(machine.subject())
    assert machine.now == pytest.approx(seconds, rel=0.05)


class Cuda:
    """As much of torch as device_time uses; it writes down what was asked, in order."""

    int32 = None

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.cuda = SimpleNamespace(Event=self.event, synchronize=lambda: None, _sleep=self.sleep)
        self.slept: list[float] = []

    def empty(self, size: int, dtype: Any, device: str) -> Any:
        assert 4 * size >= self.machine.l2_bytes
        return SimpleNamespace(zero_=lambda: self.machine.done.append("flush"))

    def sleep(self, cycles: int) -> None:
        self.machine.done.append("sleep")
        self.slept.append(cycles / self.machine.max_sm_clock_hz)

    def event(self, enable_timing: bool) -> Any:
        made = SimpleNamespace(at=0.0)

        def record() -> None:
            made.at = self.machine.now
            self.machine.done.append("record")

        made.record = record
        made.elapsed_time = lambda end: 1e3 * (end.at - made.at)
        return made


@pytest.mark.parametrize(("estimate", "flags"), [(1e-3, ""), (1e-4, "gaps")])
def test_device_time_flushes_before_and_queues_behind_a_bounded_sleep(
    pretend: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch, estimate: float, flags: str
) -> None:
    """Launches that take longer than the sleep leave gaps, and that is said."""
    machine = pretend(lambda call: 1e-3)
    pretended = Cuda(machine)
    monkeypatch.setattr(cuda, "torch", pretended)
    monkeypatch.setattr(block, "grad_mode", lambda mode: nullcontext())
    timer = clocks.device_clock(machine.subject(), estimate)
    assert timer is not None
    of = member(machine, estimate)
    of.timers = {"device": timer}
    samples = block._sample(of).samples
    order = machine.done[UNTIMED_CALLS:]
    assert order[:5] == ["flush", "sleep", "record", "call", "record"]
    assert order == order[:5] * len(samples), "single calls, however short"
    assert {told for _, _, told in samples} == {flags}
    assert [seconds for _, seconds, _ in samples] == pytest.approx([1e-3] * MOST_CALLS)
    assert all(estimate < seconds <= cuda.QUEUE_S for seconds in pretended.slept)
    long = clocks.device_clock(machine.subject(), 60.0)
    assert long is not None
    long.sample([machine.call])
    assert max(pretended.slept) == cuda.QUEUE_S


def test_an_impl_that_synchronises_inside_is_not_held_back(
    pretend: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = pretend(lambda call: 1e-3)
    pretended = Cuda(machine)
    monkeypatch.setattr(cuda, "torch", pretended)
    timer = clocks.device_clock(machine.subject(synchronises=True), 1e-4)
    assert timer is not None
    assert timer.sample([machine.call]) == (pytest.approx(1e-3), [])
    assert not pretended.slept


def test_both_clocks_of_a_device_take_samples_in_a_turn(
    pretend: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = pretend(lambda call: 4e-3)
    monkeypatch.setattr(cuda, "torch", Cuda(machine))
    of = member(machine, 4e-3)
    timer = clocks.device_clock(of.subject, 4e-3)
    assert timer is not None
    of.timers["device"] = timer
    names = [name for name, _, _ in block._sample(of).samples]
    assert names == ["wall"] * 3 + ["device"] * 3
    assert SAMPLE_S <= 3 * 4e-3
