"""Sets, order, the Pareto set, and choices at sizes that a recorded run did not have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attnbench.analysis.cards import CARDS, MEASURED, card, find_card, rates_of
from attnbench.analysis.choice import Candidate, error_of, level_with_fastest, ranked, ranked_by_roofline
from attnbench.analysis.interpolation import place_of
from attnbench.analysis.metric_values import quantity
from attnbench.analysis.run import Run, read_run
from attnbench.errors import BadInput
from benchmarks.coverage.choice import judged
from tests.analysis.runs import cell, laws, sequence

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"
SIZES = (128, 256, 512, 1024, 2048)
BASE = Candidate(
    cell=cell("softmax", sequence(512)),
    exact=False,
    estimates=False,
    seconds=1.0,
    low=None,
    high=None,
    source="measured",
    between=None,
    bound="",
    memory_bytes=100,
    memory_source="measured",
    state_bytes=None,
    flops=1,
    error=None,
    properties={},
)


def candidate(name: str, seconds: float, memory: int | None = 100, exact: bool = False) -> Candidate:
    return replace(BASE, cell=cell(name, sequence(512)), seconds=seconds, memory_bytes=memory, exact=exact)


def level(run: Run, n: int, names: set[str]) -> set[str]:
    time = quantity(run, "wall_time")
    place = place_of(run, sequence(n), "fwd", "core", time)
    assert place is not None
    return level_with_fastest(place, names, time)


@pytest.mark.parametrize("n", [512, 700], ids=["measured", "between"])
def test_equal_ones_are_a_set_and_a_slower_one_is_not_in_it(n: int) -> None:
    run = laws(SIZES, {"a": lambda n: 1e-6 * n, "b": lambda n: 1.001e-6 * n, "slow": lambda n: 2e-6 * n})
    assert level(run, n, {"a", "b", "slow"}) == {"a", "b"}
    assert level(run, n, {"slow"}) == {"slow"}, "of those that are left"


def test_where_two_cross_between_two_sizes_both_are_in_the_set() -> None:
    run = laws(SIZES, {"a": lambda n: 1e-8 * n**2, "b": lambda n: 7e-6 * n})  # cross at 700
    assert level(run, 700, {"a", "b"}) == {"a", "b"}
    assert level(run, 300, {"a", "b"}) == {"a"}
    assert level(run, 1700, {"a", "b"}) == {"b"}


def test_from_one_round_the_fastest_stands_alone() -> None:
    run = laws(SIZES, {"a": lambda n: 1e-6 * n, "b": lambda n: 1e-6 * n}, rounds=1)
    assert len(level(run, 700, {"a", "b"})) == 1


def test_level_ones_stand_first_exact_ones_before_others_then_by_memory() -> None:
    every = [
        candidate("slow", 9.0),
        candidate("lean", 1.1, 50),
        candidate("fast", 1.0, 80),
        candidate("exact", 1.2, 900, exact=True),
    ]
    found = ranked(every, [False, True, True, True])
    assert [each.candidate.cell.operator for each in found] == ["exact", "lean", "fast", "slow"]
    assert [each.rank for each in found] == [1, 1, 1, 4]
    assert [each.level for each in found] == [True, True, True, False]


def test_the_pareto_set_is_what_no_other_beats_in_both() -> None:
    every = [candidate("a", 1.0, 100), candidate("b", 2.0, 50), candidate("c", 3.0, 60), candidate("d", 4.0, None)]
    found = ranked(every, [True, False, False, False])
    assert {each.candidate.cell.operator for each in found if each.leanest} == {"a", "b"}


def test_rooflines_of_the_same_three_digits_are_level() -> None:
    found = ranked_by_roofline([candidate("a", 1.0), candidate("b", 1.0004, exact=True), candidate("c", 1.01)])
    assert [(each.candidate.cell.operator, each.rank) for each in found] == [("b", 1), ("a", 1), ("c", 3)]
    assert ranked_by_roofline([]) == ()


def test_sizes_left_out_of_a_recorded_run_are_chosen_right() -> None:
    found = list(judged(read_run(REFERENCE / "cpu-sequence"), subsets=2, panel_number=1))
    every = [each for each in found if each.every]
    assert len(every) == 6
    assert sum(each.holds for each in every) / len(every) >= 0.9
    assert sum(each.holds for each in found) / len(found) >= 0.9
    assert sum(each.members for each in every) / len(every) < 3, "a set of all operators would hold the fastest too"
    assert sum(each.covered[0] for each in every) >= 0.9 * sum(each.covered[1] for each in every)


def test_an_error_is_that_of_the_nearest_size() -> None:
    results = read_run(REFERENCE / "cpu-sequence").results
    params = '{"kind":"softmax","m":256}'
    problem = replace(sequence(1024, 256, 8), causal=False)
    there, beyond = (error_of(results, "performer", params, replace(problem, seq_len=n)) for n in (1024, 2**20))
    assert there is not None
    assert beyond is not None
    assert there.size == ""
    assert beyond.size != ""
    assert there.value > 0
    assert error_of(results, "fnet", "{}", problem) is None


@pytest.mark.parametrize("name", ["H100", "h100", "NVIDIA H100 SXM", "RTX 4090", "rtx4090", "GeForce RTX-4090"])
def test_a_card_is_found_however_it_is_written(name: str) -> None:
    assert find_card(name) in CARDS.values()


def test_an_unknown_card_is_refused_with_a_near_one() -> None:
    with pytest.raises(BadInput, match=r"no such card \(did you mean 'H100'\?\)"):
        card("h10O")
    assert find_card("H1") is None


@pytest.mark.parametrize("name", CARDS)
def test_cards_have_plausible_rates(name: str) -> None:
    rates = CARDS[name]
    assert 5e12 < rates.matmul_flops_per_s["float32"] < rates.matmul_flops_per_s["float16"] < 1e16
    assert 1e11 < rates.copy_bytes_per_s < 1e13
    assert 2**33 < (rates.memory_bytes or 0) < 2**39


def test_the_measured_card_is_what_the_stored_runs_say() -> None:
    stored: list[Any] = [
        rates_of(json.loads((REFERENCE / name / "environment.json").read_text(encoding="utf-8")))
        for name in ("h100-first", "h100-prefill")
    ]
    measured = MEASURED["H100"]
    assert measured.copy_bytes_per_s == pytest.approx(max(each.copy_bytes_per_s for each in stored), rel=1e-3)
    best = max(each.matmul_flops_per_s["bfloat16"] for each in stored)
    assert measured.matmul_flops_per_s["bfloat16"] == pytest.approx(best, rel=1e-3)
    assert {measured.of} == {each.of for each in stored}
    assert best < CARDS["H100"].matmul_flops_per_s["bfloat16"]


@pytest.mark.parametrize("rates", [None, {}, {"copy_bytes_per_s": 0}, {"matmul_flops_per_s": {"float32": 1.0}}])
def test_a_run_without_rates_has_no_roofline(rates: Any) -> None:
    assert rates_of({"rates": rates}) is None
