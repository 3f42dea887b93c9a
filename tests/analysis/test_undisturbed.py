from __future__ import annotations

import numpy as np
import pytest

from attnbench.analysis.undisturbed import undisturbed


def test_is_the_only_sample_and_the_least_of_few() -> None:
    assert undisturbed([3.0]) == 3.0
    assert undisturbed([3.0, 1.0, 2.0]) == 1.0


def test_one_sample_in_ten_is_faster() -> None:
    assert undisturbed(list(np.arange(1000.0))) == pytest.approx(100, abs=1)


def centres(centre: object, count: int) -> float:
    """The mean over visits of an estimate from `count` samples, of which one in four is disturbed."""
    rng = np.random.default_rng(0)
    noise = 0.02 * rng.standard_normal((4000, count)) + 0.3 * (rng.random((4000, count)) < 0.25)
    return float(np.mean([centre(visit) for visit in noise]))  # type: ignore[operator]


def test_a_baseline_with_three_times_the_samples_is_not_called_faster() -> None:
    assert centres(undisturbed, 54) == pytest.approx(centres(undisturbed, 18), abs=0.001)
    assert abs(centres(min, 54) - centres(min, 18)) > 0.005, "a minimum falls with the number of samples"


def test_disturbed_samples_do_not_move_it() -> None:
    assert centres(undisturbed, 24) < 0
    assert centres(np.mean, 24) > 0.07
