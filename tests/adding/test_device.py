"""Adding a kind of device is adding its file: it is chosen by its name, measured on, stored and shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from tests.adding.tree import REPOSITORY, attnbench

PATH = "attnbench/measure/device/pretend.py"
DEVICE = '''"""The CPU, behind a clock, an allocator and a profiler that only pretend."""

from __future__ import annotations

from dataclasses import replace

from attnbench.measure.device import Call, Sampler, cpu


def clock(estimate: float, synchronises: bool) -> Sampler:
    """Takes a quarter of a second for every call."""

    def sample(call: Call) -> tuple[float, list[str]]:
        call()
        return 0.25, ["pretended"]

    return sample


def peak_memory(call: Call) -> dict[str, int]:
    """Three mebibytes for every call."""
    call()
    return {"peak_memory_bytes": 3 * 2**20}


def launched_kernels(call: Call) -> dict[str, int]:
    """Always the same."""
    call()
    return {"pretended_kernel": 2}


DEVICE = replace(
    cpu.DEVICE,
    preference=-1,
    facts=lambda: {"gpu_name": "Pretended"},
    clock=clock,
    peak_memory=peak_memory,
    launched_kernels=launched_kernels,
)
'''


@pytest.fixture
def tree(metric_and_device: Path) -> Path:
    return metric_and_device


def test_what_it_measures_is_stored(run: Path) -> None:
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    assert (environment["device"], environment["gpu_name"]) == ("pretend", "Pretended")
    assert environment["rates"]["copy_bytes_per_s"] > 0
    visits = [json.loads(line) for line in (run / "visits.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {(visit["device"], visit["status"]) for visit in visits} == {("pretend", "ok")}
    assert all(visit["operations"]["cpu:pretended_kernel"] == 2 for visit in visits if visit["round"] == 0)
    with (run / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert {float(row["device_time_s"]) for row in rows} == {0.25}
    assert {float(row["peak_memory_bytes"]) for row in rows} == {3 * 2**20}
    assert all(0 < float(row["wall_time_s"]) < 0.25 for row in rows), "the host's clock does not pretend"
    with (run / "samples.csv").open(encoding="utf-8") as file:
        flags = {row["flags"] for row in csv.DictReader(file) if row["clock"] == "device"}
    assert flags == {"pretended"}


def test_it_is_shown_where_its_file_is_and_where_it_is_not(tree: Path, run: Path) -> None:
    """A stored run of a kind that is not here is read like any other; it cannot go on. Here is this process."""
    words = ("show", str(run), "--all", "--metric", "device_time,peak_memory")
    shown = attnbench(tree, *words)
    for text in ("pretend", "Device time", "250ms", "3.00MiB"):
        assert text in shown.stdout, shown.stdout + shown.stderr
    wide = {"COLUMNS": "200"}
    assert CliRunner().invoke(app, words, env=wide).stdout == shown.stdout
    assert CliRunner().invoke(app, ["show", str(run)], env=wide).stdout.startswith("On this pretend (Pretended), ")
    refused = attnbench(REPOSITORY, "run", "--resume", str(run))
    assert (refused.returncode, "'pretend'" in refused.stderr) == (2, True), refused.stderr


def test_what_cannot_run_on_it_says_so(tree: Path) -> None:
    listed = attnbench(tree, "list", "operators", "efficient", "--device", "pretend")
    assert "cannot run here: needs a CUDA device: cuda (efficient)" in " ".join(listed.stdout.split()), listed.stderr


def test_without_its_file_its_name_is_refused() -> None:
    refused = attnbench(REPOSITORY, "run", "quick", "--device", "pretend")
    assert refused.returncode == 2
    assert all(name in refused.stderr for name in ("'pretend'", "allowed: auto, cpu, cuda")), refused.stderr
