"""The worker as a process: what it imports, how it ends, what it may allocate."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from attnbench.measure import worker_process
from attnbench.measure.device import device_of
from attnbench.measure.protocol import VERSION, CheckRequest, EnvironmentRequest, RatesRequest, VisitAnswer, WorkerLost
from attnbench.measure.worker.failures import status_of
from attnbench.measure.worker.storable import storable
from tests.running import faulty


def test_measuring_imports_torch_and_the_standard_library_only() -> None:
    code = (
        "import sys, pkgutil, importlib; from attnbench.measure import worker; "
        "from attnbench.measure.worker import visit; "
        "[importlib.import_module(f'{worker.__name__}.{m.name}') for m in pkgutil.iter_modules(worker.__path__)]; "
        "visit.metrics(); "
        "found = {'pandas', 'pydantic', 'yaml', 'typer', 'rich', 'scipy'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(found)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_operators_and_their_checks_bring_torch_alone() -> None:
    """Every worker loads some: torch._dynamo takes longer than torch, and Triton is of kernels that are called."""
    program = (
        "import sys; from attnbench.registry import operators\n"
        "for source in operators().values(): source.load()\n"
        "loaded = {'torch._dynamo', 'triton', 'sympy'} & set(sys.modules)\n"
        "from attnbench.measure.protocol import CheckRequest; from attnbench.measure.worker.checking import check\n"
        "from attnbench.problem import Cell, Problem\n"
        "cell = Cell('linear_transformer', 'reference', 'core', 'fwd_bwd', Problem(16, 8), {})\n"
        "assert check(CheckRequest(cell, 'cpu', (), 2**30, None)).status == 'ok'\n"
        "print(sorted(loaded | {'torch._dynamo', 'triton'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_a_worker_ends_when_its_pipe_closes() -> None:
    worker = worker_process.start(0, threads=1)
    os.close(worker.write)
    assert worker.process.wait(timeout=120) == 0
    worker.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_worker_in_native_code_ends_with_its_parent() -> None:
    code = (
        "from attnbench.measure.protocol import CheckRequest; from tests.running import faulty, plan\n"
        "from attnbench.measure.worker_pool import Workers\n"
        "import os, signal, threading\n"
        "workers = Workers(plan([]), -1)\n"
        "cell = faulty('hangs', 32)\n"
        "workers.ready(); print(workers.measuring.process.pid, flush=True)\n"
        "threading.Timer(3.0, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()\n"
        "workers.ask(CheckRequest(cell, 'cpu', ('tests.injected',), 2**30, 2**30), 60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.wait(timeout=300)
    parent.stdout.close()
    deadline = time.monotonic() + 120
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the worker outlived its parent"
        time.sleep(0.05)


@pytest.fixture
def pretending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker is a process that says that it is ready, and then waits: what is tested is how it ends."""
    script = tmp_path / "pretending"
    script.write_text(f"""#!/bin/sh
echo '{{"ready": true, "protocol": {VERSION}}}' > /dev/fd/$4
exec sleep 600
""")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


@pytest.mark.usefixtures("pretending")
def test_killing_takes_the_whole_process_group() -> None:
    worker = worker_process.start(0, threads=1)
    assert os.getpgid(worker.process.pid) == worker.process.pid != os.getpgid(0)
    worker.kill()
    assert worker.process.returncode == -9


@pytest.mark.usefixtures("pretending")
@pytest.mark.parametrize(("kills", "status"), [((3, 3), "crashed"), ((3, 4), "oom"), ((None, None), "crashed")])
def test_a_kill_while_the_kernel_kills_for_memory_is_out_of_memory(
    kills: tuple[int | None, ...], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter(kills)
    monkeypatch.setattr(worker_process, "out_of_memory_kills", lambda: next(told))
    worker = worker_process.start(0, threads=1)
    os.kill(worker.process.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost, match="SIGKILL") as lost:
        worker.ask(RatesRequest("cpu", ()), 30.0)
    assert lost.value.status == status


def test_a_disk_without_room_for_what_a_worker_prints_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*given: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "TemporaryFile", none)
    with pytest.raises(WorkerLost, match=r"No usable temporary directory found.*set TMPDIR"):
        worker_process.start(0, threads=1)


def test_a_worker_that_cannot_start_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkerLost, match="exited with code 1"):
        worker_process.start(0, threads=1)


class Accelerator(torch.AcceleratorError):
    error_code = 2


@pytest.mark.parametrize(
    ("error", "device", "lost", "status"),
    [
        (RuntimeError("illegal memory access, out of memory"), "cpu", False, "error"),
        (RuntimeError("illegal memory access, out of memory"), "cuda", False, "error"),
        (RuntimeError("anything"), "cuda", True, "crashed"),
        (Accelerator("anything"), "cuda", True, "oom"),
    ],
)
def test_what_an_exception_means_is_asked_of_torch_and_not_read(
    error: Exception, device: str, lost: bool, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def synchronize() -> None:
        if lost:
            raise RuntimeError("the context is lost")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert status_of(error, device_of(device)) == status


def test_a_failed_allocation_on_the_cpu_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**62, dtype=torch.uint8)
    assert status_of(raised.value, device_of("cpu")) == "oom"


def test_what_an_operator_gives_is_made_fit_to_be_stored() -> None:
    numbers = {
        "flops": np.int64(3),
        "bytes_required": torch.tensor(4),
        "softmax_error": np.float32(0.5),
        "impl_flops": 2,
    }
    bad = {"reference_flops": math.nan, "peak_memory_bytes": 10**30, "energy_j": -1.0, "relative_error": "\ud800"}
    answer = storable(
        VisitAnswer(
            status="ok",
            reason="so \x9b31m " * 10**6,
            kernel=None,  # type: ignore[arg-type]
            metrics={**numbers, **bad},  # type: ignore[dict-item]
            operations={"a\x1b": 1, "a\\u001b": 2},
            warnings=("\ud800",),
        )
    )
    assert answer.metrics == {"flops": 3, "bytes_required": 4, "softmax_error": 0.5, "impl_flops": 2}
    assert [type(value) for value in answer.metrics.values()] == [int, int, float, int]
    assert answer.operations == {r"a\u001b": 3}
    assert answer.warnings[0] == r"\ud800"
    assert [text.split(" = ")[0] for text in answer.warnings[1:]] == list(bad)
    assert answer.reason.startswith(r"so \u009b31m so")
    assert len(answer.reason) < 10**4
    json.dumps(answer.to_json(), ensure_ascii=False, allow_nan=False).encode()


def test_what_a_worker_prints_does_not_fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "MOST_PRINTED_BYTES", 100)
    started = worker_process.start(0, threads=1)
    try:
        request = CheckRequest(faulty("prints", 16), "cpu", ("tests.injected",), 2**30, host_limit=None)
        started.ask(request, 60.0)
        assert os.fstat(started.printed.fileno()).st_size > 100
        started.ask(EnvironmentRequest("cpu"), 60.0)
        assert os.fstat(started.printed.fileno()).st_size < 100
    finally:
        started.kill()
