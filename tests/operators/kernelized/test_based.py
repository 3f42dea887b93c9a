"""based: weights of all pairs from their logits, and the features token by token."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.operators.kernelized import _symmetric, based
from attnbench.operators.kernelized.based import EPSILON, OPERATOR, arguments, features
from attnbench.problem import Problem
from tests.operators.kernelized.dense import weighted_mean
from tests.operators.small import Small, all_close, close, small

KINDS = ("based", "rebased")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_form = pytest.mark.parametrize("causal", [False, True])


def series(s: Tensor, kind: str) -> Tensor:
    return 1 + s + s * s / 2 if kind == "based" else s * s


def dense(case: Small, *, power: float = -0.5, epsilon: float = EPSILON, first: int = 0, half: float = 0.5) -> Tensor:
    """From all pairs. power: of d in the scale; half: of s²."""
    q, k, v = (case.tensors[name] for name in ("q", "k", "v"))
    k, v = (x.repeat_interleave(case.problem.group, dim=1) for x in (k, v))
    s = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** power
    w = series(s, case.params["kind"])
    if case.params["kind"] == "based":
        w = w + (half - 0.5) * s * s
    return weighted_mean(w, v, case.problem.causal, epsilon, first)


def drawn(kind: str, causal: bool, tokens: int = 37, key_dim: int = 5, **sizes: int) -> Small:
    shape = {"channels": 12, "heads": 4, "batch": 2, **sizes}
    return small("based", Problem(tokens, causal=causal, **shape), kind=kind, key_dim=key_dim)


@each_kind
@each_form
@pytest.mark.parametrize(("tokens", "key_dim", "kv_heads"), [(1, 4, 4), (16, 2, 2), (65, 3, 1), (131, 16, 4)])
def test_is_the_mean_with_these_weights(kind: str, causal: bool, tokens: int, key_dim: int, kv_heads: int) -> None:
    case = drawn(kind, causal, tokens, key_dim, kv_heads=kv_heads)
    assert close(case.output(), dense(case))
    assert all_close(case.gradients(), case.gradients(dense))


@each_kind
@each_form
def test_a_wrong_scale_a_wrong_factor_and_a_wrong_end_are_noticed(kind: str, causal: bool) -> None:
    """A scale of 1 is what a layer of flash-linear-attention passes; d^−¼ is the scale of one side."""
    case = drawn(kind, causal)
    ours = case.output()
    wrong: list[dict[str, Any]] = [{"epsilon": 1e-3}]
    if kind == "based":  # the scale of s² cancels, but for ε
        wrong += [{"power": 0.0}, {"power": -0.25}, {"half": 1.0}]
    if causal:
        wrong.append({"first": 1})
    for changed in wrong:
        assert not close(ours, dense(case, **changed)), changed
    other = replace(case, params={**case.params, "kind": KINDS[kind == "based"]})
    assert not close(ours, dense(other))


@each_kind
def test_features_are_those_of_every_ordered_pair(kind: str) -> None:
    """The paper's [1, x, x ⊗ x / √2] has each product of two channels twice: the scalar products are the same."""
    x, y = torch.randn(2, 1, 1, 19, 16, dtype=torch.float64)
    ours = features(kind, arguments(kind, x)) @ features(kind, arguments(kind, y)).transpose(-2, -1)

    def written(x: Tensor) -> Tensor:
        x = x * 16**-0.25
        ordered = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)
        return ordered if kind == "rebased" else torch.cat((torch.ones_like(x[..., :1]), x, ordered / 2**0.5), dim=-1)

    assert written(x).shape[-1] == {"based": 273, "rebased": 256}[kind]
    assert features(kind, arguments(kind, x)).shape[-1] == {"based": 153, "rebased": 136}[kind]
    assert close(ours, written(x) @ written(y).transpose(-2, -1))
    assert close(ours, series(x @ y.transpose(-2, -1) / 4, kind))


@pytest.mark.parametrize("tokens", [_symmetric.FEW_TOKENS - 1, _symmetric.FEW_TOKENS])
def test_products_of_two_channels_in_both_ways_of_computing_them(tokens: int) -> None:
    x, weights = torch.randn(2, 5, tokens, dtype=torch.float64), torch.rand(5, 1, dtype=torch.float64)
    by_hand = [x[:, i] * x[:, i] * weights[i] for i in range(5)]
    by_hand += [x[:, i] * x[:, j] for i, j in itertools.combinations(range(5), 2)]
    assert close(_symmetric.squares(x, weights), torch.stack(by_hand, dim=1))
    assert not close(_symmetric.squares(x, 2 * weights), torch.stack(by_hand, dim=1))
    assert torch.autograd.gradcheck(lambda x: _symmetric.squares(x, weights), [x.requires_grad_()])


@each_kind
@pytest.mark.parametrize("tokens", [63, 64, 129])
def test_chunk_boundaries_do_not_matter(kind: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = drawn(kind, True, tokens)
    outputs = []
    for length in (1, 16, 64):
        monkeypatch.setattr(based, "CHUNK", length)
        outputs.append(case.output())
    assert close(outputs[0], outputs[1])
    assert close(outputs[1], outputs[2])


@each_form
def test_small_logits_make_it_softmax_attention(causal: bool) -> None:
    """The remainder of the series is s³/6 at most twice: a tenth of the logits, a thousandth of the error."""
    case = drawn("based", causal)
    estimated = OPERATOR.estimates(case.params)
    assert estimated is not None
    assert estimated.map is not None
    errors = []
    for scale in (0.1, 0.01):
        data = {**case.tensors, "q": scale * case.tensors["q"]}
        truth = estimated.map(case.problem, case.params, **data)
        errors.append((case.form.reference(case.problem, case.params, **data) - truth).abs().max())
    assert errors[0] < 1e-2
    assert errors[1] < 2e-3 * errors[0] + 2 * EPSILON
    assert OPERATOR.estimates(drawn("rebased", causal).params) is None


@each_form
def test_rebased_forgets_the_sign_of_a_query(causal: bool) -> None:
    for kind, forgets in (("rebased", True), ("based", False)):
        case = drawn(kind, causal)
        assert close(case.output(q=-case.tensors["q"]), case.output()) == forgets


@each_kind
def test_the_layer_projects_to_few_channels_and_norms_those_of_rebased(kind: str) -> None:
    problem = Problem(19, 12, 4, 2, causal=True, kv_heads=2)
    case = small("based", problem, "layer", kind=kind, key_dim=5)
    w = case.tensors
    assert w["w_q"].shape == (12, 20)
    assert w["w_k"].shape == (12, 10)

    def by_hand(epsilon: float) -> Tensor:
        split = {
            n: (w["x"] @ w[f"w_{n}"]).unflatten(-1, (h, -1)).transpose(1, 2)
            for n, h in zip("qkv", (4, 2, 2), strict=True)
        }
        if kind == "rebased":
            for name in "qk":
                x = split[name] - split[name].mean(dim=-1, keepdim=True)
                x = x / (x.square().mean(dim=-1, keepdim=True) + epsilon).sqrt()
                split[name] = x * w[f"gamma_{name}"] + w[f"beta_{name}"]
        core = small("based", problem, kind=kind, key_dim=5)
        return dense(replace(core, inputs=replace(core.inputs, data=split))).transpose(1, 2).flatten(2) @ w["w_o"]

    assert close(case.output(), by_hand(1e-5))
    assert close(case.output(), by_hand(1e-2)) == (kind == "based")


def test_flops_are_those_of_all_features_and_of_each_once() -> None:
    problem = Problem(7, 12, 2, 3)
    for kind, written, once in (("based", 273, 153), ("rebased", 256, 136)):
        case = small("based", problem, kind=kind)
        assert case.cost().flops == 2 * 3 * 2 * 7 * written * (6 + 6 + 1)
        assert case.cost().reference_flops == 2 * 3 * 2 * 7 * once * (7 + 7)
        assert small("based", replace(problem, causal=True), kind=kind).cost().state_bytes == 3 * 2 * once * 7 * 8


@pytest.mark.parametrize(
    ("given", "scope", "reason"),
    [
        ({"kind": "rebased", "key_dim": 1}, "core", "cancels"),
        ({"kind": "rebased", "key_dim": 2}, "layer", "layer norm"),
        ({"kind": "rebased", "key_dim": 2}, "core", None),
        ({"kind": "based", "key_dim": 1}, "layer", None),
    ],
)
def test_too_few_channels_have_their_reason(given: dict[str, Any], scope: Any, reason: str | None) -> None:
    found = OPERATOR.why_not(Problem(8, 8), given, scope)
    assert found is None if reason is None else reason in str(found)


def test_half_precision_is_computed_in_float32() -> None:
    problem = Problem(100, 16, 1, causal=True, dtype="bfloat16")
    case = small("based", problem)
    narrow = {name: x.bfloat16() for name, x in case.tensors.items()}
    exact = case.form.reference(problem, case.params, **{name: x.double() for name, x in narrow.items()})
    assert (case.form.reference(problem, case.params, **narrow) - exact).abs().max() < 2**-8 * exact.abs().max()
