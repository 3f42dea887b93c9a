"""What a fleet is still expected to take, by what its shards took until their blocks were measured."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from attnbench.measure.sharding import Expected
from attnbench.plan.time_budget import starting_s


@dataclass
class _Course:
    """Of a shard that has been at work: since when, and how far it came at its last block.

    Attributes:
        begun: when it was first seen at work.
        units: that are measured, those of before included.
        first: when the first of them was seen, and how many there were then; None: none yet.
        at: when the last of them was seen.
        ended: whether it has.
    """

    begun: float
    units: int
    first: tuple[float, int] | None = None
    at: float = 0.0
    ended: bool = False


@dataclass
class FleetTime:
    """What is left of a fleet.

    A shard starts, checks its blocks, and only then measures one after the other. So the seconds to a shard's last
    block are taken to be what starting, and what its checks and blocks are expected to take, each times a factor that
    all shards have in common. The factors are from all shards so far, ended or not.

    Args:
        expected: by its number, what every shard is expected to take.
        limits_s: by number, what those may take that have a budget.
        now: a clock; seconds.
    """

    expected: Mapping[int, Expected]
    limits_s: Mapping[int, float] = field(default_factory=dict)
    now: Callable[[], float] = time.monotonic
    _before: dict[int, int] = field(default_factory=dict)
    _courses: dict[int, _Course] = field(default_factory=dict)
    _devices: int = 0

    def waits(self, number: int, units: int) -> None:
        """A shard waits for a device, for the first time or again. units: that were measured before."""
        self._before[number] = units
        self._courses.pop(number, None)

    def runs(self, number: int, units: int) -> None:
        """A shard is at work. units: that are measured so far, those of before included."""
        course = self._courses.setdefault(number, _Course(self.now(), self._before.get(number, 0)))
        if units > course.units:
            self._note(course, units)

    def ends(self, number: int) -> None:
        """A shard has ended."""
        course = self._courses.get(number)
        if course is not None and not course.ended:
            course.ended = True
            self._note(course, self.expected[number].units)

    def _note(self, course: _Course, units: int) -> None:
        course.units, course.at = units, self.now()
        course.first = course.first or (course.at, units)

    def seconds(self, numbers: set[int]) -> float | None:
        """What is left; None: not known, as before the first block.

        Args:
            numbers: of the shards that have not ended.
        """
        running = [number for number in numbers if number in self._courses and not self._courses[number].ended]
        self._devices = max(self._devices, len(running))
        pace = self._pace()
        if pace is None or not self._devices:
            return None
        free = [self._rest_s(number, pace) for number in running]  # by device, when it is
        free += [0.0] * (self._devices - len(free))
        heapq.heapify(free)
        for number in sorted(numbers.difference(running)):
            heapq.heapreplace(free, free[0] + self._lasts_s(number, pace))
        return max(free)

    def _pace(self) -> tuple[float, float] | None:
        """The factors by which starting, and all that follows, take longer than expected."""
        seen = [
            (number, course, course.first)
            for number, course in self._courses.items()
            if course.first is not None and course.units > self._before.get(number, 0)
        ]
        if not seen:
            return None
        starts_s = sum(starting_s(self.expected[number].rounds) for number, _, _ in seen)
        taken_s = sum(course.at - course.begun for _, course, _ in seen)
        work_s = sum(self._work_s(number, course.units) for number, course, _ in seen)
        later = sum(course.units - units for _, course, (_, units) in seen)
        if later >= len(seen):
            later_s = sum(course.at - at for _, course, (at, _) in seen)
            later_work_s = work_s - sum(self._work_s(number, units) for number, _, (_, units) in seen)
            working = later_s / later_work_s
        else:  # what a start takes here is not known yet
            working = max(taken_s - starts_s, taken_s / 2) / work_s
        return max(0.0, taken_s - working * work_s) / starts_s, working

    def _lasts_s(self, number: int, pace: tuple[float, float]) -> float:
        """What a shard takes from its beginning to its end."""
        expected = self.expected[number]
        starting, working = pace
        lasts_s = starting * starting_s(expected.rounds) + working * self._work_s(number, expected.units)
        return min(lasts_s, self.limits_s.get(number, lasts_s))

    def _rest_s(self, number: int, pace: tuple[float, float]) -> float:
        """What a shard that is at work still takes: from its last block on what is left of them, and before its first
        one all of them at least."""
        course, now = self._courses[number], self.now()
        to_come_s = pace[1] * (self._work_s(number, self.expected[number].units) - self._work_s(number, course.units))
        at = course.at if course.first else max(now, course.begun + self._lasts_s(number, pace) - to_come_s)
        return max(0.0, min(at + to_come_s, course.begun + self.limits_s.get(number, math.inf)) - now)

    def _work_s(self, number: int, units: int) -> float:
        """What a shard is expected to take for its checks and as many of its blocks; those of before are there."""
        expected, before = self.expected[number], self._before.get(number, 0)
        check_s = 0.0 if before else expected.check_s
        return check_s + expected.timed_s * (units - before) / expected.units
