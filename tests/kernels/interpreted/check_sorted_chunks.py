from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.kernels.launching import Tiles
from attnbench.kernels.sorted_chunks import device, launch
from attnbench.operators.clustered.reformer import OPERATOR, sort
from attnbench.problem import Problem
from attnbench.registry import resolve
from tests.kernels.agreement import disagreements
from tests.kernels.interpreted.check_kernelized import far_apart

CORE = OPERATOR.forms["core"]
EACH_WAY: list[dict[str, Any]] = [
    {"n_hashes": 3},
    {"n_hashes": 1},
    {"repeats": "counted"},
    {"sees": "chunk"},
    {"hashing": "inside"},
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles in a chunk, so that every loop runs more than once."""
    for name in ("attend_tiles", "gradient_tiles"):
        plain = getattr(launch, name)

        def smaller(*args: Any, plain: Any = plain) -> Tiles:
            tiles = plain(*args)
            return replace(tiles, constexprs={**tiles.constexprs, "BLOCK": 16, "WIDTH": 16})

        monkeypatch.setattr(launch, name, smaller)


def disagreeing(
    problem: Problem, given: dict[str, Any] | None = None, call: Callable[..., Tensor] | None = None
) -> dict[str, str]:
    params = resolve(OPERATOR, {"chunk": 17, "n_hashes": 2, **(given or {})})
    inputs = CORE.make_inputs(problem, params, torch.Generator().manual_seed(0))
    return disagreements(call or CORE.impls["cuda"].load(), CORE, problem, params, inputs)


@pytest.mark.parametrize(
    ("given", "causal"), [*((given, False) for given in EACH_WAY), (EACH_WAY[0], True), (EACH_WAY[2], True)], ids=str
)
def test_agrees_with_the_reference(given: dict[str, Any], causal: bool) -> None:
    """Causal forms of one round are among the few tokens below, those that see a chunk along the strips; hashing inside
    has none."""
    assert not disagreeing(Problem(41, 19, causal=causal), given)


@pytest.mark.parametrize(("dtype", "n_hashes"), [("bfloat16", 2), ("float16", 1)])
def test_agrees_in_half_precision(dtype: Any, n_hashes: int) -> None:
    """Along strips of three spans of 51 tokens: both words of the keys that a query counts are written and read."""
    assert not disagreeing(Problem(109, 19, 1, 1, dtype), {"n_hashes": n_hashes})


@pytest.fixture
def short_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 places hold three chunks of 5."""
    monkeypatch.setattr(launch, "STRIP", 16)


STRIPS: list[tuple[int, dict[str, Any], bool]] = [
    (71, {"n_hashes": 3}, False),
    (71, {"n_hashes": 3}, True),
    (64, {"n_hashes": 1}, True),
    (64, {"n_hashes": 1, "sees": "chunk"}, True),
    (64, {"n_hashes": 2, "sees": "chunk", "repeats": "counted"}, False),
]


@pytest.mark.usefixtures("short_strips")
@pytest.mark.parametrize(("n", "given", "causal"), STRIPS, ids=str)
def test_agrees_along_strips(n: int, given: dict[str, Any], causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several spans in a strip and several strips in a line."""
    lines = 2 * given["n_hashes"]
    monkeypatch.setattr(launch, "PROGRAMS", lines + 1)
    tiles = launch.strip_tiles(9, 5, given["n_hashes"], torch.bfloat16)
    assert tiles is not None
    (programs,), (span, length) = launch.strips(n, 5, lines, tiles)
    assert programs > lines
    assert (span, length) in ((15, 3), (15, 4))
    assert not disagreeing(Problem(n, 2 * 9, 2, 1, "bfloat16", causal), {"chunk": 5, **given})


@pytest.mark.usefixtures("short_strips")
@pytest.mark.parametrize("changes", [{"repeats": "counted"}, {"sees": "chunk"}, {"chunk": 4}], ids=str)
def test_another_rule_along_strips_is_noticed(changes: dict[str, Any]) -> None:
    problem = Problem(41, 16, dtype="bfloat16")
    assert set(disagreeing(problem, {"chunk": 5}, altered(**changes))) == {"output", "qk", "v"}


@pytest.mark.parametrize("n_hashes", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 13])
def test_agrees_on_few_and_lonely_tokens(n: int, n_hashes: int) -> None:
    """In bfloat16: where a query sees one key its gradient is 0, exactly in the reference, to rounding here."""
    assert not disagreeing(Problem(n, 16, 1, 2, "bfloat16", causal=True), {"n_hashes": n_hashes, "chunk": 3})


def test_takes_the_strides_of_a_layer() -> None:
    def strided(problem: Problem, params: Any, **tensors: Tensor) -> Tensor:
        apart = {
            k: x.transpose(1, 2).contiguous().transpose(1, 2) if x.is_floating_point() else x
            for k, x in tensors.items()
        }
        return CORE.impls["cuda"].load()(problem, params, **apart)

    assert not disagreeing(Problem(13, 2 * 16, 2, 2), {"chunk": 6}, strided)


def altered(**changes: Any) -> Callable[..., Tensor]:
    """The kernel told another thing than the operator says."""

    def call(problem: Problem, params: Any, qk: Tensor, v: Tensor, **choices: Tensor) -> Tensor:
        return CORE.impls["cuda"].load()(problem, {**params, **changes}, qk, v, **choices)

    return call


@pytest.mark.parametrize("changes", [{"repeats": "counted"}, {"sees": "chunk"}, {"chunk": 16}], ids=str)
def test_another_rule_is_noticed(changes: dict[str, Any]) -> None:
    assert set(disagreeing(Problem(41, 16), {"n_hashes": 2}, altered(**changes))) == {"output", "qk", "v"}


def test_the_keys_length_is_noticed_in_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(*args: Any, plain: Any = launch.gradients) -> Any:
        dqk, dv = plain(*args)
        return dqk * 1.01, dv

    monkeypatch.setattr(launch, "gradients", doubled)
    assert set(disagreeing(Problem(41, 16), {"n_hashes": 2})) == {"qk"}


def test_kernels_are_interpreted() -> None:
    assert "Interpreted" in type(device.attend_kernel).__name__
    assert launch.strip_tiles(64, 64, 4, torch.float16)
    assert not any(
        launch.strip_tiles(d, chunk, rounds, dtype)
        for d, chunk, rounds, dtype in (
            (64, 64, 4, torch.float32),
            (65, 64, 4, torch.float16),
            (64, 65, 4, torch.float16),
            (64, 64, 9, torch.float16),
        )
    )


@pytest.mark.parametrize(("by_bucket", "most"), [(False, 8), (True, 8), (True, 2**14), (True, 2**30)])
def test_lines_are_those_of_the_reference(by_bucket: bool, most: int) -> None:
    """Keys of 16, 32 and 64 bits."""
    buckets = torch.randint(0, 8, (2, 3, 3, 37), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    order, label = launch.lines(buckets, most, launch.Seeing(5, False, True, by_bucket))
    expected, _, labels = sort(resolve(OPERATOR, {"sees": "bucket" if by_bucket else "chunk"}), buckets, 5)
    assert torch.equal(order, expected.int())
    assert label.shape == (2, 3, 37, 4)
    for mine, theirs in zip(label.movedim(-1, 0)[:3], labels.movedim(2, 0), strict=True):
        near, same = ((x.unsqueeze(-1) - x.unsqueeze(-2)) // 2 == 0 for x in (mine, theirs))
        assert torch.equal(near, same)


def test_offsets_beyond_32_bits(tmp_path: Path) -> None:
    """Tokens 2³⁰ elements apart, so that the last lies beyond 2³¹ elements."""
    problem = Problem(4, 16, dtype="bfloat16")
    params = resolve(OPERATOR, {"chunk": 2, "n_hashes": 2})
    inputs = CORE.make_inputs(problem, params, torch.Generator().manual_seed(0))
    call = CORE.impls["cuda"].load()
    data = {name: far_apart(x, 2**30, tmp_path / name) for name, x in inputs.data.items()}
    output = call(problem, params, **data, **inputs.parameters, **inputs.choices)
    assert torch.equal(output, call(problem, params, **inputs.tensors()))
