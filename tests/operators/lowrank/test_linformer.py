"""linformer: softmax attention to E k and F v, token by token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.measure.worker.fake_memory import LiveBytes
from attnbench.operators.lowrank.linformer import shortened
from attnbench.problem import Problem
from tests.operators.small import Small, all_close, close, small

SHARING = ("none", "headwise", "kv")
sizes = given(n=st.integers(1, 9), k=st.integers(1, 12), heads=st.integers(1, 3), sharing=st.sampled_from(SHARING))
each_sharing = pytest.mark.parametrize("sharing", SHARING)


def case_of(n: int = 7, k: int = 3, heads: int = 2, sharing: str = "headwise", seed: int = 0) -> Small:
    return small("linformer", Problem(n, 4 * heads, heads, batch=2), seed=seed, k=k, sharing=sharing)


def loop(case: Small, mistake: str = "") -> Tensor:
    q, k, v = (case.tensors[name] for name in "qkv")
    e = case.tensors["e"]
    f = case.tensors.get("f", e)
    if mistake == "f for e":
        e = f
    if mistake == "keys as values":
        v = k
    y = torch.empty_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            own = (e[h], f[h]) if e.dim() == 3 else (e, f)
            if mistake == "first head's e" and e.dim() == 3:
                own = e[0], f[0]
            rows = range(case.params["k"])
            keys, values = (
                torch.stack([sum(m[r, j] * x[b, h, j] for j in range(case.problem.seq_len)) for r in rows])
                for m, x in zip(own, (k, v), strict=True)
            )
            for i in range(case.problem.seq_len):
                logits = (keys @ q[b, h, i]) / (1 if mistake == "no scale" else case.problem.head_dim**0.5)
                y[b, h, i] = logits.softmax(0) @ values
    return y


@sizes
@settings(max_examples=40, deadline=None)
def test_equals_the_loop(n: int, k: int, heads: int, sharing: str) -> None:
    case = case_of(n, k, heads, sharing)
    assert close(case.output(), loop(case))


@pytest.mark.parametrize(
    ("mistake", "sharing"),
    [
        ("no scale", "kv"),
        ("keys as values", "headwise"),
        ("f for e", "headwise"),
        ("f for e", "none"),
        ("first head's e", "none"),
    ],
)
def test_a_mistake_is_noticed(mistake: str, sharing: str) -> None:
    case = case_of(sharing=sharing)
    assert not close(case.output(), loop(case, mistake))


@each_sharing
def test_gradients_equal_the_loop(sharing: str) -> None:
    case = case_of(sharing=sharing)
    assert all_close(case.gradients(), case.gradients(loop))
    assert not all_close(case.gradients(), case.gradients(lambda c: loop(c, "no scale")))


@each_sharing
def test_identity_as_e_and_f_gives_softmax(sharing: str) -> None:
    case = case_of(n=6, k=6, sharing=sharing)
    ones = {name: torch.eye(6, dtype=torch.float64).expand_as(e) for name, e in case.inputs.parameters.items()}
    softmax = small("softmax", case.problem)
    exact = softmax.output(**case.inputs.data)
    assert close(case.output(**ones), exact)
    assert not close(case.output(), exact)


def test_moving_tokens_and_the_columns_of_e_alike_moves_the_output() -> None:
    case = case_of()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    data = {name: x[:, :, order] for name, x in case.inputs.data.items()}
    columns = {name: x[..., order] for name, x in case.inputs.parameters.items()}
    assert close(case.output(**data, **columns), case.output()[:, :, order])
    assert not close(case.output(**data), case.output()[:, :, order])


@pytest.mark.parametrize(("sharing", "elements"), [("none", 2 * 2 * 21), ("headwise", 2 * 21), ("kv", 21)])
def test_parameters_grow_with_the_tokens(sharing: str, elements: int) -> None:
    case = case_of(n=7, k=3, sharing=sharing)
    assert sum(x.numel() for x in case.inputs.parameters.values()) == elements
    read = 3 * 2 * 7 * 8 + elements
    assert case.cost().bytes_required == 8 * (read + 2 * 7 * 8)


@sizes
@settings(max_examples=30, deadline=None)
def test_flops_count_the_required_products(n: int, k: int, heads: int, sharing: str) -> None:
    case = case_of(n, k, heads, sharing)
    shortening = sum(1 for _ in range(k) for _ in range(n))
    pairs = sum(1 for _ in range(n) for _ in range(k))
    expected = 2 * 2 * heads * 4 * (2 * shortening + 2 * pairs)
    assert case.cost().flops == expected
    assert case.cost("fwd_bwd").flops == 3 * expected


def test_neither_e_nor_its_gradient_is_repeated_for_each_head() -> None:
    e = torch.randn(16, 512, requires_grad=True)
    x = torch.randn(2, 8, 512, 2)

    def peak(call: Callable[[Tensor, Tensor], Tensor]) -> int:
        with LiveBytes() as live:
            call(e, x).sum().backward()
        return live.peak

    assert peak(shortened) < 4 * e.numel() * 4
    assert peak(lambda e, x: e[None] @ x) > 16 * e.numel() * 4


def test_logits_have_variance_about_one() -> None:
    case = case_of(n=200, k=50, seed=3)
    keys = torch.einsum("kn,bhnd->bhkd", case.tensors["e"], case.tensors["k"])
    assert 0.7 < (case.tensors["q"] @ keys.transpose(-2, -1) / 2).var() < 1.4
