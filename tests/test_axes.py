from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.analysis.series import panels
from attnbench.axes import AXES, MAX_CHANNELS, Axis, tokens_axis
from attnbench.errors import BadInput
from attnbench.plan.suite import from_text
from attnbench.problem import Problem
from tests.analysis.runs import cell, run_of, visits_of

SEQUENCE, IMAGE = Problem(64, 64, 4), Problem.image(14, 28, 64, 4)


@pytest.mark.parametrize("name", AXES)
def test_a_problem_stands_where_it_was_put(name: str) -> None:
    axis = AXES[name]
    assert axis.name == name
    value = axis.read(16)
    problem = (IMAGE if axis.domain == "image" else SEQUENCE).with_sizes(**axis.fields(value))
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


HEADS = Axis("heads", "attention heads", ("heads",), MAX_CHANNELS, instead=("channels", "head_dim"))
HEAD_DIM = Axis("head_dim", "channels of a head", ("head_dim",), MAX_CHANNELS, varies="channels")


@pytest.mark.parametrize(
    ("axis", "fixed", "splits", "title"),
    [
        (HEADS, "channels: 16", [(1, 16), (2, 16), (4, 16)], "batch 1, channels 16, seq_len 8"),
        (HEADS, "head_dim: 4", [(1, 4), (2, 8), (4, 16)], "batch 1, head_dim 4, seq_len 8"),
        (HEAD_DIM, "heads: 2", [(2, 2), (2, 4), (2, 8)], "batch 1, heads 2, seq_len 8"),
    ],
)
def test_how_channels_are_split_into_heads_is_an_axis_by_its_row(
    axis: Axis, fixed: str, splits: list[tuple[int, int]], title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"operators: [softmax]\nsweep: [{{seq_len: 8, {axis.name}: [1, 2, 4]}}]\nproblem: {{{fixed}}}"
    with pytest.raises(BadInput, match=f"{axis.name}: unknown key"):
        from_text(text, "a test", Path())
    monkeypatch.setitem(AXES, axis.name, axis)
    problems = from_text(text, "a test", Path()).problems()
    assert [(p.heads, p.channels) for p in problems] == splits
    assert [axis.position(axis.at(problems[-1], position)) for position in (1, 2, 4)] == [1, 2, 4]
    results = run_of(visits_of([(cell("softmax", problem), 1.0, {}) for problem in problems])).results
    (panel,) = panels(results, axis.name)
    assert list(panel.sizes) == ["1", "2", "4"]
    assert title in panel.title


def test_heads_that_do_not_divide_the_channels_are_refused_at_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AXES, "heads", HEADS)
    text = "operators: [softmax]\nsweep: [{seq_len: 8, heads: [1, 3]}]\nproblem: {channels: 16}"
    with pytest.raises(BadInput, match=r"sweep\[0\]\.heads\[1\]: 16 is not divisible by heads 3"):
        from_text(text, "a test", Path())
