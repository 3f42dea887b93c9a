"""mlp_mixer: the token-mixing MLP, channel by channel."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.problem import Problem
from tests.operators.mixing.test_gmlp import normalised
from tests.operators.small import Small, all_close, close, small

sizes = given(n=st.integers(1, 9), c=st.integers(1, 7), hidden=st.integers(1, 6), batch=st.integers(1, 3))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def loop(case: Small, residual: bool = True, norm: bool = True) -> Tensor:
    """One channel at a time: x_c + W₂ GELU(W₁ LN(x)_c)."""
    t = case.tensors
    x = t["x"]
    inside = normalised(x, t["gamma"], t["beta"]) if norm else x
    columns = [
        torch.stack([t["w2"] @ gelu(t["w1"] @ inside[b, :, c]) for b in range(x.shape[0])]) for c in range(x.shape[2])
    ]
    y = torch.stack(columns, dim=-1)
    return x + y if residual else y


@sizes
@settings(max_examples=30, deadline=None)
def test_equals_the_loop_and_so_do_its_gradients(n: int, c: int, hidden: int, batch: int) -> None:
    case = small("mlp_mixer", Problem(n, c, batch=batch), hidden=hidden)
    assert close(case.output(), loop(case))
    assert all_close(case.gradients(), case.gradients(loop))


def test_a_missing_residual_or_norm_is_noticed() -> None:
    case = small("mlp_mixer", Problem(7, 6, batch=2))
    assert not close(case.output(), loop(case, residual=False))
    assert not close(case.output(), loop(case, norm=False))


def test_layer_adds_the_channel_mlp() -> None:
    case = small("mlp_mixer", Problem(7, 6, batch=2), "layer", channel_hidden=5)
    t = case.tensors
    y = loop(case)
    expected = y + gelu(normalised(y, t["gamma_c"], t["beta_c"]) @ t["w3"]) @ t["w4"]
    assert close(case.output(), expected)
    assert not close(case.output(), y)


def test_permuting_channels_permutes_the_output_where_the_norm_is_plain() -> None:
    """The core treats all channels alike; it does not treat all tokens alike."""
    case = small("mlp_mixer", Problem(7, 6))
    plain = {"gamma": torch.ones(6, dtype=torch.float64), "beta": torch.zeros(6, dtype=torch.float64)}
    x, y = case.tensors["x"], case.output(**plain)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert close(case.output(x=x[..., order], **plain), y[..., order])
    assert not close(case.output(x=x.flip(1), **plain), y.flip(1))


def test_widths_follow_the_channels() -> None:
    tensors = small("mlp_mixer", Problem(5, 8), "layer").tensors
    assert tensors["w1"].shape == (4, 5)
    assert tensors["w3"].shape == (8, 32)


@sizes
@settings(max_examples=20, deadline=None)
def test_flops_count_the_products(n: int, c: int, hidden: int, batch: int) -> None:
    case = small("mlp_mixer", Problem(n, c, batch=batch), hidden=hidden)
    first = sum(1 for _ in range(batch * c) for _ in range(hidden) for _ in range(n))
    second = sum(1 for _ in range(batch * c) for _ in range(n) for _ in range(hidden))
    assert case.cost().flops == 2 * (first + second)
    assert case.cost("fwd_bwd").flops == 3 * 2 * (first + second)
