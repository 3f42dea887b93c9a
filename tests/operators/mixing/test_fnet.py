"""fnet: the cosine form, written out token by token and channel by channel."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.operators.mixing.fnet import real_transform
from attnbench.problem import Problem
from tests.operators.small import Small, close, small

sizes = given(n=st.integers(1, 12), c=st.integers(1, 9), batch=st.integers(1, 3))


def cosines(case: Small, transposed_sign: int = 1) -> Tensor:
    """Σ_md x_md cos(2π(nm/N ± cd/C)); the sign is +."""
    n, c = case.problem.seq_len, case.problem.channels
    tokens, channels = torch.arange(n, dtype=torch.float64), torch.arange(c, dtype=torch.float64)
    over_n, over_c = torch.outer(tokens, tokens) / n, torch.outer(channels, channels) / c
    turns = over_n[:, :, None, None] + transposed_sign * over_c[None, None]  # [n, m, c, d]
    return torch.einsum("bmd,nmcd->bnc", case.tensors["x"], torch.cos(2 * math.pi * turns))


@sizes
@settings(max_examples=40, deadline=None)
def test_equals_the_cosine_form(n: int, c: int, batch: int) -> None:
    case = small("fnet", Problem(n, c, batch=batch))
    assert close(case.output(), cosines(case))


def test_a_wrong_sign_a_single_axis_and_a_missing_mirror_are_noticed() -> None:
    case = small("fnet", Problem(7, 6, batch=2))
    assert not close(case.output(), cosines(case, -1))
    assert not close(case.output(), torch.fft.fft(case.tensors["x"], dim=-1).real)
    half = torch.fft.rfft2(case.tensors["x"]).real
    unflipped = torch.cat((half, half[..., 1:3].flip(-1)), dim=-1)
    assert unflipped.shape == case.output().shape
    assert not close(case.output(), unflipped)


@sizes
@settings(max_examples=20, deadline=None)
def test_gradients_equal_those_of_the_cosine_form(n: int, c: int, batch: int) -> None:
    case = small("fnet", Problem(n, c, batch=batch))
    assert close(case.gradients()["x"], case.gradients(cosines)["x"])


def test_second_gradients() -> None:
    x = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    case = small("fnet", Problem(5, 4))
    assert torch.autograd.gradgradcheck(lambda t: case.output(x=t).square(), [x])


def test_half_precision_widens() -> None:
    problem = Problem(21, 12, dtype="float16")
    case = small("fnet", problem)
    narrow = case.tensors["x"].half()
    assert torch.equal(case.form.reference(problem, {}, narrow), real_transform(narrow.float()).half())


@pytest.mark.parametrize(("n", "c"), [(8, 16), (64, 8)])
def test_flops_at_powers_of_two(n: int, c: int) -> None:
    """5·NC·log₂(NC), of which the reference executes half; a gradient is a transform of the same size; the waste is
    half a column more.
    """
    case = small("fnet", Problem(n, c, batch=3))
    levels = n.bit_length() - 1 + c.bit_length() - 1
    assert case.cost().flops == 3 * 5 * n * c * levels
    assert case.cost("fwd_bwd").flops == 2 * case.cost().flops
    extra = case.cost().reference_flops - case.cost().flops // 2
    assert extra == 3 * 5 * n * (n.bit_length() - 1)
    assert case.cost().uncounted == {"fft": case.cost().reference_flops}
