"""The processor and its memory as the system states them, and what limits or disturbs them; None where it does not."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any


def facts() -> dict[str, Any]:
    """What environment.json says of the host."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "kernel_release": platform.release(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "affinity": affinity(),
        "governor": governor(),
        "load": load(),
        "memory_bytes": memory_bytes(),
        "cgroup_cpus": cgroup_cpus(),
        "cgroup_memory_bytes": cgroup_memory_bytes(),
    }


def cpu_model() -> str:
    """The processor's name."""
    if sys.platform == "darwin":
        return output_of("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    stated = stated_in("/proc/cpuinfo", "model name") or ""
    return stated.strip("\t :") or platform.processor() or platform.machine()


def affinity() -> list[int] | None:
    """The cores this process may run on, or None where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def usable_cores() -> int:
    """How many cores this process can really use: affinity and cgroup quota together."""
    allowed = affinity()
    cores = float(len(allowed) if allowed else os.cpu_count() or 1)
    return max(1, int(min(cores, cgroup_cpus() or cores)))


def governor() -> str | None:
    """How the system chooses the clock of the first core; None where it does not say (most virtual machines)."""
    return first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))


def load() -> float | None:
    """Runnable tasks over the last minute."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def memory_bytes() -> int | None:
    """The machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def memory_available_bytes() -> int | None:
    """What a new process could take without swapping; never more than the control groups leave."""
    stated = stated_in("/proc/meminfo", "MemAvailable:")
    available = int(stated.split()[0]) * 1024 if stated else memory_bytes()
    limits = [b for b in (available, *_left_by_cgroups()) if b is not None]
    return min(limits) if limits else None


def cgroup_memory_bytes() -> int | None:
    """The memory limit of the control group this process is in, or None."""
    texts = [first_line(d / name) for d in _cgroups() for name in ("memory.max", "memory.limit_in_bytes")]
    limits = [int(text) for text in texts if text and text.isdigit()]
    total = memory_bytes()
    limits = [b for b in limits if total is None or b < total]
    return min(limits) if limits else None


def _left_by_cgroups() -> list[int]:
    """Of each control group with a limit, limit less use; the page cache that it would drop first is no use."""
    free = []
    for folder in _cgroups():
        for limit, use in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, used = first_line(folder / limit) or "", first_line(folder / use) or "0"
            if most.isdigit() and used.isdigit():
                stated = dict(line.split(" ", 1) for line in lines(folder / "memory.stat") if " " in line)
                droppable = int(stated.get("total_inactive_file") or stated.get("inactive_file") or 0)
                free.append(max(0, int(most) - max(0, int(used) - droppable)))
    return free


def cgroup_cpus() -> float | None:
    """The cores' worth of time that the control group allows, or None."""
    cores = []
    for folder in _cgroups():
        quota, _, period = (first_line(folder / "cpu.max") or "").partition(" ")
        if not quota:
            quota, period = (
                first_line(folder / "cpu.cfs_quota_us") or "",
                first_line(folder / "cpu.cfs_period_us") or "",
            )
        if quota.isdigit() and period.isdigit() and int(period):
            cores.append(int(quota) / int(period))
    return min(cores) if cores else None


def out_of_memory_kills() -> int | None:
    """How often the kernel has killed for memory since boot; None where it does not say."""
    kills = stated_in("/proc/vmstat", "oom_kill ")
    return None if kills is None else int(kills)


def _cgroups() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    folders = [root, root / "memory", root / "cpu"]
    for line in lines("/proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        group = root.joinpath(*filter(None, controllers.split(",")[:1])) / path.strip("/")
        folders += [group, *(p for p in group.parents if root in p.parents)]
    return list(dict.fromkeys(folders))


def output_of(*command: str) -> str | None:
    """What a command prints, without spaces at its ends; None where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def lines(path: str | Path) -> list[str]:
    """The lines of a file; none where there is none, or it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def first_line(path: Path) -> str | None:
    """The first line of a file; None where there is none, or it cannot be read."""
    return next(iter(lines(path)), None)


def stated_in(path: str | Path, name: str) -> str | None:
    """What follows a name at the beginning of a line of a file; None where no line has it."""
    return next((line.removeprefix(name) for line in lines(path) if line.startswith(name)), None)
