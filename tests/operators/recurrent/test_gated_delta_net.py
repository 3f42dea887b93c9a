from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnbench.problem import Problem
from attnbench.registry import operators, resolve
from tests.operators.recurrent.token_by_token import recurrence
from tests.operators.small import all_close, close, small

PROBLEM = Problem(77, 24, 4, 2, causal=True)
KINDS = ("gated_delta_net", "delta_net")


def by_token(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None = None) -> Tensor:
    """e^g (I − β k kᵀ) S + β k vᵀ, scaled by K^{−½}."""
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], dim=1) for x in (q, k))
    g = torch.zeros_like(beta) if log_decay is None else log_decay
    return recurrence(q, beta * k, v, g, b=-beta * g.exp() * k, a=k)[0] * q.shape[-1] ** -0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [{}, {"qk_heads": 2}, {"qk_heads": 1, "key_dim": 9}], ids=str)
def test_is_the_recurrence(kind: str, given: dict[str, int]) -> None:
    case = small("gated_delta_net", PROBLEM, kind=kind, **given)
    assert ("log_decay" in case.tensors) == (kind == "gated_delta_net")
    assert case.tensors["k"].norm(dim=-1).sub(1).abs().max() < 1e-6
    assert close(case.output(), by_token(**case.tensors))
    changed = {**case.tensors, "beta": 0.9 * case.tensors["beta"]}
    assert not close(case.output(), by_token(**changed))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_recurrence(kind: str) -> None:
    case = small("gated_delta_net", PROBLEM, kind=kind)
    ours = case.gradients()
    assert all_close(ours, case.gradients(lambda grown: by_token(**grown.tensors)))
    assert not all_close(ours, case.gradients(lambda grown: 1.1 * by_token(**grown.tensors)))


def test_without_decay_it_is_the_delta_rule() -> None:
    gated, plain = (small("gated_delta_net", PROBLEM, kind=kind) for kind in KINDS)
    none = torch.zeros_like(gated.tensors["log_decay"])
    same = {name: gated.tensors[name] for name in ("q", "k", "v", "beta")}
    assert close(gated.output(log_decay=none), plain.output(**same))
    assert not close(gated.output(), plain.output(**same))


def test_float32_stays_near_the_truth_where_keys_are_alike() -> None:
    """Keys with a common part of 0.99, β = 1: powers of their matrix pass 10¹⁰."""
    case = small("gated_delta_net", PROBLEM, kind="delta_net", key_dim=32)
    unit = torch.nn.functional.normalize
    common = unit(torch.ones(32, dtype=torch.float64), dim=-1)
    tensors = {**case.tensors, "k": unit(0.14 * case.tensors["k"] + 0.99 * common, dim=-1)}
    tensors["beta"] = torch.ones_like(tensors["beta"])
    operator = operators()["gated_delta_net"].load()
    params = resolve(operator, {"kind": "delta_net", "key_dim": 32})
    single = {name: x.float() for name, x in tensors.items()}
    ours = operator.forms["core"].reference(PROBLEM, params, **single)
    assert isinstance(ours, Tensor)
    assert torch.allclose(ours.double(), by_token(**tensors), atol=1e-4)
