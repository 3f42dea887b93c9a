"""A folder of run folders made by hand: the same suite on many days, with changes that are known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from attnbench.contract import CONTRACT
from attnbench.problem import Cell, Problem, columns_of
from attnbench.store.records import ENVIRONMENT, SUITE, Visit
from tests.stored import folder

OPERATORS = ("softmax", "performer", "linformer", "local", "rfa")
SIZES = (256, 512)
MACHINE = {"device": "cpu", "system": "Linux", "machine": "x86_64", "cpu": "made", "cores": 2, "threads": 1}

Factor = Callable[[int, Cell], float]
"""(day, cell) → what its time is multiplied by."""


def cells() -> list[Cell]:
    return [Cell(name, "reference", "core", "fwd", Problem(n, 64, 4), {}) for name in OPERATORS for n in SIZES]


def level(cell: Cell, _: int = 0) -> float:
    """N² of softmax, N of all others: they cross between the sizes."""
    n = cell.problem.seq_len
    return 1e-8 * n**2 if cell.operator == "softmax" else 3.6e-6 * n


def visits(day: int, factor: Factor, rng: np.random.Generator, flops: Factor | None = None) -> list[Visit]:
    """Of a day: a check, and three rounds by a process each."""
    common = {"device": "cpu", "threads": 1, "contract": f"{CONTRACT} rounds=3-3"}
    night, made = rng.normal(0, 0.1), []
    for order, cell in enumerate(cells()):
        counted = round(1e6 * cell.problem.seq_len * (flops(day, cell) if flops else 1))
        metrics = {"flops": counted, "peak_memory_bytes": 4096 * cell.problem.seq_len, "parameter_bytes": 0}
        made.append(
            Visit(cell.key, columns_of(cell), round=0, process=0, order=order, status="ok", metrics=metrics, **common)
        )
        luck = night + rng.normal(0, 0.01)
        for turn in (1, 2, 3):
            seconds = level(cell) * factor(day, cell) * math.exp(luck + rng.normal(0, 0.01))
            made.append(
                Visit(
                    cell.key,
                    columns_of(cell),
                    round=turn,
                    process=turn,
                    order=order,
                    status="ok",
                    metrics={"wall_time_s": seconds},
                    samples=5,
                    **common,
                )
            )
    return made


def store(path: Path, made: list[Visit], day: int, **facts: Any) -> Path:
    """A run folder of a day of 2026-09, with its environment."""
    folder(path, made)
    environment: Mapping[str, Any] = {
        **MACHINE, "torch": "2.13.0", "started": f"2026-09-{day + 1:02}T03:00:00+00:00", "commit": f"{day:040x}",
        "exact": ["softmax {}"], **facts,
    }  # fmt: skip
    (path / ENVIRONMENT).write_text(json.dumps(environment), encoding="utf-8")
    (path / SUITE).write_text("name: nightly\n", encoding="utf-8")
    return path


def nightly(
    root: Path, days: int, factor: Factor = lambda *_: 1.0, flops: Factor | None = None, seed: int = 0, **facts: Any
) -> Path:
    """A run folder for each day. facts: of every environment; a function of the day, or a value."""
    rng = np.random.default_rng(seed)
    for day in range(days):
        own = {name: value(day) if callable(value) else value for name, value in facts.items()}
        store(root / f"night-{day:02}", visits(day, factor, rng, flops), day, **own)
    return root
