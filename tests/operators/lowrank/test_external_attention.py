"""external_attention: number by number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.problem import Problem, Scope
from attnbench.registry import operators, outside_definition, resolve
from tests.operators.small import Small, all_close, close, small


def case_of(n: int = 7, channels: int = 6, slots: int = 3, scope: Scope = "core", batch: int = 2) -> Small:
    return small("external_attention", Problem(n, channels, 2, batch=batch), scope, slots=slots)


def loop(case: Small, mistake: str = "") -> Tensor:
    """Of the core."""
    return attended(case.tensors["x"], case.tensors["keys"], case.tensors["values"], mistake)


def attended(x: Tensor, keys: Tensor, values: Tensor, mistake: str = "") -> Tensor:
    y = torch.zeros_like(x)
    scale = x.shape[-1] ** -0.5 if mistake == "scaled" else 1.0
    for b in range(len(x)):
        e = torch.stack([torch.stack([(scale * (row * key).sum()).exp() for key in keys]) for row in x[b]])
        for i in range(len(e)):
            p = [e[i, s] / sum(e[:, s]) for s in range(len(keys))]
            if mistake == "softmax over slots":
                p = [e[i, s] / sum(e[i]) for s in range(len(keys))]
            total = sum(p) + 1e-9
            if mistake == "not divided":
                total = torch.tensor(1.0)
            if mistake == "divided over tokens":
                total = sum(e[j, 0] / sum(e[:, 0]) for j in range(len(e)))
            y[b, i] = sum(p[s] / total * values[s] for s in range(len(keys)))
    return y


def layer(case: Small, mistake: str = "") -> Tensor:
    """W_i, the core, W_o, a norm of each channel over all tokens of the batch, and x."""
    t = case.tensors
    entered = t["x"] @ t["w_i"] + (t["x"][0, 0] if mistake == "a bias" else 0)
    y = attended(entered, t["keys"], t["values"]) @ t["w_o"]
    over = 1 if mistake == "norm of each sample" else (0, 1)
    centred = y - y.mean(dim=over, keepdim=True)
    normed = centred / (centred.square().mean(dim=over, keepdim=True) + 1e-5).sqrt()
    return normed * t["gamma"] + t["beta"] + (0 if mistake == "no residual" else t["x"])


@given(n=st.integers(1, 9), channels=st.sampled_from((2, 6)), slots=st.integers(2, 11))
@settings(max_examples=20, deadline=None)
def test_equals_the_loop(n: int, channels: int, slots: int) -> None:
    case = case_of(n, channels, slots)
    assert close(case.output(), loop(case))


@pytest.mark.parametrize("mistake", ["softmax over slots", "not divided", "divided over tokens", "scaled"])
def test_a_mistake_is_noticed(mistake: str) -> None:
    case = case_of()
    assert not close(case.output(), loop(case, mistake))


def test_gradients_are_those_of_the_loop() -> None:
    case = case_of()
    assert all_close(case.gradients(), case.gradients(loop))
    assert not all_close(case.gradients(), case.gradients(lambda grown: loop(grown, "softmax over slots")))


@pytest.mark.parametrize("n", [2, 7])
def test_the_layer_equals_its_parts(n: int) -> None:
    case = case_of(n, scope="layer")
    assert close(case.output(), layer(case))
    assert all_close(case.gradients(), case.gradients(layer))
    assert close(case.output(), layer(case, "a bias")), "the softmax over tokens undoes it"
    for mistake in ("norm of each sample", "no residual"):
        assert not close(case.output(), layer(case, mistake)), mistake


def test_epsilon_is_beside_the_sum_over_slots() -> None:
    """It shows where a token has next to nothing of every slot."""
    case = case_of(channels=2, slots=2)
    x = torch.zeros(1, 3, 2, dtype=torch.float64)
    x[0, 0], x[0, 1] = -20.0, -4.0
    keys, values = torch.eye(2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    output = case.output(x=x, keys=keys, values=values)
    sums = 2 * x[0, :, 0].exp() / x[0, :, 0].exp().sum()
    assert close(output[0, :, 0], sums / (sums + 1e-9))
    assert not close(output[0, :, 0], torch.ones(3, dtype=torch.float64))


def test_equal_values_are_returned_and_the_order_of_slots_does_not_matter() -> None:
    case = case_of()
    order = torch.tensor([2, 0, 1])
    keys, values = case.tensors["keys"], case.tensors["values"]
    assert close(case.output(keys=keys[order], values=values[order]), case.output())
    assert not close(case.output(keys=keys[order]), case.output())
    same = values[:1].expand_as(values)
    assert torch.allclose(case.output(values=same), same[0].expand(2, 7, 6), rtol=1e-6)


def test_moving_tokens_moves_the_output_and_samples_are_apart() -> None:
    case = case_of()
    x = case.tensors["x"]
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    assert close(case.output(x=x[:, order]), case.output()[:, order])
    assert close(case.output(x=x.flip(0)), case.output().flip(0))
    changed = x.clone()
    changed[0, 0] += 1
    assert close(case.output(x=changed)[1], case.output()[1])
    assert not close(case.output(x=changed)[0, 1:], case.output()[0, 1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_that_leave_float16_are_still_right(dtype: torch.dtype) -> None:
    """Of thousands of tokens each has less than 1/N of a slot, of which float16 has few bits or none."""
    case = case_of(n=1 << 14, channels=8, slots=4, batch=1)
    low = {name: x.to(dtype) for name, x in case.tensors.items()}
    low["x"] = 2 * low["x"]
    truth = case.output(**{name: x.double() for name, x in low.items()})
    error = (case.output(**low) - truth).abs().max() / truth.abs().max()
    p = (low["x"] @ low["keys"].t()).softmax(dim=-2)
    half = (p / p.sum(dim=-1, keepdim=True)) @ low["values"]
    assert error < 4 * torch.finfo(dtype).eps
    if dtype == torch.float16:
        assert not ((half - truth).abs().max() / truth.abs().max()) < 4 * torch.finfo(dtype).eps


def test_outputs_are_about_one() -> None:
    assert 0.5 < case_of(n=512, channels=64, slots=64).output().std() < 2


@pytest.mark.parametrize("scope", ["core", "layer"])
def test_flops_are_the_products_of_the_definition(scope: Scope) -> None:
    case = case_of(scope=scope)
    multiply_adds = 2 * 7 * (3 * 6 + 3 * 6 + (2 * 6 * 6 if scope == "layer" else 0))
    assert case.cost().flops == case.cost().reference_flops == 2 * multiply_adds
    assert case.cost("fwd_bwd").flops == 3 * 2 * multiply_adds


def test_parameters_do_not_follow_the_tokens() -> None:
    sizes = [{name: x.shape for name, x in case_of(n).inputs.parameters.items()} for n in (5, 50)]
    assert sizes[0] == sizes[1] == {"keys": (3, 6), "values": (3, 6)}


@pytest.mark.parametrize(
    ("problem", "slots", "scope", "reason"),
    [
        (Problem(1, 8, 2), 64, "core", "only token"),
        (Problem(2, 8, 2), 2, "core", None),
        (Problem(2, 8, 2), 2, "layer", None),
        (Problem(2, 8, 2, dtype="bfloat16"), 2, "core", None),
        (Problem(2, 8, 2, dtype="bfloat16"), 2, "layer", "give 8 slots"),
        (Problem(2, 8, 2, dtype="float16"), 8, "layer", None),
    ],
)
def test_what_is_not_defined_says_why(problem: Problem, slots: int, scope: Scope, reason: str | None) -> None:
    operator = operators()["external_attention"].load()
    found = outside_definition(operator, problem, resolve(operator, {"slots": slots}), scope)
    assert (found is None) == (reason is None)
    assert reason is None or reason in str(found)


def test_one_token_would_get_the_mean_of_the_values() -> None:
    case = case_of(n=1)
    assert close(case.output(), case.tensors["values"].mean(0).expand(2, 1, 6), rtol=1e-8)
    assert not close(case_of(n=2).output()[:, :1], case_of(n=2).tensors["values"].mean(0).expand(2, 1, 6), rtol=1e-8)
