"""What a kernel is compiled for, declared so that it can be compiled and inspected with no GPU at hand."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attnbench import kernels

SHARED_MEMORY_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that one program may use, by compute capability."""

MOST_REGISTERS = 248
"""Beyond, a thread has all 255 there are: they are given out by eights."""

TRADED = 64
"""Bytes of stack per thread that ptxas may give up where it has registers to spare.

Left to itself it aims at as many programs on a multiprocessor as come close to fitting, so it may stop at 80, 128 or
168 registers and put a few values on the stack that are seldom needed. Told that one may have them all (`maxnreg`),
it fits fewer programs, and not always with less stack. Tiles are too large only where registers have run out.
"""


@dataclass(frozen=True)
class Configuration:
    """One specialisation of a kernel.

    kernel: the `triton.jit` function. signature: the type of each run-time argument, in order ("*bf16", "i32", "i64",
    "fp32"). constexprs: by name. label: what it is for, for a table. sample: whether the tests build it (one or two for
    each kernel; `make kernels` builds all). multiples: whole-number arguments that are multiples of 16 there, such as
    strides, for which the launcher specialises too. capabilities: those that it is launched on.
    """

    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    label: str
    sample: bool = False
    multiples: tuple[str, ...] = ()
    capabilities: tuple[int, ...] = tuple(SHARED_MEMORY_LIMIT)


@dataclass(frozen=True)
class Build:
    """A compiled configuration. stack_bytes: local memory per thread, for what is not kept in registers."""

    configuration: Configuration
    capability: int
    cubin: bytes = field(repr=False)
    registers: int
    shared_bytes: int
    stack_bytes: int

    @property
    def spills(self) -> bool:
        """Whether registers ran out, or more is on the stack than is gained by it (`TRADED`)."""
        return self.stack_bytes > (TRADED if self.registers <= MOST_REGISTERS else 0)

    @property
    def fits(self) -> bool:
        """Whether it spills nothing and takes no more shared memory than there is."""
        return not self.spills and self.shared_bytes <= SHARED_MEMORY_LIMIT[self.capability]


def algorithms() -> list[ModuleType]:
    """The modules of attnbench.kernels that launch Triton kernels of ours, each with `configurations()`; imported."""
    names = [m.name for m in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}.")]
    return [module for module in map(import_module, names) if hasattr(module, "configurations")]


def signature(kernel: Any, types: Mapping[str, str]) -> dict[str, str]:
    """The run-time arguments of a kernel in order, with their type from `types`; what is not there is an "i32"."""
    return {p.name: types.get(p.name, "i32") for p in kernel.params if not p.is_constexpr}


def strided(names: Iterable[str]) -> tuple[str, ...]:
    """Of these arguments those that are multiples of 16 where D is one: it, and the strides (q_n and the like)."""
    return tuple(name for name in names if name == "head_dim" or name[1:2] == "_")


def build(configuration: Configuration, capability: int) -> Build:
    """Compiles to a cubin for a compute capability (80, 90, 100). Not in a process with TRITON_INTERPRET set."""
    names = configuration.kernel.arg_names
    types = {name: configuration.signature.get(name, "constexpr") for name in names}
    missing = [name for name in names if name not in configuration.signature and name not in configuration.constexprs]
    if missing:
        raise ValueError(f"{configuration.label}: no type and no value for {', '.join(missing)}")
    # Tensors that torch allocates are aligned to 16 bytes, which the launcher sees and specialises for.
    special = [i for i, n in enumerate(names) if types[n].startswith("*") or n in configuration.multiples]
    aligned = {(i,): [["tt.divisibility", 16]] for i in special}
    source = ASTSource(configuration.kernel, types, dict(configuration.constexprs), aligned)
    options = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    cubin = compiled.asm["cubin"]
    registers, stack = resources(cubin)
    return Build(configuration, capability, cubin, registers, compiled.metadata.shared, stack)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes of stack per thread, as cuobjdump reads them from a cubin."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of registers: {done.stdout!r}")
    return int(found[1]), int(found[2])
