from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.kernels.lambda_convolution import launch
from attnbench.kernels.launching import Tiles
from attnbench.operator import Form
from attnbench.problem import Params, Problem, Scope
from attnbench.registry import operators, resolve
from tests.kernels.agreement import disagreements

SMALL = {
    "apply_tiles": {"BLOCK_V": 2, "BLOCK_Y": 8, "BLOCK_X": 2},
    "lambda_gradient_tiles": {"BLOCK_H": 1, "BLOCK_V": 2},
    "value_gradient_tiles": {"BLOCK_V": 2, "BLOCK_Y": 8, "BLOCK_R": 2},
    "embedding_gradient_tiles": {"BLOCK_Y": 2, "BLOCK_P": 2},
}
THROUGH_REGISTERS = {"apply_tiles": {"WARPS": 1, "BLOCK_S": 32}, "value_gradient_tiles": {"WARPS": 1}}
"""In half precision."""


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles, so that every loop runs more than once, and few programs, so that splits have several tiles."""

    def smaller(name: str, tiles: Callable[..., Tiles]) -> Callable[..., Tiles]:
        def sizes(*args: Any) -> Tiles:
            registers = {} if torch.float32 in args else THROUGH_REGISTERS.get(name, {})
            return Tiles({**tiles(*args).constexprs, **SMALL[name], **registers}, 4)

        return sizes

    for name in SMALL:
        monkeypatch.setattr(launch, name, smaller(name, getattr(launch, name)))
    monkeypatch.setattr(launch, "PROGRAMS", 6)


def form_of(scope: Scope = "core", **given: Any) -> tuple[Form, Params]:
    operator = operators()["lambda_layer"].load()
    return operator.forms[scope], resolve(operator, {"key_depth": 5, "window": 3, **given})


def disagreeing(
    problem: Problem, call: Callable[..., Tensor] | None = None, scope: Scope = "core", **given: Any
) -> dict[str, str]:
    form, params = form_of(scope, **given)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    return disagreements(call or form.impls["cuda"].load(), form, problem, params, inputs)


@pytest.mark.parametrize(("dtype", "batch"), [("float32", 2), ("bfloat16", 1), ("float16", 1)])
def test_agrees_with_the_reference(dtype: Any, batch: int) -> None:
    assert not disagreeing(Problem.image(3, 5, 6, 2, batch, dtype))


@pytest.mark.parametrize(("window", "intra"), [(1, 1), (3, 2), (7, 1)])
def test_agrees_for_every_window_and_intra_depth(window: int, intra: int) -> None:
    assert not disagreeing(Problem.image(3, 5, 6, 2), window=window, intra_depth=intra)


def test_agrees_where_a_window_goes_in_pieces() -> None:
    assert not disagreeing(Problem.image(2, 3, 2, 1, 1, "bfloat16"), window=33)


def test_agrees_in_a_layer() -> None:
    assert not disagreeing(Problem.image(2, 3, 6, 2), scope="layer")


def test_agrees_on_one_pixel_and_one_channel() -> None:
    assert not disagreeing(Problem.image(1, 1, 1))


def test_agrees_without_a_gradient() -> None:
    form, params = form_of()
    problem = Problem.image(2, 3, 6, 2)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    call = form.impls["cuda"].load()
    assert not disagreements(call, form, problem, params, inputs, backward=False)


def test_a_mirrored_window_is_noticed() -> None:
    form, _ = form_of()

    def mirrored(problem: Problem, params: Params, e: Tensor, **tensors: Tensor) -> Tensor:
        return form.impls["cuda"].load()(problem, params, e=e.flip(-1), **tensors)

    assert set(disagreeing(Problem.image(2, 3, 6, 2), mirrored)) == {"output", "q", "v", "e"}


def test_another_content_lambda_is_noticed() -> None:
    form, _ = form_of()

    def uniform(problem: Problem, params: Params, k: Tensor, v: Tensor, **tensors: Tensor) -> Tensor:
        y: Tensor = form.impls["cuda"].load()(problem, params, k=0 * k, v=v, **tensors)
        return y

    assert "output" in disagreeing(Problem.image(2, 3, 6, 2), uniform)


@pytest.mark.parametrize("gradient", ["value_gradients", "embedding_gradients"])
def test_a_wrong_gradient_is_noticed(gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = getattr(launch, gradient)
    monkeypatch.setattr(launch, gradient, lambda *args: plain(*args).roll(1, -1))
    assert set(disagreeing(Problem.image(2, 3, 6, 2))) == {gradient[0]}
