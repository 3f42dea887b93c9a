"""What a machine can measure, what would disturb it, and what to do about it: the lines of `attnbench doctor`."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any, Literal

from attnbench import environment

Level = Literal["good", "note", "warning", "missing"]

NOISY = 0.05
"""Two halves of the same samples that differ by more than this say that small changes will not be seen."""

SELF_TEST_S = 2.0


@dataclass(frozen=True)
class Condition:
    """One line. level: `missing` takes a way of measuring away, `warning` makes numbers worse. todo: may be empty."""

    subject: str
    level: Level
    found: str
    todo: str = ""


def host() -> list[Condition]:
    """The processor: cores, load, governor, limits, the host clock."""
    facts = environment.host()
    return [
        Condition("processor", "good", f"{facts['cpu']}, {facts['cores']} cores, {facts['machine']}"),
        _affinity(facts),
        _load(facts),
        _governor(facts),
        _memory(facts),
        _timer(),
    ]


def _affinity(facts: dict[str, Any]) -> Condition:
    allowed, quota, cores = facts["affinity"], facts["cgroup_cpus"], facts["cores"]
    if quota is not None and quota < (cores or 1):
        todo = "Ask for whole cores: a quota stops all threads for a part of every period."
        return Condition("cores to use", "warning", f"a control group allows {quota:g} cores' worth of time", todo)
    if allowed is not None and cores and len(allowed) < cores:
        return Condition("cores to use", "note", f"this process may run on cores {', '.join(map(str, allowed))}")
    return Condition("cores to use", "good", "all of them")


def _load(facts: dict[str, Any]) -> Condition:
    load, cores = facts["load"], environment.usable_cores()
    if load is None:
        return Condition("load", "note", "the system does not say")
    if load > 0.3 * cores:
        todo = "Stop other work, or wait; more rounds help against what remains."
        return Condition("load", "warning", f"{load:.1f} tasks over the last minute on {cores} cores", todo)
    return Condition("load", "good", f"{load:.1f} tasks over the last minute")


def _governor(facts: dict[str, Any]) -> Condition:
    governor = facts["governor"]
    if governor is None:
        return Condition("clock governor", "note", "not visible (usual on a virtual machine)")
    if governor != "performance":
        todo = "As root: cpupower frequency-set --governor performance."
        return Condition("clock governor", "warning", f"'{governor}' lets the clock wander", todo)
    return Condition("clock governor", "good", governor)


def _memory(facts: dict[str, Any]) -> Condition:
    available, limit = environment.memory_available_bytes(), facts["cgroup_memory_bytes"]
    if available is None:
        return Condition("memory", "note", "the system does not say", "Set limits.memory in the suite, such as 8GiB.")
    grouped = f", a control group allows {limit / 2**30:.1f} GiB" if limit else ""
    return Condition("memory", "good", f"{available / 2**30:.1f} GiB available{grouped}")


def _timer() -> Condition:
    steps = []
    for _ in range(2000):
        first = time.perf_counter()
        second = time.perf_counter()
        while second == first:
            second = time.perf_counter()
        steps.append(second - first)
    step = statistics.median(steps)
    if step > 1e-6:
        todo = "Calls are timed in blocks, so only very short ones suffer; a steady clock source (tsc) is better."
        return Condition("host clock", "warning", f"steps of {step * 1e6:.1f} µs", todo)
    return Condition("host clock", "good", f"steps of {step * 1e9:.0f} ns")


def device() -> list[Condition]:
    """torch, and the GPU with its driver, NVML, clocks and company."""
    try:
        import torch
    except ImportError as error:
        return [
            Condition("torch", "missing", f"cannot be imported: {error}", "Install torch; nothing runs without it.")
        ]
    found = [
        Condition("torch", "good", f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, "
                  f"{torch.get_num_threads()} threads")
    ]  # fmt: skip
    if not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no usable GPU"
        todo = (
            "" if torch.version.cuda is None else "See nvidia-smi: a driver too old for this torch is the usual reason."
        )
        return [*found, Condition("GPU", "note", f"{why}; only the CPU is measured", todo)]
    return [*found, *_gpu()]


def _gpu() -> list[Condition]:
    from attnbench.gpu import CAPPED, THROTTLED, Gpu, nvml_missing, other_processes

    gpu = Gpu.current()
    facts = gpu.facts()
    gib = gpu.total_bytes / 2**30
    found = [Condition("GPU", "good", f"{gpu.name}, {gib:.0f} GiB, capability {gpu.capability}")]
    missing = nvml_missing()
    if missing is not None:
        todo = "Install the driver's NVML; without it there is no energy, and throttling goes unseen."
        return [*found, Condition("NVML", "warning", missing, todo)]
    found.append(Condition("NVML", "good", f"driver {facts['driver']}"))
    if not facts["persistence"]:
        todo = "As root: nvidia-smi --persistence-mode 1."
        found.append(Condition("persistence", "note", "off: the first use after a pause is slow", todo))
    reasons = gpu.event_reasons()
    clocks = f"SM clock {facts['sm_clock_mhz']} of {facts['max_sm_clock_mhz']} MHz"
    if reasons & THROTTLED:
        todo = "Cool the machine or raise the power limit; samples taken now are discarded."
        found.append(Condition("clocks", "warning", f"{clocks}, throttled", todo))
    elif reasons & CAPPED:
        found.append(Condition("clocks", "note", f"{clocks}, at the power limit"))
    else:
        todo = "For the smallest noise, as root: nvidia-smi --lock-gpu-clocks to a clock it can hold."
        found.append(Condition("clocks", "good", clocks, todo))
    if gpu.energy_j() is None:
        found.append(Condition("energy", "note", "this GPU has no energy counter; energy_j stays empty"))
    others = other_processes(_own_processes())
    if others:
        todo = "Stop them; `attnbench run --strict` refuses to measure beside them."
        found.append(Condition("other processes", "warning", "; ".join(others), todo))
    return found


def _own_processes() -> set[int]:
    import os

    return {os.getpid(), os.getppid()}


def self_test() -> Condition:
    """A against A: one matmul, timed in turns under two names; how far apart the two come out."""
    import torch

    x = torch.randn(256, 256)
    first: list[float] = []
    second: list[float] = []
    begun = time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() - begun < SELF_TEST_S:
            for times in (first, second):
                start = time.perf_counter()
                for _ in range(10):
                    x @ x
                times.append((time.perf_counter() - start) / 10)
    a, b = statistics.median(first), statistics.median(second)
    quarters = statistics.quantiles(first + second, n=4)
    spread = (quarters[2] - quarters[0]) / quarters[1]
    apart = abs(a / b - 1)
    found = f"medians {apart:.1%} apart, samples spread {spread:.1%} (interquartile)"
    if max(apart, spread / 2) > NOISY:
        todo = "Expect wide intervals: stop other work, and measure more rounds. `attnbench calibrate` says more."
        return Condition("A/A self-test", "warning", found, todo)
    return Condition("A/A self-test", "good", found)
