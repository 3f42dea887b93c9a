from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.operator import SOFTMAX
from attnbench.operators.kernelized import performer
from attnbench.operators.kernelized.performer import OPERATOR, make_inputs, orthogonal, reference
from attnbench.problem import Problem
from attnbench.registry import resolve
from tests.operators.kernelized.dense import drawn, gradients, same, sizes, unhurried, weighted_mean

kinds = st.sampled_from(["softmax", "relu"])
SIZE = {"tokens": 37, "head_dim": 5, "heads": 2, "batch": 2, "seed": 3}


def params_of(kind: str, m: int | str = 11) -> dict[str, Any]:
    return resolve(OPERATOR, {"kind": kind, "m": m})


def dense(problem: Problem, kind: str, q: Tensor, k: Tensor, v: Tensor, omega: Tensor, halved: float = 2.0) -> Tensor:
    """Feature by feature as the first lines state it. halved: what ‖x̂‖² is divided by."""
    unit = problem.head_dim**0.25

    def exponents(x: Tensor) -> Tensor:
        columns = [(x / unit) @ row - (x / unit).pow(2).sum(-1) / halved for row in omega]
        return torch.stack(columns, dim=-1)

    if kind == "relu":
        fq, fk = ((x / unit @ omega.t()).clamp(min=0) + 1e-3 for x in (q, k))
    else:
        a, b = exponents(q), exponents(k)
        fq = (a - a.max(dim=-1, keepdim=True).values).exp() + 1e-6
        fk = (b if problem.causal else b - b.flatten(2).max(dim=-1).values[..., None, None]).exp() + 1e-6
    return weighted_mean(torch.einsum("bhim,bhjm->bhij", fq, fk), v, problem.causal)


@given(sizes, kinds)
@unhurried
def test_is_the_mean_over_all_pairs(size: dict[str, int], kind: str) -> None:
    problem, inputs = drawn(make_inputs, params_of(kind), size)
    assert same(reference(problem, params_of(kind), **inputs.tensors()), dense(problem, kind, **inputs.tensors()))


@given(sizes, kinds)
@unhurried
def test_gradients_are_those_of_the_dense_form(size: dict[str, int], kind: str) -> None:
    problem, inputs = drawn(make_inputs, params_of(kind), size)
    omega = inputs.choices["omega"]
    tensors = inputs.data.values()
    ours = gradients(lambda q, k, v: reference(problem, params_of(kind), q, k, v, omega), *tensors)
    theirs = gradients(lambda q, k, v: dense(problem, kind, q, k, v, omega), *tensors)
    assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("causal", [False, True])
def test_these_comparisons_see_a_wrong_form(causal: bool) -> None:
    problem, inputs = drawn(make_inputs, params_of("softmax"), SIZE, causal)
    right = reference(problem, params_of("softmax"), **inputs.tensors())
    assert not same(right, dense(problem, "softmax", **inputs.tensors(), halved=1.0))
    assert not same(right, dense(problem, "relu", **inputs.tensors()))


def first_outputs_move(causal: bool) -> bool:
    """Whether changing tokens from 20 on moves outputs before them."""
    problem, inputs = drawn(make_inputs, params_of("softmax"), SIZE, causal)
    before = reference(problem, params_of("softmax"), **inputs.tensors())[:, :, :20]
    inputs.data["k"][:, :, 20:] *= 4
    after = reference(problem, params_of("softmax"), **inputs.tensors())[:, :, :20]
    return not torch.allclose(before, after, rtol=1e-9, atol=1e-12)


def test_causal_stabiliser_does_not_look_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not first_outputs_move(causal=True)
    plain = performer.key_features
    monkeypatch.setattr(performer, "key_features", lambda k, scaled, ahead: plain(k, scaled, ahead=True))
    assert first_outputs_move(causal=True), "a maximum over all keys must be noticed, small as ε is"


def test_omega_is_orthogonal_in_blocks_with_gaussian_norms() -> None:
    d, generator = 16, torch.Generator().manual_seed(0)
    omega = orthogonal(4096, d, generator)
    assert off_diagonal(omega, d) < 1e-12
    assert off_diagonal(torch.randn(4096, d, generator=generator, dtype=torch.float64), d) > 0.1
    squares = omega.square().sum(dim=-1)  # χ² with d degrees of freedom: mean d, variance 2d
    assert squares.mean().item() == pytest.approx(d, abs=4 * math.sqrt(2 * d / 4096))
    assert squares.var().item() == pytest.approx(2 * d, rel=0.2)
    assert omega.mean(dim=0).norm() < 0.3, "without the signs of R's diagonal, directions are not uniform"
    assert orthogonal(21, d, generator).shape == (21, d)


def off_diagonal(omega: Tensor, d: int) -> float:
    """The largest cosine between two rows of a block."""
    blocks = torch.nn.functional.normalize(omega, dim=-1).view(-1, d, d)
    return (blocks @ blocks.mT - torch.eye(d, dtype=omega.dtype)).abs().max().item()


def error(m: int, kind: str = "softmax", causal: bool = False, seeds: int = 8) -> float:
    """Mean relative distance to softmax attention, of logits with variance 1/16."""
    found = []
    params = params_of(kind, m)
    for seed in range(seeds):
        size = {"tokens": 64, "head_dim": 8, "heads": 2, "batch": 1, "seed": seed}
        problem, inputs = drawn(make_inputs, params, size, causal)
        tensors = {name: x / 2 if name in ("q", "k") else x for name, x in inputs.tensors().items()}
        exact = scaled_dot_product_attention(tensors["q"], tensors["k"], tensors["v"], is_causal=causal)
        found.append(((reference(problem, params, **tensors) - exact).norm() / exact.norm()).item())
    return sum(found) / seeds


@pytest.mark.parametrize("causal", [False, True])
def test_softmax_kind_comes_near_softmax_as_features_grow(causal: bool) -> None:
    errors = [error(m, causal=causal) for m in (16, 128, 1024)]
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]
    assert errors[2] < 0.2
    assert error(1024, kind="relu", causal=causal, seeds=3) > 2 * errors[2], "relu estimates another function"


def test_estimates_is_declared_for_the_softmax_kind_only() -> None:
    assert OPERATOR.estimates(params_of("softmax")) is SOFTMAX
    assert OPERATOR.estimates(params_of("relu")) is None


def test_d_ln_d_features() -> None:
    problem = Problem(9, 32, 2)
    params = params_of("softmax", "d*ln(d)")
    assert make_inputs(problem, params, torch.Generator()).choices["omega"].shape == (44, 16)  # 16 · 2.77
    narrow = make_inputs(Problem(9, 2, 2), params, torch.Generator())
    assert narrow.choices["omega"].shape == (1, 1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [0.0, 8.0])
def test_long_and_zero_inputs_stay_finite(causal: bool, scale: float) -> None:
    problem = Problem(64, 64, 1, causal=causal)
    inputs = make_inputs(problem, params_of("softmax", 64), torch.Generator().manual_seed(0))
    given = {name: x * scale if name in ("q", "k") else x for name, x in inputs.tensors().items()}
    output = reference(problem, params_of("softmax", 64), **given)
    assert output.isfinite().all()
    assert output.abs().max() <= given["v"].abs().max() + 1e-4, "a weighted mean of values"
