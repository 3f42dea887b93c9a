"""How numbers are shown to a person; stored data stays in base units."""

from __future__ import annotations

import math

_STEPS = {
    "s": (1000.0, ((-4, "ps"), (-3, "ns"), (-2, "µs"), (-1, "ms"), (0, "s"))),
    "bytes": (1024.0, ((0, "B"), (1, "KiB"), (2, "MiB"), (3, "GiB"), (4, "TiB"))),
    "flop": (1000.0, ((0, ""), (1, "k"), (2, "M"), (3, "G"), (4, "T"), (5, "P"), (6, "E"))),
    "j": (1000.0, ((-3, "nJ"), (-2, "µJ"), (-1, "mJ"), (0, "J"), (1, "kJ"))),
    "": (1000.0, ((0, ""),)),
}


def shown(value: float | None, unit: str) -> str:
    """Three significant digits with a prefix; empty where there is no value. unit: a metric's."""
    if value is None or math.isnan(value):
        return ""
    if value == 0:
        return "0"
    base, steps = _STEPS[unit]
    for power, name in steps:
        scaled = value / base**power
        if max(scaled, digits(scaled)) < base or power == steps[-1][0]:
            return f"{_three(scaled)}{name}"
    raise AssertionError(unit)


def digits(value: float) -> float:
    """A number rounded to three significant digits."""
    return float(f"{value:.3g}")


def _three(value: float) -> str:
    if value != 0 and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.2e}"
    if digits(abs(value)) >= 100:
        return f"{digits(value) if abs(value) < 1000 else value:.0f}"
    return f"{value:.2f}" if digits(abs(value)) < 10 else f"{value:.1f}"


def times(value: float | None) -> str:
    """A ratio: `2.31×`, `0.0047×`."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.2g}×" if 1e-3 <= value < 0.1 else f"{_three(value)}×"


def percent(value: float) -> str:
    """A relative width: `2.1%`, `18%`; what is wider than tenfold says only that: `>999%`."""
    return ">999%" if value > 9.99 else f"{value:.0%}" if value >= 0.0995 else f"{value:.1%}"


def plus_minus(value: float, half: float) -> str:
    """A number of the order of 1 with half its interval: `0.92 ±0.05`; the half is left out where it rounds to 0."""
    if math.isnan(half) or half < 0.005:
        return f"{value:.2f}"
    return f"{value:.2f} ±{half:.2f}" if half < 10 else f"{value:.2f} ±>9"


def count(number: int, what: str) -> str:
    """So many of a countable thing: `1 cell`, `2 cells`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def size(value: float, axis: str) -> str:
    """A place on an axis, three significant digits; of an image the side in pixels of a square with as many."""
    return f"{math.sqrt(value):.0f}" if axis == "image_size" else f"{digits(value):.0f}"


def place(value: float, axis: str) -> str:
    """The same, standing alone: of an image both sides."""
    return f"{size(value, axis)}x{size(value, axis)}" if axis == "image_size" else size(value, axis)
