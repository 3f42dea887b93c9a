"""What one operator could change for the next in a worker: looked at after each, so that a change ends the process.

A worker measures many operators, one after another. What they share besides the machine is read here: settings of
torch, of Python and of the process, and the functions by which attnbench itself measures.
"""

from __future__ import annotations

import _thread
import builtins
import gc
import math
import operator
import os
import random
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from attnbench.measure.device import device_names, device_of

OWN_VARIABLES = (
    "CUDA_MODULE_LOADING", "DISABLE_CUPTI_", "KINETO_", "KMP_", "TEARDOWN_CUPTI", "TORCHINDUCTOR_", "_TORCHINDUCTOR_",
    "TRITON_",
)  # fmt: skip
"""Environment variables that torch sets by itself when it is first used, or first compiles, by how they begin."""

LONGEST = 60
"""A value longer than this is not shown."""


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


def _of_products(precision: str) -> str:
    """Matrix products that nobody has set, here or above, are exact: setting them so by name changes nothing."""
    return "ieee" if precision == "none" else precision


DEVICES = tuple(map(device_of, device_names()))
"""Every kind; their modules are imported before any operator's."""

_TYPES = sorted({device.type for device in DEVICES})
_LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_STACK)
_cudnn, _matmul = torch.backends.cudnn, torch.backends.cuda.matmul
_SETTINGS: dict[str, Callable[[], object]] = {
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
    "denormal numbers": lambda: "flushed" if sys.float_info.min / 2 == 0.0 else "kept",
    "the working directory": _working_directory,
    "sys.path": lambda: tuple(sys.path),
    "sys.stdout or sys.stderr": lambda: (sys.stdout, sys.stderr),
    "a trace or profile function": lambda: (sys.gettrace(), sys.getprofile()),
    "the switch interval": sys.getswitchinterval,
    "garbage collection": lambda: (gc.isenabled(), gc.get_threshold()),
    "running Python threads": _threads,
    "a pending timer": lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0,
    "blocked signals": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
    "the processors it may use": lambda: os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
    "its priority": lambda: os.getpriority(os.PRIO_PROCESS, 0),
    "a resource limit": lambda: [resource.getrlimit(each) for each in _LIMITS],
    **{name: setting for device in DEVICES for name, setting in device.settings.items()},
}
"""By what a person calls them. A setting that cannot be read (None) counts as one that does not change."""

_NOT_SHOWN = ("sys.path", "sys.stdout or sys.stderr", "garbage collection", "a resource limit")
"""Changes named without their values: long, or paths of the user's."""


@dataclass(frozen=True)
class State:
    """A process at one moment.

    Attributes:
        settings: of torch, Python and the process, by name.
        environment: its variables.
        handlers: of signals.
        functions: by module, the names and objects by which attnbench measures.
        imported: how many modules there are.
    """

    settings: Mapping[str, object]
    environment: Mapping[str, str]
    handlers: Mapping[str, object]
    functions: Mapping[str, Mapping[str, object]]
    imported: int


def now(before: State | None = None) -> State:
    """What this process is set to now. before: an earlier state, of which what has stayed is taken over."""
    return State(
        {name: _read(setting) for name, setting in _SETTINGS.items()},
        _environment(),
        _handlers(),
        _functions(before),
        len(sys.modules),
    )


def _functions(before: State | None) -> dict[str, Mapping[str, object]]:
    """Names and objects by module; a module's mapping is that of `before` where all of its names stand for the same."""
    known = before.functions if before is not None else {}
    names = known if before is not None and before.imported == len(sys.modules) else _measuring_modules()
    functions: dict[str, Mapping[str, object]] = {}
    for name in names:
        own, then = vars(sys.modules.get(name, _SHARED.get(name, _GONE))), known.get(name, {})
        same = len(own) == len(then) and all(map(operator.is_, own.values(), then.values()))
        functions[name] = then if same and name in known else dict(own)
    return functions


def changes(before: State, after: State) -> list[str]:
    """What differs, one phrase each, from what to what. Values of environment variables may be secrets: not shown."""
    phrases = [
        _phrase(name, value, after.settings[name])
        for name, value in before.settings.items()
        if _differ(name, value, after.settings[name])
    ]
    for name in sorted(before.environment.keys() | after.environment.keys()):
        old, new = before.environment.get(name), after.environment.get(name)
        if old != new:
            how = "set" if old is None else "removed" if new is None else "changed"
            phrases.append(f"the environment variable {name} ({how})")
    phrases += [
        _phrase(f"the handler of {name}", handler, after.handlers[name])
        for name, handler in before.handlers.items()
        if after.handlers[name] != handler
    ]
    return phrases


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
    """Folders that sys.path has behind all others hide no module from the next operator."""
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
