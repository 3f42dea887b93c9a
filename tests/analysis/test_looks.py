from __future__ import annotations

import numpy as np
import pytest

from attnbench.analysis.distributions import normal
from attnbench.analysis.looks import confidence_after, confidence_at, looks

WALKS = np.abs(np.random.default_rng(0).standard_normal((40_000, 24)).cumsum(axis=1)) / np.sqrt(np.arange(1, 25))
"""|z| after each round, of many runs."""


def hold(bounds: dict[int, float]) -> float:
    """How often all intervals hold. bounds: the confidence of each, by the round after which it is made."""
    z = np.array([normal(0.5 + confidence / 2) for confidence in bounds.values()])
    return float((WALKS[:, [n - 1 for n in bounds]] <= z).all(axis=1).mean())


@pytest.mark.parametrize(
    ("rounds", "max_rounds", "stops"),
    [
        (3, 24, (3, 5, 8, 12, 18, 24)),
        (3, 9, (3, 5, 8, 9)),
        (3, 3, (3,)),
        (3, 1, (3,)),
        (3, 4, (3, 4)),
        (1, 9, (1, 3, 5, 8, 9)),
    ],
)
def test_looks_are_few_and_end_at_the_last_round(rounds: int, max_rounds: int, stops: tuple[int, ...]) -> None:
    assert looks(rounds, max_rounds) == stops


@pytest.mark.parametrize("stops", [(), (5,), (3, 5, 9)])
def test_one_look_costs_nothing(stops: tuple[int, ...]) -> None:
    end = stops[0] - (len(stops) > 1) if stops else 4  # of several looks, the budget ended the run before the first
    assert confidence_after(stops, end, end) == 0.95


def test_equal_looks_have_pococks_levels() -> None:
    """Jennison and Turnbull 2000, table 2.1."""
    assert confidence_at((5,)) == pytest.approx(0.95, abs=1e-9)
    for count, z in ((2, 2.178), (4, 2.361), (5, 2.413)):
        assert normal(0.5 + confidence_at(tuple(range(1, count + 1))) / 2) == pytest.approx(z, abs=1e-3)


def test_the_error_is_spent_in_proportion_to_the_rounds() -> None:
    stops = looks(3, 24)
    assert confidence_after(stops, 3, 3) == pytest.approx(1 - 0.05 * 3 / 24, abs=1e-6)
    for taken in (2, 4, 6):
        bounds = {n: confidence_after(stops, n, n) for n in stops[:taken]}
        assert hold(bounds) == pytest.approx(1 - 0.05 * stops[taken - 1] / 24, abs=0.004)
    assert hold(dict.fromkeys(stops, 0.95)) < 0.87, "a look at 95 % each is too many"


def test_a_run_that_its_budget_ends_spends_what_is_left() -> None:
    """What is left, and no more: the looks that it took before count."""
    stops = looks(3, 24)
    last = confidence_after(stops, 14, 14)
    assert 0.95 < last < confidence_after(stops, 12, 14) == confidence_after(stops, 12, 24)
    earlier = {n: confidence_after(stops, n, n) for n in stops if n < 14}
    assert hold({**earlier, 14: last}) == pytest.approx(0.95, abs=0.004)
    assert hold({**earlier, 14: 0.95}) < 0.946


def test_a_cell_that_is_measured_no_more_has_the_confidence_of_its_last_look() -> None:
    stops = looks(3, 24)
    assert {confidence_after(stops, 3, end) for end in (3, 4, 8, 14, 24)} == {confidence_after(stops, 3, 3)}
    assert confidence_after(stops, 13, 14) < confidence_after(stops, 12, 14), "the budget ended it in its last round"
    assert confidence_after(stops, 7, 24) == confidence_after(stops, 8, 24), "it missed the last round before a look"
