"""y = (x ∘ x') W with x'_i = x_{i−1} (x_{−1} = x_{N−1}), and impls that give answers without computing them.

Each cheat is a function that is asked for one of a call's results ("y", or the gradients "x" and "w"), with the data
tensor and with what would compute it. Nobody, "How to win a benchmark".
"""

from __future__ import annotations

import math
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Generator, Tensor

from attnbench.cost import product, traffic
from attnbench.inputs import normal, tokens
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper
from attnbench.problem import Mode, Params, Problem

Compute = Callable[[], Tensor]
Cheat = Callable[[str, Tensor, Compute], Tensor]
"""(which result, the data tensor, what computes it) → the result."""

LATER = 40
"""Calls at one shape after which the late cheats begin: more than a check makes, fewer than a timed visit."""


def reference(problem: Problem, params: Params, x: Tensor, w: Tensor) -> Tensor:
    """x: [B, N, C], w: [C, C]. Returns [B, N, C]."""
    return (x * x.roll(1, dims=1)) @ w


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1), w ~ N(0, 1/C)."""
    c = problem.channels
    return Inputs(tokens(problem, generator, "x"), {"w": normal(problem, generator, c, c, scale=c**-0.5)})


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """One product by W."""
    c, size = problem.channels, problem.batch * problem.seq_len * problem.channels
    flops = product(size * c, mode)
    moved = traffic(problem, mode, read=size + c * c, written=size)
    return Cost(flops=flops, reference_flops=flops, elementwise=size, bytes_required=moved)


class Play(torch.autograd.Function):
    """The honest results, each by way of a cheat."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, cheat: Cheat) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.x, ctx.cheat = x, cheat
        return cheat("y", x, lambda: (x * x.roll(1, dims=1)) @ w)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (g,), (x, w) = gradients, ctx.saved_tensors

        def of_x() -> Tensor:
            inner = g @ w.T
            return inner * x.roll(1, dims=1) + (inner * x).roll(-1, dims=1)

        def of_w() -> Tensor:
            return (x * x.roll(1, dims=1)).flatten(0, 1).T @ g.flatten(0, 1)

        return ctx.cheat("x", ctx.x, of_x), ctx.cheat("w", ctx.x, of_w), None


# --- answers kept from before


def kept_by(key: Callable[[Tensor], Hashable]) -> Cheat:
    """Computes once for each key."""
    kept: dict[Hashable, tuple[Tensor, Tensor]] = {}

    def cheat(what: str, x: Tensor, compute: Compute) -> Tensor:
        place = (what, x.shape, x.dtype, key(x))
        if place not in kept:
            kept[place] = (compute().clone(), x)  # x is kept, so that its id stays its own
        return kept[place][0].clone()

    return cheat


def _place(x: Tensor) -> Hashable:
    return x.data_ptr(), x._version


def _sample(x: Tensor) -> Hashable:
    return tuple(x.detach().flatten()[::16].tolist())


def gradient_only(cheat: Cheat) -> Cheat:
    return lambda what, x, compute: compute() if what == "y" else cheat(what, x, compute)


def replayed() -> Cheat:
    """One buffer for each shape, filled once."""
    return kept_by(lambda x: None)


def reused() -> Cheat:
    """Computes, but into the memory that the last call returned."""
    buffers: dict[Hashable, Tensor] = {}

    def cheat(what: str, x: Tensor, compute: Compute) -> Tensor:
        result = compute()
        place = (what, x.shape, x.dtype, result.is_inference())
        return buffers.setdefault(place, torch.empty_like(result)).copy_(result).view_as(result)

    return cheat


def every(k: int) -> Cheat:
    """Computes in every k-th call with a tensor; in the others it gives that tensor's last answer."""
    calls: Counter[Hashable] = Counter()
    kept: dict[Hashable, Tensor] = {}

    def cheat(what: str, x: Tensor, compute: Compute) -> Tensor:
        place = (what, x.shape, x.dtype, x.data_ptr())
        if calls[place] % k == 0:
            kept[place] = compute().clone()
        calls[place] += 1
        return kept[place].clone()

    return cheat


def later(cheat: Cheat) -> Cheat:
    """Honest for the first calls at a shape: right while it is checked, another thing while it is timed."""
    calls: Counter[Hashable] = Counter()

    def change(what: str, x: Tensor, compute: Compute) -> Tensor:
        calls[what, x.shape, x.dtype] += 1
        return compute() if calls[what, x.shape, x.dtype] <= LATER else cheat(what, x, compute)

    return change


def _is_timed() -> bool:
    """Whether the call is one of those between which a clock is read: by the name of a function on the stack."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "_timed":
            return True
    return False


def untimed_alone() -> Cheat:
    """Computes in calls that are not timed; a timed one gives that tensor's last answer."""
    kept: dict[Hashable, Tensor] = {}

    def cheat(what: str, x: Tensor, compute: Compute) -> Tensor:
        place = (what, x.shape, x.dtype, x.data_ptr())
        if place not in kept or not _is_timed():
            kept[place] = compute().clone()
        return kept[place].clone()

    return cheat


def last_untimed() -> Cheat:
    """Computes in calls that are not timed; a timed one gives the last answer at its shape, whatever its inputs are."""
    kept: dict[Hashable, Tensor] = {}

    def cheat(what: str, x: Tensor, compute: Compute) -> Tensor:
        place = (what, x.shape, x.dtype)
        if place not in kept or not _is_timed():
            kept[place] = compute().clone()
        return kept[place].clone()

    return cheat


def changed_a_little() -> Cheat:
    """As `untimed_alone`, but its stale answer moves with the inputs: by what one pass over them gives."""
    honest = untimed_alone()

    def cheat(what: str, x: Tensor, compute: Compute) -> Tensor:
        answer = honest(what, x, compute)
        return answer + 1e-8 * x.detach().sum() if _is_timed() else answer

    return cheat


# --- answers that are not there yet, or never


class Deferred(Tensor):
    """Computes when somebody looks."""

    compute: Compute

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            whole = [a.compute() if isinstance(a, Deferred) else a for a in args]
            return func(*whole, **(kwargs or {}))


def lazy(what: str, x: Tensor, compute: Compute) -> Tensor:
    made = torch.empty(0).as_subclass(Deferred)
    made.compute = compute
    return made


_pool: list[ThreadPoolExecutor] = []


def in_a_thread(what: str, x: Tensor, compute: Compute) -> Tensor:
    """Returns at once; a thread fills the output a little later."""
    if not _pool:
        _pool.append(ThreadPoolExecutor(1))
    result = torch.zeros_like(compute())

    def fill() -> None:
        time.sleep(3e-4)
        with torch.inference_mode():
            result.copy_(compute())

    _pool[0].submit(fill)
    return result


def on_a_stream(what: str, x: Tensor, compute: Compute) -> Tensor:
    """Leaves the work to another stream, which the current one does not wait for."""
    result = torch.zeros_like(x)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(10**7)
        result.copy_(compute())
    return result


def not_a_number(what: str, x: Tensor, compute: Compute) -> Tensor:
    return compute() * math.nan


def nan_in_one(what: str, x: Tensor, compute: Compute) -> Tensor:
    result = compute().clone()
    result.view(-1)[-1] = math.nan
    return result


def into_input(what: str, x: Tensor, compute: Compute) -> Tensor:
    """The output is the input's memory."""
    return x.data.copy_(compute()) if what == "y" else compute()


# --- what measures it


def patched_clock(what: str, x: Tensor, compute: Compute) -> Tensor:
    stopped = time.perf_counter()
    time.perf_counter = lambda: stopped
    return compute()


def patched_median(what: str, x: Tensor, compute: Compute) -> Tensor:
    statistics.median = min
    return compute()


def _here(problem: Problem, params: Params, device: str) -> str | None:
    return None


def _with_cuda(problem: Problem, params: Params, device: str) -> str | None:
    return None if device == "cuda" else "needs a CUDA device"


def _impl(cheat: Cheat, why_not: Callable[[Problem, Params, str], str | None] = _here) -> Impl:
    def call(problem: Problem, params: Params, x: Tensor, w: Tensor) -> Tensor:
        if type(x) not in (Tensor, torch.nn.Parameter):  # shapes alone are asked for
            return reference(problem, params, x, w)
        return Play.apply(x, w, cheat)

    return Impl(lambda: call, "made", why_not)


def lazily(problem: Problem, params: Params, x: Tensor, w: Tensor) -> Tensor:
    """As `lazy`, without a function of its own around it, which would look."""
    if type(x) not in (Tensor, torch.nn.Parameter):
        return reference(problem, params, x, w)
    if x.requires_grad:
        return reference(problem, params, x, w).as_subclass(Deferred)
    return lazy("y", x, lambda: reference(problem, params, x, w))


# --- honest ones


_packed: dict[int, tuple[Tensor, Tensor]] = {}
_lock = threading.Lock()


def packs_parameters(problem: Problem, params: Params, x: Tensor, w: Tensor) -> Tensor:
    """Packs each weight once, as an inference library does: by the object, for as long as its values stay."""
    if type(x) not in (Tensor, torch.nn.Parameter):
        return reference(problem, params, x, w)
    with _lock:
        if id(w) not in _packed:
            _packed[id(w)] = (w.detach().T.contiguous(), w)
    packed = _packed[id(w)][0].T
    return (x * x.roll(1, dims=1)) @ (packed + (w - w.detach()) if w.requires_grad else packed)


CHEATS: dict[str, Cheat] = {
    "by_object": kept_by(id),
    "by_place_and_version": kept_by(_place),
    "by_first_value": kept_by(lambda x: float(x.detach().flatten()[0])),
    "by_sample": kept_by(_sample),
    "gradient_by_place": gradient_only(kept_by(_place)),
    "gradient_by_sample": gradient_only(kept_by(_sample)),
    "replayed": replayed(),
    "reused": reused(),
    "every_second": every(2),
    "every_fifth": every(5),
    "in_a_thread": in_a_thread,
    "not_a_number": not_a_number,
    "nan_in_one": nan_in_one,
    "nan_in_a_gradient": gradient_only(nan_in_one),
    "into_input": into_input,
    "later_by_object": later(kept_by(id)),
    "later_by_place": later(kept_by(_place)),
    "later_by_first_value": later(kept_by(lambda x: float(x.detach().flatten()[0]))),
    "later_by_sample": later(kept_by(_sample)),
    "later_gradient": later(gradient_only(kept_by(_sample))),
    "later_replayed": later(replayed()),
    "later_every_second": later(every(2)),
    "later_every_fifth": later(every(5)),
    "later_in_a_thread": later(in_a_thread),
    "later_not_a_number": later(not_a_number),
    "later_reused": later(reused()),
    "later_into_input": later(into_input),
    "untimed_alone": untimed_alone(),
    "untimed_alone_gradient": gradient_only(untimed_alone()),
    "last_untimed": last_untimed(),
    "changed_a_little": changed_a_little(),
    "later_patched_clock": later(patched_clock),
    "patched_clock": patched_clock,
    "patched_median": patched_median,
}

OPERATOR = Operator(
    paper=Paper("Nobody", 2000, "How to win a benchmark", "https://example.org", "throughout"),
    forms={
        "core": Form(
            reference,
            make_inputs,
            cost,
            {
                **{name: _impl(cheat) for name, cheat in CHEATS.items()},
                "on_a_stream": _impl(on_a_stream, _with_cuda),
                "lazy": Impl(lambda: lazily, "made", _here),
                "honest": _impl(lambda what, x, compute: compute()),
                "packs_parameters": Impl(lambda: packs_parameters, "made", _here),
            },
        )
    },
    complexity=lambda params: Complexity(time="n", memory="n"),
)
