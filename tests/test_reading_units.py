from __future__ import annotations

import math

import pytest

from attnbench.units import choice, flag, fraction, memory, quoted, seconds, separated, suggestion, whole_number


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500ms", 0.5), ("1s", 1.0), ("1.5 m", 90.0), ("2h", 7200.0), ("5min", 300.0), ("90 sec", 90.0)],
)
def test_durations_are_read_into_seconds(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    "value", ["1", 1, 1.5, "0s", "-1s", "1d", "8h 3m", "999h", "nan s", "", None, True, [], "1" * 99 + "s"]
)
def test_other_durations_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="allowed: a duration"):
        seconds(value)


def test_percentages_are_read_into_fractions_within_bounds() -> None:
    assert fraction(0, 1)("2%") == 0.02
    assert fraction(0, 1)("0 %") == 0.0
    for value in ("101%", "-1%", 0.02, "2", "nan%", True, None):
        with pytest.raises(ValueError, match="a percentage from 0% to 100%"):
            fraction(0, 1)(value)


def test_memory_is_a_share_or_a_size() -> None:
    assert memory("80%") == (0.8, None)
    assert memory("8GiB") == (1.0, 8 * 2**30)
    assert memory("1.5 GB") == memory("1.5gb") == (1.0, 1_500_000_000)
    assert memory("24G") == memory("24g") == memory("24gib") == (1.0, 24 * 2**30)
    for value in ("0%", "120%", "8", 8, "8 gigabytes", "-1GiB", "999999999999TiB", None):
        with pytest.raises(ValueError, match="allowed"):
            memory(value)


@pytest.mark.parametrize("value", [True, 1.5, math.nan, math.inf, 10**400, -1, 0, "3", None, [3]])
def test_only_whole_numbers_within_bounds_pass(value: object) -> None:
    assert whole_number(1, 9)(3) == whole_number(1, 9)(3.0) == 3
    with pytest.raises(ValueError, match="whole number from 1 to 9"):
        whole_number(1, 9)(value)


def test_names_are_matched_exactly_and_the_nearest_is_suggested() -> None:
    assert choice(("fwd", "fwd_bwd"))("fwd") == "fwd"
    with pytest.raises(ValueError, match="did you mean 'fwd_bwd'"):
        choice(("fwd", "fwd_bwd"))("fwd_bdw")
    assert suggestion("zzz", ["fwd"]) == ""
    assert suggestion("Wall-Tme", ["wall_time", "flops"]) == " (did you mean 'wall_time'?)"


def test_short_words_stand_for_names_and_then_capitals_do_not_matter() -> None:
    read = choice(("fwd", "fwd_bwd"), {"infer": "fwd", "train": "fwd_bwd"})
    assert [read(word) for word in ("train", "TRAIN", "Fwd")] == ["fwd_bwd", "fwd_bwd", "fwd"]
    with pytest.raises(ValueError, match="did you mean 'train'"):
        read("trian")
    with pytest.raises(ValueError, match="did you mean 'sdpa'"):
        choice(("reference", "sdpa"))("SDPA")


def test_several_words_with_commas() -> None:
    assert separated(["a, b", "c", "a,"]) == ["a", "b", "c"]
    assert separated([]) == []


def test_what_follows_is_of_names_alone() -> None:
    assert flag(True)
    with pytest.raises(ValueError, match="true, false"):
        flag(1)


def test_a_value_is_shown_on_one_short_line() -> None:
    assert quoted("a\nb" * 100).count("\n") == 0
    assert len(quoted("x" * 1000)) <= 60
    assert quoted(10**5000) == "a number of thousands of digits"
    assert quoted(True) == "true"
