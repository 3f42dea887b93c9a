"""What only a CUDA device shows of measuring: its clocks, allocator and energy, and failures that lose its context."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attnbench.analysis.run import Run
from attnbench.problem import Cell, Mode, Problem
from attnbench.registry import operators, resolve
from tests.running import faulty, measured, plan

NO_DEVICE = None if torch.cuda.is_available() else "no CUDA device is available to torch"

pytestmark = [pytest.mark.gpu, pytest.mark.alone, pytest.mark.skipif(NO_DEVICE is not None, reason=str(NO_DEVICE))]


def softmax(seq_len: int, channels: int = 64, mode: Mode = "fwd") -> Cell:
    params = resolve(operators()["softmax"].load(), {})
    return Cell("softmax", "reference", "core", mode, Problem(seq_len, channels, heads=4), params)


def run(folder: Path, *cells: Cell) -> Run:
    return measured(folder, plan(cells, device="cuda", memory_limit=2**33))


@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
def test_memory_is_the_same_alone_and_after_a_large_cell(tmp_path: Path, mode: Mode) -> None:
    small, large = softmax(512, mode=mode), softmax(256, channels=2**16, mode=mode)
    alone = run(tmp_path / "alone", small).results.set_index("key").loc[small.key]
    after = run(tmp_path / "after", small, large).results.set_index("key")
    assert list(after["status"]) == ["ok", "ok"]
    for column in ("peak_memory_bytes", "peak_memory_total_bytes", "input_bytes"):
        assert after.loc[small.key, column] == alone[column]
    assert after.loc[large.key, "peak_memory_bytes"] > alone["peak_memory_bytes"]
    assert alone["peak_memory_bytes"] >= 2 * 4 * 512 * 512 * 4, "two N×N matrices of four heads"
    assert alone["reserved_memory_bytes"] >= alone["peak_memory_bytes"]


def test_device_time_leaves_out_the_launches_and_grows_with_the_work(tmp_path: Path) -> None:
    little, much = softmax(64), softmax(4096)
    found = run(tmp_path / "run", little, much).results.set_index("key")
    assert list(found["status"]) == ["ok", "ok"]
    assert 0 < found.loc[little.key, "device_time_s"] < found.loc[little.key, "wall_time_s"]
    assert found.loc[much.key, "device_time_s"] > 5 * found.loc[little.key, "device_time_s"]
    assert found.loc[much.key, "wall_time_s"] > 0.9 * found.loc[much.key, "device_time_s"]


def test_energy_is_there_where_the_board_counts_it(tmp_path: Path) -> None:
    from attnbench.measure.device.cuda import gpu

    cell = softmax(2048)
    row = run(tmp_path / "run", cell).results.iloc[0]
    if gpu().energy_j() is None:
        assert row["energy_j"] != row["energy_j"], "empty, not 0"
    else:
        assert 5 < row["energy_j"] / row["device_time_s"] < 3000, "watts of one board"


def test_memory_that_runs_out_and_a_lost_context_cost_their_own_cells_alone(tmp_path: Path) -> None:
    failing = {"fills_gpu_memory": ("oom", "out of GPU memory"), "reads_outside": ("crashed", "device-side assert")}
    cells = [*(faulty(impl) for impl in failing), faulty("honest"), faulty("honest", 64), faulty("caches")]
    found = run(tmp_path / "run", *cells).results
    for impl, (status, reason) in failing.items():
        (row,) = found[found["impl"] == impl].to_dict("records")
        assert (row["status"], reason in row["reason"]) == (status, True), row["reason"]
    assert list(found.loc[found["impl"] == "honest", "status"]) == ["ok", "ok"]
    assert list(found.loc[found["impl"] == "caches", "status"]) == ["wrong"]
