from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnbench.problem import Problem
from tests.operators.recurrent.token_by_token import recurrence
from tests.operators.small import all_close, close, small

PROBLEM = Problem(77, 24, 4, 2, causal=True)


def by_token(
    q: Tensor, k: Tensor, v: Tensor, delta: Tensor, a: Tensor, d: Tensor, steps_of_v: bool = True, skip: bool = True
) -> Tensor:
    """steps_of_v, skip: False leaves Δ v or D v out."""
    y = recurrence(q, k, delta * v if steps_of_v else v, delta * a[:, None, None])[0]
    return y + d[:, None, None] * v if skip else y


@pytest.mark.parametrize("given", [{}, {"key_dim": 5, "qk_heads": 2}, {"key_dim": 5, "qk_heads": "h"}], ids=str)
def test_is_the_recurrence(given: dict[str, int | str]) -> None:
    case = small("mamba2", PROBLEM, **given)
    heads = {"h": 4}.get(str(given.get("qk_heads")), given.get("qk_heads", 1))
    assert case.tensors["k"].shape == (2, heads, 77, given.get("key_dim", 128))
    assert close(case.output(), by_token(**case.tensors))
    assert not close(case.output(), by_token(**case.tensors, steps_of_v=False))
    assert not close(case.output(), by_token(**case.tensors, skip=False))


def test_gradients_are_those_of_the_recurrence() -> None:
    case = small("mamba2", PROBLEM, key_dim=5)
    ours = case.gradients()
    assert ours.keys() == {"q", "k", "v", "delta", "a", "d"}
    assert all_close(ours, case.gradients(lambda grown: by_token(**grown.tensors)))
    assert not all_close(ours, case.gradients(lambda grown: by_token(**grown.tensors, skip=False)))


def test_heads_of_a_group_have_the_same_keys_but_decays_of_their_own() -> None:
    case = small("mamba2", PROBLEM, key_dim=5)
    same = {
        "v": case.tensors["v"][:, :1].expand(2, 4, 77, 6),
        "delta": case.tensors["delta"][:, :1].expand(2, 4, 77, 1),
    }
    alike = case.output(**same, a=torch.full((4,), -2.0, dtype=torch.float64))
    assert close(alike[:, 0], alike[:, 3])
    assert not close(case.output(**same)[:, 0], case.output(**same)[:, 3])


def test_decays_and_steps_begin_as_those_of_the_layers() -> None:
    case = small("mamba2", Problem(512, 256, 64, causal=True), key_dim=4)
    a, delta = case.tensors["a"], case.tensors["delta"]
    assert -16 <= a.min() < -12 < -5 < a.max() <= -1
    assert 0.001 <= delta.min() < 0.0011 < 0.09 < delta.max() <= 0.1
    assert delta.log10().mean() == pytest.approx(-2, abs=0.02)
