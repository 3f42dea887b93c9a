"""hyena: the sums as they are written, token after token."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.operators.mixing import hyena
from attnbench.operators.mixing.hyena import MOST_DIRECT, OPERATOR, padded
from attnbench.problem import Problem
from tests.operators.small import Small, all_close, close, small

sizes = given(n=st.integers(1, 40), c=st.integers(1, 5), batch=st.integers(1, 3))


def drawn(n: int, c: int = 3, batch: int = 2) -> Small:
    return small("hyena", Problem(n, c, batch=batch, causal=True))


def token_by_token(case: Small, *, first: int = 0, circular: bool = False, gate_last: bool = False) -> Tensor:
    """first: the distance from which tokens are seen. circular: later ones as well, as in a transform of N tokens."""
    v, x1, x0, h, d = (case.tensors[name] for name in ("v", "x1", "x0", "h", "d"))
    u, n = (v if gate_last else x1 * v), v.shape[1]
    rows = []
    for i in range(n):
        seen = range(n) if circular else range(i - first + 1)
        z = d * u[:, i] + sum((h[(i - j) % n] * u[:, j] for j in seen), torch.zeros_like(u[:, i]))
        rows.append(x0[:, i] * z * (x1[:, i] if gate_last else 1))
    return torch.stack(rows, dim=1)


@sizes
@settings(max_examples=30, deadline=None)
def test_equals_the_sums_as_written(n: int, c: int, batch: int) -> None:
    case = drawn(n, c, batch)
    assert close(case.output(), token_by_token(case))


@pytest.mark.parametrize("n", [1, 2, 23, 32])
def test_gradients_equal_those_of_the_sums(n: int) -> None:
    case = drawn(n)
    assert all_close(case.gradients(), case.gradients(token_by_token))


def test_a_missing_token_a_circular_sum_and_a_gate_after_it_are_noticed() -> None:
    case = drawn(23)
    assert not close(case.output(), token_by_token(case, first=1))
    assert not close(case.output(), token_by_token(case, circular=True))
    assert not close(case.output(), token_by_token(case, gate_last=True))


def test_a_transform_that_is_too_short_is_circular(monkeypatch: pytest.MonkeyPatch) -> None:
    case = drawn(20)
    monkeypatch.setattr(hyena, "padded", lambda n: n)
    assert close(case.output(), token_by_token(case, circular=True))
    monkeypatch.setattr(hyena, "padded", lambda n: 2 * n - 2)  # the last token alone is wrong
    assert close(case.output()[:, 1:], token_by_token(case)[:, 1:])
    assert not close(case.output(), token_by_token(case))


@pytest.mark.parametrize("n", [*range(1, 70), 2048, 4097, 1 << 20])
def test_the_length_is_the_least_with_small_factors(n: int) -> None:
    def small_factors(length: int) -> bool:
        for factor in (2, 3, 5):
            while length % factor == 0:
                length //= factor
        return length == 1

    half, rest = divmod(padded(n), 2)
    assert (rest, half >= n, small_factors(half)) == (0, True, True)
    assert n > 100 or not any(map(small_factors, range(n, half)))


@pytest.mark.parametrize("query_len", [1, MOST_DIRECT, MOST_DIRECT + 1, 35])
def test_sums_and_transforms_continue_alike(query_len: int) -> None:
    whole = drawn(37)
    problem = replace(whole.problem, query_len=query_len)
    past = problem.past
    new = {name: x[:, past:] if name in whole.inputs.data else x for name, x in whole.tensors.items()}
    u = whole.tensors["x1"] * whole.tensors["v"]
    y = whole.form.reference(problem, whole.params, **new, u_cache=u.clone())
    assert close(y, token_by_token(whole)[:, past:])
    u[:, past - 1] = 0
    assert not close(whole.form.reference(problem, whole.params, **new, u_cache=u), y), "the check sees no cache"


def test_a_filter_of_one_token_is_a_product() -> None:
    case = drawn(19)
    h = torch.zeros_like(case.tensors["h"])
    h[0] = 0.5
    v, x1, x0, d = (case.tensors[name] for name in ("v", "x1", "x0", "d"))
    assert close(case.output(h=h), x0 * x1 * v * (d + 0.5))
    h[1] = 0.1
    assert not close(case.output(h=h), x0 * x1 * v * (d + 0.5))


def layer_by_hand(case: Small, *, shift: int = 0, bands: int = 16) -> Tensor:
    """The layer by loops. shift: of the short filter; bands: frequencies of the positions, spread over 0 to 15."""
    t = case.tensors
    n, c = case.problem.seq_len, case.problem.channels
    rows = t["x"] @ t["w_in"] + t["b_in"]
    short = torch.zeros_like(rows)
    for i in range(n):
        short[:, i] = t["b_conv"] + sum(t["conv"][2 - a] * rows[:, i - a - shift] for a in range(3) if i >= a + shift)
    x0, x1, v = short[..., :c], short[..., c : 2 * c], short[..., 2 * c :]
    h = torch.empty(n, c, dtype=torch.float64)
    for i in range(n):
        along = i / max(1, n - 1)
        frequencies = [1e-4 + (15 - 1e-4) * b / 15 for b in range(bands)]
        angles = [2 * math.pi * i / n * f for f in frequencies]
        a = torch.tensor([along, *map(math.cos, angles), *(-math.sin(x) for x in angles)], dtype=torch.float64)
        for k in "123":
            a = torch.sin(t["frequency"] * (a @ t[f"w_{k}"] + t[f"b_{k}"]))
        for channel in range(c):
            share = channel / max(1, c - 1)
            delta = -math.log(1e-2) * ((1 - share) / 1.5 + share / 0.3)
            h[i, channel] = (a @ t["w_4"])[channel] * math.exp(-delta * along)
    core = small("hyena", case.problem)
    tensors = {"v": v, "x1": x1, "x0": x0}
    weights = {"h": h, "d": t["d"]}
    inside = replace(core, inputs=replace(core.inputs, data=tensors, parameters=weights))
    return token_by_token(inside) @ t["w_out"] + t["b_out"]


@pytest.mark.parametrize("n", [1, 13])
def test_the_layer_is_its_parts(n: int) -> None:
    case = small("hyena", Problem(n, 4, batch=2, causal=True), "layer", filter_width=5)
    assert close(case.output(), layer_by_hand(case))
    assert not close(case.output(), layer_by_hand(case, shift=1))


@pytest.mark.parametrize("n", [8, 64])
def test_flops_at_powers_of_two(n: int) -> None:
    """Three transforms of 2N, 2.5·2N·log₂(2N) each, two of them for each sample; as many for the gradients."""
    case = small("hyena", Problem(n, 6, batch=3, causal=True))
    assert case.cost().flops == (2 * 3 + 1) * 6 * 5 * n * (n.bit_length())
    assert case.cost("fwd_bwd").flops == 2 * case.cost().flops
    assert case.cost().reference_flops == case.cost().flops
    assert case.cost().uncounted == {"fft": case.cost().reference_flops}


def test_a_step_is_a_sum_over_all_tokens() -> None:
    step = Problem(100, 6, batch=3, causal=True, query_len=1)
    case = small("hyena", step)
    assert case.cost().flops == 2 * 3 * 6 * 100
    assert case.cost().uncounted == {"mul": case.cost().flops}
    assert case.cost().state_bytes == 3 * 100 * 6 * 8


def test_half_precision_is_computed_in_float32() -> None:
    problem = Problem(100, 8, causal=True, dtype="float16")
    case = small("hyena", problem)
    narrow = {name: x.half() for name, x in case.tensors.items()}
    exact = case.form.reference(problem, case.params, **{name: x.double() for name, x in narrow.items()})
    assert (case.form.reference(problem, case.params, **narrow) - exact).abs().max() < 2**-10 * exact.abs().max()


def test_there_is_no_form_that_sees_what_comes_after() -> None:
    assert "circular" in str(OPERATOR.full)
