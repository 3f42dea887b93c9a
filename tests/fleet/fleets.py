"""A fleet as a user starts it, and what of its run must be the same however it was measured."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attnbench.analysis.compare.tier0_exact import exact_metrics
from attnbench.store.reading import read_visits
from attnbench.store.records import Visit

TOP = Path(__file__).parents[2]
LEAN = Path(__file__).parent / "lean"
LIMIT_S = 600


def environment(**more: str) -> dict[str, str]:
    """Of a command: one thread, and this attnbench."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TOP}{os.pathsep}{LEAN}", "COLUMNS": "80", **more}


def command(*words: str | Path) -> list[str]:
    """A command line of attnbench."""
    return [sys.executable, "-m", "attnbench", *map(str, words)]


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The exit code of a command, and what it printed."""
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def started(*words: str | Path, **more: str) -> subprocess.Popen[str]:
    """A command of attnbench that runs."""
    return subprocess.Popen(
        command(*words), env=environment(**more), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def until(holds: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """What a condition returns once that is something, while a command runs."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        value = holds()
        if value:
            return value
        if process.poll() is not None:
            raise AssertionError(f"the command ended: {ended(process)}")
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"it did not come: {ended(process)}")


def figures(folder: Path) -> dict[str, tuple[Any, ...]]:
    """By key, what a run holds that is the same on every device of a kind: status, and exact metrics."""
    columns = [metric.column for metric in exact_metrics().values()]
    checks = [visit for visit in read_visits(folder) if visit.round == 0]
    return {visit.key: (visit.status, *(visit.metrics.get(column) for column in columns)) for visit in checks}


def units(folder: Path) -> set[tuple[str, int]]:
    """(key, round) of the timed visits of a run that are ok."""
    return {(visit.key, visit.round) for visit in read_visits(folder) if visit.round and visit.status == "ok"}


def stored(fleet: Path) -> Mapping[Path, list[Visit]]:
    """The visits of each shard so far."""
    return {path.parent: read_visits(path.parent) for path in sorted(fleet.glob("shards/[0-9]*[0-9]/visits.jsonl"))}


def kept(before: Mapping[Path, list[Visit]]) -> bool:
    """Whether a shard that goes on has what it had."""
    return all(read_visits(folder)[: len(visits)] == visits for folder, visits in before.items())
