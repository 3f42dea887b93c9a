"""The delta scan against one token after another, its inverse, and where they would lose all precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.operators.recurrent import _delta
from attnbench.operators.recurrent._core import CHUNK
from attnbench.operators.recurrent._delta import delta_rule, delta_rule_state, delta_scan, delta_scan_state, inverted
from attnbench.problem import MODES, Problem
from tests.operators.flops import FlopCounter
from tests.operators.recurrent.token_by_token import recurrence
from tests.operators.small import close, small

Tensors = dict[str, Tensor]

each_width = pytest.mark.parametrize("width", [1, 5])
"""Of the decay: one number per head, or one per channel of the keys."""


def drawn(tokens: int, width: int, qk_heads: int = 2, least: float = -1.0) -> Tensors:
    """Of the delta rule: 4 heads, K = 5, V = 3, keys of length 1, β up to 2, log decays from `least` to 0."""
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(2, *shape, generator=generator, dtype=torch.float64)

    return {
        "q": normal(qk_heads, tokens, 5), "k": torch.nn.functional.normalize(normal(qk_heads, tokens, 5), dim=-1),
        "v": normal(4, tokens, 3), "log_decay": least * uniform(4, tokens, width), "beta": 2 * uniform(4, tokens, 1),
    }  # fmt: skip


def by_token(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """a = e^g ⊙ k, b = −β k, written β k vᵀ."""
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], dim=1) for x in (q, k))
    return recurrence(q, beta * k, v, log_decay, b=-beta * k, a=log_decay.exp() * k)


def general(tokens: int) -> Tensors:
    """Of the general form: a and b that are no multiples of k."""
    tensors = drawn(tokens, 5, qk_heads=4)
    del tensors["beta"]
    others = drawn(tokens + 1000, 5, qk_heads=4)
    return {**tensors, "a": -others["k"][:, :, :tokens], "b": 0.7 * others["k"][:, :, :tokens] * tensors["k"].abs()}


def part(tensors: Tensors, tokens: slice) -> Tensors:
    return {name: x[:, :, tokens] for name, x in tensors.items()}


def without(tensors: Tensors, name: str) -> Tensors:
    return {other: x for other, x in tensors.items() if other != name}


@each_width
@pytest.mark.parametrize("tokens", [1, 2, 3, 35, CHUNK, 3 * CHUNK + 7])
def test_the_delta_rule_is_the_recurrence(tokens: int, width: int) -> None:
    tensors = drawn(tokens, width)
    ours = delta_rule(**tensors, scale=0.5)
    assert close(ours, by_token(**tensors)[0] / 2)
    undecayed = {**tensors, "log_decay": torch.zeros_like(tensors["log_decay"])}
    assert tokens == 1 or not close(ours, by_token(**undecayed)[0] / 2)


@pytest.mark.parametrize("tokens", [1, 2, 35, 2 * CHUNK + 7])
def test_the_general_form_is_the_recurrence(tokens: int) -> None:
    tensors = general(tokens)
    ours = delta_scan(**tensors)
    assert close(ours, recurrence(**tensors)[0])
    assert tokens == 1 or not close(ours, recurrence(**{**tensors, "a": -tensors["a"]})[0])


@each_width
def test_the_delta_rule_is_a_case_of_the_general_form(width: int) -> None:
    tensors = drawn(2 * CHUNK + 3, width, qk_heads=4)
    q, k, v, log_decay, beta = tensors.values()
    log_decay = log_decay.expand(k.shape)
    assert close(
        delta_rule(**tensors, scale=1.0), delta_scan(q, beta * k, v, log_decay, log_decay.exp() * k, -beta * k)
    )


@pytest.mark.parametrize("tokens", [1, 3, 35, CHUNK + 7])
def test_both_go_on_from_a_state(tokens: int) -> None:
    for width in (1, 5):
        tensors = drawn(40 + tokens, width)
        earlier, new = part(tensors, slice(40)), part(tensors, slice(40, None))
        state = delta_rule_state(**without(earlier, "q"))["state"]
        rows, last = by_token(**tensors)
        ours = delta_rule(**new, scale=1.0, state=state)
        assert close(ours[0], rows[:, :, 40:])
        assert close(ours[1], last)
        assert not close(delta_rule(**new, scale=1.0, state=2 * state)[0], rows[:, :, 40:])
    tensors = general(40 + tokens)
    earlier, new = part(tensors, slice(40)), part(tensors, slice(40, None))
    rows, last = recurrence(**tensors)
    ours = delta_scan(**new, state=delta_scan_state(**without(earlier, "q"))["state"])
    assert close(ours[0], rows[:, :, 40:])
    assert close(ours[1], last)


@pytest.mark.parametrize("form", ["by head", "by channel", "general"])
def test_gradients_are_those_of_the_recurrence(form: str) -> None:
    tokens = CHUNK + 5
    drawn_tensors = general(tokens) if form == "general" else drawn(tokens, 1 if form == "by head" else 5, qk_heads=1)
    tensors = {name: x.requires_grad_() for name, x in drawn_tensors.items()}

    def gradients(y: Tensor) -> tuple[Tensor, ...]:
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        return torch.autograd.grad(y, list(tensors.values()), cotangent)

    if form == "general":
        ours, theirs = gradients(delta_scan(**tensors)), gradients(recurrence(**tensors)[0])
    else:
        ours, theirs = gradients(delta_rule(**tensors, scale=1.0)), gradients(by_token(**tensors)[0])
    assert all(map(close, ours, theirs))
    assert not any(close(2 * a, b) for a, b in zip(ours, theirs, strict=True))


@each_width
def test_nothing_overflows_where_almost_all_is_forgotten(width: int) -> None:
    tensors = drawn(CHUNK + 9, width, least=-180.0)
    assert close(delta_rule(**tensors, scale=1.0), by_token(**tensors)[0])
    single = {name: x.float() for name, x in tensors.items()}
    assert torch.allclose(delta_rule(**single, scale=1.0).double(), by_token(**tensors)[0], rtol=1e-3, atol=1e-3)


def test_with_beta_0_nothing_is_written_and_with_one_key_each_value_replaces_the_one_before() -> None:
    tensors = drawn(CHUNK + 9, 1, qk_heads=4)
    nothing = {**tensors, "beta": torch.zeros_like(tensors["beta"])}
    assert not delta_rule(**nothing, scale=1.0).any()
    key = tensors["k"][:, :, :1].expand_as(tensors["k"])
    one = {**tensors, "q": key, "k": key, "beta": torch.ones_like(tensors["beta"])}
    assert close(delta_rule(**one, scale=1.0), tensors["v"])
    assert not close(delta_rule(**{**one, "beta": 0.9 * one["beta"]}, scale=1.0), tensors["v"])


def test_of_orthogonal_keys_nothing_is_erased() -> None:
    """Then it is linear attention, of β v."""
    tensors = drawn(5, 1, qk_heads=4)
    tensors["k"], tensors["log_decay"] = torch.eye(5, dtype=torch.float64).expand(2, 4, 5, 5), torch.zeros(2, 4, 5, 1)
    tensors["log_decay"] = tensors["log_decay"].double()
    linear = (tensors["q"] @ tensors["k"].mT).tril() @ (tensors["beta"] * tensors["v"])
    assert close(delta_rule(**tensors, scale=1.0), linear)
    alike = {**tensors, "k": torch.nn.functional.normalize(tensors["k"] + 0.1, dim=-1)}
    assert not close(delta_rule(**alike, scale=1.0), (alike["q"] @ alike["k"].mT).tril() @ (alike["beta"] * alike["v"]))


@pytest.mark.parametrize("segment", [1, 2, 3, 4])
@pytest.mark.parametrize("form", ["by head", "by channel", "general"])
def test_segments_side_by_side_are_the_same(form: str, segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five chunks: with and without a state, and the gradients."""
    tokens = 4 * CHUNK + 5
    drawn_tensors = general(tokens) if form == "general" else drawn(tokens, 1 if form == "by head" else 5)
    tensors = {name: x.requires_grad_() for name, x in drawn_tensors.items()}
    start = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def found() -> list[Tensor]:
        more: dict[str, Any] = {} if form == "general" else {"scale": 1.0}
        call: Callable[..., Any] = delta_scan if form == "general" else delta_rule
        y = call(**tensors, **more)
        with torch.no_grad():
            continued = call(**tensors, **more, state=start)
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        return [y, *continued, *torch.autograd.grad(y, list(tensors.values()), cotangent)]

    one_after_another = found()
    loop, steps = _delta._chunk_after_chunk, []
    monkeypatch.setattr(_delta, "SEGMENT", segment)
    monkeypatch.setattr(_delta, "_chunk_after_chunk", lambda *a, **k: steps.append(a[0].shape[2]) or loop(*a, **k))
    assert all(map(close, found(), one_after_another))
    assert steps == [segment] * 4
    kept = _delta._last_of
    monkeypatch.setattr(_delta, "_last_of", lambda *a: 2 * kept(*a))
    assert not close(found()[0], one_after_another[0])


@pytest.mark.parametrize("segment", [1, 2, 4])
@pytest.mark.parametrize("name", ["gated_delta_net", "kda", "rwkv7"])
def test_flops_of_segments_are_what_torch_counts(name: str, segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_delta, "SEGMENT", segment)
    case = small(name, Problem(4 * CHUNK + 5, 12, 2, causal=True))
    for mode in MODES:
        with FlopCounter() as counter:
            case.gradients() if mode == "fwd_bwd" else case.output()
        assert case.cost(mode).reference_flops == counter.total, mode
    step = small(name, Problem(5 * CHUNK + 5, 12, 2, causal=True, query_len=4 * CHUNK + 5))
    with torch.inference_mode(), FlopCounter() as counter:
        step.output()
    assert step.cost().reference_flops == counter.total
    monkeypatch.setattr(_delta, "SEGMENT", 512)
    assert step.cost().reference_flops != counter.total


@pytest.mark.parametrize("alike", [0.0, 0.9, 0.99])
def test_the_inverse_is_exact_for_keys_that_are_alike(alike: float) -> None:
    """In float32, at c = 64 and β = 1; by doubling, Π (I + (−A)^{2^p}), the error passes 10⁶."""
    generator = torch.Generator().manual_seed(0)
    own, common = torch.randn(3, 64, 32, generator=generator), torch.randn(3, 1, 32, generator=generator)
    unit = torch.nn.functional.normalize
    k = unit((1 - alike**2) ** 0.5 * unit(own, dim=-1) + alike * unit(common, dim=-1), dim=-1)
    a = (k @ k.mT).tril(-1)
    one = torch.eye(64)
    exact = torch.linalg.inv((one + a).double())
    assert (inverted(a).double() - exact).abs().max() < 2e-5
    doubled, power = one - a, a @ a
    for _ in range(5):
        doubled, power = doubled @ (one + power), power @ power
    error = (doubled.double() - exact).abs().max()
    assert error > 1e6 if alike else error < 1e-4


@pytest.mark.parametrize("c", [1, 2, 8])
def test_it_is_the_inverse(c: int) -> None:
    full = torch.randn(3, 2, c, c, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = full.tril(-1)
    one = torch.eye(c, dtype=torch.float64)
    assert close(inverted(a) @ (one + a), one.expand_as(a))
    assert close(inverted(full), inverted(a))
    assert c == 1 or not close(inverted(a) @ (one - a), one.expand_as(a))


@pytest.mark.parametrize("c", [2, 8])
def test_the_gradient_of_the_inverse_is_that_of_any_inverse(c: int) -> None:
    """Of what is below the diagonal alone, whatever cotangent there is above it."""
    generator = torch.Generator().manual_seed(0)
    full, cotangent = (torch.randn(3, c, c, generator=generator, dtype=torch.float64) for _ in range(2))
    full.requires_grad_()
    one = torch.eye(c, dtype=torch.float64)

    def gradient(inverse: Tensor) -> Tensor:
        return torch.autograd.grad(inverse, full, cotangent)[0]

    ours = gradient(inverted(full))
    assert close(ours, gradient(torch.linalg.inv(one + full.tril(-1))))
    assert not close(ours, gradient(torch.linalg.inv(one + full.tril())))
