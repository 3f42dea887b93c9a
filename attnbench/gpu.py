"""The GPU as NVML sees it: clocks, throttling, energy, memory of this process, and who else is on it.

Every figure is None (or empty) where NVML or the GPU has none; nothing here fails because of that.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

THROTTLED = 0x8 | 0x20 | 0x40 | 0x80
"""NVML's clock event reasons that mean disturbance: HW slowdown, SW thermal, HW thermal, HW power brake."""

CAPPED = 0x4
"""SW power cap: the clock gives way to the power limit, as it does for any heavy kernel; noted, not discarded."""


@cache
def nvml() -> Any | None:
    """The initialised pynvml module, or None where there is no driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def nvml_missing() -> str | None:
    """Why NVML cannot be asked, or None."""
    try:
        import pynvml
    except ImportError:
        return "the package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Gpu:
    """One GPU. index: as torch counts; uuid: how NVML finds the same one whatever CUDA_VISIBLE_DEVICES says."""

    uuid: str
    l2_bytes: int
    total_bytes: int
    name: str
    capability: str

    @classmethod
    def current(cls) -> Gpu:
        """The GPU that torch uses by default in this process. Starts CUDA."""
        return _current()

    @cached_property
    def _handle(self) -> Any | None:
        module = nvml()
        if module is None:
            return None
        return self._ask("nvmlDeviceGetHandleByUUID", "GPU-" + self.uuid, of_handle=False)

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

    def event_reasons(self) -> int:
        """NVML's bit field of what holds the clock down now."""
        for name in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            found = self._ask(name)
            if found is not None:
                return int(found)
        return 0

    def flags(self) -> list[str]:
        """The flags of a sample taken now."""
        reasons = self.event_reasons()
        return ["throttled"] * bool(reasons & THROTTLED) + ["capped"] * bool(reasons & CAPPED)

    def energy_j(self) -> float | None:
        """The counter of all energy since the driver was loaded; it steps in millijoules."""
        found = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if found is None else found / 1e3

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


@cache
def _current() -> Gpu:
    import torch

    p = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Gpu(str(p.uuid), p.L2_cache_size, p.total_memory, p.name, f"{p.major}.{p.minor}")


def other_processes(mine: set[int]) -> list[str]:
    """Who else computes on any GPU, as "name (pid, GPU)"; `mine`: process ids that do not count."""
    module = nvml()
    if module is None:
        return []
    found = []
    try:
        for index in range(module.nvmlDeviceGetCount()):
            handle = module.nvmlDeviceGetHandleByIndex(index)
            for process in module.nvmlDeviceGetComputeRunningProcesses(handle):
                if process.pid not in mine:
                    name = _process_name(module, process.pid)
                    found.append(f"{name} (process {process.pid}, GPU {index})")
    except module.NVMLError:
        return found
    return found


def _process_name(module: Any, pid: int) -> str:
    try:
        name = module.nvmlSystemGetProcessName(pid)
    except module.NVMLError:
        return "unknown"
    return os.path.basename(name.decode() if isinstance(name, bytes) else name) or "unknown"
