from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.kernels.factorisation import launch
from attnbench.kernels.launching import Tiles
from attnbench.operator import Form
from attnbench.problem import Dtype, Params, Problem, Scope
from attnbench.registry import operators, resolve
from tests.kernels.agreement import disagreements

each_kind = pytest.mark.parametrize("kind", ["nmf", "vq", "cd"])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16, so that every loop runs more than once; two splits of the tokens of a step in one pass."""

    def smaller(tiles: Callable[..., Tiles]) -> Callable[..., Tiles]:
        def sixteen(*args: Any) -> Tiles:
            shipped = tiles(*args)
            sizes = {name: 16 for name in ("BLOCK_N", "BLOCK_D") if name in shipped.constexprs}
            return Tiles({**shipped.constexprs, **sizes}, shipped.warps)

        return sixteen

    for name in ("code_tiles", "gradient_tiles", "sum_tiles", "base_tiles"):
        monkeypatch.setattr(launch, name, smaller(getattr(launch, name)))
    one_pass = launch.step_tiles

    def sixteen_tokens(*args: Any) -> Tiles | None:
        shipped = one_pass(*args)
        return shipped and Tiles({**shipped.constexprs, "BLOCK_N": 16}, shipped.warps)

    monkeypatch.setattr(launch, "step_tiles", sixteen_tokens)
    monkeypatch.setattr(launch, "IN_ONE_PASS", (9,))
    monkeypatch.setattr(launch, "MULTIPROCESSORS", 4)


def form_of(kind: str, scope: Scope = "core", **given: Any) -> tuple[Form, Params]:
    operator = operators()["hamburger"].load()
    return operator.forms[scope], resolve(operator, {"kind": kind, "rank": 11, "steps": 2, "temperature": 0.5, **given})


def disagreeing(
    kind: str, problem: Problem, call: Callable[..., Tensor] | None = None, scope: Scope = "core", **given: Any
) -> dict[str, str]:
    form, params = form_of(kind, scope, **given)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    return disagreements(call or form.impls["cuda"].load(), form, problem, params, inputs)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, "float32") for kind in ("nmf", "vq", "cd")),
        ("nmf", "bfloat16"),
        ("vq", "float16"),
        ("cd", "bfloat16"),
    ],
)
def test_agrees_with_the_reference(kind: str, dtype: str) -> None:
    assert not disagreeing(kind, Problem(37, 21, 1, 2, dtype))


@each_kind
def test_agrees_where_a_step_takes_two_passes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 with more channels than one pass has room for, and with operands in registers.

    Of one sample: where others lie is the same in any of these, and as above.
    """
    monkeypatch.setattr(launch, "MAX_WIDTH", {9: 20})
    assert launch.step_tiles(20, torch.bfloat16)
    assert not launch.step_tiles(21, torch.bfloat16)
    assert not launch.step_tiles(20, torch.float16)
    assert not disagreeing(kind, Problem(37, 21, 1, 1, "bfloat16"))
    monkeypatch.setattr(launch, "IN_ONE_PASS", ())
    monkeypatch.setattr(launch, "MAX_WIDTH", {9: 512})
    assert not launch.one_pass_tiles(21, torch.bfloat16)
    assert not disagreeing(kind, Problem(37, 21, 1, 1, "bfloat16"))
    monkeypatch.setattr(launch, "rank_block", lambda rank, *_: 16)
    assert not disagreeing(kind, Problem(37, 21, 1, 1, "bfloat16"))


@each_kind
def test_agrees_over_many_tiles_forwards_and_backwards(kind: str) -> None:
    assert not disagreeing(kind, Problem(67, 37, 1, 1, "bfloat16"), steps=3, rank=19)


@each_kind
def test_agrees_in_a_layer(kind: str) -> None:
    assert not disagreeing(kind, Problem(19, 20, 1, 2), scope="layer", d=18)


@each_kind
def test_agrees_on_fewer_tokens_than_a_tile_and_one_step(kind: str) -> None:
    assert not disagreeing(kind, Problem(3, 5, 1, 3), steps=1, rank=2)


@each_kind
def test_agrees_where_tokens_are_zero(kind: str) -> None:
    form, params = form_of(kind)
    problem = Problem(21, 17, dtype="bfloat16")
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    inputs.data["x"][:, 3:6] = 0.0
    assert not disagreements(form.impls["cuda"].load(), form, problem, params, inputs)


@each_kind
def test_a_dropped_token_or_step_is_noticed(kind: str) -> None:
    form, params = form_of(kind)

    def short(problem: Problem, params: Params, x: Tensor, bases: Tensor) -> Tensor:
        x = torch.cat((x[:, :-1], x[:, -2:-1]), dim=1)
        return form.impls["cuda"].load()(problem, params, x, bases)

    def hasty(problem: Problem, params: Params, x: Tensor, bases: Tensor) -> Tensor:
        return form.impls["cuda"].load()(problem, {**params, "steps": 1}, x, bases)

    assert set(disagreeing(kind, Problem(35, 16), short)) == {"output", "x"}
    assert set(disagreeing(kind, Problem(35, 16), hasty)) == {"output", "x"}
    assert params["steps"] == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stale_sums_are_noticed(dtype: Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """D updated with the codes of the step before."""
    plain, steps = launch.next_bases, []

    def stale(sums: Tensor, *rest: Any) -> launch.Bases:
        steps.append(sums.clone())
        return plain(steps[max(0, len(steps) - 2)], *rest)

    monkeypatch.setattr(launch, "next_bases", stale)
    assert set(disagreeing("nmf", Problem(35, 16, dtype=dtype))) == {"output", "x"}


def test_half_precision_bases_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cosines over a temperature of 0.01 need more bits than bfloat16 has."""
    plain = launch.next_bases

    def rounded(*args: Any) -> launch.Bases:
        bases = plain(*args)
        bases.operand.unflatten(-1, (-1, 2, 8))[..., 1, :] = 0
        bases.turned.unflatten(1, (-1, 2, 8))[:, :, 1] = 0
        return bases

    monkeypatch.setattr(launch, "next_bases", rounded)
    assert disagreeing("vq", Problem(37, 21, 1, 2, "bfloat16"), temperature=0.01)


@each_kind
def test_the_temperature_of_the_paper(kind: str) -> None:
    assert not disagreeing(kind, Problem(37, 21, 1, 1, "bfloat16"), temperature=0.01)
