"""The sampled configurations of every kernel, compiled to real machine code for sm_90 with no GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

from attnbench.registry import scan

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("an interpreted kernel cannot be compiled", allow_module_level=True)

if TYPE_CHECKING:
    from attnbench.kernels._configuration import Configuration


def samples() -> Iterator[Configuration]:
    for name in scan("attnbench.kernels"):
        yield from (c for c in import_module(f"attnbench.kernels.{name}").configurations() if c.sample)


def title(configuration: Configuration) -> str:
    return f"{configuration.kernel.__name__} {configuration.label}"


@pytest.mark.parametrize("configuration", list(samples()), ids=title)
def test_compiles_for_hopper_without_spills(configuration: Configuration) -> None:
    from attnbench.kernels._configuration import SHARED_MEMORY_LIMIT, build

    built = build(configuration, 90)
    assert built.cubin.startswith(b"\x7fELF")
    assert built.stack_bytes == 0
    assert built.shared_bytes <= SHARED_MEMORY_LIMIT[90]
    assert 0 < built.registers <= 255


def test_every_kernel_has_a_sample() -> None:
    for name in scan("attnbench.kernels"):
        module = import_module(f"attnbench.kernels.{name}")
        kernels = {c.kernel.__name__ for c in module.configurations()}
        assert kernels == {c.kernel.__name__ for c in module.configurations() if c.sample}, name
        assert kernels, f"{name} declares no configuration"
