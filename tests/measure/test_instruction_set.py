"""Where torch is held to an instruction set, oneDNN is as well, in every worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.measure import worker_process
from attnbench.measure.machine import instruction_set

ONEDNN = "ONEDNN_MAX_CPU_ISA"


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({"ATEN_CPU_CAPABILITY": "avx2"}, {ONEDNN: "AVX2"}),
        ({"ATEN_CPU_CAPABILITY": "DEFAULT"}, {ONEDNN: "SSE41"}),
        ({"ATEN_CPU_CAPABILITY": "avx2", ONEDNN: "AVX512_CORE"}, {}),
        ({"ATEN_CPU_CAPABILITY": "avx512"}, {}),
        ({}, {}),
    ],
)
def test_onednn_follows_torch_unless_the_user_has_chosen(given: dict[str, str], added: dict[str, str]) -> None:
    assert instruction_set.variables(given) == added


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the environment of a process cannot be read here")
def test_a_worker_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.delenv(ONEDNN, raising=False)
    worker = worker_process.start(0, threads=1)
    try:
        environment = Path(f"/proc/{worker.process.pid}/environ").read_bytes().split(b"\0")
    finally:
        worker.kill()
    assert f"{ONEDNN}=AVX2".encode() in environment
