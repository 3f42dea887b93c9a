"""What one operator could change for the next in a worker: looked at after each, so that a change ends the process.

A worker measures many operators, one after another. What they share besides the machine is read here: settings of
torch, of Python and of the process, torch's functions, and the functions by which attnbench itself measures.
"""

from __future__ import annotations

import _thread
import builtins
import contextlib
import gc
import math
import operator
import os
import random
import resource
import signal
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from attnbench.measure.device import device_names, device_of
from attnbench.units import first_few

OWN_VARIABLES = (
    "CUDA_MODULE_LOADING", "DISABLE_CUPTI_", "KINETO_", "KMP_", "TEARDOWN_CUPTI", "TORCHINDUCTOR_", "_TORCHINDUCTOR_",
    "TRITON_",
)  # fmt: skip
"""Environment variables that torch sets by itself when it is first used, or first compiles, by how they begin."""

OWN_REPLACED = ("torch.manual_seed", "torch.Storage")
"""What torch replaces by itself: when it first compiles, and with its default dtype, which is told anyway."""

CHILDREN = "a running child process"

RECURSION = 1000
"""Python's recursion limit; torch's compiler raises it by itself, which makes nothing fail."""

LONGEST = 60
"""A value longer than this is not shown."""

MOST_ALIKE = 3
"""So many environment variables, or functions of torch, are named; beyond, how many more there are."""


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)}


def _working_directory() -> object:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "one that was removed"


def _handlers() -> dict[str, object]:
    return {number.name: signal.getsignal(number) for number in signal.Signals}


def _threads() -> int | None:
    """None once torch compiles: it keeps threads of its own that wait."""
    return None if "torch._inductor.async_compile" in sys.modules else _thread._count()


def _has_children() -> bool | None:
    """Whether a process that it started goes on; None once torch compiles, which keeps some of its own."""
    if _threads() is None:
        return None
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def _umask() -> str:
    mask = os.umask(0o077)  # there is no other way to read it
    os.umask(mask)
    return f"{mask:03o}"


def _standard_files() -> list[tuple[int, int] | None]:
    """What its first three file descriptors lead to; None: closed."""
    places: list[tuple[int, int] | None] = []
    for number in range(3):
        try:
            status = os.fstat(number)
            places.append((status.st_dev, status.st_ino))
        except OSError:
            places.append(None)
    return places


def _of_products(precision: str) -> str:
    """Matrix products that nobody has set, here or above, are exact: setting them so by name changes nothing."""
    return "ieee" if precision == "none" else precision


DEVICES = tuple(map(device_of, device_names()))
"""Every kind; their modules are imported before any operator's."""

_TYPES = sorted({device.type for device in DEVICES})
_LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_STACK)
_cudnn, _matmul = torch.backends.cudnn, torch.backends.cuda.matmul
_OF_TORCH: dict[str, Callable[[], object]] = {
    "torch's default dtype": torch.get_default_dtype,
    "torch's default device": lambda: str(torch.get_default_device()),
    "torch's number of threads": torch.get_num_threads,
    "torch's grad mode": torch.is_grad_enabled,
    "torch's inference mode": torch.is_inference_mode_enabled,
    "torch's autocast": lambda: [torch.is_autocast_enabled(name) for name in _TYPES],
    "torch's autocast dtype": lambda: [torch.get_autocast_dtype(name) for name in _TYPES],
    "torch's anomaly mode": torch.is_anomaly_enabled,
    "torch's active modes": lambda: torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack(),
    "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "torch's float32 matmul precision": torch.get_float32_matmul_precision,
    "torch's fp32_precision": lambda: [
        torch.backends.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.mkldnn.fp32_precision,
        _of_products(torch.backends.mkldnn.matmul.fp32_precision),  # type: ignore[attr-defined]
        _of_products(_matmul.fp32_precision),
        _cudnn.fp32_precision,
    ],
    "torch.backends.mkldnn": lambda: [torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic],
    "torch.backends.cudnn": lambda: [_cudnn.enabled, _cudnn.benchmark, _cudnn.deterministic, _cudnn.allow_tf32],
    "torch.backends.cuda.matmul": lambda: [
        _matmul.allow_tf32,
        _matmul.allow_fp16_reduced_precision_reduction,
        _matmul.allow_bf16_reduced_precision_reduction,
    ],
    "torch's SDPA kernels": lambda: [
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.cudnn_sdp_enabled(),
    ],
    "torch's einsum paths": lambda: [torch.backends.opt_einsum.enabled, torch.backends.opt_einsum.strategy],
    **{name: setting for device in DEVICES for name, setting in device.settings.items()},
}
_SETTINGS: dict[str, Callable[[], object]] = {
    **_OF_TORCH,
    "denormal numbers": lambda: "flushed" if sys.float_info.min / 2 == 0.0 else "kept",
    "the working directory": _working_directory,
    "sys.path": lambda: tuple(sys.path),
    "sys.stdout or sys.stderr": lambda: (sys.stdout, sys.stderr),
    "file descriptors 0 to 2": _standard_files,
    # Not sys.excepthook: a worker catches what is raised, and FlashAttention-4 replaces it when it is imported.
    "the hooks of exceptions": lambda: (sys.unraisablehook, threading.excepthook),
    "the recursion limit": lambda: min(sys.getrecursionlimit(), RECURSION),
    "warnings that are raised": lambda: any(action == "error" for action, *_ in warnings.filters),
    "a trace or profile function": lambda: (sys.gettrace(), sys.getprofile()),
    "the switch interval": sys.getswitchinterval,
    "garbage collection": lambda: (gc.isenabled(), gc.get_threshold()),
    "running Python threads": _threads,
    CHILDREN: _has_children,
    "the umask": _umask,
    "a pending timer": lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
    "blocked signals": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
    "the processors it may use": lambda: os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
    "its priority": lambda: os.getpriority(os.PRIO_PROCESS, 0),
    "a resource limit": lambda: [resource.getrlimit(each) for each in _LIMITS],
}
"""By what a person calls them. A setting that cannot be read (None) counts as one that does not change."""

_NOT_SHOWN = (
    "sys.path", "sys.stdout or sys.stderr", "file descriptors 0 to 2", "the hooks of exceptions", "garbage collection",
    "a resource limit",
)  # fmt: skip
"""Changes named without their values: long, or paths of the user's."""


@dataclass(frozen=True)
class State:
    """A process at one moment.

    Attributes:
        settings: of torch, Python and the process, by name.
        environment: its variables.
        handlers: of signals.
        library: by module or class of torch, its names and objects.
        functions: by module, the names and objects by which attnbench measures.
        imported: how many modules there are.
    """

    settings: Mapping[str, object]
    environment: Mapping[str, str]
    handlers: Mapping[str, object]
    library: Mapping[str, Mapping[str, object]]
    functions: Mapping[str, Mapping[str, object]]
    imported: int


def now(before: State | None = None) -> State:
    """What this process is set to now. before: an earlier state, of which what has stayed is taken over."""
    return State(
        {name: _read(setting) for name, setting in _SETTINGS.items()},
        _environment(),
        _handlers(),
        _named(LIBRARY, before.library if before is not None else {}),
        _functions(before),
        len(sys.modules),
    )


def of_torch() -> dict[str, object]:
    """torch's settings alone, by name."""
    return {name: _read(setting) for name, setting in _OF_TORCH.items()}


def _functions(before: State | None) -> dict[str, Mapping[str, object]]:
    known = before.functions if before is not None else {}
    names = known if before is not None and before.imported == len(sys.modules) else _measuring_modules()
    return _named({name: sys.modules.get(name, _SHARED.get(name, _GONE)) for name in names}, known)


def _named(places: Mapping[str, object], known: Mapping[str, Mapping[str, object]]) -> dict[str, Mapping[str, object]]:
    """Names and objects by module or class; the mapping is that of `known` where all names stand for the same."""
    named: dict[str, Mapping[str, object]] = {}
    for name, place in places.items():
        own, then = vars(place), known.get(name, {})
        same = len(own) == len(then) and all(map(operator.is_, own.values(), then.values()))
        named[name] = then if same and name in known else dict(own)
    return named


def changes(before: State, after: State) -> list[str]:
    """What differs, one phrase each, from what to what. Values of environment variables may be secrets: not shown."""
    phrases = changed_settings(before.settings, after.settings)
    variables = []
    for name in sorted(before.environment.keys() | after.environment.keys()):
        old, new = before.environment.get(name), after.environment.get(name)
        if old != new:
            how = "set" if old is None else "removed" if new is None else "changed"
            variables.append(f"the environment variable {name} ({how})")
    functions = [f"{name} (replaced)" for name in sorted(_replaced_in_library(before, after))]
    phrases += first_few(variables, MOST_ALIKE) + first_few(functions, MOST_ALIKE)
    phrases += [
        _phrase(f"the handler of {name}", handler, after.handlers[name])
        for name, handler in before.handlers.items()
        if after.handlers[name] != handler
    ]
    return phrases


def changed_settings(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """The settings that differ, one phrase each."""
    return [_phrase(name, value, after[name]) for name, value in before.items() if _differ(name, value, after[name])]


def _replaced_in_library(before: State, after: State) -> Iterator[str]:
    """torch's functions and methods that are others now, also where a class has one now that it inherited:
    "torch.softmax"."""
    for place, names in before.library.items():
        current = after.library[place]
        if current is not names:
            others = (name for name, value in names.items() if callable(value) and current.get(name) is not value)
            yield from ({f"{place}.{name}" for name in (*others, *_hiding(LIBRARY[place], names))} - {*OWN_REPLACED})


def _hiding(place: object, names: Mapping[str, object]) -> list[str]:
    """What a class has now beside these names, and hides what it inherits."""
    bases = place.__mro__[1:] if isinstance(place, type) else ()
    return [name for name in vars(place).keys() - names.keys() if any(name in vars(base) for base in bases)]


@contextlib.contextmanager
def torch_as_it_was() -> Iterator[None]:
    """In its block torch's functions are as they were before any operator was imported: so a definition is computed."""
    now_named = _named(LIBRARY, _AS_IT_WAS)
    theirs = {name: dict(names) for name, names in now_named.items() if names is not _AS_IT_WAS[name]}
    for name in theirs:
        _put(LIBRARY[name], _AS_IT_WAS[name])
    try:
        yield
    finally:
        for name, names in theirs.items():
            _put(LIBRARY[name], names)


def _put(place: object, names: Mapping[str, object]) -> None:
    """Makes names of a module or class stand for these objects, and no other hide what a class inherits."""
    current = vars(place)
    for name, value in names.items():
        if current.get(name) is not value and (callable(value) or name not in current):
            setattr(place, name, value)
    for name in _hiding(place, names):
        delattr(place, name)


def replaced(before: State, after: State) -> list[str]:
    """Functions and classes by which attnbench measures, or that these use, which are others now: "time.sleep"."""
    return sorted(
        f"{module}.{name}"
        for module, names in before.functions.items()
        if after.functions.get(module) is not names
        for name, value in names.items()
        if after.functions.get(module, {}).get(name) is not value and callable(value)
    )


def same_random_numbers() -> None:
    """Seeds the global generators alike: what one operator draws from them is not what the next one finds."""
    for device in DEVICES:
        device.seed(0)
    random.seed(0)
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(0)


LIBRARY: dict[str, object] = {
    **{f"torch.{m}": getattr(torch, m) for m in ("autograd", "fft", "func", "linalg", "nn", "special", "Tensor")},
    "torch.nn.functional": torch.nn.functional,
    "torch": torch,
}
"""Modules and classes of torch that operators and definitions call, by name."""

_AS_IT_WAS = _named(LIBRARY, {})

_SHARED: dict[str, ModuleType] = {m.__name__: m for m in (builtins, math, random, statistics, time)}


_GONE = ModuleType("a module that is imported no more")


def _measuring_modules() -> list[str]:
    """The names of the modules that measure, and of those that they use."""
    own = (n for n in sys.modules if n.startswith("attnbench.") and not n.startswith(_OPERATORS))
    return [*_SHARED, *own]


_OPERATORS = ("attnbench.operators", "attnbench.kernels")


def _read(setting: Callable[[], object]) -> object:
    try:
        return setting()
    except Exception:  # an attribute that this torch has not, or settings of two generations that contradict each other
        return None


def _differ(name: str, old: object, new: object) -> bool:
    """Folders that sys.path has behind all others hide no module from the next operator; a process that has ended
    disturbs none."""
    if name == CHILDREN and not new:
        return False
    if name == "sys.path" and isinstance(old, tuple) and isinstance(new, tuple):
        new = new[: len(old)]
    return old is not None and new is not None and old != new


def _phrase(name: str, old: object, new: object) -> str:
    texts = [_text(name, value) for value in (old, new)]
    if name in _NOT_SHOWN or any(len(text) > LONGEST for text in texts):
        return name
    return f"{name} (from {texts[0]} to {texts[1]})"


def _text(name: str, value: object) -> str:
    if name == "the working directory":
        return repr(os.path.basename(str(value)) or str(value))  # the user's home stays unnamed
    return str(getattr(value, "__qualname__", value))
