"""The layers of this family as their authors write them, with torch's own norms and convolution, token after token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from attnbench.problem import Problem
from attnbench.registry import operators, outside_definition, resolve
from tests.operators.recurrent.token_by_token import recurrence
from tests.operators.small import Small, close, small

PROBLEM = Problem(19, 24, 4, 2, causal=True)
Weights = dict[str, Tensor]


def heads(x: Tensor, count: int = 4) -> Tensor:
    return x.view(*x.shape[:2], count, -1).transpose(1, 2)


def flat(y: Tensor) -> Tensor:
    return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)


def short(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """silu of a causal depthwise convolution, its weight [4, channels]."""
    padded = F.pad(x.mT, (3, 0))
    return F.silu(F.conv1d(padded, weight.mT.unsqueeze(1), bias, groups=x.shape[-1])).mT


def per_head(y: Tensor, weight: Tensor | None = None) -> Tensor:
    return flat(F.rms_norm(y, y.shape[-1:], weight, 1e-5))


def retention(x: Tensor, w: Weights, late: bool) -> Tensor:
    decay = torch.log(1 - 2.0 ** (-5 - torch.arange(4.0, dtype=torch.float64))).view(1, 4, 1, 1).expand(2, 4, 19, 1)
    q, k, v = (heads(x @ w[f"w_{name}"]) for name in "qkv")
    assert v.shape[-1] == 2 * q.shape[-1]
    y = recurrence(q, k, v, decay, late=late)[0] / 6**0.5
    return (per_head(y) * F.silu(x @ w["w_gate"])) @ w["w_o"]


def lightning(x: Tensor, w: Weights, late: bool) -> Tensor:
    decay = -(2.0 ** (-2 * torch.arange(1.0, 5.0, dtype=torch.float64))) * (1 + 1e-5)
    q, k, v = (heads(F.silu(x @ w[f"w_{name}"])) for name in "qkv")
    y = recurrence(q, k, v, decay.view(1, 4, 1, 1).expand(2, 4, 19, 1), late=late)[0]
    return (F.rms_norm(flat(y), (24,), w["norm"], 1e-5) * torch.sigmoid(x @ w["w_gate"])) @ w["w_o"]


def gla(x: Tensor, w: Weights, late: bool) -> Tensor:
    decay = heads(F.logsigmoid(x @ w["w_low"] @ w["w_decay"] + w["bias_decay"]) / 16)
    q, k, v = (heads(x @ w[f"w_{name}"]) for name in "qkv")
    y = recurrence(q, k, v, decay, late=late)[0] / 3**0.5
    return (per_head(y, w["norm"]) * F.silu(x @ w["w_gate"])) @ w["w_o"]


def mamba2(x: Tensor, w: Weights, late: bool) -> Tensor:
    v, k, q = short(x @ w["w_vkq"], w["conv"], w["bias_conv"]).split((48, 5, 5), dim=-1)
    delta = heads(F.softplus(x @ w["w_step"] + w["step_bias"]), 8)
    v = heads(v, 8)
    y = recurrence(heads(q, 1), heads(k, 1), delta * v, -delta * w["a_log"].exp().view(8, 1, 1), late=late)[0]
    y = flat(y + w["d"].view(8, 1, 1) * v)
    return F.rms_norm(y * F.silu(x @ w["w_gate"]), (48,), w["norm"], 1e-5) @ w["w_o"]


def delta(x: Tensor, w: Weights, decay: Tensor, late: bool) -> Tensor:
    q, k, v = (heads(part) for part in short(x @ w["w_qkv"], w["conv"]).chunk(3, dim=-1))
    q, k = (part * torch.rsqrt((part**2).sum(-1, keepdim=True) + 1e-6) for part in (q, k))
    beta = heads(torch.sigmoid(x @ w["w_beta"]))
    y = recurrence(q, beta * k, v, decay, b=-beta * k, a=decay.exp() * k, late=late)[0] / 6**0.5
    return per_head(y, w["norm"])


def gated_delta_net(x: Tensor, w: Weights, late: bool) -> Tensor:
    decay = heads(-w["a_log"].exp() * F.softplus(x @ w["w_step"] + w["step_bias"]))
    return (delta(x, w, decay, late) * F.silu(x @ w["w_gate"])) @ w["w_o"]


def delta_net(x: Tensor, w: Weights, late: bool) -> Tensor:
    decay = torch.full((2, 4, 19, 1), -0.1 if late else 0.0, dtype=torch.float64)
    return delta(x, w, decay, False) @ w["w_o"]


def kda(x: Tensor, w: Weights, late: bool) -> Tensor:
    decay = -w["a_log"].exp().view(4, 1, 1) * heads(F.softplus(x @ w["w_low"] @ w["w_step"] + w["step_bias"]))
    gate = torch.sigmoid(x @ w["w_gate_low"] @ w["w_gate"] + w["bias_gate"])
    return (delta(x, w, decay, late) * gate) @ w["w_o"]


def rwkv7(x: Tensor, w: Weights, late: bool) -> Tensor:
    before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1)
    r, decay, k, v, a, gate = (x + (before - x) * mix for mix in w["mix"])
    decay = -(torch.e**-0.5) * torch.sigmoid(w["bias_decay"] + torch.tanh(decay @ w["w_decay_low"]) @ w["w_decay"])
    a = torch.sigmoid(w["bias_a"] + a @ w["w_a_low"] @ w["w_a"])
    r, k, v = r @ w["w_q"], k @ w["w_k"], v @ w["w_v"]
    kappa = heads(k * w["scale_kappa"])
    kappa = kappa * torch.rsqrt((kappa**2).sum(-1, keepdim=True) + 1e-6)
    r, k, v, a, decay = (heads(part) for part in (r, k * (1 + (a - 1) * w["scale_k"]), v, a, decay))
    y = recurrence(r, k, v, decay, b=kappa * a, a=-kappa, late=late)[0]
    y = F.group_norm(flat(y).reshape(-1, 24), 4, w["norm"], w["bias_norm"], 64e-5).view(2, 19, 24)
    y = y + flat((r * k * w["bonus"].view(4, 1, 6)).sum(-1, keepdim=True) * v)
    return (y * (torch.sigmoid(gate @ w["w_gate_low"]) @ w["w_gate"])) @ w["w_o"]


CASES: list[tuple[Callable[..., Tensor], str, dict[str, Any]]] = [
    (retention, "retention", {}),
    (lightning, "retention", {"kind": "lightning"}),
    (gla, "gla", {}),
    (mamba2, "mamba2", {"key_dim": 5}),
    (gated_delta_net, "gated_delta_net", {}),
    (delta_net, "gated_delta_net", {"kind": "delta_net"}),
    (kda, "kda", {}),
    (rwkv7, "rwkv7", {}),
]

each_case = pytest.mark.parametrize(("by_hand", "name", "given"), CASES, ids=lambda part: getattr(part, "__name__", ""))


def drawn(name: str, given: dict[str, Any]) -> tuple[Small, Tensor, Weights]:
    """The layer with weights that are all random, x and the weights."""
    case = small(name, PROBLEM, "layer", **given)
    generator = torch.Generator().manual_seed(2)
    for weight in case.inputs.parameters.values():
        weight += 0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return case, case.tensors["x"], case.inputs.parameters


@each_case
def test_the_layer_is_as_its_authors_write_it(by_hand: Callable[..., Tensor], name: str, given: dict[str, Any]) -> None:
    case, x, weights = drawn(name, given)
    assert close(case.output(), by_hand(x, weights, False))
    assert not close(case.output(), by_hand(x, weights, True))


@each_case
def test_every_weight_counts(by_hand: Callable[..., Tensor], name: str, given: dict[str, Any]) -> None:
    case, _, weights = drawn(name, given)
    y = case.output()
    generator = torch.Generator().manual_seed(3)
    for weight_name, weight in weights.items():
        other = weight + 0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        assert not close(case.output(**{weight_name: other}), y), weight_name


@pytest.mark.parametrize(
    ("name", "given", "problem", "reason"),
    [
        ("gla", {}, Problem(9, 4, 4, causal=True), "norm of a head"),
        ("retention", {"kind": "lightning"}, Problem(9, 1, 1, causal=True), "norm of all heads"),
        ("gated_delta_net", {"key_dim": 1}, Problem(9, 8, 4, causal=True), "norm of a key"),
        ("kda", {}, Problem(9, 4, 4, causal=True), "norm of a key"),
        ("rwkv7", {}, Problem(9, 8, 4, causal=True), "norm of a head leaves nothing but signs of 2 channels"),
    ],
)
def test_a_norm_of_too_few_channels_is_refused(name: str, given: dict[str, Any], problem: Problem, reason: str) -> None:
    operator = operators()[name].load()
    params = resolve(operator, given)
    assert reason in str(outside_definition(operator, problem, params, "layer"))
    assert outside_definition(operator, problem, params, "core") is None
    wide = problem.with_sizes(channels=3 * problem.channels)
    assert outside_definition(operator, wide, {**params, "key_dim": 2}, "layer") is None
