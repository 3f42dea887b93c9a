"""y = 2x, by impls that change what the next operator finds: `does_…` changes one thing, `undoes_…` changes it back.

Nobody, "How one benchmark disturbs another".
"""

from __future__ import annotations

import _thread
import contextlib
import gc
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from attnbench.cost import product, traffic
from attnbench.inputs import tokens
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper
from attnbench.problem import Mode, Params, Problem

PERF_COUNTER, MEDIAN, SLEEP, TANH = time.perf_counter, statistics.median, time.sleep, torch.tanh
HOME = os.getcwd()
STANDARD_OUTPUT = sys.stdout
_modes = contextlib.ExitStack()
_stop = threading.Event()


def _mode() -> None:
    _modes.enter_context(torch.device("meta"))


def _thread_left() -> None:
    _stop.clear()
    _thread.start_new_thread(_stop.wait, ())


def _thread_ended() -> None:
    _stop.set()
    while _thread._count() > 1:  # the worker's own one stays
        SLEEP(0.001)


def _without(method: str) -> None:
    if method in vars(torch.Tensor):
        delattr(torch.Tensor, method)


def _child_left() -> None:
    CHILDREN.append(subprocess.Popen(["sleep", "100"]))


def _child_ended() -> None:
    while CHILDREN:
        child = CHILDREN.pop()
        child.kill()
        child.wait()


def _wait_for(child: int) -> int:
    """child: as os.fork returns it."""
    return os.waitpid(child, 0)[0] if child else child


def handler(number: int, frame: object) -> None:
    """Of SIGUSR1."""


CHANGES: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "working_directory": (lambda: os.chdir("/"), lambda: os.chdir(HOME)),
    "default_dtype": (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
    "default_device": (_mode, _modes.close),
    "threads": (lambda: torch.set_num_threads(2), lambda: torch.set_num_threads(1)),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(True),
        lambda: torch.use_deterministic_algorithms(False),
    ),
    "precision": (
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("highest"),
    ),
    "mkldnn": (
        lambda: setattr(torch.backends.mkldnn, "enabled", False),
        lambda: setattr(torch.backends.mkldnn, "enabled", True),
    ),
    "sdpa": (
        lambda: torch.backends.cuda.enable_flash_sdp(False),
        lambda: torch.backends.cuda.enable_flash_sdp(True),
    ),
    "autocast": (
        lambda: torch.set_autocast_dtype("cpu", torch.float16),
        lambda: torch.set_autocast_dtype("cpu", torch.bfloat16),
    ),
    "anomaly": (lambda: torch.set_anomaly_enabled(True), lambda: torch.set_anomaly_enabled(False)),
    "denormals": (lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False)),
    "variable": (lambda: os.environ.update(MEDDLED="secret"), lambda: os.environ.pop("MEDDLED", None)),
    "handler": (
        lambda: signal.signal(signal.SIGUSR1, handler),
        lambda: signal.signal(signal.SIGUSR1, signal.SIG_DFL),
    ),
    "blocked": (
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]),
        lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2]),
    ),
    "timer": (lambda: signal.setitimer(signal.ITIMER_REAL, 1e6), lambda: signal.setitimer(signal.ITIMER_REAL, 0)),
    "path": (lambda: sys.path.insert(0, "/nowhere"), lambda: sys.path.remove("/nowhere")),
    "output": (lambda: setattr(sys, "stdout", sys.stderr), lambda: setattr(sys, "stdout", STANDARD_OUTPUT)),
    "profile": (lambda: sys.setprofile(lambda *given: None), lambda: sys.setprofile(None)),
    "switching": (lambda: sys.setswitchinterval(0.5), lambda: sys.setswitchinterval(0.005)),
    "collection": (gc.disable, gc.enable),
    "thread": (_thread_left, _thread_ended),
    "function": (lambda: setattr(torch, "tanh", torch.sin), lambda: setattr(torch, "tanh", TANH)),
    "method": (lambda: setattr(torch.Tensor, "tanh", torch.sin), lambda: _without("tanh")),
    "child": (_child_left, _child_ended),
    "umask": (lambda: os.umask(0o777), lambda: os.umask(0o022)),
    "descriptor": (lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 1), lambda: os.dup2(2, 1)),
    "hook": (
        lambda: setattr(sys, "unraisablehook", print),
        lambda: setattr(sys, "unraisablehook", sys.__unraisablehook__),
    ),
    "recursion": (lambda: sys.setrecursionlimit(500), lambda: sys.setrecursionlimit(1000)),
    "raised": (lambda: warnings.simplefilter("error"), warnings.resetwarnings),
    "processors": (
        lambda: os.sched_setaffinity(0, {min(ALL)}),
        lambda: os.sched_setaffinity(0, ALL),
    ),
    "clock": (lambda: setattr(time, "perf_counter", lambda: 0.0), lambda: setattr(time, "perf_counter", PERF_COUNTER)),
    "median": (lambda: setattr(statistics, "median", min), lambda: setattr(statistics, "median", MEDIAN)),
}
ALL = os.sched_getaffinity(0)

CHILDREN: list[subprocess.Popen[bytes]] = []
FORKED: list[int] = []

GOOD: dict[str, Callable[[], object]] = {
    "honest": lambda: None,
    "draws": lambda: (torch.rand(1), random.random()),
    "undoes_all": lambda: [(do(), undo()) for name, (do, undo) in CHANGES.items() if name in ("precision", "variable")],
    "forks": lambda: FORKED or FORKED.append(_wait_for(os.fork())),
    "appends_path": lambda: "/behind" in sys.path or sys.path.append("/behind"),
}


def reference(problem: Problem, params: Params, x: Tensor) -> Tensor:
    """x: [B, N, C]. Returns [B, N, C]."""
    return 2 * x


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1)."""
    return Inputs(tokens(problem, generator, "x"))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """No products."""
    size = problem.batch * problem.seq_len * problem.channels
    moved = traffic(problem, mode, read=size, written=size)
    return Cost(flops=product(0, mode), reference_flops=0, elementwise=size, bytes_required=moved)


def _impl(change: Callable[[], object]) -> Impl:
    """Makes the change in every call, but not where shapes alone are asked for."""

    def call(problem: Problem, params: Params, x: Tensor) -> Tensor:
        if type(x) is Tensor:
            change()
        return x + x

    return Impl(lambda: call, "made", lambda problem, params, device: None)


def witness(problem: Problem, params: Params, x: Tensor) -> Tensor:
    """Raises where it does not find what a fresh process has."""
    found = [torch.get_default_dtype(), torch.get_num_threads(), os.getcwd(), os.environ.get("MEDDLED")]
    if type(x) is Tensor and found != [torch.float32, 1, HOME, None]:
        raise RuntimeError(f"found {found}")
    return x + x


def forges(problem: Problem, params: Params, x: Tensor) -> Tensor:
    """Another map, by which it replaces what the definition calls."""
    if type(x) is Tensor:
        torch.Tensor.__rmul__ = lambda self, other: self * (other * 1.5)  # type: ignore[method-assign]
    return x + x + x


OPERATOR = Operator(
    paper=Paper("Nobody", 2000, "How one benchmark disturbs another", "https://example.org", "throughout"),
    forms={
        "core": Form(
            reference,
            make_inputs,
            cost,
            {
                **{f"does_{name}": _impl(do) for name, (do, _) in CHANGES.items()},
                **{f"undoes_{name}": _impl(undo) for name, (_, undo) in CHANGES.items()},
                **{name: _impl(change) for name, change in GOOD.items()},
                "forges": Impl(lambda: forges, "made", lambda problem, params, device: None),
                "undoes_forged": _impl(lambda: _without("__rmul__")),
                "witness": Impl(lambda: witness, "made", lambda problem, params, device: None),
            },
        )
    },
    complexity=lambda params: Complexity(time="n", memory="n"),
)
