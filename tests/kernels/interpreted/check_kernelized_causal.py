from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.kernels.kernelized import causal
from attnbench.kernels.kernelized import full as kernelized
from attnbench.kernels.launching import Tiles
from attnbench.operator import Form
from attnbench.problem import Params, Problem
from attnbench.registry import operators, resolve
from tests.kernels.agreement import disagreements
from tests.kernels.interpreted.check_kernelized import far_apart

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "elu": ("linear_transformer", {}),
    "relu": ("performer", {"kind": "relu", "m": 21}),
    "exp": ("performer", {"kind": "softmax", "m": 21}),
    "fourier": ("rfa", {"m": 21, "gate": "none"}),
}
each_map = pytest.mark.parametrize("features", list(CASES))


def form_of(features: str) -> tuple[Form, Params]:
    name, given = CASES[features]
    operator = operators()[name].load()
    return operator.forms["core"], resolve(operator, given)


@pytest.fixture
def shipped() -> bool:
    """Whether tiles are those that are shipped."""
    return False


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch, shipped: bool) -> None:
    """Several segments, chunks, tiles of features and of channels at a small N."""
    if shipped:
        return

    def small(tiles: Callable[..., Tiles], names: tuple[str, ...]) -> Callable[..., Tiles]:
        def smaller(*args: Any, **kwargs: Any) -> Tiles:
            shipped = tiles(*args, **kwargs)
            sizes = {name: 16 for name in names if name in shipped.constexprs}
            return Tiles({**shipped.constexprs, **sizes}, shipped.warps, shipped.stages)

        return smaller

    scan = small(causal.scan_tiles, ("BLOCK_N", "BLOCK_V", "BLOCK_M"))
    monkeypatch.setattr(causal, "scan_tiles", scan)
    for module in (kernelized, causal):
        monkeypatch.setattr(module, "sum_tiles", small(kernelized.sum_tiles, ("BLOCK_N", "BLOCK_M", "BLOCK_V")))
    monkeypatch.setattr(causal, "cut", lambda heads, n, *rest: (-(-n // 32), 32))


def disagreeing(features: str, problem: Problem, call: Callable[..., Tensor] | None = None) -> dict[str, str]:
    form, params = form_of(features)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    return disagreements(call or form.impls["cuda"].load(), form, problem, params, inputs)


@pytest.mark.parametrize(
    ("features", "tokens", "dtype"),
    [*((each, 67, "float32") for each in CASES), *((each, 37, "bfloat16") for each in CASES), ("exp", 37, "float16")],
)
def test_agrees_with_the_reference(features: str, tokens: int, dtype: str) -> None:
    """In three segments, and two; the maps themselves are tried in float16 without an order."""
    assert not disagreeing(features, Problem(tokens, 23, 1, 1, dtype, causal=True))


@pytest.mark.parametrize("features", ["exp", "fourier"])
def test_channels_a_width_at_a_time(features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the features run through once for all gradients, where float32 otherwise takes two turns."""
    tiles = causal.scan_tiles

    def narrow(kernel: str, *args: Any) -> Tiles:
        shipped = tiles(kernel, *args)
        changed = {"WIDTH": 16} | ({"TURNS": 1} if kernel == "key" else {})
        return Tiles({**shipped.constexprs, **changed}, shipped.warps, shipped.stages)

    monkeypatch.setattr(causal, "scan_tiles", narrow)
    assert not disagreeing(features, Problem(35, 23, 1, 1, causal=True))


@pytest.mark.parametrize("shipped", [True])
@pytest.mark.parametrize("features", ["exp", "fourier"])
def test_the_tiles_that_are_shipped(features: str, shipped: bool) -> None:
    """Float32 with more channels than a product takes at a time."""
    assert not disagreeing(features, Problem(19, 72, 1, 1, causal=True))


@each_map
def test_takes_the_strides_of_a_layer(features: str) -> None:
    form, _ = form_of(features)

    def strided(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
        apart = {k: x.transpose(1, 2).contiguous().transpose(1, 2) if x.dim() == 4 else x for k, x in tensors.items()}
        return form.impls["cuda"].load()(problem, params, **apart)

    assert not disagreeing(features, Problem(19, 2 * 16, 2, 2, causal=True), strided)


@each_map
def test_offsets_beyond_32_bits(features: str, tmp_path: Path) -> None:
    form, params = form_of(features)
    problem = Problem(4, 16, dtype="bfloat16", causal=True)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    call = form.impls["cuda"].load()
    data = {name: far_apart(x, 2**30, tmp_path / name) for name, x in inputs.data.items()}
    assert torch.equal(call(problem, params, **data, **inputs.choices), call(problem, params, **inputs.tensors()))


@pytest.mark.parametrize("wrong", ["before", "after"])
def test_segments_left_to_themselves_are_noticed(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal, wrong, torch.zeros_like)
    expected = {"before": {"output", "q"}, "after": {"k", "v"}}[wrong]
    assert set(disagreeing("elu", Problem(70, 16, 1, causal=True))) >= expected
    assert set(disagreeing("elu", Problem(30, 16, 1, causal=True))) == set(), "one segment has none before or after"


def test_a_later_token_is_noticed() -> None:
    """The full kernel in place of the causal one."""

    def full(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernelized.attend(q, k, v, kernelized.FeatureMap("elu", problem.head_dim, denominator=1e-6))

    assert set(disagreeing("elu", Problem(30, 16, 1, causal=True), full)) == {"output", "q", "k", "v"}
