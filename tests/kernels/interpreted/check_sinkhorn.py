from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.kernels.launching import Tiles
from attnbench.kernels.sinkhorn import launch
from attnbench.operators.clustered.sinkhorn import OPERATOR
from attnbench.problem import Problem
from attnbench.registry import resolve
from tests.kernels.agreement import disagreements
from tests.kernels.interpreted.check_kernelized import far_apart

CORE = OPERATOR.forms["core"]
FACTOR = 4
"""Of the bound: what reaches w and k through the balancing are differences of nearly equal sums."""


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles in a block and in the matrix, so that every loop runs more than once."""
    for name in ("attend_tiles", "gradient_tiles"):
        plain = getattr(launch, name)

        def smaller(*args: Any, plain: Any = plain) -> Tiles:
            tiles = plain(*args)
            return replace(tiles, constexprs={**tiles.constexprs, "BLOCK": 16, "WIDTH": 16})

        monkeypatch.setattr(launch, name, smaller)
    monkeypatch.setattr(launch, "LINES", {"BLOCK_I": 4, "BLOCK_J": 4})
    monkeypatch.setattr(launch, "MATRIX", {"BLOCK_I": 4, "BLOCK_J": 4})
    monkeypatch.setattr(launch, "ROWS_SO_FAR", {"BLOCK_I": 4, "BLOCK_J": 2})
    monkeypatch.setattr(launch, "COLUMNS_SO_FAR", {"BLOCK_I": 4, "BLOCK_J": 2})


def disagreeing(
    problem: Problem, given: dict[str, Any] | None = None, call: Callable[..., Tensor] | None = None
) -> dict[str, str]:
    params = resolve(OPERATOR, {"block": 19, "iterations": 3, **(given or {})})
    inputs = CORE.make_inputs(problem, params, torch.Generator().manual_seed(0))
    return disagreements(call or CORE.impls["cuda"].load(), CORE, problem, params, inputs, factor=FACTOR)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_agrees_with_the_reference(dtype: Any, causal: bool) -> None:
    """Two heads in float32; where they lie is the same in any dtype."""
    heads = 2 if dtype == "float32" else 1
    assert not disagreeing(Problem(53, heads * 19, heads, 1, dtype, causal=causal))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_agrees_on_a_sortcut(dtype: Any) -> None:
    assert not disagreeing(Problem(53, 19, 1, 1, dtype), {"kind": "sortcut", "block": 8, "cut": 3})


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n", [1, 2, 13])
def test_agrees_on_few_tokens(n: int, causal: bool) -> None:
    """In bfloat16: where a query sees one key its gradient is 0, exactly in the reference, to rounding here."""
    assert not disagreeing(Problem(n, 16, 1, 2, "bfloat16", causal=causal), {"block": 3})


def test_takes_the_strides_of_a_layer() -> None:
    def strided(problem: Problem, params: Any, w: Tensor, noise: Tensor, **data: Tensor) -> Tensor:
        apart = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in data.items()}
        return CORE.impls["cuda"].load()(problem, params, w=w, noise=noise, **apart)

    assert not disagreeing(Problem(13, 2 * 16, 2, 2), {"block": 6}, strided)


@pytest.mark.parametrize("rows", [2, 11])
def test_balance_is_the_references_with_its_gradient(rows: int) -> None:
    def plain(x: Tensor, iterations: int) -> Tensor:
        for _ in range(iterations):
            x = x - x.logsumexp(-1, keepdim=True)
            x = x - x.logsumexp(-2, keepdim=True)
        return x.exp()[:, :, :rows]

    x = torch.randn(1, 2, 11, 11, generator=torch.Generator().manual_seed(0)) * 2
    wide, narrow = x.double().requires_grad_(), x.clone().requires_grad_()
    expected, got = plain(wide, 4), launch.balance(narrow, 4, rows, torch.float32)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (expected * weight).sum().backward()
    (got * weight).sum().backward()
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(narrow.grad.double(), wide.grad, rtol=1e-4, atol=1e-6)
    fewer = plain(wide, 3)
    assert (got.double() - fewer).abs().max() > 1e-3


def test_balance_so_far_is_the_references_with_its_gradient() -> None:
    later = torch.ones(11, 11, dtype=torch.bool).triu(1)

    def plain(x: Tensor, iterations: int) -> Tensor:
        x = x.masked_fill(later, -1e4)
        for _ in range(iterations):
            x = x - x.logsumexp(-1, keepdim=True)
            x = (x - x.logcumsumexp(-2)).masked_fill(later, -1e4)
        return x.exp()

    x = torch.randn(1, 2, 11, 11, generator=torch.Generator().manual_seed(0)) * 2
    wide, narrow = x.double().requires_grad_(), x.clone().requires_grad_()
    expected, got = plain(wide, 4), launch.balance_so_far(narrow, 4, torch.float32)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad(expected, wide, weight.double(), retain_graph=True)[0]
    (gradient,) = torch.autograd.grad(got[..., :11], narrow, weight)
    assert not got[..., 11:].any()
    got = got[..., :11]
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-6)
    assert wanted.abs().max() > 1e-2
    assert (got.double() - plain(wide, 3)).abs().max() > 1e-3


def altered(**changes: Any) -> Callable[..., Tensor]:
    """The kernel told another thing than the operator says."""

    def call(problem: Problem, params: Any, **tensors: Tensor) -> Tensor:
        return CORE.impls["cuda"].load()(problem, {**params, **changes}, **tensors)

    return call


@pytest.mark.parametrize("changes", [{"iterations": 2}, {"tau": 0.8}], ids=str)
def test_another_matrix_is_noticed(changes: dict[str, Any]) -> None:
    assert set(disagreeing(Problem(53, 16), {}, altered(**changes))) >= {"output", "k", "v", "w"}


def test_values_taken_from_keys_are_noticed() -> None:
    def mistaken(problem: Problem, params: Any, k: Tensor, v: Tensor, **tensors: Tensor) -> Tensor:
        attend = launch.attend
        launch.attend = lambda q, k, v, sk, sv, b, causal: attend(q, k, v, sk, sk, b, causal)
        try:
            return CORE.impls["cuda"].load()(problem, params, k=k, v=v, **tensors)
        finally:
            launch.attend = attend

    assert "output" in disagreeing(Problem(53, 16), {}, mistaken)


def test_offsets_beyond_32_bits(tmp_path: Path) -> None:
    """Tokens 2³⁰ elements apart, so that the last lies beyond 2³¹ elements."""
    problem = Problem(4, 16, dtype="bfloat16")
    params = resolve(OPERATOR, {"block": 2})
    inputs = CORE.make_inputs(problem, params, torch.Generator().manual_seed(0))
    call = CORE.impls["cuda"].load()
    data = {name: far_apart(x, 2**30, tmp_path / name) for name, x in inputs.data.items()}
    output = call(problem, params, **data, **inputs.parameters, **inputs.choices)
    assert torch.equal(output, call(problem, params, **inputs.tensors()))
