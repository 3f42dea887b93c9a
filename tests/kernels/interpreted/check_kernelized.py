from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from attnbench.kernels.kernelized import full, gradients
from attnbench.kernels.launching import Tiles
from attnbench.operator import Form
from attnbench.problem import Params, Problem
from attnbench.registry import operators, resolve
from tests.kernels.agreement import disagreements

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "elu": ("linear_transformer", {}),
    "relu": ("performer", {"kind": "relu", "m": 21}),
    "exp": ("performer", {"kind": "softmax", "m": 21}),
    "fourier": ("rfa", {"m": 21}),
    "softmax": ("efficient", {}),
}
each_map = pytest.mark.parametrize("features", list(CASES))


WHOLE_TILES = {"relu": 32, "exp": 32, "fourier": 32}
"""Numbers of features that tiles of 16 divide, of the maps that have any number."""


def form_of(features: str) -> tuple[Form, Params]:
    name, given = CASES[features]
    operator = operators()[name].load()
    return operator.forms["core"], resolve(operator, given)


@pytest.fixture
def width() -> int:
    """WIDTH, the channels that a product takes at a time; 0: all."""
    return 0


@pytest.fixture(autouse=True)
def many_splits(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Small tiles, so that every loop runs more than once, and beyond N = 64 several splits."""

    def small(tiles: Callable[..., Tiles]) -> Callable[..., Tiles]:
        def smaller(*args: Any, **kwargs: Any) -> Tiles:
            shipped = tiles(*args, **kwargs)
            sizes = {name: 16 for name in ("BLOCK_N", "BLOCK_M", "BLOCK_V") if name in shipped.constexprs}
            if "WIDTH" in shipped.constexprs:
                sizes["WIDTH"] = width
            return replace(shipped, constexprs={**shipped.constexprs, **sizes})

        return smaller

    for name in ("sum_tiles", "combine_tiles", "answer_tiles", "gradient_tiles"):
        monkeypatch.setattr(full, name, small(getattr(full, name)))


def disagreeing(
    features: str, problem: Problem, call: Callable[..., Tensor] | None = None, seed: int = 0
) -> dict[str, str]:
    form, params = form_of(features)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(seed))
    return disagreements(call or form.impls["cuda"].load(), form, problem, params, inputs)


@pytest.mark.parametrize(
    ("features", "dtype", "width"),
    [
        *((each, "float32", 0) for each in CASES),
        *((each, "bfloat16", 0) for each in ("relu", "exp", "softmax")),
        *((each, "float16", 16) for each in ("elu", "exp", "fourier")),
    ],
)
def test_agrees_with_the_reference(features: str, dtype: str, width: int) -> None:
    """In one head; a layer has several."""
    assert not disagreeing(features, Problem(70, 23, 1, 1, dtype))


@each_map
def test_agrees_on_fewer_tokens_than_a_tile(features: str) -> None:
    assert not disagreeing(features, Problem(3, 16, 1, 2))


@pytest.mark.parametrize("features", ["elu", "fourier"])
def test_groups_of_heads_agree(features: str) -> None:
    """Queries of two heads are rows of one; heads dealt in turn would be noticed."""
    problem = Problem(19, 4 * 4, 4, kv_heads=2)
    form, _ = form_of(features)
    assert not disagreeing(features, problem)

    def in_turn(problem: Problem, params: Params, k: Tensor, v: Tensor, **tensors: Tensor) -> Tensor:
        return form.impls["cuda"].load()(problem, params, k=k.flip(1), v=v.flip(1), **tensors)

    assert disagreeing(features, problem, in_turn).keys() == {"output", "q", "k", "v"}


@pytest.mark.parametrize("features", ["exp", "softmax"])
def test_takes_the_strides_of_a_layer(features: str) -> None:
    form, _ = form_of(features)

    def strided(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
        apart = {k: x.transpose(1, 2).contiguous().transpose(1, 2) if x.dim() == 4 else x for k, x in tensors.items()}
        return form.impls["cuda"].load()(problem, params, **apart)

    assert not disagreeing(features, Problem(19, 2 * 16, 2, 2), strided)


@each_map
def test_offsets_beyond_32_bits(features: str, tmp_path: Path) -> None:
    """Tokens 2³⁰ elements apart, so that the last lies beyond 2³¹ elements."""
    form, params = form_of(features)
    problem = Problem(4, 16, dtype="bfloat16")
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    call = form.impls["cuda"].load()
    data = {name: far_apart(x, 2**30, tmp_path / name) for name, x in inputs.data.items()}
    assert (problem.seq_len - 1) * 2**30 > 2**31
    output = call(problem, params, **data, **inputs.choices)
    assert torch.equal(output, call(problem, params, **inputs.tensors()))


def far_apart(x: Tensor, stride: int, file: Path) -> Tensor:
    """x of [1, 1, N, D] with its tokens `stride` elements apart, in a file that is mostly hole."""
    n, d = x.shape[2:]
    room = torch.from_file(str(file), shared=True, size=(n - 1) * stride + d, dtype=x.dtype)
    return room.as_strided((1, 1, n, d), (0, 0, stride, 1)).copy_(x)


@each_map
def test_a_dropped_token_is_noticed(features: str) -> None:
    form, _ = form_of(features)

    def short(problem: Problem, params: Params, k: Tensor, **tensors: Tensor) -> Tensor:
        k = torch.cat((k[:, :, :-1], k[:, :, -2:-1]), dim=2)
        return form.impls["cuda"].load()(problem, params, k=k, **tensors)

    assert set(disagreeing(features, Problem(37, 16, 1), short)) >= {"output", "k"}


def test_a_split_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 64 tokens there is a second one, and so there is in what agrees above."""
    plain = full.accumulate

    def first_alone(*args: Any) -> tuple[Tensor, ...]:
        parts, *others = plain(*args)
        parts[1:] = 0
        return parts, *others

    monkeypatch.setattr(full, "accumulate", first_alone)
    assert set(disagreeing("elu", Problem(70, 16, 1))) == {"output", "q", "k", "v"}
    assert not disagreeing("elu", Problem(64, 16, 1))


@pytest.mark.parametrize("features", list(WHOLE_TILES))
def test_agrees_on_features_that_fill_their_tiles(features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, given = CASES[features]
    monkeypatch.setitem(CASES, features, (name, {**given, "m": WHOLE_TILES[features]}))
    assert not disagreeing(features, Problem(37, 16, 1))


def test_epsilon_times_all_features_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query's stabiliser does not scale ε, so what ε brings is added at the end from sums over the features."""
    monkeypatch.setattr("attnbench.operators.kernelized.performer.EPSILON", {"softmax": 1e-2})
    assert not disagreeing("exp", Problem(37, 16, 1))
    plain = full.answer

    def without(q: Tensor, omega: Tensor, sums: full.Sums, *rest: Any) -> Any:
        return plain(q, omega, replace(sums, column_sums=torch.zeros_like(sums.column_sums)), *rest)

    monkeypatch.setattr(full, "answer", without)
    assert "output" in disagreeing("exp", Problem(37, 16, 1))


def test_the_stabilisers_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full, "take_from_largest", lambda *args: None)
    monkeypatch.setattr("attnbench.operators.kernelized.performer.EPSILON", {"softmax": 1e-2})
    assert set(disagreeing("exp", Problem(37, 16, 1))) == {"k"}


@triton.jit
def first_column(a, columns, column_mask, EVEN, BLOCK_M, COMPUTE):
    return tl.max(a, axis=1), tl.zeros([a.shape[0]], tl.int32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_argument_than_a_querys_largest_is_noticed(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnbench.operators.kernelized.performer.EPSILON", {"softmax": 1e-2})
    problem = Problem(37, 16, 1, dtype=dtype)
    assert not disagreeing("exp", problem)
    monkeypatch.setattr(gradients, "largest_column", first_column)
    assert set(disagreeing("exp", problem)) == {"q"}
