from __future__ import annotations

import math

import pytest

from attnbench.units import duration, percent, shown, times


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, "s", "0"),
        (None, "s", ""),
        (math.nan, "s", ""),
        (1.234e-5, "s", "12.3µs"),
        (9.9996e-4, "s", "1.00ms"),
        (0.9996, "s", "1.00s"),
        (123.4, "s", "123s"),
        (1024.0, "bytes", "1.00KiB"),
        (1000.0, "bytes", "1000B"),
        (3.5 * 2**30, "bytes", "3.50GiB"),
        (157552640.0, "flop", "158M"),
        (999999.0, "flop", "1.00M"),
        (2e-3, "j", "2.00mJ"),
        (0.01234, "", "0.01"),
        (1e-5, "", "1.00e-05"),
    ],
)
def test_three_digits_and_a_prefix(value: float | None, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_ratios() -> None:
    assert [times(x) for x in (2.314, 0.0993, 0.00469, 1.2e-5)] == ["2.31×", "0.099×", "0.0047×", "1.20e-05×"]
    assert times(math.nan) == ""


def test_widths_stay_readable() -> None:
    assert [percent(x) for x in (0.0213, 0.0996, 0.18, 9.9, 669.65, math.inf)] == [
        "2.1%", "10%", "18%", "990%", ">999%", ">999%",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0.4 s"), (46.6666, "47 s"), (59.4, "59 s"), (61, "1 min 01 s"), (7260, "2 h 01 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
