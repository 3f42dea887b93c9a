"""The sampled configurations of every kernel, compiled to real machine code for sm_90 with no GPU."""

from __future__ import annotations

import ast
import os
import pkgutil
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

from attnbench import kernels

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("an interpreted kernel cannot be compiled", allow_module_level=True)

from attnbench.kernels.building import Configuration, algorithms  # noqa: E402


def samples() -> Iterator[Configuration]:
    for module in algorithms():
        yield from (c for c in module.configurations() if c.sample)


def title(configuration: Configuration) -> str:
    return f"{configuration.kernel.__name__} {configuration.label}"


@pytest.mark.parametrize("configuration", list(samples()), ids=title)
def test_compiles_for_hopper_without_spills(configuration: Configuration) -> None:
    from attnbench.kernels.building import build

    built = build(configuration, 90)
    assert built.cubin.startswith(b"\x7fELF")
    assert built.fits
    assert 0 < built.registers <= 255


def methods_of_numbers(kernel: Any) -> list[str]:
    """Run-time arguments of which the kernel calls a method: Triton takes one that is 1 for a number, without any."""
    unspecialised = {kernel.arg_names[i] for i in kernel.do_not_specialize if isinstance(i, int)}
    unspecialised |= {name for name in kernel.do_not_specialize if isinstance(name, str)}
    numbers = {p.name for p in kernel.params if not p.is_constexpr} - unspecialised
    calls = (node.func for node in ast.walk(ast.parse(textwrap.dedent(kernel.src))) if isinstance(node, ast.Call))
    methods = (call.value for call in calls if isinstance(call, ast.Attribute))
    return sorted({value.id for value in methods if isinstance(value, ast.Name) and value.id in numbers})


def test_no_argument_that_may_be_1_has_a_method_called() -> None:
    kernels_of_ours = {c.kernel.__name__: c.kernel for module in algorithms() for c in module.configurations()}
    assert len(kernels_of_ours) > 20
    assert {name: names for name, kernel in kernels_of_ours.items() if (names := methods_of_numbers(kernel))} == {}


def test_a_method_of_an_argument_is_noticed() -> None:
    gradient = next(c.kernel for c in samples() if c.kernel.__name__ == "matrix_gradient_kernel")
    specialised = triton.jit(gradient.fn)
    assert methods_of_numbers(specialised) == ["heads"]


def test_what_does_not_fit() -> None:
    from attnbench.kernels.building import SHARED_MEMORY_LIMIT, Build

    (configuration, *_) = samples()
    build = partial(Build, configuration, 80, b"")
    limit = SHARED_MEMORY_LIMIT[80]
    assert build(255, limit, 0).fits
    assert build(128, limit, 64).fits  # ptxas had registers to spare
    assert not build(128, limit, 72).fits
    assert not build(255, limit, 8).fits
    assert not build(255, limit + 1, 0).fits


def test_a_tile_too_large_spills() -> None:
    from attnbench.kernels.building import build

    answer = next(c for c in samples() if c.kernel.__name__ == "answer_kernel")
    larger = replace(answer, constexprs={**answer.constexprs, "BLOCK_N": 512})
    assert build(larger, 90).spills


@pytest.mark.parametrize("module", algorithms(), ids=lambda module: module.__name__)
def test_every_kernel_has_a_sample(module: ModuleType) -> None:
    declared = list(module.configurations())
    assert {c.kernel.__name__ for c in declared} == {c.kernel.__name__ for c in declared if c.sample}
    assert declared


def test_every_kernel_is_declared() -> None:
    written = {
        name
        for file in pkgutil.walk_packages(kernels.__path__, "attnbench.kernels.")
        for name, value in vars(import_module(file.name)).items()
        if isinstance(value, triton.JITFunction) and name.endswith("_kernel")
    }
    assert written == {c.kernel.__name__ for module in algorithms() for c in module.configurations()}
