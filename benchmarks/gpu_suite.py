"""A suite on a GPU within a time limit: `python -m benchmarks.gpu_suite FOLDER --suite gpu-first --limit 540`.

First its kernels are built by many processes, which compile side by side into the caches of Triton and torch, and time
nothing; then `attnbench run` measures it alone on the GPU, with the time that is left as its budget, and its roofline
is printed. In a folder of an earlier job the run goes on. The folder is a run folder of five files: environment.json,
suite.yaml, visits.jsonl, samples.csv and results.csv, of which the last is derived; all are written as it goes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

from attnbench.measure import worker_process
from attnbench.measure.protocol import CheckRequest, Forecast, SupportRequest, WorkerLost
from attnbench.measure.visit_maker import COMPILE_LIMIT_S
from attnbench.measure.worker_process import Worker
from attnbench.plan import suite as suites
from attnbench.plan.cells import cells
from attnbench.problem import Cell
from attnbench.registry import compiles
from attnbench.store.reading import read_visits
from attnbench.store.records import SUITE, VISITS

BUILD_SHARE = 0.4
"""Of the limit: after it what is not built yet is left to the run."""

TABLES_S = 20.0
"""What tables and the roofline take at most after the run's budget."""

NOT_COMPARED = Forecast(reference_bytes=2**62)
"""What is said of a reference, so that it runs at the reduced size alone: many processes share the GPU's memory."""

Start = Callable[[int, int], Worker]


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_suite", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a run folder: a new one, or that of an earlier job")
    parser.add_argument("--suite", default="gpu-first", help="a shipped suite or a YAML file")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which all must have ended")
    parser.add_argument("--processes", type=int, default=12, help="that build kernels")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args(words)
    # torch compiles in its own process: of those that it would start, one per core, there would be too many.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    # Each round is a fresh process; FlashAttention-4 compiles for 4 to 9 s in each that finds nothing on disk.
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    end = time.monotonic() + args.limit
    until = time.monotonic() + BUILD_SHARE * args.limit
    wanted = to_build(args.folder, args.suite)
    for line in built(wanted, args.device, args.processes, lambda: until - time.monotonic()):
        print(line, flush=True)
    code = measured(command(args.folder, args.suite, args.device, end - TABLES_S - time.monotonic()), end)
    subprocess.run([sys.executable, "-m", "attnbench", "roofline", str(args.folder)], check=False)
    return code


def to_build(folder: Path, suite: str) -> list[Cell]:
    """The cells whose impl compiles, but for those that have a time; gradients first, which take longest to compile."""
    begun = (folder / VISITS).exists()
    path = str(folder / SUITE) if begun else suite
    timed = {visit.key for visit in (read_visits(folder) if begun else ()) if visit.round and visit.status == "ok"}
    wanted = [cell for cell in cells(suites.load(path)) if compiles(cell.impl) and cell.key not in timed]
    return sorted(wanted, key=lambda cell: (":" not in cell.impl, cell.mode == "fwd"))


def built(
    wanted: Sequence[Cell],
    device: str,
    processes: int,
    left_s: Callable[[], float],
    start: Start = worker_process.start,
) -> Iterator[str]:
    """Checks cells in many processes, for the sake of what they compile. Returns: a line for each, as it ends.

    Args:
        wanted: the cells.
        processes: how many at a time.
        left_s: what is left of the time; where it ends, so do they.
        start: starts a worker, by its number and threads.
    """
    idle: SimpleQueue[Worker | None] = SimpleQueue()
    for _ in range(processes):
        idle.put(None)

    def build(cell: Cell) -> str:
        begun, worker = time.monotonic(), idle.get()
        request = CheckRequest(cell, device, (), 2**32, None, NOT_COMPARED)
        try:
            if left_s() <= 0:
                return f"not built: {cell.key}"
            worker = worker or start(0, 1)
            answer = worker.ask(request, min(COMPILE_LIMIT_S, max(left_s(), 1.0)))
            if answer.fatal or answer.restart:
                worker.kill()
                worker = None
            return f"{time.monotonic() - begun:6.1f} s  {answer.status}: {cell.key} {answer.reason}".rstrip()
        except WorkerLost as lost:
            worker = None
            return f"{time.monotonic() - begun:6.1f} s  {lost.status}: {cell.key} {lost}"
        finally:
            idle.put(worker)

    supported = list(_supported(wanted, device, start)) if wanted else []
    with ThreadPoolExecutor(processes) as pool:
        for future in as_completed([pool.submit(build, cell) for cell in supported]):
            yield future.result()
    for _ in range(processes):
        worker = idle.get()
        if worker is not None:
            worker.kill()


def _supported(wanted: Sequence[Cell], device: str, start: Start) -> Iterator[Cell]:
    with contextlib.closing(start(0, 1)) as worker:
        answer = worker.ask(SupportRequest(tuple(wanted), device, ()), worker_process.START_TIMEOUT_S)
    return (cell for cell, (_, reason) in zip(wanted, answer.reasons, strict=True) if reason is None)


def command(folder: Path, suite: str, device: str, budget_s: float) -> list[str]:
    """A new run, or one that goes on."""
    place: Iterable[str] = ("--resume", str(folder)) if (folder / VISITS).exists() else (suite, "--out", str(folder))
    budget = f"{max(1, int(budget_s))}s"
    return [sys.executable, "-m", "attnbench", "run", *place, "--device", device, "--budget", budget]


def measured(words: Sequence[str], end: float) -> int:
    """The exit code of a command, which is interrupted where it does not end by itself."""
    process = subprocess.Popen(words)
    for wait_s in (end - TABLES_S / 3 - time.monotonic(), TABLES_S / 3):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(max(wait_s, 1.0))
        process.send_signal(signal.SIGINT)
    process.kill()
    return process.wait()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
