"""Each disturbance is seen, and comes with what to do about it."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.errors import BadInput
from attnbench.measure import open_run, protocol, worker_process
from attnbench.measure.device import cuda
from attnbench.measure.machine import advice
from attnbench.measure.machine import host as processor
from attnbench.measure.machine import nvml as gpu
from attnbench.measure.machine.condition import Condition
from attnbench.plan.settings import Limits

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
    monkeypatch.setattr(processor, "facts", lambda: {**CALM, **facts})
    monkeypatch.setattr(processor, "usable_cores", lambda: 4)
    return {c.subject: c for c in advice.processor()}


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
    assert any(text.startswith(subject) for text in open_run.disturbances())


def test_a_gpu_whose_first_worker_is_lost_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(number: int, threads: int) -> None:
        raise protocol.WorkerLost("crashed", "the worker was killed by SIGSEGV")

    monkeypatch.setattr(open_run, "choose_device", lambda wanted: "cuda")
    monkeypatch.setattr(open_run, "other_users", lambda device: [])
    monkeypatch.setattr(worker_process, "start", lost)
    done = CliRunner().invoke(app, ["run", "quick"])
    assert isinstance(done.exception, BadInput)
    assert "--device cuda: the first worker on it was lost: the worker was killed by SIGSEGV" in str(done.exception)


@pytest.mark.parametrize(("available", "bytes_"), [(None, 800), (500, 500), (0, 0), (900, 800)])
def test_no_cell_may_need_more_than_is_available(
    available: int | None, bytes_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "memory_available_bytes", lambda: available)
    found = {"device": "cpu", "memory_bytes": 1000, "cgroup_memory_bytes": None}
    assert open_run.memory_limit(Limits(memory_fraction=0.8), found) == bytes_


class Process:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.usedGpuMemory = 2**20


class FakeNvml:
    """As much of NVML as is asked. boards: by UUID, model and PCI bus, in NVML's order; instances: MIG's, by GPU."""

    class NVMLError(Exception):
        pass

    NVML_DEVICE_MIG_ENABLE = 1

    def __init__(self) -> None:
        self.reasons: int | None = 0
        self.millijoules = 1500
        self.boards = {"GPU-abc": ("A GPU", "00000000:3B:00.0")}
        self.instances: dict[str, list[str]] = {}
        self.running: dict[str, tuple[int, ...]] = {"GPU-abc": (1, 2)}
        self.failing: set[str] = set()

    def _answer(self, name: str) -> None:
        if name in self.failing:
            raise self.NVMLError("Unknown Error")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802 - NVML's own names
        if uuid not in [*self.boards, *(i for own in self.instances.values() for i in own)]:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        if self.reasons is None:
            raise self.NVMLError("Not Supported")
        return self.reasons

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        return self.millijoules

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._answer("count")
        return len(self.boards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return list(self.boards)[index]

    def nvmlDeviceGetUUID(self, handle: str) -> str:  # noqa: N802
        return handle

    def nvmlDeviceGetName(self, handle: str) -> str:  # noqa: N802
        return self.boards[handle][0]

    def nvmlDeviceGetPciInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(busId=self.boards[handle][1].encode())

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        if not self.instances:
            raise self.NVMLError("Not Supported")
        return [int(handle in self.instances), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: str) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, index: int) -> str:  # noqa: N802
        if index >= len(self.instances[handle]):
            raise self.NVMLError("Not Found")
        return self.instances[handle][index]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Process]:  # noqa: N802
        self._answer("processes")
        return [Process(pid) for pid in self.running.get(handle, ())]

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
    nvml.reasons = None
    assert one.event_reasons() is None
    assert one.flags() == []


def test_nvml_gives_joules_and_nothing_where_it_fails(nvml: FakeNvml) -> None:
    one = gpu.Gpu("abc", 2**20, 2**30, "A GPU", "9.0")
    assert one.energy_j() == 1.5
    assert one.sm_clock_mhz() is None
    assert one.process_memory_bytes() is None


def test_only_others_count(nvml: FakeNvml) -> None:
    assert gpu.other_processes(gpu.listed(), {1}) == ["trainer2 (process 2, GPU 0)"]
    nvml.running = {"GPU-abc": (os.getpid(),)}
    assert gpu.others_in_use({}) == []


EQUAL = {"GPU-cc": ("H100", "00000000:C1:00.0"), "GPU-aa": ("H100", "00000000:1A:00.0")}
UNLIKE = {"GPU-cc": ("H100", "00000000:C1:00.0"), "GPU-aa": ("L4", "00000000:1A:00.0")}
BY_BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.parametrize(
    ("boards", "environment", "used"),
    [
        (EQUAL, {}, ["GPU-aa"]),
        (EQUAL, {"CUDA_VISIBLE_DEVICES": "1"}, ["GPU-cc"]),
        (EQUAL, {"CUDA_VISIBLE_DEVICES": " 1,0"}, ["GPU-cc"]),
        (EQUAL, {"CUDA_VISIBLE_DEVICES": "GPU-c"}, ["GPU-cc"]),
        (EQUAL, {"CUDA_VISIBLE_DEVICES": "2"}, []),
        (EQUAL, {"CUDA_VISIBLE_DEVICES": "-1,0"}, []),
        (EQUAL, {"CUDA_VISIBLE_DEVICES": ""}, []),
        (EQUAL, {"CUDA_VISIBLE_DEVICES": "GPU-dd"}, []),
        (UNLIKE, {"CUDA_VISIBLE_DEVICES": "0"}, ["GPU-aa", "GPU-cc"]),
        (UNLIKE, {"CUDA_VISIBLE_DEVICES": "0", **BY_BUS}, ["GPU-aa"]),
        (UNLIKE, {"CUDA_VISIBLE_DEVICES": "GPU-cc"}, ["GPU-cc"]),
    ],
)
def test_the_gpu_in_use_is_the_first_that_cuda_sees(
    nvml: FakeNvml, boards: dict[str, tuple[str, str]], environment: dict[str, str], used: list[str]
) -> None:
    nvml.boards = boards
    assert [one.uuid for one in gpu.in_use(environment)] == used


@pytest.mark.parametrize(
    ("visible", "used", "name"),
    [
        (None, "MIG-1", "MIG instance 0 of GPU 0"),
        ("0", "MIG-1", "MIG instance 0 of GPU 0"),
        ("GPU-aa", "MIG-1", "MIG instance 0 of GPU 0"),
        ("MIG-2", "MIG-2", "MIG instance 1 of GPU 0"),
        ("1", "GPU-cc", "GPU 1"),
    ],
)
def test_of_a_divided_gpu_one_instance_is_in_use(nvml: FakeNvml, visible: str | None, used: str, name: str) -> None:
    nvml.boards = EQUAL
    nvml.instances = {"GPU-aa": ["MIG-1", "MIG-2"]}
    nvml.running = {"MIG-1": (11,), "MIG-2": (12,), "GPU-aa": (11, 12), "GPU-cc": (13,)}
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert [(one.uuid, one.name) for one in gpu.in_use(environment)] == [(used, name)]
    pid = nvml.running[used][0]
    assert gpu.others_in_use(environment) == [f"trainer{pid} (process {pid}, {name})"]
    one = gpu.Gpu(used.partition("-")[2], 2**20, 2**30, "A GPU", "9.0")
    assert one.energy_j() == 1.5, "found by NVML whether torch gives the number of a GPU or of an instance"


def test_work_on_another_gpu_does_not_count(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.boards, nvml.running = EQUAL, {"GPU-cc": (7,)}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert open_run.other_users("cuda") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert open_run.other_users("cuda") == [
        "trainer7 (process 7, GPU 1) is using the GPU: times and memory are disturbed"
    ]


@pytest.mark.parametrize("failing", ["count", "processes"])
def test_an_nvml_that_fails_makes_it_unknown_not_none(
    nvml: FakeNvml, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.failing = {failing}
    told = "whether others use the GPU is unknown (NVML: Unknown Error)"
    assert open_run.other_users("cuda")[0].startswith(told)
    monkeypatch.setattr(open_run, "choose_device", lambda wanted: "cuda")
    refused = CliRunner().invoke(app, ["run", "quick", "--strict"])
    assert isinstance(refused.exception, BadInput)
    assert str(refused.exception).startswith(f"--strict: {told}")
    assert cuda.other_users() == ([], "NVML: Unknown Error")


def test_a_pynvml_that_does_not_start_makes_it_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    class DriverNotLoaded(Exception):
        pass

    def init() -> None:
        raise DriverNotLoaded("Driver Not Loaded")

    fake = ModuleType("pynvml")
    vars(fake).update(NVMLError=DriverNotLoaded, nvmlInit=init)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    gpu._started.cache_clear()
    try:
        assert cuda.other_users() == ([], "Driver Not Loaded")
        with pytest.raises(gpu.Unknown, match="Driver Not Loaded"):
            gpu.listed()
        found = cuda.missing()[0]
    finally:
        gpu._started.cache_clear()
    assert found.found == "none that torch's CUDA 12.8 can use (Driver Not Loaded)"


def test_doctor_tells_a_gpu_that_is_hidden(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert cuda.missing()[0].found.startswith("hidden by CUDA_VISIBLE_DEVICES='3', which names none of the 1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert cuda.missing()[0].found == "NVML lists 1, but torch finds no usable one"


def test_without_nvml_it_is_unknown_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "nvml", lambda: None)
    monkeypatch.setattr(gpu, "nvml_missing", lambda: "the package nvidia-ml-py is not installed")
    assert "unknown (the package nvidia-ml-py is not installed)" in open_run.other_users("cuda")[0]


class Begun(Exception):
    """A run would have begun."""


@pytest.mark.parametrize("words", [(), ("--strict",)], ids=["plain", "strict"])
@pytest.mark.parametrize("others", [(), (7,)], ids=["alone", "beside another"])
def test_another_process_on_the_gpu_is_named_and_strict_refuses(
    words: tuple[str, ...], others: tuple[int, ...], nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(*given: object, **options: object) -> None:
        raise Begun

    nvml.running = {"GPU-abc": others}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(open_run, "choose_device", lambda wanted: "cuda")
    monkeypatch.setattr(open_run, "begin", begin)
    done = CliRunner().invoke(app, ["run", "quick", *words])
    named = "trainer7 (process 7, GPU 0) is using the GPU"
    if others and words:
        assert isinstance(done.exception, BadInput)
        assert str(done.exception).startswith(f"--strict: {named}")
    else:
        assert isinstance(done.exception, Begun)
        assert (named in done.stderr) == bool(others)
    monkeypatch.setattr(open_run, "choose_device", lambda wanted: "cpu")
    assert named not in CliRunner().invoke(app, ["run", "quick", *words]).stderr, "on a CPU it does not matter"
