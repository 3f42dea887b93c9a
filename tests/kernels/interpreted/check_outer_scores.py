from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.kernels.launching import Tiles
from attnbench.kernels.outer_scores import launch
from attnbench.operator import Form
from attnbench.problem import Params, Problem, Scope
from attnbench.registry import operators, resolve
from tests.kernels.agreement import disagreements

each_causal = pytest.mark.parametrize("causal", [False, True])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16, so that every loop runs more than once."""

    def smaller(tiles: Callable[..., Tiles]) -> Callable[..., Tiles]:
        return lambda *args: Tiles({**tiles(*args).constexprs, "BLOCK_N": 16, "BLOCK_S": 16}, 4)

    for name in ("query_tiles", "score_tiles", "key_tiles"):
        monkeypatch.setattr(launch, name, smaller(getattr(launch, name)))


def form_of(scope: Scope = "core") -> tuple[Form, Params]:
    operator = operators()["synthesizer"].load()
    return operator.forms[scope], resolve(operator, {"kind": "factorized_dense"})


def disagreeing(problem: Problem, call: Callable[..., Tensor] | None = None, scope: Scope = "core") -> dict[str, str]:
    form, params = form_of(scope)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    stated = operators()["synthesizer"].load().tolerance
    assert stated is not None
    return disagreements(call or form.impls["cuda"].load(), form, problem, params, inputs, factor=stated[0])


@each_causal
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_agrees_with_the_reference(dtype: Any, causal: bool) -> None:
    assert not disagreeing(Problem(37, 2 * 11, 2, 1, dtype, causal))


@each_causal
def test_agrees_where_a_is_more_than_a_tile(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """17 columns of scores in tiles of 16; of queries larger tiles, to be quick."""
    for name in ("query_tiles", "score_tiles", "key_tiles"):
        shipped = getattr(launch, name)(17, 5, torch.float32).constexprs
        assert shipped["BLOCK_S"] == 16
        monkeypatch.setattr(launch, name, lambda *_, shipped=shipped: Tiles({**shipped, "BLOCK_N": 64}, 4))
    assert not disagreeing(Problem(257, 5, 1, 1, causal=causal))


@each_causal
def test_agrees_in_a_layer(causal: bool) -> None:
    assert not disagreeing(Problem(19, 2 * 5, 2, 2, causal=causal), scope="layer")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_agrees_on_few_tokens(n: int) -> None:
    """Of one token only the output: where a query sees one key its gradients are 0 and only rounding is compared."""
    if n > 1:
        assert not disagreeing(Problem(n, 4, 1, 2))
    form, params = form_of()
    problem = Problem(n, 4, 1, 2)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    assert not disagreements(form.impls["cuda"].load(), form, problem, params, inputs, backward=False)


def test_swapped_values_and_one_token_ahead_are_noticed() -> None:
    form, _ = form_of()

    def turned(problem: Problem, params: Params, v: Tensor, **tensors: Tensor) -> Tensor:
        return form.impls["cuda"].load()(problem, params, v=v.roll(1, 2), **tensors)

    assert set(disagreeing(Problem(37, 8), turned)) >= {"output", "v", "w2_alpha", "w2_beta"}
    assert "output" in disagreeing(Problem(37, 8), lambda p, params, **t: full_instead(p, params, **t))


def full_instead(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
    """As if the problem were causal."""
    causal = Problem(problem.seq_len, problem.channels, problem.heads, problem.batch, problem.dtype, True)
    y: Tensor = form_of()[0].impls["cuda"].load()(causal, params, **tensors)
    return y


def test_a_wrong_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = launch.score_gradients
    monkeypatch.setattr(launch, "score_gradients", lambda *args: plain(*args[:-2], 0 * args[-2], args[-1]))
    assert {"w2_alpha", "w2_beta", "x"} <= set(disagreeing(Problem(37, 8)))
