"""NATTEN behind stand-ins with the signatures of its version 0.21.6."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.kernels.library import natten
from attnbench.problem import Problem
from attnbench.registry import operators, resolve
from tests.kernels.stand_ins import require_same_signature, stand_in
from tests.operators.small import close, small

SHAPES = (Problem(35, 32, 4, batch=2, kv_heads=2), Problem.image(9, 11, 32, 4, batch=2, kv_heads=2))


def na1d(
    query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, additional_keys=None,
    additional_values=None, attention_kwargs=None, backend=None, q_tile_shape=None, kv_tile_shape=None,
    backward_q_tile_shape=None, backward_kv_tile_shape=None, backward_kv_splits=None, backward_use_pt_reduction=False,
    run_persistent_kernel=True, kernel_schedule=None, torch_compile=False, return_lse=False,
):  # fmt: skip
    assert query.dim() == 4
    return windowed(query, key, value, kernel_size, dilation, scale)


def na2d(
    query, key, value, kernel_size, stride=1, dilation=1, is_causal=False, scale=None, additional_keys=None,
    additional_values=None, attention_kwargs=None, backend=None, q_tile_shape=None, kv_tile_shape=None,
    backward_q_tile_shape=None, backward_kv_tile_shape=None, backward_kv_splits=None, backward_use_pt_reduction=False,
    run_persistent_kernel=True, kernel_schedule=None, torch_compile=False, return_lse=False,
):  # fmt: skip
    assert query.dim() == 5
    return windowed(query, key, value, kernel_size, dilation, scale)


def windowed(q: Tensor, k: Tensor, v: Tensor, kernel: int, dilation: int, scale: float | None) -> Tensor:
    """Dense, [B, …, H, D], by the predicate of NATTEN's FlexAttention backend: the middle of a window is clamped."""
    sides, group = q.shape[1:-2], q.shape[-2] // k.shape[-2]
    allowed = torch.ones(1, 1, dtype=torch.bool)
    for length in sides:
        i = torch.arange(length)
        members = (length - 1 - i % dilation) // dilation + 1
        middle = (i // dilation).clamp(min=kernel // 2).minimum(members - 1 - kernel // 2)
        along = (i[:, None] % dilation == i % dilation) & ((middle[:, None] - i // dilation).abs() <= kernel // 2)
        allowed = torch.einsum("ab,cd->acbd", allowed, along).flatten(0, 1).flatten(1, 2)
    q, k, v = (x.flatten(1, -3).transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = q @ k.transpose(-2, -1) * (scale or q.shape[-1] ** -0.5)
    y: Tensor = scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ v
    return y.transpose(1, 2).unflatten(1, sides)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return stand_in(monkeypatch, "natten", na1d=na1d, na2d=na2d)


def test_the_stand_ins_have_the_signatures_of_the_library() -> None:
    require_same_signature("natten", na1d)
    require_same_signature("natten", na2d)


@pytest.mark.parametrize("problem", SHAPES, ids=lambda problem: problem.size)
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (5, 1), (3, 2)])
def test_it_is_the_same_map(problem: Problem, kernel: int, dilation: int, library: ModuleType) -> None:
    core = small("neighborhood", problem, kernel=kernel, dilation=dilation)
    layer = small("neighborhood", problem, "layer", kernel=kernel, dilation=dilation, bias="none")
    for case in (core, layer):
        assert close(case.impl("cuda"), case.output())
    other = small("neighborhood", problem, kernel=kernel, dilation=3 - dilation)
    assert not close(other.impl("cuda"), core.output())


@pytest.mark.parametrize(
    ("changes", "params", "installed", "words"),
    [
        ({}, {}, True, None),
        ({}, {}, False, "not installed"),
        ({"dtype": "float64"}, {}, True, "no float64"),
        ({"channels": 48}, {}, True, "multiple of 8, not 12"),
        ({}, {"kernel": 1}, True, "at least 2, not 1"),
    ],
)
def test_reasons(
    changes: dict[str, Any], params: dict[str, Any], installed: bool, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(natten, "installed", lambda name: installed and name == "natten.libnatten")
    operator = operators()["neighborhood"].load()
    problem = Problem(64, **{"channels": 64, "heads": 4, "dtype": "bfloat16", **changes})
    unbiased = resolve(operator, {**params, "bias": "none"})
    for form in operator.forms.values():
        reason = form.impls["cuda"].why_not(problem, unbiased, "cuda")
        assert reason is None if words is None else words in str(reason)
    biased = operator.forms["layer"].impls["cuda"].why_not(problem, resolve(operator, params), "cuda")
    assert "bias: none" in str(biased)
