from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from attnbench.analysis.interval import Estimate
from attnbench.analysis.scaling import Scaling, agreement, scaling, stated_exponent

SIZES = [2**k for k in range(7, 14)]


def measured(law: Callable[[float], float], sizes: list[int] = SIZES, *, seed: int = 0, noise: float = 0.01) -> Scaling:
    rng = np.random.default_rng(seed)
    levels = [Estimate(math.log(law(n)) + rng.normal(0, noise), noise**2, 40.0, 0.0, 1.0, 3) for n in sizes]
    found = scaling(list(zip(sizes, levels, strict=True)))
    assert found is not None
    return found


def coverage(law: Callable[[float], float], exponent: float) -> tuple[float, float]:
    found = [measured(law, seed=seed).exponent for seed in range(200)]
    held = np.mean([e.low <= exponent <= e.high for e in found])
    return float(held), float(np.median([e.value for e in found]))


def launched(n: float) -> float:
    return 20e-6 + 4e-9 * n


def kinked(n: float) -> float:
    return max(2e-7 * n, 2e-10 * n**2)


def test_a_launch_floor_hides_a_linear_law_from_the_tail_and_not_from_the_fit() -> None:
    tails = [measured(launched, seed=s).tail for s in range(50)]
    assert max(t.high for t in tails) < 0.75
    held, middle = coverage(launched, 1.0)
    assert held >= 0.93
    assert middle == pytest.approx(1, abs=0.05)
    found = measured(launched)
    assert found.fits
    assert found.overhead == pytest.approx(20e-6, rel=0.1)
    assert found.launch_bound == pytest.approx(5000, rel=0.15)
    assert {measured(launched, seed=s).growth for s in range(50)} <= {"n", "n log n", "undecided"}
    assert agreement(found, "n") == "agrees"


def test_a_roofline_kink_is_not_taken_for_a_floor() -> None:
    found = [measured(kinked, seed=s) for s in range(50)]
    assert not any(f.fits for f in found)
    assert np.mean([f.tail.low <= 2 <= f.tail.high for f in found]) >= 0.9
    assert all(f.exponent is f.tail for f in found)
    assert all(agreement(f, "n^2") == "agrees" for f in found)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5, 2.0, 3.0])
def test_plain_powers(exponent: float) -> None:
    held, middle = coverage(lambda n: 1e-6 * n**exponent, exponent)
    assert held >= 0.93
    assert middle == pytest.approx(exponent, abs=0.02)


def test_a_steep_law_with_a_floor() -> None:
    held, middle = coverage(lambda n: 2e-3 + 1e-9 * n**2, 2.0)
    assert held >= 0.93
    assert middle == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize(
    ("growth", "law"),
    [
        ("1", lambda n: 1.0),
        ("log n", lambda n: math.log(n)),
        ("n", lambda n: 3 + 0.01 * n),
        ("n^1.5", lambda n: n**1.5),
        ("n^2", lambda n: 1e4 + n**2),
        ("n^3", lambda n: n**3),
    ],
)
def test_the_class_of_growth(growth: str, law: Callable[[float], float]) -> None:
    found = measured(law, noise=0.003)
    assert found.growth == growth
    assert found.growth_error is not None
    assert found.growth_error < 0.03


def test_classes_that_noise_cannot_tell_apart_are_undecided() -> None:
    near = measured(lambda n: n * math.log(n), [256, 512, 1024, 2048], noise=0.2)
    assert near.growth == "undecided"
    assert near.growth_error is None


def test_a_log_term_is_compared_with_its_own_curve() -> None:
    found = measured(lambda n: 1e-7 * n * math.log(n), noise=0.002)
    assert 1.1 < stated_exponent(found, "n log n") < 1.2
    assert agreement(found, "n log n") == "agrees"
    steeper = measured(lambda n: 1e-7 * n**1.5, noise=0.002)
    assert agreement(steeper, "n log n") == "higher"


def test_disagreement_has_a_direction_and_a_wide_interval_says_nothing() -> None:
    assert agreement(measured(lambda n: n**2), "n") == "higher"
    assert agreement(measured(lambda n: n), "n^2") == "lower"
    assert agreement(measured(lambda n: n, [100, 110, 120], noise=0.3), "n^2") == "undecided"


def test_exact_figures_have_intervals_of_no_width() -> None:
    levels = [(n, Estimate(math.log(8.0 * n * n), 0.0, math.inf, 0.0, math.inf, 0)) for n in SIZES]
    found = scaling(levels)
    assert found is not None
    assert found.tail.low == pytest.approx(2)
    assert found.tail.high == pytest.approx(2)
    assert (found.growth, found.launch_bound) == ("n^2", None)


def test_one_round_has_an_exponent_and_no_interval() -> None:
    levels = [(n, Estimate(math.log(n), math.nan, 0.0, math.nan, 0.0, 1)) for n in SIZES]
    found = scaling(levels)
    assert found is not None
    assert found.exponent.value == pytest.approx(1)
    assert math.isnan(found.exponent.low)
    assert agreement(found, "n") == "undecided"


def test_one_size_has_no_scaling_and_two_have_a_slope() -> None:
    level = Estimate(1.0, 1e-4, 10.0, 0.0, 1.0, 3)
    assert scaling([(64, level)]) is None
    assert scaling([(64, level), (64, level)]) is None
    found = scaling([(64, level), (128, level)])
    assert found is not None
    assert found.exponent.value == 0


@pytest.mark.parametrize("sizes", [SIZES, [256, 512, 1024, 2048]])
@pytest.mark.parametrize(
    "law",
    [launched, kinked, lambda n: 1e-4 + 4e-7 * n, lambda n: 2e-3 + 1e-9 * n**2, lambda n: 1e-6 * n * math.log(n)],
)
def test_the_class_never_contradicts_the_exponent_beside_it(law: Callable[[float], float], sizes: list[int]) -> None:
    """The class is the stated growth of another operator: told that it were this one's, the exponent agrees."""
    found = [measured(law, sizes, seed=seed, noise=noise) for seed in range(25) for noise in (0.01, 0.04, 0.1)]
    named = [f for f in found if f.growth != "undecided"]
    assert named
    assert {agreement(f, f.growth) for f in named} <= {"agrees", "undecided"}


def test_a_floor_is_shown_only_where_its_law_holds() -> None:
    def floor_and_kink(n: float) -> float:
        return 1e-4 + (1e-7 * n if n < 1500 else 3e-7 * n if n < 5000 else 3e-11 * n**2)

    found = [measured(floor_and_kink, seed=seed) for seed in range(20)]
    unfit = [f for f in found if not f.fits and f.growth != "1"]
    assert unfit
    assert all((f.overhead, f.launch_bound) == (0.0, None) for f in unfit)
