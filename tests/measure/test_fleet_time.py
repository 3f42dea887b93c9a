"""How long a fleet is said to take, on shards whose course is planted: each starts, checks its blocks, and then
measures one after the other."""

from __future__ import annotations

import heapq

from attnbench.measure.fleet_time import FleetTime
from attnbench.measure.sharding import Expected
from attnbench.plan.time_budget import starting_s

SHARDS, DEVICES, UNITS = 12, 4, 5
EXPECTED = {n: Expected(check_s=4.0, timed_s=10.0 + n, units=UNITS, rounds=2, share=0.1) for n in range(1, SHARDS + 1)}


def course(number: int, *, starting: float, working: float) -> list[float]:
    """When the blocks of a shard are measured, from its beginning; last, when it ends."""
    each = EXPECTED[number]
    first = starting * starting_s(each.rounds) + working * each.check_s
    blocks = [first + working * each.timed_s * done / UNITS for done in range(1, UNITS + 1)]
    return [*blocks, blocks[-1] + 1]


def told(*, starting: float, working: float, limits_s: dict[int, float] | None = None) -> list[tuple[float, ...]]:
    """Every second: what is truly left, what is said, and what the blocks so far say by their number alone."""
    clock = [0.0]
    left = FleetTime(EXPECTED, limits_s or {}, now=lambda: clock[0])
    free, begins = [0.0] * DEVICES, dict[int, float]()
    courses = {number: course(number, starting=starting, working=working) for number in EXPECTED}
    for number in EXPECTED:
        begins[number] = heapq.heapreplace(free, free[0] + courses[number][-1])
        left.waits(number, 0)
    end, rows = max(free), []
    while clock[0] < end:
        past = {number: clock[0] - begin for number, begin in begins.items() if clock[0] >= begin}
        blocks = {number: sum(at <= past_s for at in courses[number][:-1]) for number, past_s in past.items()}
        ended = {number for number, past_s in past.items() if past_s >= courses[number][-1]}
        for number in past.keys() - ended:
            left.runs(number, blocks[number])
        for number in ended:
            left.ends(number)
        seconds = left.seconds(EXPECTED.keys() - ended)
        done = sum(blocks.values())
        assert (seconds is None) == (done == 0)
        if seconds is not None:
            rows.append((end - clock[0], seconds, clock[0] * (SHARDS * UNITS - done) / done))
        clock[0] += 1
    return rows


def test_what_is_left_is_known_from_the_first_blocks_on() -> None:
    for starting, working, first in ((1.0, 3.0, 1.1), (1.5, 1.0, 1.6), (0.4, 1.0, 1.2)):
        rows = told(starting=starting, working=working)
        true, said, by_number = rows[0]
        assert true / first < said < true * first, "what a start takes here is not known at first"
        assert by_number > 2 * first * true, "the first blocks come late: their number alone says far too much"
        for left_s, said, _ in rows[len(rows) // 4 :]:
            assert abs(said - left_s) < 0.1 * true + 1, (starting, working, left_s, said)


def test_a_shard_takes_no_more_than_its_budget_and_begins_anew_where_it_is_lost() -> None:
    limits_s = dict.fromkeys(EXPECTED, 30.0)
    _, said, _ = told(starting=1.0, working=10.0, limits_s=limits_s)[0]
    assert said < SHARDS / DEVICES * 30
    clock = [0.0]
    left = FleetTime(EXPECTED, now=lambda: clock[0])
    left.runs(1, 0)
    clock[0] = 40.0
    left.runs(1, UNITS)
    assert left.seconds({1}) == 0
    left.waits(1, UNITS - 1)
    left.ends(2)  # one that was never seen at work
    left.runs(2, 1)
    clock[0] = 80.0
    left.runs(2, 2)
    alone = left.seconds({1})
    assert alone is not None
    assert starting_s(2) < alone < 40, "what was measured before is not measured again, nor checked"
