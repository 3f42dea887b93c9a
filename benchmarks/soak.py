"""Hundreds of injected failures in one run, and ten thousand mutated suites and run folders. Not part of CI.

    python benchmarks/soak.py [--failures 300] [--cases 10000] [--processes 2] [--case NUMBER]

1. Failures: workers that segfault, are killed (by themselves and from outside), hang in native code, run out of memory,
   exit, write into the pipe, raise, compute NaN or a wrong answer, between cells of real operators. Each must end with
   its own status and reason; every other cell must have the FLOPs, bytes and operations of a run without failures; no
   visit may be lost or be there twice, and no worker may be left.
2. Cases: mutated suites through load, mutated run folders through load, show and compare, a share of them through the
   command line. Each must be refused with a message or be shown as its file says. --case makes a single one again.

Both at once. Prints both figures; exits 1 where anything of this does not hold.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attnbench.analysis.run import Run, read_run
from attnbench.measure.runner import Runner
from attnbench.plan.settings import Limits, Measure
from attnbench.problem import MODES, Cell, Problem
from attnbench.registry import operators, resolve
from attnbench.store import journal
from attnbench.store.records import Visit
from tests.mutated.judged import judge_folder, judge_suite
from tests.mutated.runs import mutated_folder, original_folder
from tests.mutated.suites import mutated_suite
from tests.running import Silent, plan

ROOT = Path(__file__).resolve().parents[1]
MEASURE = Measure(rounds=2, crossover_precision=None, min_turns=2, max_turns=2)
CELL_TIMEOUT_S = 45.0
EXACT = (
    *("flops", "reference_flops", "flops_counted", "flops_uncounted", "bytes_required"),
    *("peak_memory_bytes", "peak_memory_total_bytes", "input_bytes", "parameter_bytes"),
)
HONEST = ("softmax", "linformer", "local", "performer", "fnet", "identity")
HONEST_SIZES = (32, 64, 96)
KILLED_FROM_OUTSIDE = 12

FOLDER_SHARE = 0.3
"""Of the cases; the others are suites."""

COMMAND_LINE_EVERY = 250
"""One case in so many goes through the real command line as well."""


@dataclass(frozen=True)
class Kind:
    """A way to fail: an impl of tests/injected/faulty.py, the status it must get, a part of its reason, its share."""

    impl: str
    status: str
    reason: str
    share: int


KINDS = (
    Kind("segfault", "crashed", "SIGSEGV", 6),
    Kind("sigkill", "crashed", "SIGKILL", 6),
    Kind("exits", "crashed", "exited with code 3", 3),
    Kind("raises_surrogate", "error", "a lone", 2),
    Kind("raises_unspeakable", "error", "whose text cannot be had", 2),
    Kind("raises_own_base", "error", "own", 2),
    Kind("rubbish", "crashed", "no answer", 5),
    Kind("speaks_of_memory", "error", "out of memory", 5),
    Kind("takes_memory", "oom", "out of memory", 4),
    Kind("takes_gpu_memory", "oom", "out of GPU memory", 2),
    Kind("needs_memory", "skipped", "over the limit", 4),
    Kind("hangs", "timeout", "no answer within", 1),
    Kind("raises", "error", "it cannot", 14),
    Kind("nan", "wrong", "NaN or infinite", 8),
    Kind("infinite", "wrong", "NaN or infinite", 6),
    Kind("off_by_one", "wrong", "differs", 12),
    Kind("other_shape", "wrong", "the reference gives", 10),
    Kind("caches", "wrong", "", 8),
    Kind("caches_by_place", "wrong", "", 3),
    Kind("decays", "wrong", "", 3),
)


def faulty_cells(failures: int) -> dict[str, tuple[Cell, Kind]]:
    """Cells that fail, by key, each a series of its own, so that none is skipped because of another."""
    kinds = [kind for kind in KINDS for _ in range(kind.share)]
    cells = {}
    for index in range(failures):
        kind = kinds[index % len(kinds)]
        params = {"from_n": 10**6 + index}
        # What remembers has no gradient to give: it would fail before it is found wrong.
        mode = "fwd" if kind.impl.startswith("caches") else MODES[index % 2]
        cell = Cell("faulty", kind.impl, "core", mode, Problem(16 + 8 * (index % 12), 8), params)
        cells[cell.key] = (cell, kind)
    return cells


def honest_cells() -> list[Cell]:
    cells = []
    for name in HONEST:
        operator = operators()[name].load()
        params = resolve(operator, {})
        for impl in ("reference", *(i for i in operator.forms["core"].impls if i == "sdpa")):
            cells += [Cell(name, impl, "core", m, Problem(n, 32, 2), params) for n in HONEST_SIZES for m in MODES]
    return cells


def victim_cells() -> list[Cell]:
    """Honest cells whose workers are killed from outside."""
    problems = [Problem(24 + 8 * index, 8) for index in range(KILLED_FROM_OUTSIDE)]
    return [Cell("faulty", "honest", "core", "fwd", p, {"from_n": i + 1}) for i, p in enumerate(problems)]


def measured(folder: Path, cells: Sequence[Cell], victims: set[str]) -> tuple[Run, list[Visit], dict[str, int]]:
    """A run of cells: it, its visits, and by victim the round in which its worker was killed from outside."""
    killed: dict[str, int] = {}
    opened = journal.create(folder, "name: soak\n", {"device": "cpu"})
    limits = Limits(cell_timeout_s=CELL_TIMEOUT_S)
    progress = Silent()
    runner = Runner(plan(cells, measure=MEASURE, limits=limits, seed=7), opened, progress)

    def begin(cell: Cell, round: int) -> None:
        worker = runner.workers.measuring
        if round and cell.key in victims and cell.key not in killed and worker is not None:
            killed[cell.key] = round
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.wait()

    progress.begin = begin
    try:
        runner.run()
    finally:
        opened.close()
    return read_run(folder), opened.visits, killed


def children() -> set[str]:
    """The ids of this process's own children; empty where the system does not say."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    return set(listed.read_text().split()) if listed.is_file() else set()


def soak_failures(failures: int, place: Path) -> str:
    before = children()
    honest, faulty, victims = honest_cells(), faulty_cells(failures), victim_cells()
    keys = [cell.key for cell in honest]
    calm, calm_visits, _ = measured(place / "calm", honest, set())
    cells = [*honest, *(cell for cell, _ in faulty.values()), *victims]
    mixed, visits, killed = measured(place / "mixed", cells, {cell.key for cell in victims})
    rows = mixed.results.set_index("key")

    _same_figures(calm, mixed, keys)
    counted = [{v.key: (v.operations, v.kernel) for v in stored if v.round == 0} for stored in (calm_visits, visits)]
    assert all(counted[0][key] == counted[1][key] for key in keys), "other operations than without failures"
    _nothing_lost(mixed, visits, cells, honest)
    assert children() == before, f"processes are left: {children() - before}"
    _ended_as_injected(rows, {key: kind for key, (_, kind) in faulty.items()})
    for cell in victims:
        (lost,) = [v for v in visits if v.key == cell.key and v.status != "ok"]
        assert (lost.round, lost.status) == (killed[cell.key], "crashed"), lost
        assert rows.loc[cell.key, "status"] == "ok"
        assert "SIGKILL" in lost.reason, lost.reason
    failed_statuses = Counter(v.status for v in visits if v.status != "ok")
    assert failed_statuses.total() >= failures + len(victims), failed_statuses
    counts = ", ".join(f"{count} {status}" for status, count in failed_statuses.most_common())
    workers = len({v.process for v in visits})
    return (
        f"{failed_statuses.total()} injected failures ({counts}) in {len(visits)} visits by {workers} workers; "
        f"{len(honest)} other cells identical to a run without them, nothing lost, nothing twice, no worker left"
    )


def _ended_as_injected(rows: pd.DataFrame, kinds: Mapping[str, Kind]) -> None:
    """rows: results.csv by key. kinds: of every cell that fails."""
    other: Counter[str] = Counter()
    for key, kind in kinds.items():
        row = rows.loc[key]
        if row["status"] != kind.status or kind.reason not in row["reason"] or not pd.isna(row["wall_time_s"]):
            other[f"{kind.impl}: {row['status']}, {row['reason']}"] += 1
    assert not other, f"failures that ended otherwise: {dict(other)}"


def _same_figures(calm: Run, mixed: Run, keys: Sequence[str]) -> None:
    columns = ["status", *EXACT]
    a, b = (run.results.set_index("key").loc[list(keys), columns] for run in (calm, mixed))
    assert a.equals(b), f"other figures than without failures:\n{a.compare(b)}"
    assert a["flops"].notna().all()
    assert a["peak_memory_bytes"].notna().all()


def _nothing_lost(run: Run, visits: Sequence[Visit], cells: Sequence[Cell], honest: Sequence[Cell]) -> None:
    places = Counter((v.key, v.round) for v in visits)
    assert set(places.values()) == {1}, "a visit is there twice"
    assert list(places) == list(zip(run.visits["key"], run.visits["round"], strict=True)), "a stored visit is lost"
    assert {key for key, round in places if round == 0} == {cell.key for cell in cells}, "a cell was not checked"
    planned = {(cell.key, round) for cell in honest for round in range(MEASURE.rounds + 1)}
    assert planned <= set(places), f"visits are lost: {sorted(planned - set(places))[:5]}"
    samples = run.samples.groupby(["key", "round"]).size().to_dict()
    assert samples == {(v.key, v.round): v.samples for v in visits if v.samples}, "samples are lost or there twice"


@dataclass(frozen=True)
class Done:
    """One case. fault: None, or what was not right. refused: None where it was not asked."""

    case: int
    kind: str
    refused: bool
    seconds: float
    fault: str | None


def one_case(case: int, shared: Path) -> Done:
    """A mutated suite or run folder, the same for its number. shared: where every process keeps its original run."""
    original = _original(shared / f"original-{os.getpid()}")
    draw = random.Random(f"soak {case}")
    is_folder = draw.random() < FOLDER_SHARE
    begun = time.monotonic()
    target, kind, refused, fault = "run folder" if is_folder else "suite", "not judged", False, None
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        try:
            outcome = (
                judge_folder(place / "run", original, draw)
                if is_folder
                else judge_suite(place, draw, cells=case % 5 == 0)
            )
            kind, refused = outcome.mutation.expected, outcome.refused
            seconds = time.monotonic() - begun
            if case % COMMAND_LINE_EVERY == 0:
                _through_the_command_line(case, original if is_folder else None, place)
        except Exception as error:
            seconds = time.monotonic() - begun
            frame = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__}: {str(error)[:400]} ({Path(frame.filename).name}, line {frame.lineno})"
            print(f"case {case} ({target}, {kind}): {fault}", flush=True)
    return Done(case, f"{target}, {kind}", refused, seconds, fault)


@cache
def _original(folder: Path) -> Run:
    return read_run(original_folder(folder))


def _through_the_command_line(case: int, original: Run | None, place: Path) -> None:
    """original: what a mutated run folder comes from; None: it is a suite."""
    path = place / "again"
    draw = random.Random(f"command line {case}")
    if original is not None:
        mutation = mutated_folder(path, draw)
        words = draw.choice((["show", path], ["compare", original.folder, path], ["plot", path, "--out", place]))
    else:
        data, mutation = mutated_suite(draw, place / "bait")
        path.with_suffix(".yaml").write_bytes(data)
        words = ["run", path.with_suffix(".yaml"), "--dry-run"]
    command = [sys.executable, "-m", "attnbench", *map(str, words)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert process.returncode in (0, 1, 2, 3), f"{words[0]}: {mutation.kind}: exit code {process.returncode}"
    assert "Traceback" not in process.stderr, f"{words[0]}: {mutation.kind}: {process.stderr[-300:]}"
    assert process.returncode != 2 or process.stderr.count("\n") < 100, "a message is a paragraph"


def summary_of(done: Sequence[Done]) -> tuple[str, int]:
    """What became of all cases, and how many faults there were."""
    faults = sum(each.fault is not None for each in done)
    folders = [each for each in done if each.kind.startswith("run folder")]
    refused = [each.refused for each in done]
    refused_folders = sum(each.refused for each in folders)
    slowest = max(done, key=lambda each: each.seconds)
    on_command_line = -(-len(done) // COMMAND_LINE_EVERY)
    text = (
        f"{len(done)} mutations: {len(done) - len(folders)} suites ({sum(refused) - refused_folders} refused) and "
        f"{len(folders)} run folders ({refused_folders} refused), {on_command_line} of them through "
        f"the command line; the others shown as their files say; {faults} faults; "
        f"slowest {slowest.seconds:.1f} s (case {slowest.case})"
    )
    return text, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--failures", type=int, default=300)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--case", type=int, help="only this mutation")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.case is None:
            return soak(args.failures, args.cases, args.processes, folder)
        case = one_case(args.case, folder)
        print(case)
        return int(case.fault is not None)


def soak(failures: int, cases: int, processes: int, folder: Path) -> int:
    """Both parts at once. Returns the exit code."""
    begun = time.monotonic()
    faults = 0
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        cases_done = pool.imap_unordered(partial(one_case, shared=folder), range(cases), chunksize=20)
        if failures:
            print(soak_failures(failures, folder), f"({time.monotonic() - begun:.0f} s)", flush=True)
        if cases:
            text, faults = summary_of(list(cases_done))
            print(text, f"({time.monotonic() - begun:.0f} s)", flush=True)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
