"""What a machine can measure, what would disturb it, and what to do about it: the lines of `attnbench doctor`, those of
a kind of device apart.

Facts are read elsewhere (`host`, `load`, `environment`, the workers of the self-test) and judged here. A fact that the
system does not state is None, and never an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attnbench.measure.device import device_of
from attnbench.measure.machine import host
from attnbench.measure.machine.condition import NOTHING, Condition, gib
from attnbench.measure.protocol import THROTTLED
from attnbench.registry import metrics_in_csv
from attnbench.units import count, shown

if TYPE_CHECKING:
    from attnbench.measure.machine.load import Clock, Load
    from attnbench.measure.self_test import SelfTest

NOISY = 0.05
"""Noise above this hides the changes that people look for."""

BUSY_SHARE = 0.3
"""Of the cores: more work than this disturbs."""

SWITCHED_SHARE = 0.1
"""Of the samples: more interruptions than this disturb."""

COARSE_S = 1e-6
"""A clock that steps further than this times short calls in long blocks."""


def processor(load: Load | None = None) -> list[Condition]:
    """The processor and its memory.

    Args:
        load: of a moment in which attnbench waited; None: the system's average of the last minute.
    """
    facts = host.facts()
    cores = host.usable_cores()
    return [
        Condition("processor", "good", f"{facts['cpu']}, {count(facts['cores'], 'core')}, {facts['machine']}"),
        _cores(facts),
        _load(load, facts["load"], cores),
        _governor(facts["governor"]),
        _memory(facts, host.memory_available_bytes()),
    ]


def _cores(facts: Mapping[str, Any]) -> Condition:
    allowed, quota, cores = facts["affinity"], facts["cgroup_cpus"], facts["cores"]
    if quota is not None and quota < (cores or 1):
        todo = "Ask for whole cores (cpuset): a quota stops all threads for a part of every period."
        return Condition("cores to use", "warning", f"a control group allows {quota:g} cores' worth of time", todo)
    if allowed is not None and cores and len(allowed) < cores:
        text = f"this process may run on {len(allowed)} of {count(cores, 'core')}: {', '.join(map(str, allowed))}"
        return Condition("cores to use", "note", text, "taskset gives it others; the numbers hold for these.")
    return Condition("cores to use", "good", "all of them")


def _load(watched: Load | None, average: float | None, cores: int) -> Condition:
    stolen = watched.stolen if watched else None
    if watched is not None and watched.others is not None:
        busy, text = watched.others, f"{watched.others:.1f} of {count(cores, 'core')} busy with other work"
    elif average is not None:
        busy, text = average, f"{average:.1f} tasks over the last minute on {count(cores, 'core')}"
    else:
        return Condition("load", "note", "the system does not say", "Look at it with the system's own monitor.")
    todo = []
    if busy > BUSY_SHARE * cores:
        todo.append("Stop other work, or wait; more rounds help against what remains.")
    if stolen:
        text += f", {stolen:.0%} of the time taken by the host of this virtual machine"
        if stolen > 0.01:
            todo.append(
                "Neighbours disturb it: use `attnbench gate`, which measures in turns, or a machine of your own."
            )
    return Condition("load", "warning" if todo else "good", text, " ".join(todo) or NOTHING)


def _governor(governor: str | None) -> Condition:
    if governor is None:
        todo = "The clock may wander unseen; more rounds help."
        return Condition("clock governor", "note", "not visible (usual on a virtual machine)", todo)
    if governor != "performance":
        todo = "As root: cpupower frequency-set --governor performance."
        return Condition("clock governor", "warning", f"'{governor}' lets the clock wander", todo)
    return Condition("clock governor", "good", governor)


def _memory(facts: Mapping[str, Any], available: int | None) -> Condition:
    total, limit = facts.get("memory_bytes"), facts["cgroup_memory_bytes"]
    if available is None:
        return Condition("memory", "note", "the system does not say", "Set limits.memory in the suite, such as 8GiB.")
    text = f"{gib(available)} available" + (f" of {gib(total)}" if total else "")
    text += f", a control group allows {gib(limit)}" if limit else ""
    if total is not None and available < total / 4:
        todo = "Free some: cells predicted to need more than is available are skipped."
        return Condition("memory", "warning", text, todo)
    return Condition("memory", "good", text, "Cells predicted to need more are skipped, and say so.")


def clock(host_clock: Clock) -> Condition:
    """The host clock's resolution."""
    source = f", counted by {host_clock.source}" if host_clock.source else ""
    text = f"steps of {shown(host_clock.step_s, 's')}{source}"
    if host_clock.step_s > COARSE_S:
        todo = "Calls are timed in blocks, so only very short ones suffer; a steady clock source (tsc) is better."
        return Condition("host clock", "warning", text, todo)
    return Condition("host clock", "good", text)


def software(facts: Mapping[str, Any], usable: int) -> list[Condition]:
    """torch, its threads and its instruction set, Triton, attnbench.

    Args:
        facts: as environment.json.
        usable: cores that a process can use.
    """
    conditions = [
        Condition("torch", "good", f"{facts.get('torch')}, Python {facts.get('python')}"),
        _threads(facts.get("threads"), usable, virtual=facts.get("governor") is None),
        _instructions(facts.get("instruction_set")),
    ]
    triton = (facts.get("packages") or {}).get("triton")
    if triton:
        conditions.append(Condition("triton", "good", str(triton)))
    else:
        todo = "pip install 'attnbench[kernels]'; until then impls on Triton are skipped, with the reason."
        conditions.append(Condition("triton", "note", "not installed", todo))
    if str(facts.get("commit") or "").endswith("+"):
        todo = "Commit before a run that is to be kept."
        conditions.append(Condition("attnbench", "note", "its checkout has uncommitted changes", todo))
    return conditions


def _threads(threads: int | None, usable: int, *, virtual: bool) -> Condition:
    text = f"{threads or 'unknown'} on {count(usable, 'core')}"
    if threads is not None and threads < usable:
        name = next((n for n in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if os.environ.get(n)), None)
        cause = f"{name}={os.environ[name]} asks for it" if name else "torch takes one per physical core"
        return Condition("threads", "good", text, f"{cause}; OMP_NUM_THREADS={usable} uses all.")
    if usable == 1:
        todo = "attnbench shares this core with everything else: expect interruptions, measure more rounds."
        return Condition("threads", "warning", text, todo)
    if virtual:
        todo = (
            "The cores of a virtual machine may lie far apart for minutes, and an operator of many short steps then "
            "takes twice as long or more: times of one thread (OMP_NUM_THREADS=1) repeat better."
        )
        return Condition("threads", "note", text, todo)
    return Condition("threads", "good", text, f"OMP_NUM_THREADS={usable - 1} leaves a core to the system.")


def _instructions(name: str | None) -> Condition:
    if name is None:
        return Condition("instruction set", "note", "torch does not say", "Compare runs of this machine only.")
    if name.upper() in ("DEFAULT", "NO AVX"):
        chosen = os.environ.get("ATEN_CPU_CAPABILITY")
        todo = f"Unset ATEN_CPU_CAPABILITY={chosen}." if chosen else "Right for this processor only if it has no AVX2."
        return Condition("instruction set", "warning", f"{name}: torch uses no vector instructions", todo)
    return Condition("instruction set", "good", name)


def no_torch(error: Exception) -> Condition:
    """torch is missing, or does not load."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return Condition("torch", "missing", f"cannot be imported: {reason}", "Install torch; nothing runs without it.")


def measuring(test: SelfTest | None, failures: Mapping[str, str]) -> list[Condition]:
    """What could be measured, and with which noise.

    Args:
        test: the self-test; None: none gave times.
        failures: by device, why its self-test gave none.
    """
    todo = "The reason says what failed; `attnbench run quick` shows it with its operator."
    conditions = [Condition(f"self-test, {name}", "missing", reason, todo) for name, reason in failures.items()]
    if test is None:
        return conditions
    columns = {name: metric.column for name, metric in metrics_in_csv().items() if not metric.of_estimates}
    measured = ", ".join(name for name, column in columns.items() if column in test.metrics)
    unmeasured = ", ".join(name for name, column in columns.items() if column not in test.metrics)
    todo = f"{unmeasured}: {device_of(test.device).unmeasured}." if unmeasured else NOTHING
    return [
        *conditions,
        Condition("metrics", "good", f"on {test.device}: {measured}", todo),
        _noise(test),
        _samples(test),
    ]


def _noise(test: SelfTest) -> Condition:
    noise = test.noise
    size = f"±{noise:.1%}" if noise < 1 else f"a factor of {min(1 + noise, 1000):.3g} or more"
    call = shown(test.call_s, "s")
    text = f"{size}: so much may identical code differ between two processes ({len(test.pairs)} turns, call of {call})"
    if noise > NOISY:
        todo = "See the warnings, measure more rounds, and decide on changes with `attnbench gate`: it takes turns."
        return Condition("A/A self-test", "warning", text, todo)
    return Condition("A/A self-test", "good", text, NOTHING)


def _samples(test: SelfTest) -> Condition:
    shares = {flag: test.share(flag) for flag in ("switched", THROTTLED, "capped", "gaps")}
    text = ", ".join(f"{share:.0%} {flag}" for flag, share in shares.items() if share) or "none disturbed"
    todo = []
    if shares["switched"] > SWITCHED_SHARE:
        todo.append("switched: others took the processor; stop them, or give attnbench fewer threads.")
    if shares[THROTTLED]:
        todo.append("throttled: cool the GPU, or lock a lower clock (nvidia-smi --lock-gpu-clocks).")
    if shares["capped"] > SWITCHED_SHARE:
        todo.append("capped: the power limit holds the clock down; lock a clock that it can hold.")
    return Condition("samples", "warning" if todo else "good", text, " ".join(todo) or NOTHING)
