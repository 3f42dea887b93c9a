from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from attnbench.__main__ import app
from attnbench.measure import protocol, self_test
from attnbench.measure.device import cuda
from attnbench.measure.machine import advice, nvml
from attnbench.measure.machine import host as processor
from attnbench.measure.machine import load as machine
from attnbench.measure.machine.condition import NOTHING, Condition
from attnbench.measure.machine.load import Clock, Load
from attnbench.measure.self_test import SelfTest

COLUMNS = frozenset({"wall_time_s", "flops", "peak_memory_bytes", "state_bytes", "relative_error"})
QUIET = SelfTest("cpu", COLUMNS, ((1e-3, 1.001e-3), (1e-3, 0.999e-3), (1e-3, 1e-3)), 100, {}, {"torch": "2.13.0"})
GPU_FACTS: dict[str, Any] = {
    "gpu": {
        "name": "NVIDIA H200",
        "capability": "9.0",
        "memory_bytes": 150 * 10**9,
        "driver": "580.1",
        "persistence": 1,
        "sm_clock_mhz": 1980,
        "max_sm_clock_mhz": 1980,
        "power_limit_w": 700.0,
    },
    "cuda": "12.8",
    "cudnn": 91000,
    "nvml_missing": None,
}


def doctor(*words: str) -> Result:
    result = CliRunner().invoke(app, ["doctor", *words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def named(found: list[Condition]) -> dict[str, Condition]:
    return {condition.subject: condition for condition in found}


def stands_in(test: SelfTest) -> Callable[..., SelfTest]:
    return lambda *given: test


def test_it_measures_here_and_says_what_to_do_about_each_line() -> None:
    result = doctor("--format", "json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert found["measurable"] is True
    assert found["self_test"]["device"] in ("cpu", "cuda")
    assert len(found["self_test"]["pairs"]) == self_test.TURNS
    assert all(0 < seconds < 10 for pair in found["self_test"]["pairs"] for seconds in pair)
    assert set(found["self_test"]["columns"]) >= COLUMNS
    subjects = {condition["subject"] for condition in found["conditions"]}
    assert subjects >= {"metrics", "A/A self-test", "load", "memory", "clock governor", "host clock"}
    assert subjects >= {"torch", "threads", "instruction set", "triton", "GPU"}
    assert all(c["todo"] and c["found"] for c in found["conditions"])
    assert {c["level"] for c in found["conditions"]} <= {"good", "note", "warning", "missing"}


def test_nothing_measured_is_exit_code_1_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(device: str, threads: int) -> SelfTest:
        raise protocol.WorkerLost("crashed", "the worker was killed by SIGSEGV")

    monkeypatch.setattr(self_test, "self_test", lost)
    result = doctor()
    assert result.exit_code == 3
    assert "SIGSEGV" in " ".join(result.stdout.split())
    assert "Nothing can be measured" in result.stdout
    assert json.loads(doctor("--format", "json").stdout)["self_test"] is None


def test_a_torch_that_does_not_load_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = doctor()
    assert result.exit_code == 3
    assert "cannot be imported" in " ".join(result.stdout.split())


def test_the_cpu_is_measured_where_the_gpu_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def only_cpu(device: str, threads: int) -> SelfTest:
        if device == "cuda":
            raise protocol.WorkerLost("crashed", "CUDA error: no kernel image is available")
        return QUIET

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(self_test, "self_test", only_cpu)
    result = doctor("--format", "json")
    assert result.exit_code == 0
    found = {c["subject"]: c for c in json.loads(result.stdout)["conditions"]}
    assert found["self-test, cuda"]["level"] == "missing"
    assert "no kernel image" in found["self-test, cuda"]["found"]
    assert "GPU" not in found


def test_without_proc_sys_and_nvml_nothing_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none(*given: object, **more: object) -> None:
        return None

    monkeypatch.setattr(processor, "lines", lambda path: [])
    monkeypatch.setattr(machine, "STAT", tmp_path / "stat")
    monkeypatch.setattr(machine, "CLOCK_SOURCE", tmp_path / "source")
    for name in ("affinity", "governor", "load", "memory_bytes", "memory_available_bytes", "cgroup_cpus"):
        monkeypatch.setattr(processor, name, none)
    monkeypatch.setattr(nvml, "nvml", none)
    monkeypatch.setattr(self_test, "self_test", stands_in(QUIET))
    result = doctor()
    assert result.exit_code == 0
    assert "the system does not say" in " ".join(result.stdout.split())


def test_the_noise_is_shown() -> None:
    shifted = replace(QUIET, pairs=tuple((a, 1.1 * b) for a, b in QUIET.pairs))
    wild = replace(QUIET, pairs=((1e-9, 1.0), (1.0, 1e-9), (1e-9, 1.0)))
    found = [named(advice.measuring(test, {}))["A/A self-test"] for test in (QUIET, shifted, wild)]
    assert [c.level for c in found] == ["good", "warning", "warning"]
    assert "±10" in found[1].found
    assert "a factor of 1e+03" in found[2].found


def test_metrics_are_those_that_were_measured() -> None:
    found = named(advice.measuring(QUIET, {}))["metrics"]
    assert found.found == "on cpu: wall_time, flops, peak_memory, relative_error, state_bytes"
    assert found.todo.startswith("device_time, energy")
    every = replace(QUIET, metrics=COLUMNS | {"device_time_s", "energy_j"})
    assert named(advice.measuring(every, {}))["metrics"].todo == NOTHING


@pytest.mark.parametrize(
    ("flagged", "word"),
    [
        ({}, ""),
        ({"switched": 5}, ""),
        ({"switched": 50}, "stop"),
        ({"throttled": 1}, "cool"),
        ({"capped": 60}, "power"),
    ],
)
def test_disturbed_samples_are_told_with_what_to_do(flagged: dict[str, int], word: str) -> None:
    found = named(advice.measuring(replace(QUIET, flagged=flagged), {}))["samples"]
    assert (found.level == "warning") == bool(word)
    assert word in found.todo


def host(monkeypatch: pytest.MonkeyPatch, seen: Load | None, facts: dict[str, Any]) -> dict[str, Condition]:
    calm = {"cpu": "A CPU", "cores": 4, "machine": "x86_64", "affinity": [0, 1, 2, 3], "cgroup_cpus": None}
    calm |= {"load": 0.1, "governor": "performance", "cgroup_memory_bytes": None, "memory_bytes": 2**34}
    monkeypatch.setattr(processor, "facts", lambda: {**calm, **facts})
    monkeypatch.setattr(processor, "usable_cores", lambda: 4)
    monkeypatch.setattr(processor, "memory_available_bytes", lambda: facts.get("available", 2**33))
    return named(advice.processor(seen))


@pytest.mark.parametrize(
    ("load", "facts", "subject", "level"),
    [
        (Load(0.1, 0.0), {"load": 9.0}, "load", "good"),
        (Load(3.0, 0.0), {}, "load", "warning"),
        (Load(0.0, 0.2), {}, "load", "warning"),
        (Load(None, None), {"load": 9.0}, "load", "warning"),
        (None, {"load": None}, "load", "note"),
        (None, {"available": 2**30}, "memory", "warning"),
        (None, {"available": None}, "memory", "note"),
        (None, {"cgroup_memory_bytes": 2**33}, "memory", "good"),
        (None, {"cgroup_cpus": 1.5}, "cores to use", "warning"),
        (None, {"affinity": [0]}, "cores to use", "note"),
        (None, {"governor": "powersave"}, "clock governor", "warning"),
        (None, {"governor": None}, "clock governor", "note"),
    ],
)
def test_the_host(
    load: Load | None, facts: dict[str, Any], subject: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = host(monkeypatch, load, facts)
    assert found[subject].level == level
    assert {c.level for name, c in found.items() if name != subject} == {"good"}
    assert (found[subject].todo != NOTHING) or level == "good"


def test_the_clock() -> None:
    assert advice.clock(Clock(5e-8, "tsc")).level == "good"
    assert advice.clock(Clock(4e-6, "hpet")).level == "warning"


@pytest.mark.parametrize(
    ("facts", "usable", "name", "level"),
    [
        ({"instruction_set": "AVX512"}, 8, "instruction set", "good"),
        ({"instruction_set": "DEFAULT"}, 8, "instruction set", "warning"),
        ({"threads": 1}, 1, "threads", "warning"),
        ({"threads": 4}, 8, "threads", "good"),
        ({"threads": 8, "governor": "performance"}, 8, "threads", "good"),
        ({"threads": 8, "governor": None}, 8, "threads", "note"),
        ({"packages": {"triton": "3.9"}}, 8, "triton", "good"),
        ({"packages": {"triton": None}}, 8, "triton", "note"),
        ({"commit": "abc+"}, 8, "attnbench", "note"),
        ({}, 8, "torch", "good"),
    ],
)
def test_software(facts: dict[str, Any], usable: int, name: str, level: str) -> None:
    assert named(advice.software(facts, usable))[name].level == level


def test_fewer_threads_than_cores_name_their_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert "OMP_NUM_THREADS=2 asks for it" in named(advice.software({"threads": 2}, 8))["threads"].todo


def test_a_gpu_in_order_has_nothing_to_warn_of() -> None:
    found = named(cuda.conditions(GPU_FACTS, []))
    assert {c.level for c in found.values()} == {"good"}
    assert {"GPU", "driver", "NVML", "persistence", "clocks", "other processes"} == set(found)
    assert "1980 of 1980 MHz" in found["clocks"].found


def test_exact_kernels_that_are_missing_come_with_what_installs_them() -> None:
    fast = {"cuda:fa4": "FlashAttention-4 is not installed: pip install it", "cuda:cudnn": ""}
    found = [c for c in cuda.conditions({**GPU_FACTS, "fast_exact": fast}, []) if c.subject == "exact softmax"]
    assert [(c.level, c.found.partition(" ")[0]) for c in found] == [("good", "cuda:cudnn"), ("note", "a")]
    assert "pip install it" in found[1].found


@pytest.mark.parametrize(
    ("own", "more", "others", "name"),
    [
        ({"persistence": 0}, {}, [], "persistence"),
        ({"sm_clock_mhz": None, "max_sm_clock_mhz": None}, {}, [], "clocks"),
        ({}, {"nvml_missing": "Driver Not Loaded"}, [], "NVML"),
        ({}, {}, ["python (process 7, GPU 0)"], "other processes"),
    ],
)
def test_a_gpu_that_disturbs_is_told(own: dict[str, Any], more: dict[str, Any], others: list[str], name: str) -> None:
    found = named(cuda.conditions({**GPU_FACTS, "gpu": {**GPU_FACTS["gpu"], **own}, **more}, others))
    assert [c.subject for c in found.values() if c.level != "good"] == [name]


def test_who_else_is_there_may_be_unknown_and_is_then_not_none() -> None:
    told = named(cuda.conditions(GPU_FACTS, [], "NVML: Insufficient Permissions"))["other processes"]
    assert (told.level, told.found) == ("note", "unknown: NVML: Insufficient Permissions")


def test_a_gpu_of_which_nothing_is_known_is_no_error() -> None:
    assert cuda.conditions({}, [])
    assert cuda.conditions({"gpu": dict.fromkeys(GPU_FACTS["gpu"])}, [])


@pytest.mark.parametrize(
    ("built_for", "listed", "why", "visible", "word"),
    [
        (None, 2, None, None, "built without CUDA"),
        ("12.8", 2, None, "", "hidden by CUDA_VISIBLE_DEVICES=''"),
        ("12.8", 2, None, "7", "names none of the 2"),
        ("12.8", 2, None, None, "no usable one"),
        ("12.8", None, "Driver Not Loaded", None, "Driver Not Loaded"),
        (None, None, "the package nvidia-ml-py is not installed", None, "unknown (the package"),
        (None, 0, None, None, "none"),
    ],
)
def test_why_there_is_no_gpu(
    built_for: str | None, listed: int | None, why: str | None, visible: str | None, word: str
) -> None:
    found = cuda.no_gpu(built_for, listed, why, visible)
    assert found.level == "missing"
    assert word in found.found


def test_other_work_is_seen_in_proc_stat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    texts = iter(("cpu  0 0 0 0 0 0 0 0 0 0\n", "cpu  60 0 10 20 0 0 0 10 0 0\n"))
    monkeypatch.setattr(processor, "lines", lambda path: next(texts).splitlines())
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    load = machine.watch(0.0)
    assert load.others == pytest.approx(4 * 0.7)
    assert load.stolen == pytest.approx(0.1)
    (tmp_path / "stat").write_text("cpu  1 2\n")
    monkeypatch.undo()
    monkeypatch.setattr(machine, "STAT", tmp_path / "stat")
    assert machine.watch(0.0) == Load(None, None)


def test_the_clock_steps() -> None:
    assert 0 < machine.clock().step_s < 0.1
