"""Widths that may follow the number of channels: one string in `params`, so that a series keeps one set of params."""

from __future__ import annotations

from fractions import Fraction

from attnbench.problem import ParamValue

WIDTHS = {"c/2": Fraction(1, 2), "c": Fraction(1), "3c": Fraction(3), "4c": Fraction(4)}


def width(value: ParamValue, channels: int) -> int:
    """Channels meant by a parameter: a number, or a key of WIDTHS as a share of `channels`, rounded down; 1 or more."""
    return max(1, int(WIDTHS[value] * channels)) if isinstance(value, str) else int(value)
