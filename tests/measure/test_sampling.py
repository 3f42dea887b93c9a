"""The interval of the median covers what it says, also when it decides itself when to stop."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import pytest

from attnbench.measure.worker.sampling import FIRST_LOOK, centre, enough, look_of, order_statistic
from attnbench.plan.settings import Measure

Noise = Callable[[random.Random], float]


def skewed(source: random.Random) -> float:
    """A long right tail, as interrupts give."""
    return 1 + 0.05 * source.lognormvariate(0, 1)


def bimodal(source: random.Random) -> float:
    """Two clocks: three calls of five at one speed, the others 10 % slower."""
    return (1.0 if source.random() < 0.6 else 1.1) + source.gauss(0, 0.005)


MEDIAN = {skewed: 1.05, bimodal: 1.0048329}
"""Skewed: 1 + 0.05 · exp(0). Bimodal: where 0.6 Φ((m − 1)/0.005) = 0.5, Φ⁻¹(5/6) = 0.96742; the other mode is far."""

VISITS = 600


def coverage(noise: Noise, measure: Measure, seed: int) -> float:
    """The share of simulated visits whose interval holds the median."""
    covered = 0
    for visit in range(VISITS):
        source = random.Random(f"{seed} {visit}")
        samples: list[float] = []
        while not enough(samples, 0.0, measure):
            samples.append(noise(source))
        found = centre(samples)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= MEDIAN[noise] <= found.high
    return covered / VISITS


@pytest.mark.parametrize("noise", [skewed, bimodal], ids=lambda f: f.__name__)
@pytest.mark.parametrize("precision", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_interval_covers_under_adaptive_stopping(noise: Noise, precision: float, seed: int) -> None:
    measure = Measure(within_process_precision=precision, min_samples=5, max_samples=256)
    assert coverage(noise, measure, seed) >= 0.93


def test_looking_after_every_sample_at_one_level_would_not_cover() -> None:
    """The negative control: the interval of a box plot's notch, looked at all the time."""
    covered = 0
    for visit in range(VISITS):
        source = random.Random(f"1 {visit}")
        samples = [skewed(source) for _ in range(5)]
        while True:
            quarter = statistics.quantiles(samples, n=4)
            half = 1.57 * (quarter[2] - quarter[0]) / math.sqrt(len(samples))
            if half <= 0.02 * quarter[1] or len(samples) >= 256:
                break
            samples.append(skewed(source))
        covered += abs(quarter[1] - MEDIAN[skewed]) <= half
    assert covered / VISITS < 0.93


def exact_miss(n: int, rank: int) -> float:
    """2 P(Binomial(n, ½) < rank), summed with whole numbers."""
    return 2 * sum(math.comb(n, i) for i in range(rank)) / 2**n


@pytest.mark.parametrize("n", [5, 6, 8, 16, 64, 255, 1000, 1001, 4096])
@pytest.mark.parametrize("error", [0.05, 0.025, 0.001])
def test_order_statistics_are_the_largest_that_keep_the_error(n: int, error: float) -> None:
    rank = order_statistic(n, error)
    assert rank == 0 or exact_miss(n, rank) <= error
    assert exact_miss(n, rank + 2) > error, "a far narrower pair would have done"


def test_errors_of_all_looks_add_up_to_the_nominal_one() -> None:
    looks = [FIRST_LOOK * 2**i for i in range(20)]
    assert [look_of(n) for n in looks] == list(range(1, 21))
    assert sum(0.05 * 2.0 ** -look_of(n) for n in looks) < 0.05


def test_limits_end_every_cell() -> None:
    measure = Measure(within_process_precision=1e-9, min_samples=5, max_samples=20, max_time_s=1.0)
    wild = [1.0, 2.0] * 10
    assert enough(wild[:4], 100.0, measure) is None, "the minimum comes first"
    assert enough(wild[:5], 100.0, measure) == "max_time"
    assert enough(wild[:19], 0.5, measure) is None
    assert enough(wild, 0.5, measure) == "max_samples"
    assert enough([1.0] * 8, 0.0, measure) == "precise"


def test_too_few_samples_have_no_interval() -> None:
    found = centre([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.median, found.low, found.high) == (3.0, None, None)
    assert math.isinf(found.half_width)
