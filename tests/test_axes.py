from __future__ import annotations

from dataclasses import replace

import pytest

from attnbench.axes import AXES, tokens_axis
from attnbench.problem import CELL_COLUMNS, Problem

SEQUENCE, IMAGE = Problem(64, 64, 4), Problem.image(14, 28, 64, 4)


@pytest.mark.parametrize("name", AXES)
def test_a_problem_stands_where_it_was_put(name: str) -> None:
    axis = AXES[name]
    assert axis.name == name
    assert set(axis.columns) <= set(CELL_COLUMNS)
    value = axis.read(16)
    problem = replace(IMAGE if axis.domain == "image" else SEQUENCE, **axis.fields(value))  # type: ignore[arg-type]
    assert problem != SEQUENCE
    assert axis.label(problem) == "x".join(["16"] * len(axis.columns))
    assert axis.position(problem) == 16 ** len(axis.columns)
    assert axis.at(problem, axis.position(problem)) == problem
    assert axis.place(axis.position(problem)) == axis.label(problem)
    with pytest.raises(ValueError, match=str(axis.most)):
        axis.read(axis.most + 1)


def test_an_image_has_two_sides() -> None:
    axis = AXES["image_size"]
    assert [axis.read(text) for text in ("32x64", "32 × 64", 28)] == [(32, 64), (32, 64), (28, 28)]
    assert (axis.label(IMAGE), axis.position(IMAGE)) == ("14x28", 392)
    assert (axis.size(784.0), axis.place(784.0), axis.place(390.0)) == ("28", "28x28", "20x20")
    assert axis.at(IMAGE, 392) == Problem.image(19, 19, 64, 4)


def test_the_number_of_tokens_stands_on_one_axis() -> None:
    assert (tokens_axis(SEQUENCE).name, tokens_axis(IMAGE).name) == ("seq_len", "image_size")
    assert AXES["channels"].domain is None


def test_searched_sizes_have_few_binary_digits_and_are_possible() -> None:
    nearest = AXES["seq_len"].allowed(SEQUENCE)
    assert [nearest(x) for x in (5.2, 31.4, 100, 1000, 12345)] == [5, 31, 100, 992, 12288]
    assert [AXES["channels"].allowed(SEQUENCE)(x) for x in (1, 30, 100, 1000)] == [4, 32, 100, 992]
    assert AXES["image_size"].allowed(IMAGE)(800) == 784
    assert AXES["seq_len"].size(1234.0) == "1230"
