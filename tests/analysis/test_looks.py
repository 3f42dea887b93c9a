from __future__ import annotations

import numpy as np
import pytest

from attnbench.analysis.distributions import normal
from attnbench.analysis.looks import confidence_at, looks


@pytest.mark.parametrize(
    ("rounds", "max_rounds", "stops"),
    [(3, 9, (3, 5, 7, 9)), (3, 3, (3,)), (3, 1, (3,)), (3, 4, (3, 4)), (3, 8, (3, 5, 7, 8)), (3, 30, (3, 12, 21, 30))],
)
def test_looks_are_few_and_end_at_the_last_round(rounds: int, max_rounds: int, stops: tuple[int, ...]) -> None:
    assert looks(rounds, max_rounds) == stops


def test_one_look_costs_nothing() -> None:
    assert confidence_at((5,)) == 0.95


def test_equal_looks_have_pococks_levels() -> None:
    """Jennison and Turnbull 2000, table 2.1."""
    for count, z in ((2, 2.178), (4, 2.361), (5, 2.413)):
        assert normal(0.5 + confidence_at(tuple(range(1, count + 1))) / 2) == pytest.approx(z, abs=1e-3)


def test_all_looks_together_hold_the_truth() -> None:
    stops = looks(3, 9)
    walks = np.random.default_rng(0).standard_normal((40_000, 9)).cumsum(axis=1)[:, [n - 1 for n in stops]]
    z = np.abs(walks) / np.sqrt(stops)
    assert (z <= normal(0.5 + confidence_at(stops) / 2)).all(axis=1).mean() == pytest.approx(0.95, abs=0.004)
    assert (z <= normal(0.975)).all(axis=1).mean() < 0.9, "a look at 95 % each is too many"
