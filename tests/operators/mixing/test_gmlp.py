"""gmlp: the spatial gate, token by token."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.problem import Problem
from tests.operators.small import Small, all_close, close, small

sizes = given(n=st.integers(1, 9), half=st.integers(1, 5), batch=st.integers(1, 3))


def normalised(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gamma + beta


def loop(case: Small, swapped: bool = False, transposed: bool = False) -> Tensor:
    """One output token at a time: z₁_i ⊙ (Σ_j W_ij LN(z₂)_j + b_i)."""
    t = case.tensors
    return gate(t["z"], t, swapped, transposed)


def gate(z: Tensor, t: dict[str, Tensor], swapped: bool = False, transposed: bool = False) -> Tensor:
    half = z.shape[-1] // 2
    z1, z2 = (z[..., half:], z[..., :half]) if swapped else (z[..., :half], z[..., half:])
    z2 = normalised(z2, t["gamma"], t["beta"])
    n = range(z.shape[1])
    rows = []
    for i in n:
        mixed = sum((t["w"][j, i] if transposed else t["w"][i, j]) * z2[:, j] for j in n)
        rows.append(z1[:, i] * (mixed + t["b"][i]))
    return torch.stack(rows, dim=1)


@sizes
@settings(max_examples=30, deadline=None)
def test_equals_the_loop_and_so_do_its_gradients(n: int, half: int, batch: int) -> None:
    case = small("gmlp", Problem(n, 2 * half, batch=batch))
    assert close(case.output(), loop(case))
    assert all_close(case.gradients(), case.gradients(loop))


def test_swapped_halves_a_transposed_w_and_a_missing_norm_are_noticed() -> None:
    case = small("gmlp", Problem(7, 10, batch=2))
    assert not close(case.output(), loop(case, swapped=True))
    assert not close(case.output(), loop(case, transposed=True))
    z1, z2 = case.tensors["z"].chunk(2, -1)
    unnormalised = z1 * (case.tensors["w"] @ z2 + case.tensors["b"][:, None])
    assert not close(case.output(), unnormalised)


def test_layer_is_the_block_of_the_paper() -> None:
    case = small("gmlp", Problem(7, 6, batch=2), "layer", hidden=5)
    t = case.tensors
    assert t["u"].shape == (6, 10)
    z = torch.nn.functional.gelu(normalised(t["x"], t["gamma_x"], t["beta_x"]) @ t["u"])
    assert close(case.output(), t["x"] + gate(z, t) @ t["v"])
    assert not close(case.output(), gate(z, t) @ t["v"]), "the residual is not noticed"


def test_hidden_follows_the_channels() -> None:
    assert small("gmlp", Problem(3, 6), "layer").tensors["u"].shape == (6, 36)


def test_zero_w_leaves_the_first_half() -> None:
    """The paper's start, W = 0 and b = 1: tokens do not mix."""
    case = small("gmlp", Problem(7, 6))
    t = case.tensors
    output = case.output(w=torch.zeros_like(t["w"]), b=torch.ones_like(t["b"]))
    assert close(output, t["z"][..., :3].contiguous())
    assert not close(case.output(), t["z"][..., :3].contiguous())


@sizes
@settings(max_examples=20, deadline=None)
def test_flops_count_the_products(n: int, half: int, batch: int) -> None:
    case = small("gmlp", Problem(n, 2 * half, batch=batch))
    terms = sum(1 for _ in range(batch) for _ in range(n) for _ in range(n) for _ in range(half))
    assert case.cost().flops == 2 * terms
    assert case.cost("fwd_bwd").flops == 3 * 2 * terms
