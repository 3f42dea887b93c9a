"""How calls are timed and samples judged, on a host clock, a GPU and CUDA events that only pretend."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from attnbench.measure.device import Device, cpu, cuda
from attnbench.measure.metrics import wall_time
from attnbench.measure.worker import timing as clock
from attnbench.measure.worker.prepared_cell import Spent
from attnbench.measure.worker.visit import Bench
from attnbench.plan.settings import Measure

MEASURE = Measure(within_process_precision=0.0, min_samples=5, max_samples=20, max_time_s=1.0)


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
            device=device,
            spent=Spent(),
            synchronise=lambda: None,
            synchronises=synchronises,
        )


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    def made(*given: Any, **more: Any) -> Machine:
        machine = Machine(*given, **more)
        monkeypatch.setattr(clock, "perf_counter", lambda: machine.now)
        monkeypatch.setattr(cuda, "perf_counter", lambda: machine.now)
        monkeypatch.setattr(cuda, "gpu", lambda: machine)
        monkeypatch.setattr(clock, "_involuntary_switches", lambda: 0)
        return machine

    return made


def half_throttled(sample: int) -> list[str]:
    return ["throttled"] if sample % 2 else []


def slow_while_throttled(call: int) -> float:
    return 2e-3 if call % 2 else 1e-3


@pytest.mark.parametrize(
    ("flags", "median", "lost"), [(half_throttled, 1e-3, 19), (lambda sample: [], 1.5e-3, 0)], ids=["told", "untold"]
)
def test_throttled_samples_are_kept_and_count_for_nothing(
    pretend: Callable[..., Machine], flags: Callable[[int], list[str]], median: float, lost: int
) -> None:
    """The second case is the control: a GPU that does not say so gives a slower time."""
    machine = pretend(slow_while_throttled, flags)
    timing = clock.wall_time(machine.subject(), MEASURE, 1e-3)
    assert timing.centre.median == pytest.approx(median)
    assert [told for _, told in timing.samples].count("") == MEASURE.max_samples
    assert [told for _, told in timing.samples].count("throttled") == lost
    assert not timing.throttled


def test_a_power_cap_is_noted_and_not_discarded(pretend: Callable[..., Machine]) -> None:
    machine = pretend(lambda call: 1e-3, lambda sample: ["capped"])
    timing = clock.wall_time(machine.subject(), MEASURE, 1e-3)
    assert {told for _, told in timing.samples} == {"capped"}
    assert (timing.stopped, timing.throttled) == ("precise", False)


@pytest.mark.parametrize("seconds", [1e-6, 1e-3, 0.7])
def test_a_clock_that_is_never_steady_ends_the_visit_with_a_warning(
    pretend: Callable[..., Machine], seconds: float
) -> None:
    machine = pretend(lambda call: seconds, lambda sample: ["throttled"])
    timing = clock.wall_time(machine.subject(), MEASURE, seconds)
    assert timing.stopped == "throttled"
    assert timing.throttled
    assert len(timing.samples) <= 2 * MEASURE.max_samples
    assert machine.now <= 2 * MEASURE.max_time_s + seconds
    bench = Bench(machine.subject(), MEASURE)
    assert bench.keep(wall_time.METRIC, timing)["wall_time_s"] == pytest.approx(seconds)
    assert bench.warnings == [f"the GPU's clock was throttled: all {len(timing.samples)} samples of wall time"]
    steady = clock.wall_time(pretend(lambda call: seconds).subject(), MEASURE, seconds)
    assert bench.keep(wall_time.METRIC, steady)
    assert len(bench.warnings) == 1


def test_a_sample_that_lost_the_processor_is_marked_and_counts(
    pretend: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = pretend(lambda call: 1e-3)
    monkeypatch.setattr(clock, "_involuntary_switches", lambda: machine.calls // 4)
    timing = clock.wall_time(machine.subject(cpu.DEVICE), MEASURE, 1e-3)
    assert [told for _, told in timing.samples[:8]] == ["", "", "", "switched"] * 2
    assert timing.centre.median == pytest.approx(1e-3)
    assert machine.asked == 0, "no GPU is asked on a CPU"


@pytest.mark.parametrize(
    ("clocks", "seconds"),
    [
        ((None,), 0.05),
        ((1980,), 2 * 0.05),
        ((300, 900, 1500, 1980, 1980), 5 * 0.05),
        (tuple(range(300, 90_000, 300)), clock.CLOCK_UP_S),
    ],
    ids=["unknown", "steady", "rising", "for ever"],
)
def test_warm_up_lasts_until_the_clock_is_up_and_no_longer_than_its_limit(
    pretend: Callable[..., Machine], clocks: tuple[int | None, ...], seconds: float
) -> None:
    machine = pretend(lambda call: 1e-3 if call else 0.5e-3, clocks=clocks)
    assert clock.warm_up(machine.subject(), 0.05) == pytest.approx(0.5e-3)
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
    monkeypatch.setattr(clock, "grad_mode", lambda mode: nullcontext())
    timing = clock.device_time(machine.subject(), MEASURE, estimate)
    assert machine.done[:5] == ["flush", "sleep", "record", "call", "record"]
    assert machine.done == machine.done[:5] * len(timing.samples)
    assert {told for _, told in timing.samples} == {flags}
    assert timing.centre.median == pytest.approx(1e-3)
    assert all(estimate < seconds <= cuda.QUEUE_S for seconds in pretended.slept)
    clock.device_time(machine.subject(), MEASURE, 60.0)
    assert max(pretended.slept) == cuda.QUEUE_S


def test_an_impl_that_synchronises_inside_is_not_held_back(
    pretend: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = pretend(lambda call: 1e-3)
    pretended = Cuda(machine)
    monkeypatch.setattr(cuda, "torch", pretended)
    timing = clock.device_time(machine.subject(synchronises=True), MEASURE, 1e-4)
    assert not pretended.slept
    assert {told for _, told in timing.samples} == {""}
