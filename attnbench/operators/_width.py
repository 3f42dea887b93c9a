"""Widths as a share of the channels of a token, C, or of a head, D: one string in `params`, so that a series keeps one
set of params.
"""

from __future__ import annotations

from fractions import Fraction

from attnbench.problem import ParamValue

WIDTHS = {"d/8": Fraction(1, 8), "c/2": Fraction(1, 2), "c": Fraction(1), "3c": Fraction(3), "4c": Fraction(4)}


def width(value: ParamValue, channels: int) -> int:
    """Channels meant by a parameter: a number, or a key of WIDTHS as a share of `channels`, rounded down; 1 or more."""
    return max(1, int(WIDTHS[value] * channels)) if isinstance(value, str) else int(value)
