"""Runs made inside tests: a plan of faulty cells, a silent progress, and short settings."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from attnbench.analysis.run import Run, read_run
from attnbench.measure import open_run
from attnbench.measure.protocol import NOTHING_KNOWN
from attnbench.measure.runner import Runner
from attnbench.measure.worker_pool import Workers
from attnbench.plan.plan import Plan
from attnbench.plan.settings import Limits, Measure
from attnbench.problem import Cell, Mode, Problem
from attnbench.progress import Reached, Stage
from attnbench.store import journal
from attnbench.store.records import Visit

QUICK = Measure(rounds=1, max_rounds=1, min_turns=2, max_turns=2)


def faulty(impl: str, seq_len: int = 32, mode: Mode = "fwd", from_n: int = 10**6) -> Cell:
    return Cell("faulty", impl, "core", mode, Problem(seq_len, 8), {"from_n": from_n})


def plan(cells: Sequence[Cell], **given: Any) -> Plan:
    values: dict[str, Any] = {
        "measure": QUICK,
        "limits": Limits(cell_timeout_s=60.0),
        "device": "cpu",
        "threads": 1,
        "memory_limit": 2**30,
        "operators_from": ("tests.injected",),
        **given,
    }
    return Plan(cells=cells, **values)


@dataclass
class Silent:
    """Keeps what a runner says. begin: called as each visit begins, with the cell and the round."""

    begin: Callable[[Cell, int], None] = lambda cell, round: None
    told: list[str] = field(default_factory=list)
    stages: list[tuple[Stage, int | None, float | None]] = field(default_factory=list)
    looks: list[Reached] = field(default_factory=list)

    def planned(self, stage: Stage, visits: int | None, seconds: float | None) -> None:
        self.stages.append((stage, visits, seconds))

    def begun(self, cell: Cell, round: int) -> None:
        self.begin(cell, round)

    def ended(self, visit: Visit, seconds: float | None) -> None:
        self.told += visit.warnings

    def reached(self, reached: Reached) -> None:
        self.looks.append(reached)

    def message(self, text: str) -> None:
        self.told.append(text)


def without_forecast(patch: pytest.MonkeyPatch) -> None:
    """Nothing is said of a cell beforehand: the worker that does takes twice what one that measures takes to start."""
    patch.setattr(Workers, "forecast", lambda workers, cell, timeout: NOTHING_KNOWN)


def without_rates(patch: pytest.MonkeyPatch) -> None:
    """The hardware's rates are not measured, which takes as long as three workers take to start."""
    patch.setattr(open_run, "_rates", lambda plan: {})


LEAN = """
import sys
from unittest.mock import patch
from attnbench.__main__ import main
from attnbench.measure import open_run
from attnbench.measure.protocol import NOTHING_KNOWN
from attnbench.measure.worker_pool import Workers
"""
NO_RATES = 'patch.object(open_run, "_rates", lambda plan: {}).start()\n'
NO_FORECAST = 'patch.object(Workers, "forecast", lambda workers, cell, timeout: NOTHING_KNOWN).start()\n'
"""A name that is there no more is an error, by `patch`."""


def lean(*words: str | Path, rates: bool = False, forecast: bool = False) -> list[str]:
    """`attnbench WORDS` as a process that neither measures the hardware's rates nor foresees, if not wanted: one start
    in place of three, and no large products.
    """
    code = LEAN + ("" if rates else NO_RATES) + ("" if forecast else NO_FORECAST)
    return [sys.executable, "-c", f'{code}sys.argv[0] = "attnbench"\nmain()\n', *map(str, words)]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that several tests read, made by whichever of pytest's processes needs it first.

    Args:
        name: of the folder, the same in every process.
        make: fills the folder, which is there and empty.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            unfinished = folder.with_suffix(".unfinished")
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


def measured(folder: Path, what: Plan, progress: Silent | None = None, *, forecast: bool = False) -> Run:
    """A new run of a plan, finished and read back. forecast: whether its cells are foreseen."""
    opened = journal.create(folder, "name: made\n", {"device": "cpu"})
    try:
        with pytest.MonkeyPatch.context() as patch:
            if not forecast:
                without_forecast(patch)
            Runner(what, opened, progress or Silent()).run()
    finally:
        opened.close()
    return read_run(folder)
