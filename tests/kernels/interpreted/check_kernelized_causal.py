from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """Several segments, chunks, blocks of a chunk, tiles of features and of channels at a small N."""
    if not shipped:
        set_tiles(monkeypatch, BLOCK_N=16, BLOCK_M=16, BLOCK_V=16, CHUNK=32)
        monkeypatch.setattr(causal, "LEAST_CHUNKS", 2)


def set_tiles(monkeypatch: pytest.MonkeyPatch, **sizes: int) -> None:
    def resized(tiles: Callable[..., Tiles | None], sizes: dict[str, int]) -> Callable[..., Tiles | None]:
        def changed(*args: Any, **kwargs: Any) -> Tiles | None:
            before = tiles(*args, **kwargs)
            return before and Tiles({**before.constexprs, **sizes}, before.warps, before.stages)

        return changed

    for name in ("scan_tiles", "state_tiles"):
        monkeypatch.setattr(causal, name, resized(getattr(causal, name), sizes))
    tokens = {name: sizes[name] for name in ("CHUNK", "BLOCK_N") if name in sizes}  # all features are one tile
    monkeypatch.setattr(causal, "walk_tiles", resized(causal.walk_tiles, tokens))


def disagreeing(
    features: str, problem: Problem, call: Callable[..., Tensor] | None = None, seed: int = 0
) -> dict[str, str]:
    form, params = form_of(features)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(seed))
    return disagreements(call or form.impls["cuda"].load(), form, problem, params, inputs)


@pytest.mark.parametrize(
    ("features", "tokens", "dtype"),
    [
        *((each, 67, "float32") for each in CASES),
        ("relu", 37, "bfloat16"),
        ("fourier", 67, "bfloat16"),
        ("exp", 37, "float16"),
    ],
)
def test_agrees_with_the_reference(features: str, tokens: int, dtype: str) -> None:
    """In two segments, of two chunks and one, and one; the maps themselves are tried in float16 without an order.

    Of fourier in bfloat16 a program walks through the chunks.
    """
    assert not disagreeing(features, Problem(tokens, 23, 1, 1, dtype, causal=True))


@pytest.mark.parametrize("features", ["exp"])
def test_longer_segments_where_many_programs_share_one(features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five chunks in segments of three and two: four programs of eight warps to each, and room for sixty warps."""
    set_tiles(monkeypatch, CHUNK=16)
    monkeypatch.setattr(causal, "WARPS", 60)
    assert causal.segments_of(5, 4 * 8) == 2
    problem = Problem(67, 23, 1, 1, "bfloat16", causal=True)
    assert not disagreeing(features, problem)
    monkeypatch.setattr(causal, "chunks_per_segment", lambda states: 5)  # all chunks of one segment
    assert disagreeing(features, problem)


@pytest.mark.parametrize("features", ["exp"])
def test_channels_a_width_at_a_time(features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fourier they are so in the tiles that are shipped."""
    set_tiles(monkeypatch, WIDTH=16)
    assert not disagreeing(features, Problem(35, 23, 1, 1, causal=True))


@pytest.mark.parametrize("features", ["elu", "fourier"])
def test_a_chunk_of_one_block(features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And in the largest segments."""
    set_tiles(monkeypatch, CHUNK=16)
    monkeypatch.setattr(causal, "LEAST_CHUNKS", 100)
    assert not disagreeing(features, Problem(37, 23, 1, 1, causal=True))


@pytest.mark.parametrize("shipped", [True])
@pytest.mark.parametrize(("features", "dtype"), [("elu", "bfloat16"), ("exp", "bfloat16"), ("fourier", "float32")])
def test_the_tiles_that_are_shipped(features: str, dtype: str, shipped: bool) -> None:
    """With more channels than a product of float32 takes at a time; of inputs of which the reference's own error, which
    the bound is made of, is not small by chance.
    """
    assert not disagreeing(features, Problem(19, 72, 1, 1, dtype, causal=True), seed=1)


@pytest.mark.parametrize("features", ["elu", "exp"])
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


@pytest.mark.parametrize(
    ("features", "dtype", "reverse"),
    [("elu", "float32", False), ("elu", "float32", True), ("fourier", "bfloat16", False)],
)
def test_segments_left_to_themselves_are_noticed(
    features: str, dtype: str, reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = causal.segment_sums

    def sums(*args: Any, **kwargs: bool) -> tuple[Tensor, Tensor]:
        state, normaliser = plain(*args, **kwargs)
        wrong = kwargs["reverse"] == reverse
        return (torch.zeros_like(state), torch.zeros_like(normaliser)) if wrong else (state, normaliser)

    monkeypatch.setattr(causal, "segment_sums", sums)
    expected = {"k", "v"} if reverse else {"output", "q"}
    assert set(disagreeing(features, Problem(70, 16, 1, 1, dtype, causal=True))) >= expected
    alone = set(disagreeing(features, Problem(30, 16, 1, 1, dtype, causal=True)))
    assert alone == set(), "one segment has none before or after"


@pytest.mark.parametrize("reverse", [False, True])
def test_sums_of_many_segments(reverse: bool) -> None:
    """More than a program takes at a time, and elements that are no multiple of its block."""
    generator = torch.Generator().manual_seed(0)
    state, normaliser = (torch.randn(35, *shape, generator=generator) for shape in ((2, 5, 16), (2, 5)))
    for x, summed in zip(
        (state, normaliser), causal.segment_sums(state, normaliser, torch.float32, reverse), strict=True
    ):
        expected = x.flip(0).cumsum(0).flip(0) - x if reverse else x.cumsum(0) - x
        torch.testing.assert_close(summed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lost", [0, 2])
def test_a_lost_state_is_noticed(lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the segment's chunks before, or of the segments before."""
    plain = causal.chunk_states

    def states(*args: Any) -> Sequence[Tensor]:
        return [torch.zeros_like(x) if i == lost else x for i, x in enumerate(plain(*args))]

    monkeypatch.setattr(causal, "chunk_states", states)
    assert set(disagreeing("elu", Problem(70, 16, 1, causal=True))) == {"output", "q", "k", "v"}


def test_a_lost_state_of_a_walk_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers do not read it, the queries' gradients do."""
    plain = causal.walk

    def walk(*args: Any) -> tuple[Tensor, Any, Sequence[Tensor]]:
        y, saved, states = plain(*args)
        return y, saved, [torch.zeros_like(x) for x in states]

    monkeypatch.setattr(causal, "walk", walk)
    assert {"q"} <= set(disagreeing("fourier", Problem(70, 16, 1, 1, "bfloat16", causal=True))) <= {"q", "k", "v"}


def test_a_later_token_is_noticed() -> None:
    """The full kernel in place of the causal one."""

    def full(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernelized.attend(q, k, v, kernelized.FeatureMap("elu", problem.head_dim, denominator=1e-6))

    assert set(disagreeing("elu", Problem(30, 16, 1, causal=True), full)) == {"output", "q", "k", "v"}
