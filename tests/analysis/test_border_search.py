"""The search for a border on a simulated machine, whose true border is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest

from attnbench.analysis.border_search import Border, from_the_middle, missing, search_borders
from attnbench.analysis.crossover import Pair
from attnbench.analysis.crossover_search import LEAST_ROUNDS, MOST_SIZES, Search, half_width, search
from attnbench.analysis.interval import Estimate, estimates
from attnbench.axes import AXES
from attnbench.problem import Problem

BATCHES = tuple(2**n for n in range(9))
LOW, HIGH = 1024, 65536
PRECISION = 0.2
"""Two neighbouring sizes of a grid of factor √2 are ±19 % apart."""

GRID = len(BATCHES) * 13
"""Cells of that grid: 1024 to 65536 in steps of √2, at nine batches."""

NEAREST = AXES["seq_len"].allowed(Problem(64, 64, 4))

Law = Callable[[float], float]


@dataclass
class Machine:
    """A machine whose log ratio of the series to its baseline, over the size, is known at every value.

    Attributes:
        ratios: the laws, by the name of a search.
        own: the sd of a visit's log time.
        memory: of some searches, the largest size at which the baseline fits; of `both` that at which anything does.
    """

    ratios: Mapping[str, Law]
    own: float
    seed: int
    memory: Mapping[str, float] = field(default_factory=dict)
    both: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.times: dict[tuple[str, int, int, bool], float] = {}
        self.called: set[tuple[str, int]] = set()
        self.levels: tuple[int, dict[str, Estimate]] = (0, {})

    def next_round(self, number: int) -> None:
        self.offset = self.rng.normal(0, 0.04)

    def measure(self, series: str, size: int, round: int) -> None:
        self.called.add((series, size))
        for baseline, status in ((False, self.status(series, size)[0]), (True, self.status(series, size)[1])):
            if status == "ok" and (series, size, round, baseline) not in self.times:
                noise = self.offset + self.rng.normal(0, self.own)
                self.times[series, size, round, baseline] = self.log_time(series, size, baseline) + noise

    def pairs(self, series: str) -> list[Pair]:
        if self.levels[0] != len(self.times):
            rows = [(f"{s} {n} {base}", r, r, "ok", math.exp(x)) for (s, n, r, base), x in self.times.items()]
            table = pd.DataFrame(rows, columns=["key", "round", "process", "status", "wall_time_s"])
            self.levels = len(self.times), estimates(table, "wall_time_s", stops=tuple(range(3, 10)))
        level = self.levels[1].get
        return [
            Pair(n, str(n), level(f"{series} {n} False"), level(f"{series} {n} True"), *self.status(series, n))
            for n in sorted(n for name, n in self.called if name == series)
        ]

    def once(self, series: str, size: int) -> Pair:
        def level(baseline: bool) -> Estimate:
            noise = self.rng.normal(0, self.own)
            return Estimate(self.log_time(series, size, baseline) + noise, math.nan, 0.0, math.nan, 0.0, 1)

        a, b = self.status(series, size)
        return Pair(size, str(size), level(False) if a == "ok" else None, level(True) if b == "ok" else None, a, b)

    def log_time(self, series: str, size: int, baseline: bool) -> float:
        return 2 * math.log(size) - 20 + (0.0 if baseline else self.ratios[series](size))

    def status(self, series: str, size: int) -> tuple[str, str]:
        if size > self.both.get(series, math.inf):
            return "oom", "oom"
        return "ok", "oom" if size > self.memory.get(series, math.inf) else "ok"


def crossing_at(place: float, slope: float = 1.0, jump: float = 0.0) -> Law:
    """A log ratio that falls by `slope` per log size, and by a jump of 2 · `jump` at the place where it is 0."""
    return lambda n: -slope * math.log(n / place) + (jump if n < place else -jump)


def searched(
    laws: Mapping[int, Law],
    *,
    own: float = 0.03,
    seed: int = 0,
    alone: bool = False,
    ends: tuple[int, int] = (LOW, HIGH),
    allowed: Callable[[float], int] = NEAREST,
    **more: Mapping[str, float],
) -> dict[int, Search]:
    """The searches of a border after their end, by value. alone: without neighbours."""
    machine = Machine({str(value): law for value, law in laws.items()}, own, seed, **more)
    searches = {value: Search(str(value), machine, *ends, PRECISION, allowed) for value in from_the_middle(list(laws))}
    if alone:
        search(list(searches.values()), machine.next_round)
    else:
        search_borders([Border(searches)], machine.next_round)
    assert all(len(each.sizes) <= MOST_SIZES for each in searches.values())
    return searches


def cells(searches: Mapping[int, Search]) -> int:
    return sum(len(each.every_size) for each in searches.values())


def holds(each: Search, place: float) -> bool:
    near = each.crossing()
    return near is not None and (near.low or 0) <= place <= (near.high or math.inf)


def border(law: Callable[[float], float], **more: float) -> dict[int, Law]:
    return {value: crossing_at(law(value), **more) for value in BATCHES}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("law", [lambda value: 3000 * value**0.45, lambda value: 4000 * (1 + value / 4) ** 0.6])
def test_a_smooth_border_is_found_from_a_quarter_of_a_grid(law: Law, seed: int) -> None:
    searches = searched(border(law), seed=seed)
    assert cells(searches) <= GRID / 4
    assert all(half_width(near) <= PRECISION for each in searches.values() if (near := each.crossing()))
    assert all(near.direction == "above" for each in searches.values() if (near := each.crossing()))
    assert sum(holds(each, law(value)) for value, each in searches.items()) >= len(BATCHES) - 1


def test_without_neighbours_it_takes_more() -> None:
    law = lambda value: 3000 * value**0.45  # noqa: E731
    assert cells(searched(border(law), alone=True)) > 1.5 * cells(searched(border(law)))


def test_intervals_hold_the_border_where_noise_is_large() -> None:
    law = lambda value: 30000 * value**-0.4  # noqa: E731
    every = [
        (each, law(value)) for seed in range(4) for value, each in searched(border(law), own=0.1, seed=seed).items()
    ]
    known = [(each, place) for each, place in every if each.crossing()]
    assert len(known) >= 0.9 * len(every)
    assert np.mean([holds(each, place) for each, place in known]) >= 0.9


def test_a_border_at_a_jump_is_found() -> None:
    """As where a border is that of two kernels, with no sizes of a ratio near 1."""
    law = lambda value: 20000 * value**-0.3  # noqa: E731
    searches = searched(border(law, slope=0.1, jump=0.4))
    assert all(holds(each, law(value)) for value, each in searches.items())


def test_a_border_that_does_not_follow_its_neighbours_is_found() -> None:
    places = dict(zip(BATCHES, (2000, 40000, 3000, 30000, 2500, 50000, 1500, 20000, 9000), strict=True))
    searches = searched({value: crossing_at(place) for value, place in places.items()})
    assert [value for value, place in places.items() if not holds(searches[value], place)] == []
    assert cells(searches) > GRID / 4, "neighbours that say nothing cost sizes, never the crossing"


def test_a_border_that_is_cheaper_below_is_found_from_as_few() -> None:
    law = lambda value: 3000 * value**0.45  # noqa: E731
    searches = searched({value: crossing_at(law(value), slope=-1.0) for value in BATCHES})
    assert {near.direction for each in searches.values() if (near := each.crossing())} == {"below"}
    assert sum(holds(each, law(value)) for value, each in searches.items()) >= len(BATCHES) - 1
    assert cells(searches) <= GRID / 4


def test_where_sizes_lie_far_apart_the_two_beside_the_crossing_are_the_answer() -> None:
    """As on an axis of batches."""
    searches = searched(border(lambda value: 1.4, jump=0.3), ends=(1, 16))
    for each in searches.values():
        near = each.crossing()
        assert near is not None
        assert (near.low, near.high) == (1, 2)
        assert each.ended == "no size lies between the two beside the crossing: ±41%"
        assert each.rounds == LEAST_ROUNDS


def test_sizes_that_are_fewer_than_steps_are_passed() -> None:
    """As heads, which divide the channels."""
    powers = lambda place: 4 ** round(math.log(max(place, 1), 4))  # noqa: E731
    searches = searched(border(lambda value: 5.5), ends=(1, 1024), allowed=powers)
    assert {tuple(each.sizes)[:2] for value, each in searches.items() if value != 16} == {(4, 16)}
    assert all(holds(each, 5.5) for each in searches.values())


def test_without_intervals_no_size_is_missing() -> None:
    search = Search("1", Machine({"1": lambda n: 0.5}, 0.03, 0), LOW, HIGH, PRECISION, NEAREST)
    search.prober.next_round(1)  # type: ignore[attr-defined]
    search.navigate()
    search.repeat_around(HIGH)
    assert missing(search, -1.0) is None


def test_a_border_that_is_crossed_the_other_way_at_one_value_is_found() -> None:
    laws = border(lambda value: 8000)
    laws[64] = lambda n: math.log(n / 3000)
    near = searched(laws)[64].crossing()
    assert near is not None
    assert near.direction == "below"
    assert (near.low or 0) <= 3000 <= (near.high or math.inf)


@pytest.mark.parametrize(("factor", "kind", "end"), [(3.0, "never", HIGH), (1 / 3, "always", LOW)])
def test_where_there_is_no_crossing_an_end_of_the_range_is_measured(factor: float, kind: str, end: int) -> None:
    laws = border(lambda value: 8000)
    laws |= {value: lambda n: math.log(factor) for value in (64, 128)}
    searches = searched(laws)
    for value in (64, 128):
        assert searches[value].crossover().kind == kind
        assert end in searches[value].sizes
        assert searches[value].ended == f"no crossing from {LOW} to {HIGH}: measured at {end}"
        assert searches[value].beyond is not None
    assert all(holds(searches[value], 8000) for value in BATCHES if value not in (64, 128))


def test_where_the_middle_value_has_no_crossing_the_others_are_found() -> None:
    law = lambda value: 150000 * value**-0.5  # noqa: E731
    searches = searched({value: crossing_at(law(value)) for value in BATCHES})
    inside = [value for value in BATCHES if LOW < law(value) < HIGH]
    assert 1 <= len(inside) < len(BATCHES)
    assert all(holds(searches[value], law(value)) for value in inside)
    assert all(searches[value].crossing() is None for value in BATCHES if value not in inside)


def test_where_no_value_has_a_crossing_two_sizes_of_each_say_so() -> None:
    searches = searched({value: lambda n: 0.5 for value in BATCHES})
    assert {each.crossover().kind for each in searches.values()} == {"never"}
    _, *followers = searches.values()
    assert {len(each.every_size) for each in followers} == {2}


@pytest.mark.parametrize(
    ("others", "before", "after"), [(1500, 0.2, -0.2), (1500, 3.0, -0.1), (50000, -0.1, 5.0), (50000, 0.05, -5.0)]
)
def test_far_from_its_neighbours_a_jump_takes_few_steps(others: int, before: float, after: float) -> None:
    """What the ratio is, and its slope elsewhere, say nothing of where it lies."""
    laws = border(lambda value: others)
    laws[64] = lambda n: before if n < 30000 else after
    each = searched(laws, seed=1)[64]
    assert holds(each, 30000)
    assert each.ended.startswith("precision reached")
    assert len(each.every_size) <= 9


def test_out_of_memory_bounds_a_search() -> None:
    laws = border(lambda value: 30000)
    baseline = searched(laws, memory={"64": 20000.0})[64]
    assert baseline.crossover().baseline_beyond is not None
    assert baseline.crossover().kind == "crossing"
    neither = searched(laws, both={"64": 20000.0})[64]
    assert neither.crossing() is None
    assert "it cannot be called" in neither.ended
    laws = border(lambda value: 60000)
    laws[64] = lambda n: 2.0 if n < 22000 else -0.3
    assert holds(searched(laws, both={"64": 28000.0})[64], 22000)
    nothing = searched(laws, both={"64": 10.0})[64]
    assert nothing.ended == "not comparable at the smallest size"
    assert nothing.crossover().kind == "nothing"


def test_the_searches_begin_in_the_middle() -> None:
    assert from_the_middle([8, 1, 4, 2]) == [2, 1, 4, 8]
    assert from_the_middle([1, 2, 4, 8, 16]) == [4, 2, 8, 1, 16]
    assert from_the_middle([2, 1]) == [1, 2]
