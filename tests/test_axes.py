from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from attnbench.analysis.series import panels
from attnbench.analysis.swept import Swept
from attnbench.axes import AXES, tokens_axis
from attnbench.errors import BadInput
from attnbench.plan.suite import from_text
from attnbench.plan.sweep import entry_facts
from attnbench.problem import Problem
from tests.analysis.runs import cell, run_of, visits_of

SEQUENCE, IMAGE = Problem(64, 64, 4, causal=True), Problem.image(14, 28, 64, 4)
GROUPED = Problem(64, 64, 32)


@pytest.mark.parametrize("name", AXES)
def test_a_problem_stands_where_it_was_put(name: str) -> None:
    axis = AXES[name]
    assert axis.name == name
    value = axis.read(16)
    start = IMAGE if axis.domain == "image" else GROUPED if name in ("kv_heads", "head_dim") else SEQUENCE
    problem = start.with_sizes(**axis.fields(value))
    assert problem != start
    assert axis.label(problem) == "x".join(["16"] * len(axis.columns))
    assert axis.position(problem) == 16 ** len(axis.columns)
    assert axis.at(problem, axis.position(problem)) == problem
    assert axis.place(axis.position(problem)) == axis.label(problem)
    with pytest.raises(ValueError, match=str(axis.most)):
        axis.read(axis.most + 1)
    for wrong in (0, -1, 1.5, True, "many", "1G", "K", None, [1]):
        with pytest.raises(ValueError, match="allowed: a"):
            axis.read(wrong)


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
    assert [AXES["kv_heads"].allowed(GROUPED)(x) for x in (1, 3, 7, 100)] == [1, 4, 8, 32]
    assert [AXES["heads"].allowed(replace(GROUPED, kv_heads=4))(x) for x in (1, 9, 40)] == [4, 8, 32]
    assert [AXES["heads"].allowed(GROUPED)(x) for x in (1, 3, 100)] == [1, 4, 64]
    assert [AXES["query_len"].allowed(SEQUENCE)(x) for x in (1, 63.7, 100)] == [1, 64, 64]
    assert AXES["seq_len"].size(1234.0) == "1230"


@pytest.mark.parametrize(
    ("name", "fixed", "splits", "title"),
    [
        ("channels", "heads: 1", [(1, 1), (1, 2), (1, 4)], "batch 1, heads 1, seq_len 8"),
        ("channels", "head_dim: 1", [(1, 1), (2, 2), (4, 4)], "batch 1, head_dim 1, seq_len 8"),
        ("heads", "channels: 16", [(1, 16), (2, 16), (4, 16)], "batch 1, channels 16, seq_len 8"),
        ("heads", "head_dim: 4", [(1, 4), (2, 8), (4, 16)], "batch 1, head_dim 4, seq_len 8"),
        ("head_dim", "heads: 2", [(2, 2), (2, 4), (2, 8)], "batch 1, heads 2, seq_len 8"),
        ("head_dim", "channels: 16", [(16, 16), (8, 16), (4, 16)], "batch 1, channels 16, seq_len 8"),
    ],
)
def test_how_channels_are_split_into_heads_is_shown_along_the_axis_that_the_suite_names(
    name: str, fixed: str, splits: list[tuple[int, int]], title: str
) -> None:
    suite = from_text(
        f"operators: [softmax]\nsweep: [{{seq_len: 8, {name}: [1, 2, 4]}}]\nproblem: {{{fixed}}}", "", Path()
    )
    problems = suite.problems()
    assert [(p.heads, p.channels) for p in problems] == splits
    axis = AXES[name]
    assert [axis.holding(problems).at(problems[-1], position) for position in (1, 2, 4)] == problems
    results = run_of(visits_of([(cell("softmax", problem), 1.0, {}) for problem in problems])).results
    (panel,) = panels(results, swept=[Swept(**entry_facts(suite.sweep[0], suite.problem))])
    assert (panel.axis, list(panel.sizes)) == (name, ["1", "2", "4"])
    assert title in panel.title
    assert panels(results, name) == [panel]
    (unnamed,) = panels(results)
    assert unnamed.keys == panel.keys, "no cell stands in two panels that hold the same cells"


def test_heads_that_do_not_divide_the_channels_are_refused_at_their_place() -> None:
    text = "operators: [softmax]\nsweep: [{seq_len: 8, heads: [1, 3]}]\nproblem: {channels: 16}"
    with pytest.raises(BadInput, match=r"sweep\[0\]\.heads\[1\]: 16 is not divisible by heads 3"):
        from_text(text, "a test", Path())
