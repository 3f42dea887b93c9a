"""Every impl of every operator on a CUDA device: both modes, the working dtypes, against the reference in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from attnbench.kernels.library.graphs import NAME as GRAPH
from attnbench.operator import Impl, Inputs
from attnbench.problem import Cell, Dtype, Problem, Scope
from attnbench.registry import device_type_of, outside_definition, resolve, why_not
from tests.kernels.agreement import disagreements
from tests.variants import Variant, sources, variants

NO_DEVICE = None if torch.cuda.is_available() else "no CUDA device is available to torch"

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NO_DEVICE is not None, reason=str(NO_DEVICE))]


TF32_EPS = 2 * torch.finfo(torch.float16).eps
"""TF32 has as many bits, to which tensor cores cut both factors where float16 is rounded. A reference whose sums are no
matrix products makes no such error of its own."""

FLOAT32 = 1.5
"""In float32 a kernel that makes probabilities again from the logarithm of their sum loses |logits| · eps, and a GPU's
exponentials are not the best float32 ones."""


def later(steps: int, *values: Any, id: str) -> Any:
    """Values of a parameter whose tests come so many steps after the most telling ones."""
    return pytest.param(*values, id=id, marks=pytest.mark.later(steps))


WORKING = [
    later(0, "bfloat16", False, id="bfloat16"),
    later(2, "float16", False, id="float16"),
    later(2, "float32", False, id="float32"),
    later(2, "float32", True, id="tf32"),
]
HEAD_DIMS = [later(4, size, id=str(size)) for size in (16, 64, 80, 128, 256)]


def cases(*scopes: Scope) -> list[Any]:
    """Every impl of every variant that has gradients (graphs have none, and tests/kernels/test_graphs.py of their own);
    the kernels in the core of the operator's default kind come first. One stands for all where none can run: to collect
    and to skip thousands takes half a minute.
    """
    every = [
        pytest.param(variant, name, id=f"{variant}-{name}", marks=markers(variant, name))
        for variant in variants()
        for name in sorted(variant.form.impls)
        if variant.scope in scopes and name != GRAPH
    ]
    return every if NO_DEVICE is None else every[:1]


def markers(variant: Variant, impl: str) -> tuple[Any, ...]:
    is_default = variant.params == resolve(variant.operator, {})
    steps = (impl != "cuda", 8 * (not is_default), 16 * (variant.scope == "layer"))
    return pytest.mark.later(sum(steps)), pytest.mark.code(sources()[variant.name].location)


each_impl = pytest.mark.parametrize(("variant", "impl"), cases("core", "layer"))
each_core = pytest.mark.parametrize(("variant", "impl"), cases("core"))


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether float32 products on CUDA may be TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def prepared(variant: Variant, impl: str, problem: Problem) -> tuple[Impl, Inputs, bool]:
    """The impl, inputs on the device, whether it has gradients; skips with the reason where it cannot run."""
    cell = Cell(variant.name, impl, variant.scope, "fwd_bwd", problem, variant.params)
    backward = why_not(variant.operator, cell, "cuda") is None
    reason = why_not(variant.operator, replace(cell, mode="fwd"), "cuda")
    if reason is not None:
        pytest.skip(reason)
    generator = torch.Generator("cuda").manual_seed(0)
    return variant.form.impls[impl], variant.form.make_inputs(problem, variant.params, generator), backward


def check(variant: Variant, impl: str, problem: Problem, allow_tf32: bool = False) -> None:
    with tf32(allow_tf32):
        chosen, inputs, backward = prepared(variant, impl, problem)
    factor = 1.0 if variant.operator.tolerance is None else variant.operator.tolerance[0]
    factor *= 1.0 if problem.dtype != "float32" else FLOAT32 if not allow_tf32 else 2 * FLOAT32
    call = chosen.load()
    with tf32(allow_tf32):
        with torch.inference_mode():
            forward = call(problem, variant.params, **inputs.tensors())
        assert forward.isfinite().all()
        eps = TF32_EPS if allow_tf32 else None
        found = disagreements(call, variant.form, problem, variant.params, inputs, backward, factor, eps)
        assert found == {}


@each_impl
@pytest.mark.parametrize(("dtype", "allow_tf32"), WORKING)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_agrees_with_the_reference(variant: Variant, impl: str, dtype: Dtype, allow_tf32: bool, causal: bool) -> None:
    problem = variant.problem((19, 23), channels=96, heads=3, batch=2, dtype=dtype, causal=causal)
    check(variant, impl, problem, allow_tf32)


@each_core
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_agrees_at_every_head_dim(variant: Variant, impl: str, head_dim: int) -> None:
    check(variant, impl, variant.problem((13, 21), channels=head_dim, heads=1, batch=1, dtype="bfloat16"))


@each_core
def test_agrees_across_many_blocks(variant: Variant, impl: str) -> None:
    for causal in (False, True):
        problem = variant.problem((61, 67), channels=64, heads=2, batch=1, dtype="bfloat16", causal=causal)
        if outside_definition(variant.operator, problem, variant.params, variant.scope) is None:
            check(variant, impl, problem)


OFFSETS = [case for case in cases("core") if device_type_of(case.values[1]) == "cuda"]


@pytest.mark.alone
@pytest.mark.parametrize(("variant", "impl"), OFFSETS)
def test_a_million_tokens_do_not_overflow_an_index(variant: Variant, impl: str) -> None:
    """The last of 2²⁰ tokens lies beyond 2³¹ elements. Only for what stays linear in memory and time."""
    complexity = variant.operator.complexity(variant.params)
    if complexity.time not in ("n", "n log n") or complexity.memory not in ("0", "1", "n"):
        pytest.skip(f"{complexity.time} in time, {complexity.memory} in memory")
    if torch.cuda.get_device_properties(0).total_memory < 100e9:
        pytest.skip("needs 100 GB of device memory")
    given: dict[str, Any] = {"channels": 2304, "heads": 18, "batch": 1, "dtype": "bfloat16"}
    large = variant.problem((1024, 1024), **given)
    assert large.seq_len * large.channels > 2**31
    chosen, inputs, _ = prepared(variant, impl, large)
    with torch.inference_mode():
        output = chosen.load()(large, variant.params, **inputs.tensors())
    assert output.isfinite().all()
    assert output.flatten()[-64:].abs().max() > 0, "the last tokens were written"
