from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnbench.problem import Problem
from tests.operators.recurrent.token_by_token import recurrence
from tests.operators.small import all_close, close, small

PROBLEM = Problem(77, 24, 4, 2, causal=True)


def by_token(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> Tensor:
    """(I − β k kᵀ) Diag(e^g) S + β k vᵀ, scaled by K^{−½}."""
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], dim=1) for x in (q, k))
    return recurrence(q, beta * k, v, log_decay, b=-beta * k, a=log_decay.exp() * k)[0] * q.shape[-1] ** -0.5


@pytest.mark.parametrize("given", [{}, {"qk_heads": 2}, {"qk_heads": 1, "key_dim": 9}], ids=str)
def test_is_the_recurrence(given: dict[str, int]) -> None:
    case = small("kda", PROBLEM, **given)
    assert case.tensors["log_decay"].shape == (2, 4, 77, given.get("key_dim", 6))
    assert close(case.output(), by_token(**case.tensors))
    changed = {**case.tensors, "log_decay": case.tensors["log_decay"].roll(1, dims=-1)}
    assert not close(case.output(), by_token(**changed))


def test_gradients_are_those_of_the_recurrence() -> None:
    case = small("kda", PROBLEM)
    ours = case.gradients()
    assert all_close(ours, case.gradients(lambda grown: by_token(**grown.tensors)))
    assert not all_close(ours, case.gradients(lambda grown: 1.1 * by_token(**grown.tensors)))


def test_with_one_decay_for_all_channels_it_is_gated_delta_net() -> None:
    case, other = small("kda", PROBLEM), small("gated_delta_net", PROBLEM)
    g = other.tensors["log_decay"]
    same = {name: other.tensors[name] for name in ("q", "k", "v", "beta")}
    assert close(case.output(**same, log_decay=g.expand(2, 4, 77, 6)), other.output())
    assert not close(case.output(**same), other.output())


def test_decays_begin_as_those_of_the_layers() -> None:
    g = small("kda", PROBLEM).tensors["log_decay"]
    assert -1.6 <= g.min() < g.max() < 0
    assert not torch.equal(g[..., 0], g[..., 1])
