"""Configurations that kernels are compiled for, so that they can be compiled and inspected without a GPU."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from attnbench import kernels
from attnbench.kernels.machine_code import MachineCode, disassembled, read, run_tool

SHARED_MEMORY_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that one program may use, by compute capability."""

REGISTERS, WARPS, PROGRAMS = 65536, 64, 32
"""Of one multiprocessor: registers, warps and programs."""

RESERVED = 1024
"""Bytes of shared memory that each program takes beside its own, from one kibibyte more than the limit of one."""

WGMMA_ROWS = 64
"""Of a tile that four warps multiply by wgmma."""

MOST_REGISTERS = 248
"""A thread with more has all 255 registers: they are allocated in units of eight."""

TRADED = 64
"""Bytes of stack per thread that are accepted where ptxas has registers to spare.

By default ptxas aims at many programs per multiprocessor, so it may stop at 80, 128 or 168 registers and put a few
seldom needed values on the stack. Allowed all registers (`maxnreg`), it fits fewer programs, and not always with less
stack. Tiles are too large only where registers have run out.
"""


@dataclass(frozen=True)
class Configuration:
    """One specialisation of a kernel.

    Attributes:
        kernel: the `triton.jit` function.
        signature: the type of each run-time argument, in order ("*bf16", "i32", "i64", "fp32").
        constexprs: by name.
        num_warps, num_stages: of the launch.
        label: what it is for, for a table.
        sample: whether the tests build it (one or two of each kernel; `make kernels` builds all).
        multiples: integer arguments that are multiples of 16, such as strides, for which the launcher specialises too.
        capabilities: the compute capabilities on which it is launched.
        registers: the most that a thread may use; None: as ptxas chooses.
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
    registers: int | None = None


@dataclass(frozen=True)
class Build:
    """A compiled configuration.

    Attributes:
        stack_bytes: local memory per thread, for values that are not kept in registers.
        product_rows: of the result of each matrix product in Triton's code, in its order.
    """

    configuration: Configuration
    capability: int
    cubin: bytes = field(repr=False)
    registers: int
    shared_bytes: int
    stack_bytes: int
    product_rows: tuple[int, ...] = ()

    @cached_property
    def code(self) -> MachineCode:
        """What the machine code tells; it is disassembled when this is first read."""
        return read(disassembled(self.cubin))

    @property
    def programs(self) -> int:
        """How many a multiprocessor holds at a time, by registers, shared memory and warps."""
        warps = self.configuration.num_warps
        by_registers = REGISTERS // (-(-max(self.registers, 1) // 8) * 8 * 32 * warps)
        by_memory = (SHARED_MEMORY_LIMIT[self.capability] + RESERVED) // (self.shared_bytes + RESERVED)
        return min(by_registers, by_memory, WARPS // warps, PROGRAMS)

    @property
    def misses_wgmma(self) -> bool:
        """Whether, in half precision on sm_90, tiles of 64 rows or more are multiplied by mma."""
        half = {"*bf16", "*fp16"} & set(self.configuration.signature.values())
        share = self.code.wgmma_share if self.capability == 90 and half else None
        if share is None or max(self.product_rows, default=0) < WGMMA_ROWS:
            return False
        return share < 1 if min(self.product_rows) >= WGMMA_ROWS else share == 0

    @property
    def spills(self) -> bool:
        """Whether registers ran out, or the stack is larger than `TRADED` accepts."""
        return self.stack_bytes > (TRADED if self.registers <= MOST_REGISTERS else 0)

    @property
    def fits(self) -> bool:
        """Whether it spills nothing and its shared memory is within the limit."""
        return not self.spills and self.shared_bytes <= SHARED_MEMORY_LIMIT[self.capability]


def algorithms() -> list[ModuleType]:
    """The modules of attnbench.kernels that launch Triton kernels of ours, each with `configurations()`; imported."""
    names = [m.name for m in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}.")]
    return [module for module in map(import_module, names) if hasattr(module, "configurations")]


def signature(kernel: Any, types: Mapping[str, str]) -> dict[str, str]:
    """The run-time arguments of a kernel in order, with their types; "i32" where `types` has none."""
    return {p.name: types.get(p.name, "i32") for p in kernel.params if not p.is_constexpr}


def strided(names: Iterable[str]) -> tuple[str, ...]:
    """The arguments that are multiples of 16 where D is: D itself, and strides such as q_n."""
    return tuple(name for name in names if name == "head_dim" or name[1:2] == "_")


def build(configuration: Configuration, capability: int) -> Build:
    """Compiles to a cubin for a compute capability (80, 90, 100). Not in a process with TRITON_INTERPRET set."""
    names = configuration.kernel.arg_names
    types = {name: configuration.signature.get(name, "constexpr") for name in names}
    missing = [name for name in names if name not in configuration.signature and name not in configuration.constexprs]
    if missing:
        raise ValueError(f"{configuration.label}: no type and no value for {', '.join(missing)}")
    # The launcher specialises for tensors aligned to 16 bytes, as those that torch allocates are.
    special = [i for i, n in enumerate(names) if types[n].startswith("*") or n in configuration.multiples]
    aligned = {(i,): [["tt.divisibility", 16]] for i in special}
    source = ASTSource(configuration.kernel, types, dict(configuration.constexprs), aligned)
    options = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages, "enable_fp_fusion": True}
    if configuration.registers is not None:
        options["maxnreg"] = configuration.registers
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    cubin = compiled.asm["cubin"]
    registers, stack = resources(cubin)
    rows = tuple(int(rows) for rows in _PRODUCT.findall(compiled.asm["ttir"]))
    return Build(configuration, capability, cubin, registers, compiled.metadata.shared, stack, rows)


_PRODUCT = re.compile(r"= tt\.dot\b.*-> tensor<(?:\d+x)?(\d+)x\d+xf32>")


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes of stack per thread, as cuobjdump reads them from a cubin."""
    printed = run_tool("cuobjdump", cubin, "--dump-resource-usage")
    usage = re.search(r"REG:(\d+) STACK:(\d+)", printed)
    if usage is None:
        raise RuntimeError(f"no registers in the output of cuobjdump: {printed!r}")
    return int(usage[1]), int(usage[2])
