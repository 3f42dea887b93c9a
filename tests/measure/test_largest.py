"""The search of the largest size that fits, on needs whose answer is known, and how many of them it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from attnbench.measure.largest import STEPS, Largest, Search, Unknown

MOST = 2**26


@dataclass
class Needs:
    """Needs by a formula, which take a time, and the sizes at which they were asked for."""

    of: Callable[[int], int]
    seconds: Callable[[int], float] = lambda size: 0.0
    now: float = 0.0
    asked: list[int] = field(default_factory=list)

    def __call__(self, size: int) -> int:
        self.asked.append(size)
        self.now += self.seconds(size)
        return self.of(size)


def search(
    needs: Needs,
    limit: int,
    is_defined: Callable[[int], bool] = lambda size: True,
    most: int = MOST,
    seconds: float = 1,
) -> Largest:
    one = Search(needs, is_defined, limit, most, seconds, clock=lambda: needs.now)
    first = one.first()
    assert first is not None
    return one.run(first)


LIMIT = 24 * 2**30


@pytest.mark.parametrize(
    "need",
    [
        lambda n: 7000 * n,
        lambda n: 7000 * n + 2**30,
        lambda n: 32 * n * n + 5000 * n,
        lambda n: 900 * n + 12 * n * int(n**0.5),
        lambda n: 7000 * n + 2**27 * (n > 100_000) + 2**28 * (n > 1_500_000),
        lambda n: 20_000 * -(-n // 4096) * 4096,
        lambda n: n**3,
    ],
)
def test_the_answer_fits_and_the_next_does_not(need: Callable[[int], int]) -> None:
    needs = Needs(need)
    end = search(needs, LIMIT)
    assert end.is_exact
    assert need(end.size) == end.need <= LIMIT < end.beyond_need == need(end.beyond)
    assert end.size < end.beyond <= end.size * (1 + 2 / STEPS) + 1
    assert len(needs.asked) == len(set(needs.asked)) <= 16


def test_a_straight_line_takes_six() -> None:
    needs = Needs(lambda n: 7232 * n + 4096)
    search(needs, LIMIT)
    assert len(needs.asked) <= 6


def test_only_defined_sizes_are_asked_for() -> None:
    needs = Needs(lambda n: 7000 * n)
    end = search(needs, 2**28, lambda n: n % 1000 == 0)
    assert end.size == 2**28 // 7000 // 1000 * 1000
    assert end.beyond == end.size + 1000
    assert all(n % 1000 == 0 for n in needs.asked)


def test_defined_up_to_a_size() -> None:
    assert search(Needs(lambda n: 7000 * n), LIMIT, lambda n: n <= 5000) == Largest(5000, 35_000_000)


def test_what_never_grows_ends_at_the_largest_size_allowed() -> None:
    needs = Needs(lambda n: 12345)
    assert search(needs, LIMIT) == Largest(MOST, 12345)
    assert len(needs.asked) <= 5


def test_nothing_fits() -> None:
    end = search(Needs(lambda n: LIMIT + n), LIMIT)
    assert (end.size, end.beyond) == (0, 1)


def test_small_sizes_are_exact_to_one() -> None:
    end = search(Needs(lambda n: 2**30 * n), LIMIT, most=2**16)
    assert (end.size, end.beyond) == (24, 25)


def test_no_size_is_defined() -> None:
    assert Search(Needs(lambda n: n), lambda n: False, 10, MOST, 1).first() is None


@pytest.mark.parametrize("need", [lambda n: 7000 * n + 2**20, lambda n: 32 * n * n + 5000 * n])
def test_needs_that_take_too_long_are_extrapolated_and_the_answer_says_so(need: Callable[[int], int]) -> None:
    needs = Needs(need, seconds=lambda n: n / 10_000)
    end = search(needs, LIMIT, seconds=3)
    exact = search(Needs(need), LIMIT)
    assert needs.now <= 3.5
    assert not end.is_exact
    assert end.figured == max(needs.asked) < end.size
    assert end.size == pytest.approx(exact.size, rel=0.03)
    assert end.need == 0, "what was not found is not shown"


def test_a_slow_need_between_two_known_ones_is_interpolated() -> None:
    needs = Needs(lambda n: 7000 * n, seconds=lambda n: 2.0 if n > 100_000 else 0.0)
    end = search(needs, LIMIT, seconds=1)
    assert not end.is_exact
    assert end.size == pytest.approx(LIMIT / 7000, rel=0.01)


def test_beyond_a_single_known_need_the_answer_is_in_proportion() -> None:
    needs = Needs(lambda n: 2**30 * n, seconds=lambda n: 5.0)
    one = Search(needs, lambda size: True, LIMIT, 2**16, 1, (1,), clock=lambda: needs.now)
    assert one.run(1) == Largest(24, figured=1)
    assert needs.asked == [1]


def test_a_need_that_is_unknown_ends_the_search_where_it_is() -> None:
    def of(size: int) -> int:
        if size > 10_000:
            raise Unknown
        return 7000 * size

    end = search(Needs(of), LIMIT)
    assert not end.is_exact
    assert end.size == pytest.approx(LIMIT / 7000, rel=0.01)
    with pytest.raises(Unknown):
        search(Needs(lambda size: of(size + 10_000)), LIMIT)
