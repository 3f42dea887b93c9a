from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attnbench.operators.kernelized.rfa import (
    LAYER,
    OPERATOR,
    features,
    gated,
    kernel_attention,
    layer_cost,
    layer_inputs,
    make_inputs,
    reference,
)
from attnbench.operators.recurrent import _scan
from attnbench.operators.recurrent._scan import sums
from attnbench.problem import Problem
from attnbench.registry import resolve
from tests.operators.kernelized.dense import drawn, gradients, same, sizes, unhurried

gates = st.sampled_from(["causal", "none"])
SIZE = {"tokens": 37, "head_dim": 5, "heads": 2, "batch": 2, "seed": 3}


def params_of(gate: str, m: int = 13) -> dict[str, Any]:
    return resolve(OPERATOR, {"gate": gate, "m": m})


def recurrent(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, omega: Tensor, gate: Tensor | None = None, late: bool = False
) -> Tensor:
    """One token after another. late: the state forgets after it has taken the token in, which is another function."""

    def phi(x: Tensor) -> Tensor:
        angles = torch.einsum("...d,md->...m", x / x.pow(2).sum(-1, keepdim=True).sqrt(), omega)
        return torch.stack((angles.cos(), angles.sin()), dim=-1).flatten(-2) / omega.shape[0] ** 0.5

    fq, fk = phi(q), phi(k)
    state = torch.zeros(*v.shape[:2], fq.shape[-1], v.shape[-1], dtype=v.dtype)
    total = torch.zeros(*v.shape[:2], fq.shape[-1], dtype=v.dtype)
    states, totals = [], []
    for i in range(problem.seq_len):
        keep, take = torch.ones(()), torch.ones(())
        if gate is not None:
            keep = gate[:, :, i, None].sigmoid()
            take = 1 - keep
        if late:
            state, total = keep[..., None] * (state + take[..., None] * fk[:, :, i, :, None] * v[:, :, i, None]), total
        else:
            state = keep[..., None] * state + take[..., None] * fk[:, :, i, :, None] * v[:, :, i, None]
        total = keep * total + take * fk[:, :, i]
        states.append(state)
        totals.append(total)
    if not problem.causal:
        states, totals = [state] * problem.seq_len, [total] * problem.seq_len
    numerator = torch.einsum("bhim,ibhmd->bhid", fq, torch.stack(states))
    return numerator / torch.einsum("bhim,ibhm->bhi", fq, torch.stack(totals))[..., None]


@given(sizes, gates)
@unhurried
def test_is_the_recurrence(size: dict[str, int], gate: str) -> None:
    size = {**size, "head_dim": size["head_dim"] + 1}  # of one channel, x̂ is ±1 and the denominator can be near 0
    problem, inputs = drawn(make_inputs, params_of(gate, 64), size)
    assert ("gate" in inputs.data) == (problem.causal and gate == "causal") == gated(problem, params_of(gate))
    ours = reference(problem, params_of(gate, 64), **inputs.tensors())
    assert same(ours, recurrent(problem, **inputs.tensors()))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gate", ["causal", "none"])
def test_gradients_are_those_of_the_recurrence(causal: bool, gate: str) -> None:
    problem, inputs = drawn(make_inputs, params_of(gate), SIZE, causal)
    omega, names = inputs.choices["omega"], list(inputs.data)

    def ours(*tensors: Tensor) -> Tensor:
        return reference(problem, params_of(gate), **dict(zip(names, tensors, strict=True)), omega=omega)

    def theirs(*tensors: Tensor) -> Tensor:
        return recurrent(problem, **dict(zip(names, tensors, strict=True)), omega=omega)

    pairs = zip(gradients(ours, *inputs.data.values()), gradients(theirs, *inputs.data.values()), strict=True)
    assert all(same(a, b) for a, b in pairs)


def test_these_comparisons_see_a_wrong_form() -> None:
    problem, inputs = drawn(make_inputs, params_of("causal"), SIZE, True)
    right = reference(problem, params_of("causal"), **inputs.tensors())
    assert not same(right, recurrent(problem, **inputs.tensors(), late=True))
    assert not same(right, recurrent(problem, **{**inputs.tensors(), "gate": None}))
    assert not same(right, recurrent(problem, **{**inputs.tensors(), "omega": 2 * inputs.choices["omega"]}))


def test_a_closed_gate_gives_the_token_itself_and_an_open_one_the_first() -> None:
    problem, inputs = drawn(make_inputs, params_of("causal"), SIZE, True)
    v = inputs.data["v"]
    inputs.data["gate"] = torch.full_like(inputs.data["gate"], -60.0)
    assert same(reference(problem, params_of("causal"), **inputs.tensors()), v)
    inputs.data["gate"] = torch.full_like(inputs.data["gate"], 60.0)
    inputs.data["gate"][..., 0] = -60.0
    assert same(reference(problem, params_of("causal"), **inputs.tensors()), v[:, :, :1].expand_as(v))


@pytest.mark.parametrize("states", [1, 15, 16, 17, 300])
def test_sums_of_states_are_the_recurrence(states: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, states, 3, generator=generator, dtype=torch.float64)
    log_keep = -torch.rand(2, 1, states, generator=generator, dtype=torch.float64)
    log_keep[..., -1] = -80.0
    s, wanted = torch.zeros(2, 1, 3, dtype=torch.float64), []
    for g in range(states):
        s = log_keep[..., g].exp()[..., None] * s + x[:, :, g]
        wanted.append(s)
    assert same(sums(x, log_keep), torch.stack(wanted, dim=2))
    assert states == 1 or not same(sums(x, 2 * log_keep), torch.stack(wanted, dim=2))
    assert _scan.GROUP < 300, "several levels are tried"


def test_features_estimate_the_gaussian_kernel() -> None:
    errors = []
    for m in (16, 256, 4096):
        size = {"tokens": 20, "head_dim": 6, "heads": 1, "batch": 1, "seed": 0}
        _, inputs = drawn(make_inputs, params_of("none", m), size, False)
        q, k, omega = inputs.data["q"], inputs.data["k"], inputs.choices["omega"]
        unit = torch.nn.functional.normalize
        true = (-torch.cdist(unit(q, dim=-1), unit(k, dim=-1)).square() / 2).exp()
        errors.append((features(q, omega) @ features(k, omega).mT - true).abs().max().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gate", ["causal", "none"])
def test_comes_near_its_own_kernel_as_features_grow(causal: bool, gate: str) -> None:
    errors = []
    for m in (16, 256, 4096):
        problem, inputs = drawn(make_inputs, params_of(gate, m), {**SIZE, "tokens": 50}, causal)
        exact = OPERATOR.estimates(params_of(gate, m))
        assert exact is not None
        assert exact.map is kernel_attention
        true = exact.map(problem, params_of(gate, m), **inputs.tensors())
        errors.append(((reference(problem, params_of(gate, m), **inputs.tensors()) - true).norm() / true.norm()).item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize("gate", ["causal", "none"])
def test_the_denominator_of_test_inputs_is_positive(gate: str) -> None:
    def lowest(shared: bool) -> float:
        found = []
        for seed in range(40):
            _, inputs = drawn(make_inputs, params_of(gate, 64), {**SIZE, "tokens": 35, "seed": seed}, True)
            q, k = inputs.data["q"], inputs.data["k"]
            if not shared:
                k = k.flip(dims=(-1,)).neg()
            pairs = features(q, inputs.choices["omega"]) @ features(k, inputs.choices["omega"]).mT
            found.append(pairs.diagonal(dim1=-2, dim2=-1).min().item())
        return min(found)

    assert lowest(shared=True) > 0.2, "even if a token sees no other"
    assert lowest(shared=False) < 0, "inputs chosen without care would not do"


def test_layer_projects_the_gate() -> None:
    problem = Problem(9, 12, 2, 2, "float64", causal=True)
    inputs = layer_inputs(problem, params_of("causal"), torch.Generator().manual_seed(0))
    tensors = inputs.tensors()
    x = inputs.data["x"]
    q, k, v = ((x @ tensors[f"w_{name}"]).view(2, 9, 2, 6).transpose(1, 2) for name in "qkv")
    gate = (x @ tensors["w_gate"] + tensors["b_gate"]).transpose(1, 2)
    core = recurrent(problem, q, k, v, tensors["omega"], gate)
    wanted = core.transpose(1, 2).reshape(2, 9, 12) @ tensors["w_o"]
    assert same(LAYER.reference(problem, params_of("causal"), **tensors), wanted)
    plain = layer_cost(problem, params_of("none"), "fwd").flops
    assert layer_cost(problem, params_of("causal"), "fwd").flops == plain + 2 * 2 * 9 * 12 * 2
