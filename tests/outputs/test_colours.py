"""The colours of operators, as readers with and without all three kinds of cones see them."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from attnbench.outputs._colours import GREY, HUES, INK, colour, distinct
from attnbench.registry import operators

# Machado, Oliveira, Fernandes 2009, "A physiologically-based model for simulation of color vision deficiency", severity
# 1: of linear RGB, without long-, middle- and short-wave cones.
LACKING = np.array(
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.119192, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DARK = "#16181C"


def linear(hue: str) -> np.ndarray:
    values = np.array([int(hue[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(values: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* of linear RGB."""
    x, y, z = np.cbrt(np.maximum(TO_XYZ @ np.clip(values, 0, 1) / WHITE, 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(hues: tuple[str, ...]) -> float:
    """The least distance of two, to the reader who tells them apart worst."""
    views = [[lab(matrix @ linear(hue)) for hue in hues] for matrix in (np.eye(3), *LACKING)]
    return min(float(np.linalg.norm(a - b)) for view in views for a, b in combinations(view, 2))


def contrast(hue: str, ground: str) -> float:
    """WCAG 2's ratio of luminances."""
    low, high = sorted(float(TO_XYZ[1] @ linear(each)) for each in (hue, ground))
    return (high + 0.05) / (low + 0.05)


def test_every_reader_tells_the_colours_apart() -> None:
    assert nearest((*HUES, INK, GREY)) > nearest(OKABE_ITO) > 15
    assert nearest(("#0072B2", "#7A5195")) < 10, "two that look alike are found"


def test_colours_stand_out_from_both_grounds() -> None:
    assert min(contrast(hue, ground) for hue in HUES for ground in ("#FFFFFF", DARK)) > 2.2
    assert contrast("#F0E442", "#FFFFFF") < 2.2, "yellow is lost on white"


def test_every_operator_has_one_colour_for_good() -> None:
    assert len(named := [operator for each in HUES.values() for operator in each]) == len(set(named))
    assert {*named, "softmax", "identity"} <= set(operators()), "one that was renamed would lose its colour"
    assert colour("softmax") == INK
    assert colour("my_operator") == "#9C3C24", "by its name alone, whatever else a run holds"
    assert all(colour(operator) in HUES for operator in (*named, "my_operator", "my other", ""))


def test_of_two_with_one_colour_the_first_is_kept() -> None:
    assert colour("sinkhorn") == colour("moba")
    assert distinct(["softmax", "sinkhorn", "performer", "moba"]) == ["softmax", "sinkhorn", "performer"]
    assert distinct(["moba", "sinkhorn"]) == ["moba"]
