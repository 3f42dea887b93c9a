"""What the machine does while attnbench waits, and how finely its clock steps."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from attnbench.measure.machine.host import first_line, stated_in

LOOK_S = 0.3
"""How long the processor is watched for what others do."""

STAT = Path("/proc/stat")
CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")


@dataclass(frozen=True)
class Load:
    """What the processor did while attnbench waited. None where the system does not say.

    Args:
        others: cores busy with other work.
        stolen: share of the time that the host of a virtual machine gave to others.
    """

    others: float | None
    stolen: float | None


@dataclass(frozen=True)
class Clock:
    """The host clock.

    Args:
        step_s: its smallest step.
        source: what the kernel counts with, or None.
    """

    step_s: float
    source: str | None


def watch(seconds: float = LOOK_S) -> Load:
    """What others do with the processor while this process sleeps."""
    before = _ticks()
    time.sleep(seconds)
    after = _ticks()
    if before is None or after is None:
        return Load(None, None)
    spent = [b - a for a, b in zip(before, after, strict=True)]
    total = sum(spent)
    if total <= 0 or min(spent) < 0:
        return Load(None, None)
    idle, stolen = spent[3] + spent[4], spent[7]
    return Load((os.cpu_count() or 1) * (total - idle - stolen) / total, stolen / total)


def _ticks() -> list[int] | None:
    """The first eight columns of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal."""
    words = (stated_in(STAT, "cpu ") or "").split()
    ticks = [int(word) for word in words[:8] if word.isdigit()]
    return ticks if len(ticks) == 8 else None


def clock(steps: int = 200) -> Clock:
    """The clock that calls are timed with, and the smallest of many steps."""
    return Clock(min(_step() for _ in range(steps)), (first_line(CLOCK_SOURCE) or "").strip() or None)


def _step() -> float:
    start = now = time.perf_counter()
    while now == start:
        now = time.perf_counter()
    return now - start
