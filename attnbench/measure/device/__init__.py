"""What attnbench measures on: one file per kind of device. A file's name is the kind's name in `--device`,
environment.json and visits; here are its type and the choice among the kinds. Names are known without torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from attnbench.errors import BadInput
from attnbench.measure.machine.condition import Condition
from attnbench.registry import scan
from attnbench.units import quoted, suggestion

Call = Callable[[], object]
"""A call to be measured, without arguments; it returns when the device is done."""

Sampler = Callable[[Call], tuple[float, list[str]]]
"""One sample: makes a call, and returns its seconds and its flags."""

AUTO = "auto"
"""In place of a kind's name: the preferred one of those that are here."""

HOST = "cpu"
"""The name of the kind that every machine has, and torch's type of it."""


def nothing() -> None:
    """What a kind of device does or states that has no such thing."""


@dataclass(frozen=True)
class Device:
    """A kind of device, as its file defines it under the name DEVICE.

    Args:
        type: torch's type of the device that tensors are on, such as "cuda".
        preference: `auto` takes the kind that has the highest, of those that are here.
        is_host: whether it computes in the worker's own memory: that is then limited, and facts need no worker.
        memory_limit: (fraction, environment.json) -> bytes that a cell may need.
        memory: () -> what has its memory, and how many bytes there are; None: not known.
        peak_memory: (call) -> columns of `peak_memory`: peak_memory_bytes, above what was live before the call, and
            where there are any reserved_memory_bytes and process_memory_bytes. The call has been made before.
        unmeasured: why a metric that `doctor` could not measure has no value on it.
        matmul_side: side of the square matrices that reach the library's best rate.
        copied_bytes: () -> bytes of a copy beyond every cache, that fit now.
        affordable_flops: what the device executes in float64 in about a second.
        why_not: () -> why nothing can be measured on it here, or None.
        facts: () -> what environment.json says of it; `gpu_name` must agree between runs that are compared; `device_id`
            tells the devices of one model apart (`machine.identity`). Called in a worker, where it may start the
            device.
        synchronise: waits for all work on the device.
        synchronise_stream: waits for the work of the current stream alone.
        empty_cache: returns free memory to the system.
        seed: (number) seeds torch's generator of the device.
        settings: by what a person calls it, () -> a setting of the process that an operator could change.
        clock: (seconds of one call, whether the impl synchronises inside) -> a sampler by the device's own clock.
        clock_mhz: () -> the device's clock rate, which warming up raises; None where it is not stated.
        flags: () -> flags of a sample that has just been taken, such as "throttled".
        energy_j: () -> a counter of energy in joules, or None.
        energy_step_j: the counter's step.
        launched_kernels: (call) -> how often each kernel is launched, the one with the most device time first.
        out_of_memory: (error) -> whether a call failed for lack of its memory; torch.OutOfMemoryError is known.
        is_started: () -> whether torch computes on it in this process; of the host, which needs no start, False.
        is_lost: () -> whether it answers no more in this process.
        sdpa_eps: the relative error of an exponential in float32 SDPA, where that is above float32's.
        tf32: () -> whether products of float32 may be TF32's.
        other_users: () -> who else computes on it; and why that is unknown, or None. Asked before it is started.
        conditions: (environment.json, who else computes on it, why that is unknown) -> its lines of `doctor`.
        missing: () -> the lines of `doctor` where it cannot be measured on.
    """

    type: str
    preference: int
    is_host: bool
    memory_limit: Callable[[float, Mapping[str, Any]], int]
    memory: Callable[[], tuple[str, int | None]]
    peak_memory: Callable[[Call], dict[str, int]]
    unmeasured: str
    matmul_side: int
    copied_bytes: Callable[[], int]
    affordable_flops: float
    why_not: Callable[[], str | None] = nothing
    facts: Callable[[], dict[str, Any]] = dict
    synchronise: Callable[[], None] = nothing
    synchronise_stream: Callable[[], None] = nothing
    empty_cache: Callable[[], None] = nothing
    seed: Callable[[int], None] = lambda number: None
    settings: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    clock: Callable[[float, bool], Sampler] | None = None
    clock_mhz: Callable[[], int | None] = nothing
    flags: Callable[[], list[str]] = list
    energy_j: Callable[[], float | None] = nothing
    energy_step_j: float = 0.0
    launched_kernels: Callable[[Call], dict[str, int]] = lambda call: {}
    out_of_memory: Callable[[BaseException], bool] = lambda error: False
    is_started: Callable[[], bool] = lambda: False
    is_lost: Callable[[], bool] = lambda: False
    sdpa_eps: float = 0.0
    tf32: Callable[[], bool] = lambda: False
    other_users: Callable[[], tuple[list[str], str | None]] = lambda: ([], None)
    conditions: Callable[[Mapping[str, Any], list[str], str | None], list[Condition]] = lambda facts, users, unknown: []
    missing: Callable[[], list[Condition]] = list


def device_names() -> list[str]:
    """The names of all kinds, sorted. Imports none of them."""
    return scan(__name__)


def device_of(name: str) -> Device:
    """The kind with a name; imports torch. Raises BadInput where there is none."""
    names = device_names()
    if name not in names:
        raise BadInput(
            f"device {quoted(name)}: there is no such kind{suggestion(name, names)}; allowed: {', '.join(names)}, or "
            f"{AUTO}."
        )
    kind: Device = importlib.import_module(f"{__name__}.{name}").DEVICE
    return kind


def available_devices() -> list[str]:
    """The names of the kinds that can be measured on here, the preferred one first."""
    here = [(-kind.preference, name) for name in device_names() if (kind := device_of(name)).why_not() is None]
    return [name for _, name in sorted(here)]


def choose_device(wanted: str) -> str:
    """The name of the kind to measure on. Raises BadInput where it is not here.

    Args:
        wanted: a kind's name, or AUTO.
    """
    if wanted == AUTO:
        return available_devices()[0]
    reason = device_of(wanted).why_not()
    if reason is not None:
        raise BadInput(
            f"--device {wanted}: {reason}. `attnbench doctor` says what is missing; use --device "
            f"{alternatives(wanted)}, or {AUTO}."
        )
    return wanted


def alternatives(name: str) -> str:
    """The kinds that can be used in place of one, for messages."""
    return " or ".join(other for other in available_devices() if other != name)
