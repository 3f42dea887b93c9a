"""A long night for the harness: injected failures in one run, then damaged suites and run folders.

    python benchmarks/soak.py [--failures 300] [--cases 10000]

1. One run in which at least `--failures` visits fail on purpose, of every kind that tests/injected knows. Every other
   cell must come out with the FLOPs, peak memory, operations and status of a run without them; no visit may be lost.
2. `--cases` damaged suites through load, and damaged run folders through show and compare: never a traceback, never a
   wrong number shown as right.
Prints both figures; exits 1 at the first thing that should not have happened.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pandas import DataFrame
from typer.testing import CliRunner

from attnbench import journal
from attnbench import suite as suites
from attnbench.__main__ import app
from attnbench.errors import BadInput
from attnbench.problem import MODES, Cell, Problem
from attnbench.progress import plain
from attnbench.record import Run, read_run
from attnbench.registry import operators, resolve
from attnbench.runner import Runner
from attnbench.settings import Limits
from tests.mutations import damaged_folder, read_or_refuse, suite_bytes, wrong_numbers
from tests.running import faulty, plan

FAULTS = (
    *("caches", "caches_by_place", "decays", "off_by_one", "nan", "other_shape", "raises", "takes_memory"),
    *("exits", "segfault", "sigkill", "rubbish", "lost_context"),
)
HANGS = 3
"""Each costs its whole time limit."""

EXACT = ("status", "flops", "reference_flops", "flops_counted", "peak_memory_bytes", "input_bytes", "parameter_bytes")


def honest_cells() -> list[Cell]:
    found = []
    for name in ("softmax", "linformer", "identity", "local"):
        params = resolve(operators()[name].load(), {})
        found += [Cell(name, "reference", "core", m, Problem(n, 32, 2), params) for n in (64, 128, 256) for m in MODES]
    return [*found, *(faulty("honest", n, mode) for n in (64, 128) for mode in MODES)]


def faulty_cells(failures: int) -> list[Cell]:
    """Cells that fail, each of a size of its own: series of one, so that none is skipped because of another."""
    kinds = [*["hangs"] * HANGS, *(FAULTS[i % len(FAULTS)] for i in range(failures - HANGS))]
    return [
        replace(faulty(kind, 16 + index % 200, MODES[index % 2]), params={"from_n": 10**6 + index})
        for index, kind in enumerate(kinds)
    ]


def measured(folder: Path, cells: Sequence[Cell]) -> tuple[Run, list[dict[str, int]]]:
    opened = journal.create(folder, "name: soak\n", {"device": "cpu"})
    what = plan(cells, limits=Limits(cell_timeout_s=20.0), seed=7)
    try:
        Runner(what, opened, plain(io.StringIO())).run()
    finally:
        opened.close()
    run = read_run(folder)
    assert len(run.visits) == len(set(zip(run.visits["key"], run.visits["round"], strict=True)))
    scouted = {v.key: v.operations for v in opened.visits if v.round == 0}
    assert set(scouted) == {cell.key for cell in cells}, "a visit was lost"
    return run, [scouted[cell.key] for cell in honest_cells()]


def exact(run: Run) -> DataFrame:
    keys = [cell.key for cell in honest_cells()]
    return run.results.set_index("key").loc[keys, list(EXACT)]


def soak_failures(failures: int, place: Path) -> str:
    calm, calm_operations = measured(place / "calm", honest_cells())
    mixed, mixed_operations = measured(place / "mixed", [*honest_cells(), *faulty_cells(failures)])
    assert exact(calm).equals(exact(mixed)), exact(calm).compare(exact(mixed))
    assert calm_operations == mixed_operations
    bad = mixed.visits[mixed.visits["status"] != "ok"]
    honest = {cell.key for cell in honest_cells()}
    assert not set(bad["key"]) & honest, "a failure blanked another cell"
    told = Counter(bad["status"])
    assert len(bad) >= failures, f"only {len(bad)} of {failures} failures happened: {told}"
    timed = mixed.results.set_index("key").loc[list(honest), "wall_time_s"]
    assert timed.notna().all(), "an honest cell has no time"
    counts = ", ".join(f"{count} {status}" for status, count in told.most_common())
    return f"{len(bad)} injected failures ({counts}); {len(honest)} other cells identical, nothing lost"


def soak_suites(cases: int, place: Path) -> str:
    refused, read, slowest = 0, 0, 0.0
    path = place / "mutated.yaml"
    for case in range(cases):
        path.write_bytes(suite_bytes(random.Random(case)))
        begun = time.monotonic()
        try:
            suites.load(str(path))
        except BadInput as error:
            refused += "mutated.yaml" in str(error)
        else:
            read += 1
        slowest = max(slowest, time.monotonic() - begun)
    assert refused + read == cases, "a message does not name its file"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    with contextlib.suppress(BadInput):
        suites.load(str(path))
        raise AssertionError("100 MB of zeros were taken for a suite")
    return f"{cases} damaged suites: {refused} refused in words, slowest {slowest:.2f} s"


def soak_folders(cases: int, place: Path, original: Run) -> str:
    refused = 0
    runner = CliRunner()
    for case in range(cases):
        target = place / "damaged"
        damaged_folder(random.Random(case), original.folder, target)
        run = read_or_refuse(target)
        refused += run is None
        assert run is None or not wrong_numbers(run, original), case
        for arguments in (["show", str(target)], ["compare", str(original.folder), str(target)]):
            done = runner.invoke(app, arguments)
            assert done.exception is None or isinstance(done.exception, (SystemExit, BadInput)), (case, done.exception)
    return f"{cases} damaged run folders: {refused} refused in words, the others read right"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--failures", type=int, default=300)
    parser.add_argument("--cases", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if given.failures:
            print(soak_failures(given.failures, place), flush=True)
        if given.cases:
            from tests.test_mutations import small_run

            original = small_run(place / "original")
            print(soak_suites(given.cases // 2, place), flush=True)
            print(soak_folders(given.cases - given.cases // 2, place, original), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
