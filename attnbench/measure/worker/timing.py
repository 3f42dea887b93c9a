"""How one call is timed: by the host's clock with the device synchronised on both sides, or by the device's own.

Nothing here looks at what a call returns (see `answers`), nor decides when to stop (see `sampling`). The clock is bound
before any operator is imported; see `shared_state` for operators that replace it.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from attnbench.measure.protocol import THROTTLED
from attnbench.measure.worker import sampling
from attnbench.measure.worker.prepared_cell import Outputs, Subject, grad_mode
from attnbench.plan.settings import Measure

BLOCK_S = 1e-4
"""A sample lasts at least this long: the clock's resolution and the loop's own cost are then below 0.1 %."""

WARM_UP_S = 0.05
"""Calls before the first sample last this long: one at least, and until the device's clock has stopped rising."""

CLOCK_UP_S = 2.0
"""The longest wait for the device's clock to stop rising."""


@dataclass(frozen=True)
class Timing:
    """The samples of one clock.

    Args:
        samples: (seconds per call, flags joined by "+").
        stopped: why sampling stopped.
        centre: of the samples that count.
    """

    samples: list[tuple[float, str]]
    stopped: str
    centre: sampling.Centre

    @property
    def throttled(self) -> bool:
        """Whether no sample was free of throttling."""
        return all(THROTTLED in flags.split("+") for _, flags in self.samples)


def warm_up(subject: Subject, seconds: float = WARM_UP_S) -> float:
    """Calls each set once, and on until the device is warm.

    Args:
        seconds: the shortest time of it.

    Returns: seconds of the fastest call, synchronised.
    """
    fastest, index = float("inf"), 0
    begun = perf_counter()
    clock = 0
    with grad_mode(subject.cell.mode), subject.spent.inside():
        while True:
            fastest = min(fastest, _once(subject, subject.calls[index % len(subject.calls)]))
            index += 1
            elapsed = perf_counter() - begun
            if elapsed >= seconds and index >= len(subject.calls):
                now = subject.device.clock_mhz()
                if now is None or now <= clock * 1.01 or elapsed >= CLOCK_UP_S:
                    return fastest
                clock, seconds = now, elapsed + WARM_UP_S


def _once(subject: Subject, call: Callable[[], Outputs]) -> float:
    subject.synchronise()
    start = perf_counter()
    outputs = call()
    subject.synchronise()
    seconds = perf_counter() - start
    del outputs
    return seconds


def wall_time(subject: Subject, measure: Measure, estimate: float) -> Timing:
    """Seconds per call by the host clock; calls shorter than BLOCK_S are timed in blocks of full rotations. A sample
    during which the kernel took the processor away is flagged "switched".

    Args:
        estimate: seconds of one call.
    """
    calls = subject.calls
    block = 1 if estimate >= BLOCK_S else -(-max(1, round(BLOCK_S / max(estimate, 1e-9))) // len(calls)) * len(calls)
    order = [calls[i % len(calls)] for i in range(block)]
    synchronise = subject.synchronise

    def sample(index: int) -> tuple[float, str]:
        current = [calls[index % len(calls)]] if block == 1 else order
        switches = _involuntary_switches()
        synchronise()
        start = perf_counter()
        for call in current:
            outputs = call()
        synchronise()
        seconds = (perf_counter() - start) / block
        del outputs
        flags = ["switched"] if _involuntary_switches() != switches else []
        return seconds, "+".join(flags + subject.device.flags())

    return collect(subject, measure, sample)


def device_time(subject: Subject, measure: Measure, estimate: float) -> Timing:
    """Seconds per call by the device's own clock, which it has.

    Args:
        estimate: seconds of one call, synchronised.
    """
    assert subject.device.clock is not None
    timed = subject.device.clock(estimate, subject.synchronises)
    calls = subject.calls

    def sample(index: int) -> tuple[float, str]:
        seconds, flags = timed(calls[index % len(calls)])
        return seconds, "+".join(flags)

    return collect(subject, measure, sample)


def collect(subject: Subject, measure: Measure, sample: Callable[[int], tuple[float, str]]) -> Timing:
    """The samples of a visit: as many as `sampling.enough` asks for, at most twice max_samples where some do not count.

    Args:
        sample: takes the sample of this number; its seconds per call and its flags, joined by "+".
    """
    samples: list[tuple[float, str]] = []
    counted: list[float] = []
    stopped: str | None = None
    begun = perf_counter()
    with grad_mode(subject.cell.mode), subject.spent.inside():
        while stopped is None:
            seconds, flags = sample(len(samples))
            samples.append((seconds, flags))
            if THROTTLED not in flags.split("+"):
                counted.append(seconds)
            elapsed = perf_counter() - begun
            stopped = sampling.enough(counted, elapsed, measure)
            if stopped is None and _hopeless(len(samples), len(counted), elapsed, measure):
                stopped = THROTTLED
    return Timing(samples, stopped, sampling.centre(counted or [seconds for seconds, _ in samples]))


def _hopeless(taken: int, counted: int, elapsed: float, measure: Measure) -> bool:
    """Whether so many samples are discarded that the visit must end without its minimum."""
    lost = taken - counted
    return lost > 0 and (taken >= 2 * measure.max_samples or elapsed >= 2 * measure.max_time_s)


if sys.platform == "linux":

    def _involuntary_switches() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
else:

    def _involuntary_switches() -> int:
        return 0
