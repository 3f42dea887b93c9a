from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from attnbench.analysis.undisturbed import undisturbed


def test_is_the_only_sample_and_the_least_of_few() -> None:
    assert undisturbed([3.0]) == pytest.approx(3.0)
    assert undisturbed([3.0, 1.0, 2.0]) == pytest.approx(1.0)


def test_one_sample_in_ten_is_faster() -> None:
    assert undisturbed(list(np.arange(1.0, 1001.0))) == pytest.approx(100.1)


def test_members_of_a_baseline_are_averaged_in_logs() -> None:
    assert undisturbed([2.0, 5.0], [8.0]) == pytest.approx(math.sqrt(2.0 * 8.0))


def centre(estimate: Callable[..., float], count: int, members: int = 1) -> float:
    """The mean over visits of an estimate of so many samples a member; one sample in four is disturbed."""
    rng = np.random.default_rng(0)
    shape = (3000, members, count)
    seconds = 1 + 0.02 * rng.standard_normal(shape) + 0.3 * (rng.random(shape) < 0.25)
    return float(np.mean([estimate(*visit.tolist()) for visit in seconds]))


def test_a_baseline_that_is_sampled_three_times_a_turn_is_not_called_faster() -> None:
    one = centre(undisturbed, 8)
    assert centre(undisturbed, 8, members=3) == pytest.approx(one, abs=0.001)
    assert one - centre(min, 24) > 0.005, "the minimum of all samples would be"


def test_disturbed_samples_do_not_move_it_nor_does_one_that_is_too_fast() -> None:
    assert centre(undisturbed, 24) < 1
    assert centre(lambda samples: float(np.mean(samples)), 24) > 1.07
    visit = np.linspace(1, 1.1, 48).tolist()
    assert undisturbed([0.5, *visit[1:]]) == pytest.approx(undisturbed(visit))
