"""What a crossover search says of its rounds, of how long they take, and of how precise it is."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from attnbench.analysis.crossover import Crossing
from attnbench.axes import AXES
from attnbench.measure.search_progress import Foreseen, SearchProgress, foreseen
from attnbench.problem import Cell, Problem
from attnbench.progress import Reached, Stage
from tests.running import Silent, plan

RATES = {"matmul_flops_per_s": {"float32": 1e10}, "copy_bytes_per_s": 1e9}
PROBLEM = Problem(64, 256, 4)
BASE, LINEAR, SLOW = (
    Cell(name, "reference", "core", "fwd", PROBLEM, params)
    for name, params in (("softmax", {}), ("linear_transformer", {"kind": "elu", "reach": "all"}), ("softmax", {}))
)


def of(search: Any, precision: float = 0.1, ended: str = "") -> Any:
    """A search with such a crossing."""
    return SimpleNamespace(crossing=lambda: search, precision=precision, ended=ended)


def test_rounds_are_expected_by_formulas_then_by_what_rounds_took() -> None:
    told, now = Silent(), [0.0]
    shown = SearchProgress(told, 9, Foreseen(20.0, 5.0), lambda: now[0])
    near = Crossing(500, 480, 520, "above")
    searches = [of(near), of(Crossing(500, 400, 600, "above")), of(None)]
    for number, at in ((1, 1.0), (2, 41.0), (3, 47.0), (4, 54.0)):
        now[0] = at
        shown.next_round(number, searches)
    assert [seconds for _, _, seconds in told.stages] == [30.0, 20.0, 6.0, 7.0]
    assert [stage for stage, _, _ in told.stages] == [Stage("round", n, max(n, 3), 9) for n in (1, 2, 3, 4)]
    assert told.looks == [Reached(1, 3, 0.1, None)] * 3, "the third has no crossing: nobody knows how wide it is"
    shown.next_round(5, [of(near), of(None, ended="no crossing up to 8192")])
    assert told.looks[-1].precise == 2


def test_the_widest_is_told_where_every_search_has_an_interval() -> None:
    told = Silent()
    shown = SearchProgress(told, 9, None)
    shown.next_round(2, [of(Crossing(500, 400, 600, "above")), of(Crossing(500, 480, 520, "above"))])
    assert told.looks == [Reached(1, 2, 0.1, pytest.approx(math.sqrt(1.5) - 1))]  # type: ignore[arg-type]
    assert told.stages == [(Stage("round", 2, 3, 9), None, None)]


def test_a_search_up_to_more_tokens_or_without_a_crossing_is_expected_to_take_longer() -> None:
    made = plan(())

    def first_s(pair: tuple[Cell, Cell], high: int) -> float:
        found = foreseen(made, [pair], AXES["seq_len"], 64, high, RATES)
        assert found is not None
        return found.first_s

    never = (SLOW, BASE)
    assert first_s(never, 16384) > 5 * first_s(never, 2048)
    assert first_s((LINEAR, BASE), 16384) < first_s(never, 16384) / 5, "it ends at the crossing"
    assert first_s((LINEAR, BASE), 65536) == first_s((LINEAR, BASE), 16384)
    assert foreseen(made, [never], AXES["seq_len"], 64, 2048, {}) is None


def test_an_axis_of_few_sizes_ends() -> None:
    problem = Problem(64, 64, 4)
    pair = tuple(Cell("softmax", "reference", "core", "fwd", problem, {}) for _ in range(2))
    assert foreseen(plan(()), [pair], AXES["heads"], 1, 1024, RATES) is not None  # type: ignore[list-item]
