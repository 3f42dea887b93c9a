from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.kernels.few_keys import launch
from attnbench.kernels.launching import Tiles
from attnbench.kernels.margins import launch as margins
from attnbench.operator import Form
from attnbench.problem import Dtype, Params, Problem
from attnbench.registry import operators, resolve
from tests.kernels.agreement import disagreements

NAMES = ("linformer", "kao_kv", "kao_qkv")
GIVEN: dict[str, dict[str, Any]] = {"linformer": {"k": 37}}
each_operator = pytest.mark.parametrize("name", NAMES)


def form_of(name: str) -> tuple[Form, Params]:
    operator = operators()[name].load()
    return operator.forms["core"], resolve(operator, GIVEN.get(name, {}))


def problem_of(name: str, dtype: Dtype = "float32") -> Problem:
    if name.startswith("kao"):
        return Problem.image(11, 9, 2 * 3, 2, 1, dtype)
    heads = 2 if dtype == "float32" else 1  # where they lie is the same in any dtype
    return Problem(109, heads * 23, heads, 1, dtype)


@pytest.fixture
def shipped() -> bool:
    """Whether tiles are those that are shipped."""
    return False


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch, shipped: bool) -> None:
    """So that every loop runs more than once, and several splits."""
    if shipped:
        return

    def small(tiles: Callable[..., Tiles]) -> Callable[..., Tiles]:
        def smaller(*args: Any) -> Tiles:
            shipped = tiles(*args)
            return Tiles({**shipped.constexprs, "BLOCK_N": 32, "BLOCK_M": 16}, shipped.warps, shipped.stages)

        return smaller

    monkeypatch.setattr(launch, "tiles_of", small(launch.tiles_of))
    monkeypatch.setattr(margins, "TILE", 64)
    monkeypatch.setattr(margins, "MAX_WIDTH", 8)


def disagreeing(name: str, problem: Problem, call: Callable[..., Tensor] | None = None) -> dict[str, str]:
    form, params = form_of(name)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    return disagreements(call or form.impls["cuda"].load(), form, problem, params, inputs)


@each_operator
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_agrees_with_the_reference(name: str, dtype: Dtype) -> None:
    assert not disagreeing(name, problem_of(name, dtype))


def test_groups_of_heads_agree() -> None:
    name, problem = "linformer", Problem(35, 4 * 4, 4, kv_heads=2)
    form, _ = form_of(name)
    assert not disagreeing(name, problem)

    def in_turn(problem: Problem, params: Params, q: Tensor, **tensors: Tensor) -> Tensor:
        return form.impls["cuda"].load()(problem, params, q=q.roll(1, 1), **tensors).roll(-1, 1)

    assert disagreeing(name, problem, in_turn)


@pytest.mark.parametrize("shipped", [True])
@each_operator
def test_agrees_in_one_tile(name: str, shipped: bool) -> None:
    """The default tiles, of which one holds all queries."""
    shape = Problem.image(5, 7, 6) if name.startswith("kao") else Problem(40, 16)
    assert not disagreeing(name, shape)


@pytest.mark.parametrize("name", ["kao_kv", "kao_qkv"])
def test_the_layer_on_projected_means_agrees(name: str) -> None:
    form, params = operators()[name].load().forms["layer"], {"value_map": False}
    problem = Problem.image(5, 7, 6, 2)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    call = form.impls["cuda"].load()
    assert not disagreements(
        call, form, problem, params, inputs, factor=2.0
    )  # a map of 36 numbers: own errors are luck

    def swapped(problem: Problem, params: Params, w_k: Tensor, w_v: Tensor, **rest: Tensor) -> Tensor:
        return call(problem, params, w_k=w_v, w_v=w_k, **rest)

    assert disagreements(swapped, form, problem, params, inputs, factor=2.0)


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (3, 1, 0, 2), (1, 0, 3, 2)])
def test_takes_any_strides(order: tuple[int, ...]) -> None:
    form, params = form_of("linformer")
    back = [order.index(i) for i in range(4)]

    def strided(problem: Problem, params: Params, q: Tensor, **tensors: Tensor) -> Tensor:
        apart = q.permute(order).contiguous().permute(back)
        assert not apart.is_contiguous()
        return form.impls["cuda"].load()(problem, params, q=apart, **tensors)

    assert not disagreeing("linformer", Problem(35, 32, 2, 2), strided)
    assert params["k"] == 37


@pytest.mark.parametrize(("heads", "apart"), [(1, (0, 2**24)), (3, (2**30, 8))], ids=["tokens", "heads"])
def test_offsets_beyond_32_bits(heads: int, apart: tuple[int, int], tmp_path: Path) -> None:
    """Heads and tokens so many elements apart that the last lie beyond 2³¹; the file is mostly hole."""
    n, d = 140, 8
    last = (heads - 1) * apart[0] + (n - 1) * apart[1]
    assert last > 2**31
    q, k, v, dy = (torch.randn(1, heads, m, d).bfloat16() for m in (n, 5, 5, n))
    room = torch.from_file(str(tmp_path / "q"), shared=True, size=last + d, dtype=q.dtype)
    far = room.as_strided(q.shape, (0, *apart, 1)).copy_(q)
    results = []
    for queries in (far, q):
        wanted = [x.detach().requires_grad_() for x in (queries, k, v)]
        y = launch.attend(*wanted, 1.0)
        results.append((y, *torch.autograd.grad(y, wanted, dy)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not torch.equal(results[0][0], results[1][0].roll(1, 2))


def test_a_dropped_token_is_noticed() -> None:
    form, _ = form_of("linformer")

    def short(problem: Problem, params: Params, v: Tensor, **tensors: Tensor) -> Tensor:
        v = torch.cat((v[:, :, :1], torch.zeros_like(v[:, :, :1]), v[:, :, 2:]), dim=2)
        return form.impls["cuda"].load()(problem, params, v=v, **tensors)

    assert set(disagreeing("linformer", problem_of("linformer"), short)) >= {"output", "q", "v"}


@pytest.mark.parametrize("name", ["kao_kv", "kao_qkv"])
def test_margins_that_are_off_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = margins.margin_means
    monkeypatch.setattr(margins, "margin_means", lambda x: exact(x) * 1.01)
    assert "output" in disagreeing(name, problem_of(name))


def test_the_row_gradients_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = launch.query_gradients
    monkeypatch.setattr(launch, "query_gradients", lambda *args: (exact(*args)[0] * 1.01, exact(*args)[1]))
    assert set(disagreeing("linformer", problem_of("linformer"))) == {"q"}
