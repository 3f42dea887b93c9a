"""The axes that a sweep varies."""

from __future__ import annotations

import math

from attnbench.units import digits


def size(value: float, axis: str) -> str:
    """A place on an axis, three significant digits; of an image the side in pixels of a square with as many."""
    return f"{math.sqrt(value):.0f}" if axis == "image_size" else f"{digits(value):.0f}"


def place(value: float, axis: str) -> str:
    """The same, standing alone: of an image both sides."""
    return f"{size(value, axis)}x{size(value, axis)}" if axis == "image_size" else size(value, axis)
