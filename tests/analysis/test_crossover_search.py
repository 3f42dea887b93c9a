from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from attnbench.analysis.crossover import Pair
from attnbench.analysis.crossover_search import MOST_SIZES, Search, half_width, search
from attnbench.analysis.interval import Estimate, estimates

Law = Callable[[float], float]


class Machine:
    """A machine with known laws, process offsets and noise; it counts what it was asked to measure."""

    def __init__(self, laws: dict[str, Law], *, seed: int = 0, own: float = 0.02, memory: dict[str, int] | None = None):
        self.laws = laws
        self.rng = np.random.default_rng(seed)
        self.own = own
        self.memory = memory or {}
        self.rows: list[tuple[str, int, int, str, float]] = []
        self.called: list[tuple[str, int]] = []
        self.offset = 0.0
        self.spent = 0.0

    def next_round(self, number: int) -> None:
        self.offset = self.rng.normal(0, 0.04)

    def measure(self, series: str, size: int, round: int) -> None:
        for name in ("baseline", series):
            key = f"{name} {size}"
            if any(row[0] == key and row[1] == round for row in self.rows) or size > self.memory.get(name, 10**9):
                continue
            time = self.laws[name](size) * math.exp(self.offset + self.rng.normal(0, self.own))
            self.rows.append((key, round, round, "ok", time))
            self.spent += self.laws[name](size)
        self.called.append((series, size))

    def pairs(self, series: str) -> list[Pair]:
        table = pd.DataFrame(self.rows, columns=["key", "round", "process", "status", "wall_time_s"])
        found = estimates(table, "wall_time_s")
        sizes = sorted({size for name, size in self.called if name == series})
        return [
            Pair(n, str(n), found.get(f"{series} {n}"), found.get(f"baseline {n}"), *self._fates(series, n))
            for n in sizes
        ]

    def once(self, series: str, size: int) -> Pair:
        def level(name: str) -> Estimate | None:
            if size > self.memory.get(name, 10**9):
                return None
            return Estimate(math.log(self.laws[name](size)), math.nan, 0.0, math.nan, 0.0, 1)

        return Pair(size, str(size), level(series), level("baseline"), *self._fates(series, size))

    def _fates(self, series: str, size: int) -> tuple[str, str]:
        return tuple("oom" if size > self.memory.get(name, 10**9) else "ok" for name in (series, "baseline"))  # type: ignore[return-value]


def quadratic(n: float) -> float:
    return 1e-9 * n**2


def find(law: Law, *, low: int = 64, high: int = 65536, precision: float = 0.1, **model: object) -> Search:
    machine = Machine({"baseline": quadratic, "series": law}, **model)  # type: ignore[arg-type]
    found = Search("series", machine, low, high, precision, round)
    search([found], machine.next_round)
    assert len(found.sizes) <= MOST_SIZES
    return found


def test_the_crossing_is_found_within_its_interval() -> None:
    held = []
    for true in (150.0, 700.0, 15000.0):
        slope = quadratic(true) / true
        for seed in range(12):
            found = find(lambda n, slope=slope: slope * n, seed=seed)  # type: ignore[misc]
            near = found.crossing()
            assert near is not None
            assert near.direction == "above"
            assert half_width(near) <= 0.1
            assert found.ended.startswith("precision reached")
            held.append((near.low or 0) <= true <= (near.high or math.inf))
    assert np.mean(held) >= 0.93


def test_a_crossing_at_a_step_is_found_within_its_interval() -> None:
    """As where a second thread sets in: from some size on everything takes a third less."""
    held, brackets = [], 0
    for step in (150.0, 700.0):
        slope = quadratic(step) / step
        for seed in range(12):
            found = find(lambda n, step=step, slope=slope: slope * n * (1.2 if n < step else 0.8), seed=seed)  # type: ignore[misc]
            near = found.crossing()
            assert near is not None
            assert half_width(near) <= 0.1
            assert found.ended.startswith("precision reached")
            held.append((near.low or 0) <= step <= (near.high or math.inf))
            brackets += near.bracket
    assert np.mean(held) >= 0.93
    assert brackets > len(held) / 2


def test_a_precision_is_looked_at_again_when_more_is_known_of_the_noise() -> None:
    found = find(lambda n: 7e-7 * n)
    assert found.is_done(found.rounds)
    machine = found.prober
    rounds = {row[2] for row in machine.rows}  # type: ignore[attr-defined]
    machine.rows += [  # type: ignore[attr-defined]
        (f"{name} 5", r, r, "ok", math.exp((-1) ** r * spread)) for r in rounds for name, spread in (("a", 2), ("b", 1))
    ]
    found.precision = 0.01
    assert not found.is_done(found.rounds)
    assert found.ended == ""
    assert found.is_done(found.most_rounds)
    assert found.ended.startswith("not precise enough")


def test_below_is_found_too() -> None:
    machine = Machine({"baseline": lambda n: 1e-6 * n, "series": lambda n: 1e-9 * n**2})
    found = Search("series", machine, 64, 65536, 0.1, round)
    search([found], machine.next_round)
    near = found.crossing()
    assert near is not None
    assert near.direction == "below"
    assert near.at == pytest.approx(1000, rel=0.1)


def test_never_costs_one_call_at_the_top() -> None:
    found = find(lambda n: 3 * quadratic(n))
    assert found.crossover().kind == "never"
    assert "no crossing up to 16384; at 65536 one call agrees" in found.ended
    assert 65536 not in found.sizes
    assert found.rounds == 1


def test_not_yet_is_told_from_never_and_followed_up() -> None:
    true = 40000.0
    found = find(lambda n: quadratic(true) / true * n)
    near = found.crossing()
    assert found.beyond is not None
    assert near is not None
    assert (near.low or 0) <= true <= (near.high or math.inf)


def test_always_is_told() -> None:
    found = find(lambda n: 0.5 * quadratic(n))
    assert found.crossover().kind == "always"
    assert found.crossing() is None


def test_a_baseline_out_of_memory_is_a_win_to_search_under() -> None:
    found = find(lambda n: 1.3e-5 * n, memory={"baseline": 9000})
    assert found.crossover().kind == "crossing"
    assert found.crossover().baseline_beyond is not None


def test_too_shallow_says_why_it_stops() -> None:
    found = find(lambda n: quadratic(n) * (n / 1000) ** -0.05, own=0.05, precision=0.02)
    assert found.ended.startswith("not precise enough")
    assert "per doubling" in found.ended or "edge" in found.ended


def test_a_ratio_that_turns_round_is_reported() -> None:
    found = find(lambda n: quadratic(n) * math.exp(0.5 * math.sin(math.log(n) * 1.6)))
    assert found.warnings()
    assert find(lambda n: 7e-7 * n).warnings() == []


def test_several_searches_share_the_baseline() -> None:
    laws: dict[str, Law] = {"baseline": quadratic, "a": lambda n: 5e-7 * n, "b": lambda n: 7e-7 * n}
    machine = Machine(laws)
    both = [Search(name, machine, 64, 65536, 0.1, round) for name in ("a", "b")]
    search(both, machine.next_round)
    keys = [row[:2] for row in machine.rows]
    assert len(keys) == len(set(keys))
    assert sum(key == "baseline 64" for key, _ in keys) == 1


def test_a_quarter_of_a_grid_at_most() -> None:
    """Counted in the laws' own time, against a grid of factor √2 with as many rounds."""
    for true in (500.0, 4000.0, 16000.0):
        slope = quadratic(true) / true
        found = find(lambda n, slope=slope: slope * n)  # type: ignore[misc]
        sizes = 64 * np.sqrt(2) ** np.arange(21)
        grid = LEAST * sum(quadratic(n) + slope * n for n in sizes)
        assert found.prober.spent <= grid / 4  # type: ignore[attr-defined]


LEAST = 3
