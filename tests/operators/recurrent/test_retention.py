from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attnbench.problem import Problem
from attnbench.registry import operators, outside_definition, resolve
from tests.operators.recurrent.token_by_token import recurrence
from tests.operators.small import Small, close, small

PROBLEM = Problem(77, 24, 4, 2, causal=True)


def token_by_token(case: Small, decays: list[float], scale: float, late: bool = False) -> Tensor:
    v = case.tensors["v"]
    g = torch.tensor(decays, dtype=torch.float64).view(1, -1, 1, 1).expand(*v.shape[:3], 1)
    return scale * recurrence(case.tensors["q"], case.tensors["k"], v, g, late=late)[0]


@pytest.mark.parametrize("given", [{}, {"key_dim": 3}, {"qk_heads": 2}, {"qk_heads": 1, "key_dim": 7}], ids=str)
def test_is_the_recurrence(given: dict[str, int]) -> None:
    case = small("retention", PROBLEM, **given)
    k = given.get("key_dim", 6)
    assert case.tensors["k"].shape == (2, given.get("qk_heads", 4), 77, k)
    decays = [math.log(31 / 32), math.log(63 / 64), math.log(127 / 128), math.log(255 / 256)]
    assert close(case.output(), token_by_token(case, decays, k**-0.5))
    assert not close(case.output(), token_by_token(case, decays, k**-0.5, late=True))
    assert not close(case.output(), token_by_token(case, decays[::-1], k**-0.5))
    assert not close(case.output(), token_by_token(case, decays, 1.0))


@pytest.mark.parametrize(("layer", "layers"), [(0, 2), (3, 10), (1, 2)])
def test_lightning_has_the_decays_of_minimax(layer: int, layers: int) -> None:
    """The slopes 2^(−8(h+1)/H) times a factor that goes from 1 to almost 0 along the layers, and no scale."""
    case = small("retention", PROBLEM, kind="lightning", layer=layer, layers=layers)
    factor = 1 - layer / (layers - 1 + 1e-5) + 1e-5
    decays = [-slope * factor for slope in (1 / 4, 1 / 16, 1 / 64, 1 / 256)]
    assert close(case.output(), token_by_token(case, decays, 1.0))
    assert not close(case.output(), token_by_token(case, [2 * g for g in decays], 1.0))


def test_a_pair_weighs_the_power_of_the_distance() -> None:
    case = small("retention", Problem(23, 12, 2, causal=True))
    q, k, v = (case.tensors[name] for name in "qkv")
    distance = (torch.arange(23)[:, None] - torch.arange(23)).double()
    kept = torch.tensor([31 / 32, 63 / 64], dtype=torch.float64).view(1, 2, 1, 1)
    weights = (kept**distance).tril() * 6**-0.5
    assert close(case.output(), (q @ k.mT * weights) @ v)
    assert not close(case.output(), (q @ k.mT * weights.triu()) @ v)


def test_heads_must_divide_and_layers_exist() -> None:
    operator = operators()["retention"].load()

    def reason(problem: Problem, **given: int) -> str | None:
        return outside_definition(operator, problem, resolve(operator, given), "core")

    assert reason(PROBLEM) is None
    assert "qk_heads 3 does not divide heads 4" in str(reason(PROBLEM, qk_heads=3))
    assert "layer 2 is not one of 2 layers" in str(reason(PROBLEM, layer=2))
    assert "in their order" in str(reason(Problem(77, 24, 4)))
