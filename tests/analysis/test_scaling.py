from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attnbench.analysis.interval import Estimate
from attnbench.analysis.run import read_run
from attnbench.analysis.scaling import Doubling, ExactGrowth, agreement, doubling, exact_growth
from attnbench.analysis.summary import summarise

REFERENCE = Path(__file__).parents[2] / "results" / "reference"

SIZES = [2**k for k in range(7, 14)]
Law = Callable[[float], float]


def timed(
    law: Law, stated: str | None = None, sizes: list[int] = SIZES, *, seed: int = 0, noise: float = 0.01
) -> Doubling:
    rng = np.random.default_rng(seed)
    levels = [Estimate(math.log(law(n)) + rng.normal(0, noise), noise**2, 40.0, 0.0, 1.0, 3) for n in sizes]
    found = doubling(list(zip(sizes, levels, strict=True)), stated)
    assert found is not None
    return found


def exact(law: Law, sizes: list[int] = SIZES) -> ExactGrowth:
    found = exact_growth([(n, Estimate(math.log(law(n)), 0.0, math.inf, 0.0, math.inf, 0)) for n in sizes])
    assert found is not None
    return found


def unsettled(law: Law, stated: str | None = None, **model: float) -> float:
    """The share of draws that are called not asymptotic yet."""
    return float(np.mean([timed(law, stated, seed=seed, **model).settled is False for seed in range(300)]))  # type: ignore[arg-type]


LAUNCHED: Law = lambda n: 20e-6 + 4e-9 * n  # noqa: E731
"""Launches are 38 % of it at the largest size, and 56 % at half of that."""


@pytest.mark.parametrize(("exponent", "stated"), [(0.0, "1"), (1.0, "n"), (1.5, "n^1.5"), (2.0, "n^2")])
def test_the_factor_per_doubling_of_a_power_is_covered_and_settled(exponent: float, stated: str) -> None:
    found = [timed(lambda n: 1e-6 * n**exponent, stated, seed=seed) for seed in range(300)]
    assert np.mean([d.low <= 2**exponent <= d.high for d in found]) >= 0.93
    assert found[0].stated == pytest.approx(2**exponent)
    assert {d.sizes for d in found} == {(4096, 8192)}
    assert np.mean([d.settled is False for d in found]) <= 0.05


def test_a_log_term_is_stated_between_the_same_sizes() -> None:
    found = timed(lambda n: 1e-7 * n * math.log(n), "n log n", noise=0.001)
    assert found.stated == pytest.approx(2 * 13 / 12)
    assert found.low < 2 * 13 / 12 < found.high
    assert found.settled
    assert timed(LAUNCHED, None).stated is None


def test_launch_bound_times_are_not_asymptotic_yet_and_never_constant() -> None:
    assert unsettled(LAUNCHED, "n") >= 0.95
    bound = timed(lambda n: 20e-6 + 1e-12 * n, "n")
    assert bound.settled is False, "though both factors are 1"
    assert bound.factor == pytest.approx(1, abs=0.05)
    assert timed(lambda n: 20e-6 + 1e-12 * n, "1").settled
    assert timed(lambda n: 20e-6 + 1e-12 * n, "n", [512, 1024]).settled is False


def test_a_kink_between_the_largest_sizes_is_not_asymptotic_yet() -> None:
    kinked: Law = lambda n: max(2e-7 * n, 2e-7 / 5000 * n**2)  # noqa: E731
    assert unsettled(kinked) >= 0.95
    assert unsettled(lambda n: max(2e-7 * n, 2e-7 / 1000 * n**2)) <= 0.05, "the kink is far below"


def test_a_time_that_grows_more_than_stated_is_not_excused() -> None:
    found = timed(lambda n: 1e-9 * n**2, "n")
    assert found.settled
    assert found.stated == pytest.approx(2)
    assert found.low > 2.5


def test_sizes_closer_than_a_doubling_are_left_out() -> None:
    assert timed(lambda n: 1e-6 * n, "n", [256, 512, 724, 1024, 1448]).sizes == (724, 1448)
    assert timed(lambda n: 1e-6 * n, "n", [900, 1000]).factor == pytest.approx(2, abs=0.4)


def test_of_two_sizes_that_hardly_differ_the_factor_is_still_a_number() -> None:
    found = doubling([(n, Estimate(level, 1.0, 1.0, 0.0, 1.0, 3)) for n, level in ((1024, 0.0), (1025, 1.5))], "n")
    assert found is not None
    assert math.isfinite(found.high)
    assert found.low < 1 < found.factor == found.high


def test_one_round_has_a_factor_and_no_interval() -> None:
    found = doubling([(n, Estimate(math.log(n), math.nan, 0.0, math.nan, 0.0, 1)) for n in SIZES], "n")
    assert found is not None
    assert (found.factor, found.settled) == (pytest.approx(2), None)
    assert math.isnan(found.low)


def test_one_size_has_no_growth_and_two_have_a_factor() -> None:
    level = Estimate(1.0, 1e-4, 10.0, 0.0, 1.0, 3)
    for points in ([(64, level)], [(64, level), (64, level)]):
        assert doubling(points, "n") is None
        assert exact_growth(points) is None
    found = doubling([(64, level), (128, level)], None)
    assert found is not None
    assert (found.factor, found.before, found.settled) == (1, None, None)


def test_no_growth_of_a_stored_run_is_contradicted_by_its_last_doubling() -> None:
    for report in summarise(read_run(REFERENCE / "cpu-sequence"), ["wall_time"]).panels:
        lines = [line for line in report.tables[0].lines if line.doubling]
        assert len(lines) > 20
        for line in lines:
            assert line.doubling is not None
            *smaller, (m, last) = [(f.size, f.value) for f in line.figures if f.value]
            n, before = max((n, value) for n, value in smaller if 2 * n <= m)
            assert line.doubling.sizes == (n, m)
            assert line.doubling.factor == pytest.approx((last / before) ** (math.log(2) / math.log(m / n)))
            assert (line.growth, line.agreement) == (None, None)


@pytest.mark.parametrize(
    ("growth", "law"),
    [
        ("1", lambda n: 1.0),
        ("log n", lambda n: math.log(n)),
        ("n", lambda n: 3 + 0.01 * n),
        ("n log n", lambda n: 100 + n * math.log(n)),
        ("n^1.5", lambda n: n**1.5),
        ("n^2", lambda n: 1e4 + n**2),
        ("n^3", lambda n: n**3),
        ("undecided", lambda n: n**1.2),
    ],
)
def test_the_class_of_an_exact_figure(growth: str, law: Law) -> None:
    assert exact(law).growth == growth


def test_the_exponent_of_an_exact_figure_is_of_its_largest_sizes() -> None:
    assert exact(lambda n: 8.0 * n * n).exponent == pytest.approx(2)
    assert exact(lambda n: n if n < 2048 else n**2 / 2048).exponent == pytest.approx(2)


def test_an_exact_figure_agrees_by_its_class_or_its_exponent() -> None:
    assert agreement(exact(lambda n: n**2), "n") == "higher"
    assert agreement(exact(lambda n: n), "n^2") == "lower"
    assert agreement(exact(lambda n: 1e4 + n), "n") == "agrees", "its exponent is far below 1"
    assert agreement(exact(lambda n: n * math.log(n) ** 0.9), "n log n") == "agrees"
    assert agreement(exact(lambda n: n**1.5), "n log n") == "higher"
