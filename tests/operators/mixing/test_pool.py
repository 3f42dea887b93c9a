"""pool: the mean of a window of pixels, pixel by pixel, less the pixel itself."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import avg_pool2d

from attnbench.problem import Problem
from attnbench.registry import operators, resolve
from tests.operators.small import Small, all_close, close, small

MISTAKES = ("zeros around", "not less itself", "larger", "axes swapped")


def case_of(h: int = 4, w: int = 7, pool: int = 3) -> Small:
    return small("pool", Problem.image(h, w, 3, batch=2), pool=pool)


def loop(case: Small, mistake: str = "") -> Tensor:
    x, p = case.tensors["x"], case.params["pool"]
    h, w = x.shape[2:]
    r = p // 2 + (mistake == "larger")
    rows = []
    for y, column in product(range(h), range(w)):
        a, b = (y % w, column % h) if mistake == "axes swapped" else (y, column)
        inside = [
            x[:, :, i, j]
            for i in range(a - r, a + r + 1)
            for j in range(b - r, b + r + 1)
            if i in range(h) and j in range(w)
        ]
        mean = sum(inside, torch.zeros_like(x[:, :, 0, 0])) / (
            p * p if mistake == "zeros around" else max(1, len(inside))
        )
        rows.append(mean - (0 if mistake == "not less itself" else 1) * x[:, :, y, column])
    return torch.stack(rows, dim=-1).view_as(x)


@given(h=st.integers(1, 9), w=st.integers(1, 9), radius=st.integers(1, 11))
@settings(max_examples=40, deadline=None)
def test_equals_the_loop(h: int, w: int, radius: int) -> None:
    case = case_of(h, w, 2 * radius + 1)
    assert close(case.output(), loop(case))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake: str) -> None:
    case = case_of()
    assert not close(case.output(), loop(case, mistake))


@pytest.mark.parametrize("pool", [3, 5, 15])
def test_gradients_equal_the_loop(pool: int) -> None:
    case = case_of(5, 7, pool)
    assert all_close(case.gradients(), case.gradients(loop))
    assert not all_close(case.gradients(), case.gradients(lambda each: loop(each, "zeros around")))


@pytest.mark.parametrize("pool", [3, 7])
def test_torchs_kernel_is_the_same_map(pool: int) -> None:
    case = case_of(6, 11, pool)
    assert close(case.impl("cuda"), case.output())
    assert all_close(case.gradients(lambda each: each.impl("cuda")), case.gradients())
    x = case.tensors["x"]
    padded = avg_pool2d(x, pool, 1, pool // 2) - x
    assert not close(case.output(), padded)


def test_limits() -> None:
    x = case_of().tensors["x"]
    whole = x.mean((2, 3), keepdim=True) - x
    assert close(case_of(pool=13).output(), whole)
    assert not close(case_of(pool=11).output(), whole)
    constant = case_of().output(x=torch.ones_like(x))
    assert close(constant, torch.zeros_like(x)), "a border is no darker"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once(dtype: str) -> None:
    case = case_of(9, 9, 9)
    x = (case.tensors["x"] + 8).to(getattr(torch, dtype))  # so that sums are large beside the outputs
    exact = case.output(x=x.double())
    half_an_ulp = torch.finfo(x.dtype).eps / 2
    assert torch.allclose(case.output(x=x).double(), exact, rtol=half_an_ulp, atol=1e-5)
    summed = sum((x[:, :, i, j] for i in range(9) for j in range(9)), torch.zeros_like(x[:, :, 0, 0])) / 81
    in_half = summed - x[:, :, 4, 4]
    assert not torch.allclose(in_half.double(), exact[:, :, 4, 4], rtol=half_an_ulp, atol=1e-5)


def test_an_even_window_has_its_reason() -> None:
    operator = operators()["pool"].load()
    problem = Problem.image(4, 4, 3)
    assert "pool 4 is even" in (operator.why_not(problem, resolve(operator, {"pool": 4}), "core") or "")
    assert operator.why_not(problem, resolve(operator, {"pool": 5}), "core") is None
    assert "one pixel" in (operator.why_not(Problem.image(1, 1, 3), resolve(operator, {}), "core") or "")


def test_there_are_no_products() -> None:
    for mode in ("fwd", "fwd_bwd"):
        cost = case_of().cost(mode)  # type: ignore[arg-type]
        assert cost.flops == cost.reference_flops == 0
        assert cost.elementwise > 0
