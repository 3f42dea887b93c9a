"""Each disturbance is seen, and comes with what to do about it."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from attnbench import conditions, environment, gpu, pipe, session
from attnbench.__main__ import app
from attnbench.conditions import Condition
from attnbench.errors import BadInput
from attnbench.settings import Limits

CALM: dict[str, Any] = {
    "cpu": "A CPU",
    "cores": 4,
    "machine": "x86_64",
    "affinity": [0, 1, 2, 3],
    "cgroup_cpus": None,
    "load": 0.1,
    "governor": "performance",
    "cgroup_memory_bytes": None,
}


def found(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> dict[str, Condition]:
    monkeypatch.setattr(environment, "host", lambda: {**CALM, **facts})
    monkeypatch.setattr(environment, "usable_cores", lambda: 4)
    return {c.subject: c for c in conditions.host()}


def test_a_calm_machine_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calm = found(monkeypatch)
    assert all(calm[name].level == "good" for name in ("cores to use", "load", "clock governor", "memory"))


@pytest.mark.parametrize(
    ("subject", "facts"),
    [
        ("load", {"load": 3.9}),
        ("clock governor", {"governor": "powersave"}),
        ("cores to use", {"cgroup_cpus": 1.5}),
    ],
)
def test_disturbances_are_warned_of_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, subject: str, facts: dict[str, Any]
) -> None:
    condition = found(monkeypatch, **facts)[subject]
    assert condition.level == "warning"
    assert condition.todo
    assert any(text.startswith(subject) for text in session.disturbances())


def test_a_gpu_whose_first_worker_is_lost_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(number: int, threads: int) -> None:
        raise pipe.WorkerLost("crashed", "the worker was killed by SIGSEGV")

    monkeypatch.setattr(session, "choose_device", lambda wanted: "cuda")
    monkeypatch.setattr(session, "others_on_gpu", lambda device: [])
    monkeypatch.setattr(pipe, "start", lost)
    done = CliRunner().invoke(app, ["run", "quick"])
    assert isinstance(done.exception, BadInput)
    assert "--device cuda: the first worker on it was lost: the worker was killed by SIGSEGV" in str(done.exception)


@pytest.mark.parametrize(("available", "bytes_"), [(None, 800), (500, 500), (0, 0), (900, 800)])
def test_no_cell_may_need_more_than_is_available(
    available: int | None, bytes_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "memory_available_bytes", lambda: available)
    found = {"device": "cpu", "memory_bytes": 1000, "cgroup_memory_bytes": None}
    assert session.memory_limit(Limits(memory_fraction=0.8), found) == bytes_


class Process:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.usedGpuMemory = 2**20


class FakeNvml:
    """As much of NVML as is asked."""

    class NVMLError(Exception):
        pass

    reasons = 0
    millijoules = 1500
    pids: tuple[int, ...] = (1, 2)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802 - NVML's own names
        assert uuid == "GPU-abc"
        return uuid

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        return self.reasons

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        return self.millijoules

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return "GPU-abc"

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Process]:  # noqa: N802
        return [Process(pid) for pid in self.pids]

    def nvmlSystemGetProcessName(self, pid: int) -> str:  # noqa: N802
        return f"/usr/bin/trainer{pid}"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        raise self.NVMLError


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setattr(gpu, "nvml", lambda: fake)
    return fake


def test_throttling_and_power_capping_are_told_apart(nvml: FakeNvml) -> None:
    one = gpu.Gpu("abc", 2**20, 2**30, "A GPU", "9.0")
    assert one.flags() == []
    nvml.reasons = 0x4
    assert one.flags() == ["capped"]
    nvml.reasons = 0x20 | 0x4
    assert one.flags() == ["throttled", "capped"]


def test_nvml_gives_joules_and_nothing_where_it_fails(nvml: FakeNvml) -> None:
    one = gpu.Gpu("abc", 2**20, 2**30, "A GPU", "9.0")
    assert one.energy_j() == 1.5
    assert one.sm_clock_mhz() is None
    assert one.process_memory_bytes() is None


def test_only_others_count(nvml: FakeNvml) -> None:
    assert gpu.other_processes({1}) == ["trainer2 (process 2, GPU 0)"]


class Begun(Exception):
    """A run would have begun."""


@pytest.mark.parametrize("words", [(), ("--strict",)], ids=["plain", "strict"])
@pytest.mark.parametrize("others", [(), (7,)], ids=["alone", "beside another"])
def test_another_process_on_the_gpu_is_named_and_strict_refuses(
    words: tuple[str, ...], others: tuple[int, ...], nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*given: object) -> None:
        raise Begun

    nvml.pids = others
    monkeypatch.setattr(session, "choose_device", lambda wanted: "cuda")
    monkeypatch.setattr(session, "begin", begin)
    done = CliRunner().invoke(app, ["run", "quick", *words])
    named = "trainer7 (process 7, GPU 0) is using the GPU"
    if others and words:
        assert isinstance(done.exception, BadInput)
        assert str(done.exception).startswith(f"--strict: {named}")
    else:
        assert isinstance(done.exception, Begun)
        assert (named in done.stderr) == bool(others)
    monkeypatch.setattr(session, "choose_device", lambda wanted: "cpu")
    assert named not in CliRunner().invoke(app, ["run", "quick", *words]).stderr, "on a CPU it does not matter"
