"""What two functions give is compared by one rule, whatever library it is of."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from attnbench.measure.agreement import (
    CEILING,
    EPS,
    Different,
    agreement,
    changed,
    copied,
    in_double,
    truth_of,
)


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Result:
    values: Any
    name: str


class Opaque:
    pass


ONES = np.ones(3)
SAME: list[tuple[Any, Any]] = [
    (1, 1),
    (1, 1.0),
    (2.0, 2.0 + 1e-12),
    (1 + 2j, 1 + 2j),
    ("a", "a"),
    (None, None),
    (b"a", b"a"),
    ([1, 2], (1, 2)),
    ([1.0, 2], [1.0, 2 + 1e-12]),
    ([], []),
    ({"x": ONES, "y": 3}, {"y": 3, "x": ONES + 1e-12}),
    (Pair(ONES, [ONES]), Pair(ONES, [ONES])),
    (Result(ONES, "a"), Result(ONES.copy(), "a")),
    ({1, 2}, {2, 1}),
    (np.array(["a", "b"]), np.array(["a", "b"])),
    (np.array([1, 2]), np.array([1, 2])),
    (np.array([np.nan, np.inf, 1]), np.array([np.nan, np.inf, 1])),
    (np.float32(1), np.float32(1.0005)),
    (torch.ones(2, 3), torch.ones(2, 3) * 1.0005),
    (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16) * 1.05),
    (torch.tensor([True, False]), torch.tensor([True, False])),
    (torch.ones(2, dtype=torch.complex64).conj(), torch.ones(2, dtype=torch.complex64)),
    (torch.eye(2).to_sparse(), torch.eye(2)),
    (torch.ones(0), torch.ones(0)),
    (torch.zeros(2, requires_grad=True), torch.zeros(2)),
]
UNLIKE: list[tuple[Any, Any, str]] = [
    (1, 2, "is 1 of one, 2 of the other"),
    (2.0, 2.0 + 1e-8, r"differs by 5\.0e-09 of its largest value \(allowed 1\.0e-09, the most for its dtype\)"),
    (1 + 2j, 1 + 2.1j, "differs by"),
    ("a", "b", "'a' of one"),
    (None, 0, "None of one, 0"),
    ([1, 2], [1, 3], "of one"),
    ([1.0, 2.0], [1.0, 2.0, 3.0], "2 numbers of one, 3 numbers"),
    ([ONES], [ONES, ONES], "only one of them gives the output"),
    ({"x": 1}, {"z": 1}, "only one of them gives the output"),
    ({"x": ONES}, {"x": 2 * ONES}, r"the output\['x'\] differs"),
    (Result(ONES, "a"), Result(ONES, "b"), r"the output\['name'\]"),
    (np.array([1, 2]), np.array([1, 3]), "differs in 1 of 2 values"),
    (np.array(["a"]), np.array(["b"]), "of one"),
    (np.array([np.nan, 1.0]), np.array([1.0, np.nan]), "NaN or infinities"),
    (np.array([np.inf]), np.array([-np.inf]), "NaN or infinities"),
    (np.array([np.inf]), np.array([1.0]), "NaN or infinities"),
    (torch.ones(2), torch.ones(2) * 1.002, "differs by 2.0e-03"),
    (torch.ones(2), torch.ones(2, dtype=torch.float64), r"float32 \[2\] of one, float64 \[2\]"),
    (torch.ones(2), torch.ones(2, 1), r"float32 \[2, 1\] of the other"),
    (torch.ones(2), np.ones(2, dtype=np.float32) * 2, "differs by"),
    (torch.tensor([True]), torch.tensor([False]), "1 of 1"),
    (torch.zeros(2), torch.full((2,), 1e-30), "differs"),
    ((x for x in "a"), (x for x in "a"), r"\(generator\) cannot be compared"),
    (Opaque(), Opaque(), r"\(Opaque\) cannot be compared"),
]


@pytest.mark.parametrize(("first", "second"), SAME, ids=repr)
def test_what_agrees(first: Any, second: Any) -> None:
    agreement(first, second)


@pytest.mark.parametrize(("first", "second", "words"), UNLIKE)
def test_what_differs_is_told(first: Any, second: Any, words: str) -> None:
    with pytest.raises(Different, match=words):
        agreement(first, second)


def test_the_bound_is_twice_the_first_ones_own_error_and_at_most_the_ceiling() -> None:
    truth = torch.ones(4, dtype=torch.float64)
    eps = EPS["float32"]
    own = torch.ones(4) + torch.tensor([40 * eps, 0, 0, 0])
    found = agreement(own, torch.ones(4) * (1 + 80 * eps), truth)
    assert (found.rule, found.tolerance) == ("derived", pytest.approx(81 * eps))
    with pytest.raises(Different, match="twice the first one's own error"):
        agreement(own, torch.ones(4) * (1 + 82 * eps), truth)
    lucky = agreement(torch.ones(4), torch.ones(4) * (1 + 3 * eps), truth)
    assert lucky.tolerance == pytest.approx((8**0.5 + 1) * eps)
    poor = torch.ones(4) * 1.01
    assert agreement(poor, torch.ones(4), truth).tolerance == CEILING["float32"]
    with pytest.raises(Different):
        agreement(poor, poor * 1.01, truth)
    assert agreement(own, own, torch.ones(4)).rule == "ceiling", "what is in float32 is no truth"
    assert agreement(own, own * 1.1, truth, tolerance=0.2).rule == "given"


def test_the_worst_array_is_the_one_that_is_named() -> None:
    found = agreement([torch.ones(2), torch.ones(2)], [torch.ones(2) * 1.0002, torch.ones(2) * 1.0007])
    assert found.difference == pytest.approx(7e-4, rel=1e-2)


def test_the_truth_is_what_the_first_gives_in_float64() -> None:
    words = ((torch.ones(2, requires_grad=True), [np.ones(2, dtype=np.float32)], 3), {"bias": torch.ones(2).half()})
    (positional, named), lower = in_double(words)
    assert lower
    assert positional[0].dtype == torch.float64
    assert positional[0].requires_grad
    assert (positional[1][0].dtype, positional[2]) == (np.float64, 3)
    assert named["bias"].dtype == torch.float64
    assert words[0][0].dtype == torch.float32

    def total(*tensors: Any, bias: Any) -> Any:
        return tensors[0] + bias

    assert truth_of(total, words, 0.1).dtype == torch.float64
    assert truth_of(total, words, 10.0) is None, "too slow to be called once more"
    assert truth_of(total, ((torch.ones(2).double(),), {"bias": 1}), 0.1) is None, "nothing finer is known"
    compiled = SimpleNamespace(_torchdynamo_orig_callable=total)
    assert truth_of(compiled, words, 0.1).dtype == torch.float64, "not compiled once more"  # type: ignore[arg-type]
    linear = torch.nn.Linear(2, 2)
    assert truth_of(linear, ((torch.ones(2),), {}), 0.1) is None, "its weights stay in float32"


def test_inputs_that_change_are_noticed_where_they_can_be_copied() -> None:
    words = ((torch.ones(2), {"x": [1, 2]}), {})
    before = copied(words)
    assert not changed(words, before)
    words[0][1]["x"].append(3)
    assert changed(words, before)
    before = copied(words)
    words[0][0][1] = 2
    assert changed(words, before)
    graph = torch.ones(2, requires_grad=True) * 2
    assert copied(((graph,), {})) is None
    assert not changed(((graph,), {}), None)
