"""A suite on a GPU within a time limit, with workers that only pretend."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attnbench.measure.protocol import CheckRequest, SupportAnswer, SupportRequest, VisitAnswer, WorkerLost
from attnbench.plan import suite as suites
from attnbench.plan.cells import cells
from attnbench.store.records import SUITE
from benchmarks.gpu_suite import built, command, measured, to_build
from tests.running import faulty
from tests.stored import folder, visit

MINE = """
operators: [softmax, linformer]
impls: [reference, sdpa, cuda]
sweep: [{seq_len: [64, 128]}]
mode: [fwd, fwd_bwd]
"""
CELLS = [faulty(f"cuda:{name}") for name in ("fine", "lost", "unsupported", "wrong", "other")]


class Builder:
    """A worker; what is asked of all of them is in `asked`."""

    def __init__(self, asked: list[str], act: Callable[[], None]) -> None:
        self.asked, self.act, self.alive = asked, act, True

    def ask(self, request: Any, timeout: float) -> Any:
        assert self.alive
        if isinstance(request, SupportRequest):
            reasons = [None if cell.impl != "cuda:unsupported" else "cannot" for cell in request.cells]
            return SupportAnswer(tuple(("skipped", reason) for reason in reasons))
        assert isinstance(request, CheckRequest)
        self.asked.append(request.cell.impl)
        self.act()
        if request.cell.impl == "cuda:lost":
            self.alive = False
            raise WorkerLost("crashed", "gone")
        return VisitAnswer("wrong" if request.cell.impl == "cuda:wrong" else "ok")

    def kill(self) -> None:
        self.alive = False

    close = kill


def built_by(processes: int, left_s: Callable[[], float], act: Callable[[], None] = lambda: None) -> Any:
    asked: list[str] = []
    workers: list[Builder] = []

    def start(number: int, threads: int) -> Any:
        workers.append(Builder(asked, act))
        return workers[-1]

    lines = list(built(CELLS, "cpu", processes, left_s, start))
    assert not any(worker.alive for worker in workers), "none outlives the building"
    return lines, asked


def test_each_kernel_is_built_once_and_a_lost_process_costs_one() -> None:
    lines, asked = built_by(2, lambda: 60.0)
    assert sorted(asked) == ["cuda:fine", "cuda:lost", "cuda:other", "cuda:wrong"]
    assert sorted(line.split()[2] for line in lines) == ["crashed:", "ok:", "ok:", "wrong:"]


def test_nothing_is_built_after_the_time_that_is_for_it() -> None:
    left = [60.0]
    lines, asked = built_by(1, lambda: left[0], act=lambda: left.__setitem__(0, 0.0))
    assert asked == ["cuda:fine"]
    assert sum(line.startswith("not built") for line in lines) == 3


def test_what_has_a_time_or_compiles_nothing_is_not_built(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINE)
    mine = str(tmp_path / "mine.yaml")
    fresh = to_build(tmp_path / "run", mine)
    compiled = {cell.key for cell in cells(suites.load(mine)) if cell.impl.startswith("cuda")}
    assert {cell.key for cell in fresh} == compiled
    assert [c.mode for c in fresh if (c.operator, c.impl) == ("linformer", "cuda")] == ["fwd_bwd"] * 2 + ["fwd"] * 2
    checked, timed = fresh[:2]
    folder(tmp_path / "run", [visit(checked), visit(timed), visit(timed, 1)])
    (tmp_path / "run" / SUITE).write_text(MINE)
    assert {cell.key for cell in to_build(tmp_path / "run", "none.yaml")} == compiled - {timed.key}


def test_a_run_that_is_there_goes_on(tmp_path: Path) -> None:
    words = command(tmp_path / "run", "gpu-first", "cuda", 100.7)
    assert words[3:6] == ["run", "gpu-first", "--out"]
    assert words[-2:] == ["--budget", "100s"]
    folder(tmp_path / "run", [visit()])
    assert command(tmp_path / "run", "gpu-first", "cuda", -1.0)[3:6] == ["run", "--resume", str(tmp_path / "run")]


def test_a_command_that_goes_on_too_long_is_interrupted() -> None:
    asleep = [sys.executable, "-c", "import time; time.sleep(1000)"]
    assert measured(asleep, time.monotonic()) != 0
    assert measured([sys.executable, "-c", "raise SystemExit(3)"], time.monotonic() + 100) == 3
