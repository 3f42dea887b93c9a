"""How calls are timed: by the host's clock with the device synchronised on both sides, or by another clock of a metric.

Nothing here looks at what a call returns (see `timed_checks`). The clock is bound before any operator is imported; see
`shared_state` for operators that replace it.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from attnbench.measure.worker.prepared_cell import Outputs, Subject, grad_mode
from attnbench.plan.settings import WARM_UP_S

CLOCK_UP_S = 2.0
"""The longest wait for the device's clock to stop rising."""

Call = Callable[[], Outputs]


@dataclass(frozen=True)
class Clock:
    """What a metric with a clock takes a sample by.

    Args:
        sample: (calls) -> seconds that they took together, and the sample's flags.
        batches: whether a sample may be of several calls.
    """

    sample: Callable[[Sequence[Call]], tuple[float, list[str]]]
    batches: bool = True


def host_clock(subject: Subject) -> Clock:
    """Wall time. A sample during which the kernel took the processor away is flagged "switched"."""

    def sample(calls: Sequence[Call]) -> tuple[float, list[str]]:
        switches = _involuntary_switches()
        subject.synchronise()
        start = perf_counter()
        for call in calls:
            outputs = call()
        subject.synchronise()
        seconds = perf_counter() - start
        del outputs
        flags = ["switched"] if _involuntary_switches() != switches else []
        return seconds, flags + subject.device.flags()

    return Clock(sample)


def device_clock(subject: Subject, call_s: float) -> Clock | None:
    """The device's own clock; None where it has none. call_s: seconds of one call, synchronised."""
    if subject.device.clock is None:
        return None
    timed = subject.device.clock(call_s, subject.synchronises)
    return Clock(lambda calls: timed(calls[0]), batches=False)


def raise_clock(subject: Subject) -> None:
    """Calls until the clock rate of a device that states it no longer rises."""
    begun, rate = perf_counter(), 0
    with grad_mode(subject.cell.mode), subject.spent.inside():
        while (now := subject.device.clock_mhz()) is not None and now > rate * 1.01:
            rate, until = now, perf_counter() + WARM_UP_S
            while perf_counter() < until:
                once(subject, subject.calls[0])
            if perf_counter() - begun >= CLOCK_UP_S:
                return


def once(subject: Subject, call: Call) -> float:
    """Seconds of one call, synchronised."""
    subject.synchronise()
    start = perf_counter()
    outputs = call()
    subject.synchronise()
    seconds = perf_counter() - start
    del outputs
    return seconds


if sys.platform == "linux":

    def _involuntary_switches() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
else:

    def _involuntary_switches() -> int:
        return 0
