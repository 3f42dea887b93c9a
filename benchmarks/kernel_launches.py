"""What the kernels of an operator do at 64 K tokens, counted without a GPU: one line of JSON for each launch.

The impl `cuda` is called, forward and backward, on a CPU, with Triton's interpreter in place of the compiler. Of each
launch four programs are executed (of a few launches all), and what they load, store, multiply and exponentiate is
counted; of torch's own operators the bytes of their operands and results. Sizes: batch 1, 8 heads of 64 channels,
bfloat16; an image of 256 × 256.

Run by `benchmarks/kernels.py`, as a process with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import wraps
from math import prod
from typing import Any

import numpy as np
import torch
import triton.language as tl
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

from attnbench.operator import Operator
from attnbench.problem import Problem
from attnbench.registry import operators, resolve

SAMPLES = tuple((head + part) / 8 for head, part in ((0, 1 / 8), (2, 3 / 8), (4, 5 / 8), (7, 7 / 8)))
"""Where in a launch the programs are that are executed: early and late in heads and, as causal ones differ, within."""

WHOLE = ("attnbench.kernels.sorted_chunks.device.line_kernel",)
"""Launches of which all programs are executed: by what they write, later ones find what they load."""

TORCH = "torch"


@dataclass
class Launch:
    """One launch, or what torch's operators do between two launches.

    Attributes:
        kernel: module and name; `TORCH`.
        programs: of the grid; of `TORCH` how many operators.
        arguments: of the kernel by name: Triton's type of a tensor or number, or the value of a constexpr.
        options: num_warps, num_stages, maxnreg.
        memory_bytes: of the tensors that these programs touch, each once.
        loaded, stored: bytes of an average program.
        flops: of an average program's matrix products; most_flops: of the largest.
        exponentials: exp, log, sin and cos of an average program.
        products: how many matrix products an average program executes.
    """

    kernel: str
    programs: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)
    options: dict[str, int] = field(default_factory=dict)
    memory_bytes: float = 0
    loaded: float = 0
    stored: float = 0
    flops: float = 0
    most_flops: float = 0
    exponentials: float = 0
    products: float = 0


LAUNCHES: list[Launch] = []
STORAGES: list[range] = []
"""The addresses of the tensors of the launch that is executed."""

TOUCHED: set[int] = set()
"""The lowest address of each load and store since the last launch."""

PROGRAM = Launch("")
"""What the program that is executed has done so far."""


def between_launches() -> Launch:
    """The entry of torch's operators since the last launch."""
    if not LAUNCHES or LAUNCHES[-1].kernel != TORCH:
        LAUNCHES.append(Launch(TORCH, 0))
    return LAUNCHES[-1]


class Operators(TorchDispatchMode):
    """Counts torch's operators, and computes no matrix product: nothing here needs its values."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flops = flop_registry.get(function.overloadpacket)
        if flops is None:
            result = function(*args, **(kwargs or {}))
        else:
            shapes = tree_map_only(torch.Tensor, lambda x: x.to("meta"), (args, kwargs or {}))
            shaped = function(*shapes[0], **shapes[1])
            result = tree_map_only(torch.Tensor, lambda x: torch.zeros(x.shape, dtype=x.dtype), shaped)
        is_empty = function.overloadpacket.__name__.startswith(("empty", "new_empty"))
        if is_empty and not result.is_floating_point():
            result.zero_()  # an index that no executed program has written is one
        is_view = any(r.alias_info and not r.alias_info.is_write for r in function._schema.returns)
        if is_view or is_empty or function.overloadpacket.__name__ == "detach":
            return result
        launch = between_launches()
        launch.programs += 1
        launch.memory_bytes += sum(x.nbytes for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor))
        launch.flops += flops(*args, **(kwargs or {}), out_val=result) if flops else 0
        return result


def counted(name: str, count: Callable[..., None]) -> None:
    """Lets a method of the interpreter's builder count its arguments first."""
    plain = getattr(InterpreterBuilder, name)

    @wraps(plain)
    def method(self: Any, *args: Any) -> Any:
        count(*args)
        return plain(self, *args)

    setattr(InterpreterBuilder, name, method)


def moved_bytes(pointers: Any, mask: Any) -> int:
    """Of one load or store, whose lowest address is kept. Raises IndexError where it is outside all tensors."""
    elements = int(np.sum(mask.data))
    if elements:
        places = pointers.data[mask.data]
        low, high = int(np.min(places)), int(np.max(places))
        if not any(low in storage and high in storage for storage in STORAGES):
            raise IndexError("it loads or stores outside the tensors that it is given")
        TOUCHED.add(low)
    return elements * max(1, pointers.get_element_ty().primitive_bitwidth // 8)


def count_load(pointers: Any, mask: Any, *rest: Any) -> None:
    PROGRAM.loaded += moved_bytes(pointers, mask)


def count_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> None:
    PROGRAM.stored += moved_bytes(pointers, mask)


def count_unary(argument: Any, function: Any) -> None:
    if function in (np.exp, np.exp2, np.log, np.log2, np.sin, np.cos):
        PROGRAM.exponentials += argument.data.size


def multiply(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
    """In place of a product: nothing here needs its values."""
    PROGRAM.flops += 2 * a.data.size * b.data.shape[-1]
    PROGRAM.products += 1
    return d


def install() -> None:
    """Counting, and launches of which a few programs are executed, in the interpreter."""
    counted("create_masked_load", count_load)
    counted("create_masked_store", count_store)
    counted("unary_op", count_unary)
    InterpreterBuilder.create_dot = multiply
    plain = GridExecutor.__call__
    patched = interpreter._patch_lang
    done: set[frozenset[str]] = set()

    def patch_once(fn: Any) -> Any:  # it would patch all of triton.language at every call of a device function
        modules = frozenset(value.__name__ for value in fn.__globals__.values() if value in (tl, tl.core))
        if modules not in done:
            patched(fn)
            done.add(modules)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        grid = (*self.grid, 1, 1)[:3]
        LAUNCHES.append(begun(self, grid, args, kwargs))
        with torch.utils._python_dispatch._disable_current_modes(), programs_of(self, grid, LAUNCHES[-1]):
            tensors = {x.data_ptr(): x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)}
            TOUCHED.clear()
            STORAGES[:] = [addresses(x.untyped_storage()) for x in tensors.values()]
            plain(self, *args, **kwargs)
        LAUNCHES[-1].memory_bytes = sum(x.nbytes for start, x in tensors.items() if reached(x, start))

    GridExecutor.__call__ = launch


def addresses(storage: torch.UntypedStorage) -> range:
    """Those of its bytes."""
    return range(storage.data_ptr(), storage.data_ptr() + storage.nbytes())


def reached(x: torch.Tensor, start: int) -> bool:
    """Whether a program loaded from a tensor or stored to it."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return any(start <= address < start + span * x.element_size() for address in TOUCHED)


def begun(executor: Any, grid: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Launch:
    """A launch of which nothing is counted yet."""
    given = {**dict(zip(executor.arg_names, args, strict=False)), **kwargs}
    options = {name: given.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in given}
    constexprs = set(executor.constexprs)
    return Launch(
        f"{executor.fn.__module__}.{executor.fn.__name__}",
        prod(grid),
        {name: argument(value, name in constexprs) for name, value in given.items()},
        options,
    )


def argument(value: Any, is_constexpr: bool) -> Any:
    """The type of a run-time argument, as [type, whether it is a multiple of 16]; a constexpr's value."""
    if isinstance(value, torch.Tensor):
        return [TYPES[value.dtype], True]
    if isinstance(value, tl.core.dtype):
        return {"dtype": str(value)}
    if is_constexpr or isinstance(value, bool) or (value == 1 and isinstance(value, int)):
        return value.value if isinstance(value, tl.constexpr) else value
    if isinstance(value, float):
        return ["fp32", False]
    return ["i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0]


TYPES = {
    torch.bool: "*i1",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
}
"""Triton's names of pointers."""


@contextmanager
def programs_of(executor: Any, grid: tuple[int, ...], launch: Launch) -> Iterator[None]:
    """Within, the interpreter executes a sample of the grid, and what it does is averaged in the launch."""
    global PROGRAM
    total = launch.programs
    whole = launch.kernel in WHOLE
    sample = list(range(total)) if whole else sorted({int(total * place) for place in SAMPLES})
    builder, executor.grid, done = interpreter.interpreter_builder, (len(sample), 1, 1), []
    set_dim, set_idx = InterpreterBuilder.set_grid_dim, InterpreterBuilder.set_grid_idx

    def of_sample(x: int, y: int, z: int) -> None:
        global PROGRAM
        PROGRAM = Launch("")
        done.append(PROGRAM)
        index = sample[x]
        # The interpreter goes through x first; a GPU's order does not matter here.
        set_idx(builder, index % grid[0], index // grid[0] % grid[1], index // grid[0] // grid[1])

    builder.set_grid_dim = lambda *_: set_dim(builder, *grid)
    builder.set_grid_idx = of_sample
    try:
        yield
    finally:
        del builder.set_grid_dim, builder.set_grid_idx
    for name in ("loaded", "stored", "flops", "exponentials", "products"):
        setattr(launch, name, sum(getattr(program, name) for program in done) / len(done))
    launch.most_flops = max(program.flops for program in done)


def problem_of(operator: Operator, causal: bool) -> Problem:
    """64 K tokens."""
    sizes: dict[str, Any] = {"channels": 512, "heads": 8, "dtype": "bfloat16"}
    image = "sequence" not in operator.domains
    return Problem.image(256, 256, **sizes) if image else Problem(2**16, causal=causal, **sizes)


def launches(name: str, params: dict[str, Any], causal: bool) -> dict[str, list[Launch]]:
    """Those of a forward that keeps what its backward needs, and those of the backward."""
    operator = operators()[name].load()
    problem = problem_of(operator, causal)
    form, resolved = operator.forms["core"], resolve(operator, params)
    inputs = form.make_inputs(problem, resolved, torch.Generator().manual_seed(0))
    wanted = {key: x.detach().requires_grad_() for key, x in inputs.differentiated().items()}
    call = form.impls["cuda"].load()
    parts: dict[str, list[Launch]] = {}
    with Operators():
        LAUNCHES.clear()
        y = call(problem, resolved, **wanted, **inputs.choices)
        parts["fwd"] = [*LAUNCHES]
        dy = torch.zeros_like(y)
        LAUNCHES.clear()
        torch.autograd.grad(y, list(wanted.values()), dy)
        parts["bwd"] = [*LAUNCHES]
    return parts


def main() -> None:
    """Reads a JSON list of [operator, params, causal] from the command line."""
    install()
    for name, params, causal in json.loads(sys.argv[1]):
        try:
            parts = launches(name, params, causal)
        except Exception as error:  # what cannot be counted is said, and the rest goes on
            launch = LAUNCHES[-1].kernel if LAUNCHES else "before any launch"
            print(json.dumps([name, params, causal, f"{launch}: {type(error).__name__}: {error}"]), flush=True)
            continue
        lists = {part: [asdict(launch) for launch in found] for part, found in parts.items()}
        print(json.dumps([name, params, causal, lists]), flush=True)


if __name__ == "__main__":
    main()
