"""y_i = 2 x_i + x_{i−1} (x_{−1} = x_{N−1}), and impls that fail to compute it, each in its own way.

Nobody, "How benchmarks go wrong".
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Generator, Tensor

from attnbench.cost import product, traffic
from attnbench.inputs import tokens
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.problem import Mode, Params, Problem


def reference(problem: Problem, params: Params, x: Tensor) -> Tensor:
    """x: [B, N, C]. Returns [B, N, C]."""
    return 2 * x + x.roll(1, dims=1)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1)."""
    return Inputs(tokens(problem, generator, "x"))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """No products."""
    size = problem.batch * problem.seq_len * problem.channels
    moved = traffic(problem, mode, read=size, written=size)
    return Cost(flops=product(0, mode), reference_flops=0, elementwise=2 * size, bytes_required=moved)


def honest(problem: Problem, params: Params, x: Tensor) -> Tensor:
    return x.roll(1, dims=1) + x + x


def prints(problem: Problem, params: Params, x: Tensor) -> Tensor:
    print('{"id": 1, "status": "ok"}', flush=True)
    os.write(2, b"noise\n")
    return honest(problem, params, x)


_by_shape: dict[Any, Tensor] = {}
_by_place: dict[Any, Tensor] = {}
_calls = 0


def caches(problem: Problem, params: Params, x: Tensor) -> Tensor:
    return _by_shape.setdefault((x.shape, x.dtype), honest(problem, params, x.detach()))


def caches_by_place(problem: Problem, params: Params, x: Tensor) -> Tensor:
    """Right for every tensor it has not seen: only a change in place shows it."""
    place = (x.data_ptr(), x.shape, x.dtype)
    if place not in _by_place:
        _by_place[place] = honest(problem, params, x)
    return _by_place[place].clone()


def decays(problem: Problem, params: Params, x: Tensor) -> Tensor:
    global _calls
    _calls += 1
    return honest(problem, params, x) if _calls < 60 else x


def off_by_one(problem: Problem, params: Params, x: Tensor) -> Tensor:
    return 2 * x + x.roll(-1, dims=1)


def nan(problem: Problem, params: Params, x: Tensor) -> Tensor:
    return _with_one(honest(problem, params, x), math.nan)


def infinite(problem: Problem, params: Params, x: Tensor) -> Tensor:
    return _with_one(honest(problem, params, x), math.inf)


def _with_one(y: Tensor, value: float) -> Tensor:
    """y, with another value in its last place."""
    last = torch.zeros_like(y)
    last.view(-1)[-1] = value
    return y + last


def other_shape(problem: Problem, params: Params, x: Tensor) -> Tensor:
    return honest(problem, params, x)[:, 1:]


def takes_memory(problem: Problem, params: Params, x: Tensor) -> Tensor:
    """Passes on fake tensors, and then wants more than the worker may have."""
    if type(x) is Tensor:
        kept = [torch.ones(2**24) for _ in range(2**10)]  # 64 MiB each
        return honest(problem, params, x) + kept[0][0] * 0
    return honest(problem, params, x)


def takes_gpu_memory(problem: Problem, params: Params, x: Tensor) -> Tensor:
    """What torch raises where a GPU has no room."""
    if type(x) is Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB")
    return honest(problem, params, x)


def fills_gpu_memory(problem: Problem, params: Params, x: Tensor) -> Tensor:
    """Takes all that a CUDA device has."""
    kept = []
    while x.is_cuda and type(x) is Tensor:
        kept.append(x.new_zeros(2**26))
    return honest(problem, params, x)


def reads_outside(problem: Problem, params: Params, x: Tensor) -> Tensor:
    """An index beyond the end, which a CUDA device notices after the call, and then its context is lost."""
    if x.is_cuda and type(x) is Tensor:
        x = x + x.flatten()[torch.full((1,), 2**30, device=x.device)]
    return honest(problem, params, x)


def needs_memory(problem: Problem, params: Params, x: Tensor) -> Tensor:
    """Says by its shapes how much it wants: it is never tried."""
    return honest(problem, params, x) + x.new_zeros(2**40)[0]


def exits(problem: Problem, params: Params, x: Tensor) -> Tensor:
    os._exit(3)


class Unspeakable(Exception):
    """Raises where it is asked for its text."""

    def __str__(self) -> str:
        raise ValueError("no")

    __repr__ = __str__


class Textless(Exception):
    """Gives a text that is none."""

    def __str__(self) -> str:
        return 3  # type: ignore[return-value]


class OwnBase(BaseException):
    """No Exception."""


def deep(n: int = 0) -> int:
    return deep(n + 1) + 1


RAISED: dict[str, Callable[[], BaseException]] = {
    "raises": lambda: RuntimeError("it cannot"),
    "raises_surrogate": lambda: RuntimeError("a lone \ud800, an escape \x1b[31m, a turn \u202e"),
    "raises_unspeakable": Unspeakable,
    "raises_textless": Textless,
    "raises_enormous": lambda: RuntimeError("long " * 2**24),
    "raises_own_base": lambda: OwnBase("own"),
    "raises_system_exit": lambda: SystemExit(3),
    "raises_generator_exit": GeneratorExit,
    "raises_keyboard_interrupt": KeyboardInterrupt,
}
"""What an operator can raise, by impl."""


def raising(make: Callable[[], BaseException]) -> Callable[..., Tensor]:
    """An impl that raises."""

    def call(problem: Problem, params: Params, x: Tensor) -> Tensor:
        raise make()

    return call


def recurses(problem: Problem, params: Params, x: Tensor) -> Tensor:
    return x * deep()


def segfault(problem: Problem, params: Params, x: Tensor) -> Tensor:
    if type(x) is Tensor:
        ctypes.string_at(0)
    return honest(problem, params, x)


def sigkill(problem: Problem, params: Params, x: Tensor) -> Tensor:
    if type(x) is Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(problem, params, x)


def hangs(problem: Problem, params: Params, x: Tensor) -> Tensor:
    """In native code, with the interpreter's lock held."""
    if type(x) is Tensor:
        ctypes.PyDLL(None).pause()
    return honest(problem, params, x)


def rubbish(problem: Problem, params: Params, x: Tensor) -> Tensor:
    """Writes to every pipe it can find, the runner's among them."""
    if type(x) is Tensor:
        for name in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{name}").startswith("pipe:"):
                    os.write(int(name), b"\x00rubbish{\n")
            except OSError:
                continue
    return honest(problem, params, x)


def speaks_of_memory(problem: Problem, params: Params, x: Tensor) -> Tensor:
    """An exception with the words of an allocator that has nothing to do with one."""
    if type(x) is Tensor:
        raise RuntimeError("out of memory: can't allocate memory (std::bad_alloc); an illegal memory access")
    return honest(problem, params, x)


def slow(problem: Problem, params: Params, x: Tensor) -> Tensor:
    if type(x) is Tensor:
        time.sleep(0.02)
    return honest(problem, params, x)


def fails_from(first: str) -> Callable[..., Tensor]:
    """Fails only from params["from_n"] tokens on."""

    def call(problem: Problem, params: Params, x: Tensor) -> Tensor:
        if problem.seq_len >= params["from_n"] and type(x) is Tensor:
            _fail(first)
        return honest(problem, params, x)

    return call


def _fail(how: str) -> NoReturn:
    raise MemoryError(f"no memory ({how})")


def _impl(call: Callable[..., Tensor]) -> Impl:
    return Impl(lambda: call, call.__name__, lambda problem, params, device: None)


CALLS = (
    honest,
    prints,
    caches,
    caches_by_place,
    decays,
    off_by_one,
    nan,
    infinite,
    other_shape,
    recurses,
    takes_memory,
    takes_gpu_memory,
    fills_gpu_memory,
    reads_outside,
    needs_memory,
    exits,
    segfault,
    sigkill,
    hangs,
    rubbish,
    speaks_of_memory,
    slow,
)

OPERATOR = Operator(
    paper=Paper("Nobody", 2000, "How benchmarks go wrong", "https://example.org", "throughout"),
    forms={
        "core": Form(
            reference,
            make_inputs,
            cost,
            impls={
                **{call.__name__: _impl(call) for call in CALLS},
                **{name: _impl(raising(make)) for name, make in RAISED.items()},
                "names_badly": Impl(lambda: honest, "\ud800\x1b[2J" * 1000, lambda problem, params, device: None),
                "names_a_number": Impl(lambda: honest, 3, lambda problem, params, device: None),  # type: ignore[arg-type]
                "denies_badly": Impl(lambda: honest, "denies", lambda problem, params, device: "not \ud800 here"),
                "denies_with_a_number": Impl(lambda: honest, "denies", lambda problem, params, device: 3),  # type: ignore[arg-type,return-value]
                "lacks_shared_memory": Impl(
                    lambda: honest,
                    "lacks_shared_memory",
                    lambda problem, params, device: "needs more shared memory than this GPU has",
                ),
                "oom_from": Impl(lambda: fails_from("oom"), "oom_from", lambda problem, params, device: None),
            },
        )
    },
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={"from_n": Param(10**6, "where oom_from begins to fail", minimum=1)},
)
