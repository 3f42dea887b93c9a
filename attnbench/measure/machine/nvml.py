"""The GPU as NVML sees it: clocks, throttling, energy, memory of this process, and who else is on it.

Every figure is None (or empty) where NVML or the GPU has none; nothing here fails because of that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from attnbench.measure.protocol import THROTTLED

THROTTLING = 0x8 | 0x20 | 0x40 | 0x80
"""NVML's clock event reasons that mean disturbance: HW slowdown, SW thermal, HW thermal, HW power brake."""

CAPPED = 0x4
"""SW power cap: the clock gives way to the power limit, as it does for any heavy kernel; noted, not discarded."""


@cache
def _started() -> tuple[Any | None, str | None]:
    """The initialised pynvml module, or why there is none."""
    try:
        import pynvml
    except ImportError:
        return None, "the package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, str(error)
    return pynvml, None


def nvml() -> Any | None:
    """The initialised pynvml module, or None where there is no driver."""
    return _started()[0]


def nvml_missing() -> str | None:
    """Why NVML cannot be asked, or None."""
    return _started()[1]


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Args:
        uuid: by which NVML has the same GPU, whatever CUDA_VISIBLE_DEVICES says; without "GPU-".
        l2_bytes: of its last cache.
        total_bytes: of its memory.
        name: the model.
        capability: of computing, such as "9.0".
    """

    uuid: str
    l2_bytes: int
    total_bytes: int
    name: str
    capability: str

    @cached_property
    def _handle(self) -> Any | None:
        module = nvml()
        if module is None:
            return None
        for kind in ("GPU-", "MIG-"):  # torch gives the number alone
            handle = self._ask("nvmlDeviceGetHandleByUUID", kind + self.uuid, of_handle=False)
            if handle is not None:
                return handle
        return None

    def _ask(self, name: str, *arguments: Any, of_handle: bool = True) -> Any | None:
        module = nvml()
        if module is None or not hasattr(module, name):
            return None
        if of_handle:
            if self._handle is None:
                return None
            arguments = (self._handle, *arguments)
        try:
            return getattr(module, name)(*arguments)
        except module.NVMLError:
            return None

    def sm_clock_mhz(self) -> int | None:
        """The SM clock now."""
        return self._ask("nvmlDeviceGetClockInfo", 1)

    @cached_property
    def max_sm_clock_hz(self) -> float:
        """The highest SM clock; 1.5 GHz where unknown."""
        return (self._ask("nvmlDeviceGetMaxClockInfo", 1) or 1500) * 1e6

    def event_reasons(self) -> int | None:
        """NVML's bit field of what holds the clock down now; None where it does not say."""
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            reasons = self._ask(name)
            if reasons is not None:
                return int(reasons)
        return None

    def flags(self) -> list[str]:
        """The flags of a sample taken now."""
        reasons = self.event_reasons() or 0
        return [THROTTLED] * bool(reasons & THROTTLING) + ["capped"] * bool(reasons & CAPPED)

    def energy_j(self) -> float | None:
        """The counter of all energy since the driver was loaded; it steps in millijoules."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1e3

    def process_memory_bytes(self) -> int | None:
        """What this process holds on the GPU, context and libraries included."""
        for process in self._ask("nvmlDeviceGetComputeRunningProcesses") or []:
            if process.pid == os.getpid():
                used = process.usedGpuMemory
                return None if used is None else int(used)
        return None

    def facts(self) -> dict[str, Any]:
        """What environment.json says of it."""
        return {
            "name": self.name,
            "capability": self.capability,
            "memory_bytes": self.total_bytes,
            "l2_bytes": self.l2_bytes,
            "driver": self._ask("nvmlSystemGetDriverVersion", of_handle=False),
            "persistence": self._ask("nvmlDeviceGetPersistenceMode"),
            "sm_clock_mhz": self.sm_clock_mhz(),
            "max_sm_clock_mhz": self._ask("nvmlDeviceGetMaxClockInfo", 1),
            "power_limit_w": (self._ask("nvmlDeviceGetPowerManagementLimit") or 0) / 1e3 or None,
        }


class Unknown(Exception):
    """NVML does not answer; the text says why."""


@dataclass(frozen=True)
class Listed:
    """A GPU, or a MIG instance of one, as NVML lists it.

    Args:
        name: its place, for people.
        model: what it is called.
        uuid: with "GPU-" or "MIG-".
        handle: by which NVML's functions take it.
    """

    name: str
    model: str
    uuid: str
    handle: Any


def listed() -> list[Listed]:
    """Every GPU, in the order of the PCI bus: what CUDA_VISIBLE_DEVICES counts with CUDA_DEVICE_ORDER=PCI_BUS_ID.

    Raises Unknown where NVML does not answer.
    """
    module = nvml()
    if module is None:
        raise Unknown(nvml_missing() or "NVML does not start")
    try:
        handles = [module.nvmlDeviceGetHandleByIndex(index) for index in range(module.nvmlDeviceGetCount())]
        handles.sort(key=lambda handle: _text(module.nvmlDeviceGetPciInfo(handle).busId).upper())
        return [
            Listed(f"GPU {index}", _text(module.nvmlDeviceGetName(h)), _text(module.nvmlDeviceGetUUID(h)), h)
            for index, h in enumerate(handles)
        ]
    except module.NVMLError as error:
        raise Unknown(f"NVML: {error}") from None


def in_use(environment: Mapping[str, str]) -> list[Listed]:
    """What a run computes on: the first device that CUDA_VISIBLE_DEVICES leaves. Empty where it leaves none.

    CUDA itself is not asked: a context of this process would be one more user of the GPU. Where GPUs of several models
    are counted by CUDA's own order (fastest first), an index may be any of them: then all are returned. Of a GPU in
    MIG mode CUDA uses one instance, the first unless it is named.

    Args:
        environment: variables of the process, as os.environ.

    Raises: Unknown where NVML does not answer.
    """
    gpus = listed()
    named = environment.get("CUDA_VISIBLE_DEVICES")
    first = "0" if named is None else named.split(",")[0].strip()
    if first.startswith("MIG-"):
        return [instance for gpu in gpus for instance in _instances(gpu) if instance.uuid.startswith(first)][:1]
    if first.startswith("GPU-"):
        chosen = [gpu for gpu in gpus if gpu.uuid.startswith(first)]
    elif not first.isdecimal() or int(first) >= len(gpus):
        return []
    elif environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({gpu.model for gpu in gpus}) == 1:
        chosen = [gpus[int(first)]]
    else:
        chosen = gpus
    return [(_instances(gpu) or [gpu])[0] for gpu in chosen]


def _instances(gpu: Listed) -> list[Listed]:
    """The MIG instances of a GPU, in NVML's order; none where it is not divided. Raises Unknown."""
    module: Any = nvml()
    instances: list[Listed] = []
    try:
        if module.nvmlDeviceGetMigMode(gpu.handle)[0] != module.NVML_DEVICE_MIG_ENABLE:
            return []
        places = module.nvmlDeviceGetMaxMigDeviceCount(gpu.handle)
    except module.NVMLError:  # a GPU that knows no MIG
        return []
    for place in range(places):
        try:
            handle = module.nvmlDeviceGetMigDeviceHandleByIndex(gpu.handle, place)
            uuid = _text(module.nvmlDeviceGetUUID(handle))
        except module.NVMLError:  # an empty place
            continue
        instances.append(Listed(f"MIG instance {place} of {gpu.name}", gpu.model, uuid, handle))
    return instances


def others_in_use(environment: Mapping[str, str]) -> list[str]:
    """Who but this process computes on what a run would use. To be called before any worker has started CUDA: in a
    container NVML gives process ids that differ from those inside.

    Args:
        environment: variables of the process, as os.environ.

    Raises: Unknown where NVML does not say.
    """
    gpus = in_use(environment)
    if not gpus:
        raise Unknown("NVML lists no GPU that CUDA_VISIBLE_DEVICES names")
    return other_processes(gpus, {os.getpid()})


def other_processes(gpus: Sequence[Listed], ignored: set[int]) -> list[str]:
    """Who computes on these, as "name (process, GPU)".

    Args:
        ignored: ids of processes that do not count.

    Raises: Unknown where NVML does not say.
    """
    module: Any = nvml()
    users = []
    for gpu in gpus:
        try:
            running = module.nvmlDeviceGetComputeRunningProcesses(gpu.handle)
        except module.NVMLError as error:
            raise Unknown(f"NVML: {error}") from None
        users += [
            f"{_process_name(module, process.pid)} (process {process.pid}, {gpu.name})"
            for process in running
            if process.pid not in ignored
        ]
    return users


def _process_name(module: Any, pid: int) -> str:
    try:
        name = module.nvmlSystemGetProcessName(pid)
    except module.NVMLError:
        return "unknown"
    return os.path.basename(_text(name)) or "unknown"


def _text(value: str | bytes) -> str:
    """What NVML gives as text: older bindings give bytes."""
    return value.decode() if isinstance(value, bytes) else value
