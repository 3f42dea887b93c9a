from __future__ import annotations

import pytest

from attnbench.problem import Problem
from tests.operators.recurrent.token_by_token import recurrence
from tests.operators.small import all_close, close, small

PROBLEM = Problem(77, 24, 4, 2, causal=True)


@pytest.mark.parametrize("given", [{}, {"key_dim": 6}, {"qk_heads": 2}, {"qk_heads": 1, "key_dim": 7}], ids=str)
def test_is_the_recurrence(given: dict[str, int]) -> None:
    case = small("gla", PROBLEM, **given)
    k = given.get("key_dim", 3)
    assert case.tensors["log_decay"].shape == (2, 4, 77, k)
    rows = recurrence(**case.tensors)[0] * k**-0.5
    assert close(case.output(), rows)
    assert not close(case.output(), recurrence(**case.tensors, late=True)[0] * k**-0.5)
    one_for_all = case.tensors["log_decay"].mean(dim=-1, keepdim=True)
    assert not close(case.output(log_decay=one_for_all.expand_as(case.tensors["log_decay"])), rows)


def test_gradients_are_those_of_the_recurrence() -> None:
    case = small("gla", PROBLEM)
    ours = case.gradients()
    assert all_close(ours, case.gradients(lambda grown: recurrence(**grown.tensors)[0] * 3**-0.5))
    assert not all_close(ours, case.gradients(lambda grown: recurrence(**grown.tensors)[0]))


def test_the_decays_are_those_of_the_paper() -> None:
    g = small("gla", Problem(4096, 32, 4, causal=True)).tensors["log_decay"]
    assert g.max() < 0
    assert g.median().exp().item() == pytest.approx(0.5 ** (1 / 16), abs=0.005)  # of a gate sigmoid(0)
